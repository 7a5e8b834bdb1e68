"""Old API versions rewritten as current ones, each change with a note. Pure.

Tutorials live longer than API versions: extensions/v1beta1 was removed in Kubernetes 1.22, as were Ingresses
with serviceName and servicePort. Source: https://kubernetes.io/docs/reference/using-api/deprecation-guide/
and the conversion and default functions of those versions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from podlane.errors import ConfigError
from podlane.lab.client import Obj

Notes = list[str]


class Converted(NamedTuple):
    """notes: what changed, one line each; none when the object was current."""

    object: Obj
    notes: list[str]


def convert(obj: Obj) -> Converted:
    """obj in a current API version; obj itself when it is in one. obj is not changed.

    Raises ConfigError for a kind that no version of Kubernetes has any more.
    """
    key = obj["apiVersion"], obj["kind"]
    if key in _GONE:
        raise ConfigError(f"{key[0]} {key[1]} was removed from Kubernetes; {_GONE[key]}")
    rule = _RULES.get(key)
    if rule is None:
        return Converted(obj, [])
    version, *steps = rule
    new = copy.deepcopy(obj)
    notes: Notes = []
    if version != key[0]:
        new["apiVersion"] = version
        notes.append(f"apiVersion {key[0]} is now {version}")
    try:
        for step in steps:
            if isinstance(new.get("spec"), dict) or step in _ROOT_STEPS:
                step(new, notes)
    except (AttributeError, TypeError, KeyError):
        raise ConfigError(
            f"{key[0]} {key[1]} cannot be converted: a list or mapping stands where the kind has another"
        ) from None
    return Converted(new, notes) if notes else Converted(obj, [])


# --- workloads ------------------------------------------------------------------------------------


def _selector(obj: Obj, notes: Notes) -> None:
    """apps/v1 wants the selector said; it used to be the template's labels."""
    spec = obj["spec"]
    template = spec.get("template")
    labels = template.get("metadata", {}).get("labels") if isinstance(template, dict) else None
    if not spec.get("selector") and labels:
        spec["selector"] = {"matchLabels": dict(labels)}
        said = ", ".join(f"{k}={v}" for k, v in labels.items())
        notes.append(f"spec.selector was missing and is now the template's labels ({said})")


def _dropped(*fields: str) -> Callable[[Obj, Notes], None]:
    def drop(obj: Obj, notes: Notes) -> None:
        for field in fields:
            if obj["spec"].pop(field, None) is not None:
                notes.append(f"spec.{field} no longer exists and is left out")

    return drop


def _on_delete(obj: Obj, notes: Notes) -> None:
    """The old default of this version, which the current one would change silently."""
    strategy = obj["spec"].setdefault("updateStrategy", {})
    if not strategy.get("type"):
        strategy["type"] = "OnDelete"
        notes.append("spec.updateStrategy.type is now said: OnDelete, the default of the old version")


def _deployment_defaults(obj: Obj, notes: Notes) -> None:
    spec = obj["spec"]
    if spec.get("strategy", {}).get("type", "RollingUpdate") != "RollingUpdate":
        return
    rolling = spec.setdefault("strategy", {}).setdefault("rollingUpdate", {})
    missing = [f for f in ("maxSurge", "maxUnavailable") if rolling.get(f) is None]
    for field in missing:
        rolling[field] = 1
    if missing:
        notes.append(f"spec.strategy.rollingUpdate: {', '.join(missing)} 1, the default of the old version")


# --- ingress --------------------------------------------------------------------------------------


def _backend(backend: Any, path: str, notes: Notes) -> None:
    if not isinstance(backend, dict) or "serviceName" not in backend:
        return
    name, port = backend.pop("serviceName"), backend.pop("servicePort", None)
    service: dict[str, Any] = {"name": name}
    if port is not None:
        service["port"] = {"number": port} if isinstance(port, int) else {"name": port}
    backend["service"] = service
    notes.append(f"{path}: serviceName, servicePort are now service.name, service.port")


def _ingress(obj: Obj, notes: Notes) -> None:
    spec = obj["spec"]
    if "backend" in spec and "defaultBackend" not in spec:
        spec["defaultBackend"] = spec.pop("backend")
        notes.append("spec.backend is now spec.defaultBackend")
    _backend(spec.get("defaultBackend"), "spec.defaultBackend", notes)
    for i, rule in enumerate(spec.get("rules") or []):
        http = rule.get("http") if isinstance(rule, dict) else None
        for j, path in enumerate((http or {}).get("paths") or []):
            where = f"spec.rules[{i}].http.paths[{j}]"
            _backend(path.get("backend"), f"{where}.backend", notes)


def _path_types(obj: Obj, notes: Notes) -> None:
    """pathType was optional."""
    for i, rule in enumerate(obj["spec"].get("rules") or []):
        for j, path in enumerate(((rule or {}).get("http") or {}).get("paths") or []):
            if not path.get("pathType"):
                path["pathType"] = "ImplementationSpecific"
                notes.append(f"spec.rules[{i}].http.paths[{j}].pathType is now said: ImplementationSpecific")


# --- others ---------------------------------------------------------------------------------------


def _disruption_budget(obj: Obj, notes: Notes) -> None:
    if obj["spec"].get("selector") == {}:
        notes.append("spec.selector is empty: that selects every pod of the namespace now, and none before")


_ZONES = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")


def _endpoint_slice(obj: Obj, notes: Notes) -> None:
    for i, endpoint in enumerate(obj.get("endpoints") or []):
        topology = endpoint.pop("topology", None)
        if topology is None:
            continue
        node = topology.pop("kubernetes.io/hostname", None)
        if node and not endpoint.get("nodeName"):
            endpoint["nodeName"] = node
        for label in _ZONES:
            if zone := topology.pop(label, None):
                endpoint.setdefault("zone", zone)
        if topology:
            endpoint["deprecatedTopology"] = topology
        notes.append(f"endpoints[{i}].topology is now nodeName and zone")


def _definition(obj: Obj, notes: Notes) -> None:
    """apiextensions.k8s.io/v1beta1: what was said once is said for each version."""
    spec = obj["spec"]
    versions = spec.get("versions") or [{"name": spec.get("version"), "served": True, "storage": True}]
    spec.pop("version", None)
    schema = (spec.pop("validation", None) or {}).get("openAPIV3Schema")
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    columns = [
        {("jsonPath" if k == "JSONPath" else k): v for k, v in column.items()}
        for column in spec.pop("additionalPrinterColumns", None) or []
    ]
    subresources = spec.pop("subresources", None)
    for version in versions:
        version.setdefault("schema", {"openAPIV3Schema": schema or free})
        if columns:
            version.setdefault("additionalPrinterColumns", columns)
        if subresources:
            version.setdefault("subresources", subresources)
    spec["versions"] = versions
    spec.setdefault("scope", "Namespaced")
    if spec.pop("preserveUnknownFields", True) and schema:
        for version in versions:
            version["schema"]["openAPIV3Schema"].setdefault("x-kubernetes-preserve-unknown-fields", True)
    notes.append("spec.version, validation, subresources and printer columns are now those of spec.versions")


Step = Callable[[Obj, Notes], None]
_ROOT_STEPS: tuple[Step, ...] = (_endpoint_slice,)
_APPS = "apps/v1"
_NETWORKING = "networking.k8s.io/v1"
_RBAC = "rbac.authorization.k8s.io"

# (old apiVersion, kind) -> new apiVersion, then what changes beside it
_RULES: dict[tuple[str, str], tuple[Any, ...]] = {
    ("extensions/v1beta1", "Deployment"): (_APPS, _selector, _deployment_defaults, _dropped("rollbackTo")),
    ("extensions/v1beta1", "DaemonSet"): (_APPS, _selector, _on_delete, _dropped("templateGeneration")),
    ("extensions/v1beta1", "ReplicaSet"): (_APPS, _selector),
    ("extensions/v1beta1", "NetworkPolicy"): (_NETWORKING,),
    ("extensions/v1beta1", "Ingress"): (_NETWORKING, _ingress, _path_types),
    ("apps/v1beta1", "Deployment"): (_APPS, _selector, _dropped("rollbackTo")),
    ("apps/v1beta1", "StatefulSet"): (_APPS, _selector, _on_delete),
    ("apps/v1beta1", "ControllerRevision"): (_APPS,),
    ("apps/v1beta2", "Deployment"): (_APPS, _selector),
    ("apps/v1beta2", "DaemonSet"): (_APPS, _selector),
    ("apps/v1beta2", "ReplicaSet"): (_APPS, _selector),
    ("apps/v1beta2", "StatefulSet"): (_APPS, _selector),
    ("apps/v1beta2", "ControllerRevision"): (_APPS,),
    ("networking.k8s.io/v1beta1", "Ingress"): (_NETWORKING, _ingress, _path_types),
    ("networking.k8s.io/v1", "Ingress"): (_NETWORKING, _ingress),
    ("networking.k8s.io/v1beta1", "IngressClass"): (_NETWORKING,),
    ("networking.k8s.io/v1beta1", "ServiceCIDR"): (_NETWORKING,),
    ("networking.k8s.io/v1beta1", "IPAddress"): (_NETWORKING,),
    ("batch/v1beta1", "CronJob"): ("batch/v1",),
    ("batch/v2alpha1", "CronJob"): ("batch/v1",),
    ("policy/v1beta1", "PodDisruptionBudget"): ("policy/v1", _disruption_budget),
    ("discovery.k8s.io/v1beta1", "EndpointSlice"): ("discovery.k8s.io/v1", _endpoint_slice),
    ("autoscaling/v2beta2", "HorizontalPodAutoscaler"): ("autoscaling/v2",),
    ("scheduling.k8s.io/v1beta1", "PriorityClass"): ("scheduling.k8s.io/v1",),
    ("storage.k8s.io/v1beta1", "StorageClass"): ("storage.k8s.io/v1",),
    ("coordination.k8s.io/v1beta1", "Lease"): ("coordination.k8s.io/v1",),
    ("node.k8s.io/v1beta1", "RuntimeClass"): ("node.k8s.io/v1",),
    ("apiextensions.k8s.io/v1beta1", "CustomResourceDefinition"): ("apiextensions.k8s.io/v1", _definition),
    **{
        (f"{_RBAC}/{version}", kind): (f"{_RBAC}/v1",)
        for version in ("v1alpha1", "v1beta1")
        for kind in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    },
}

_GONE = {
    ("policy/v1beta1", "PodSecurityPolicy"): "use the namespace labels of Pod Security Admission",
    ("extensions/v1beta1", "PodSecurityPolicy"): "use the namespace labels of Pod Security Admission",
    ("autoscaling/v2beta1", "HorizontalPodAutoscaler"): "write it as autoscaling/v2",
}
