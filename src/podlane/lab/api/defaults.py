"""What the API server fills in: `apply` sets the defaults of an object that was just decoded.

A field's plain default comes with its type (schema.Field.default, generated). What depends on other
fields is a function here, one a type, named as in Kubernetes: SetDefaults_X of pkg/apis/*/v1/defaults.go.
A type's function runs before its fields get their defaults, so it sees what the user left out.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from podlane.lab.api import schema
from podlane.lab.api.schema import Type
from podlane.lab.client import Obj

Setter = Callable[[dict[str, Any]], None]

_CORE = "io.k8s.api.core.v1."
_APPS = "io.k8s.api.apps.v1."
_RBAC = "rbac.authorization.k8s.io"


def apply(obj: Obj) -> None:
    """In place. obj names its apiVersion and kind; kinds without a built-in schema have none of these."""
    name = schema.type_name(obj.get("apiVersion", ""), obj.get("kind", ""))
    if name is not None:
        _fill(obj, name, schema.type_named(name), root=obj["kind"])


def _fill(value: dict[str, Any], name: str, kind: Type, root: str) -> None:
    setter = _SETTERS.get(name)
    if setter is not None:
        setter(value)
    plain = _ONLY_OF.get(name, root) == root
    for key, field in kind.fields.items():
        present = value.get(key)
        if plain and field.default is not None and (present is None or present == ""):
            present = value[key] = field.default if field.default != {} else {}
        if not present and present != {}:
            continue
        if field.form == "ref":
            _fill(present, str(field.of), schema.type_named(str(field.of)), root)
        elif (child := field.child) is not None:
            elements = present if field.form == "list" else present.values()
            for element in elements:
                if isinstance(element, dict):
                    _fill(element, str(field.element.of), child, root)


# Defaults a type has in one kind only: SetDefaults_Job does not run for a CronJob's template.
_ONLY_OF = {"io.k8s.api.batch.v1.JobSpec": "Job"}


# --- core/v1 --------------------------------------------------------------------------------------


def _container(container: dict[str, Any]) -> None:
    """imagePullPolicy: Always for :latest and for no tag, else IfNotPresent (a digest is a tag here)."""
    container.setdefault("resources", {})
    if not container.get("imagePullPolicy"):
        image = container.get("image") or ""
        _, at, digest = image.partition("@")
        _, colon, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
        latest = tag == "latest" or (not colon and not (at and digest))
        container["imagePullPolicy"] = "Always" if latest else "IfNotPresent"


def _probe(probe: dict[str, Any]) -> None:
    for key in ("timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        if probe.get(key) == 0:
            del probe[key]


_NOT_SOURCES = {"name"}


def _volume(volume: dict[str, Any]) -> None:
    if not volume.keys() - _NOT_SOURCES:
        volume["emptyDir"] = {}


def _pod_spec(spec: dict[str, Any]) -> None:
    """serviceAccount is the old name of serviceAccountName; both are shown."""
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account


def _pod(pod: dict[str, Any]) -> None:
    """SetDefaults_Pod: only pods, not templates."""
    spec = pod.setdefault("spec", {})
    if spec.get("enableServiceLinks") is None:
        spec["enableServiceLinks"] = True
    for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
        resources = container.get("resources") or {}
        if limits := resources.get("limits"):
            container["resources"]["requests"] = {**limits, **resources.get("requests", {})}
        if spec.get("hostNetwork"):
            for port in container.get("ports", ()):
                if not port.get("hostPort"):
                    port["hostPort"] = port.get("containerPort", 0)


_EXPOSED = ("NodePort", "LoadBalancer")


def _service_spec(spec: dict[str, Any]) -> None:
    kind = spec.get("type") or "ClusterIP"
    if (spec.get("sessionAffinity") or "None") == "None":
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        client_ip = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
        client_ip.setdefault("timeoutSeconds", 10800)
    for port in spec.get("ports", ()):
        if port.get("targetPort") in (None, "", 0):
            port["targetPort"] = port.get("port", 0)
    if kind in _EXPOSED and not spec.get("externalTrafficPolicy"):
        spec["externalTrafficPolicy"] = "Cluster"
    if kind in (*_EXPOSED, "ClusterIP") and not spec.get("internalTrafficPolicy"):
        spec["internalTrafficPolicy"] = "Cluster"
    if kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is None:
        spec["allocateLoadBalancerNodePorts"] = True


def _load_balancer_ingress(ingress: dict[str, Any]) -> None:
    if ingress.get("ip") and ingress.get("ipMode") is None:
        ingress["ipMode"] = "VIP"


def _namespace(namespace: dict[str, Any]) -> None:
    metadata = namespace.setdefault("metadata", {})
    if name := metadata.get("name"):
        metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = name
    namespace.setdefault("status", {})


def _secret(secret: dict[str, Any]) -> None:
    """stringData is written only: it ends in data."""
    for key, text in secret.pop("stringData", {}).items():
        secret.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()


def _replication_controller(obj: dict[str, Any]) -> None:
    spec = obj.setdefault("spec", {})
    labels = spec.get("template", {}).get("metadata", {}).get("labels")
    if labels:
        if not spec.get("selector"):
            spec["selector"] = dict(labels)
        _labels_of_template(obj, labels)


def _labels_of_template(obj: dict[str, Any], labels: dict[str, str]) -> None:
    metadata = obj.setdefault("metadata", {})
    if not metadata.get("labels"):
        metadata["labels"] = dict(labels)


def _persistent_volume_claim(claim: dict[str, Any]) -> None:
    claim.setdefault("status", {}).setdefault("phase", "Pending")


def _node_status(status: dict[str, Any]) -> None:
    if status.get("capacity") and status.get("allocatable") is None:
        status["allocatable"] = dict(status["capacity"])


# --- apps/v1, batch/v1, autoscaling/v2 ------------------------------------------------------------


def _rolling(strategy: dict[str, Any]) -> None:
    if (strategy.get("type") or "RollingUpdate") == "RollingUpdate":
        strategy.setdefault("rollingUpdate", {})


def _rolling_stateful(strategy: dict[str, Any]) -> None:
    if not strategy.get("type"):
        strategy.setdefault("rollingUpdate", {})


def _job(job: dict[str, Any]) -> None:
    spec = job.setdefault("spec", {})
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    if spec.get("parallelism") is None:
        spec["parallelism"] = 1
    if spec.get("backoffLimit") is None and spec.get("backoffLimitPerIndex") is not None:
        spec["backoffLimit"] = (1 << 31) - 1
    if not spec.get("podReplacementPolicy"):
        spec["podReplacementPolicy"] = "Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed"
    if labels := spec.get("template", {}).get("metadata", {}).get("labels"):
        _labels_of_template(job, labels)


def _autoscaler_spec(spec: dict[str, Any]) -> None:
    if not spec.get("metrics"):
        target = {"type": "Utilization", "averageUtilization": 80}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]


# --- networking.k8s.io/v1, rbac, apiextensions ----------------------------------------------------


def _network_policy_spec(spec: dict[str, Any]) -> None:
    """policyTypes: Ingress, and Egress if there are egress rules (`egress: []` is none)."""
    spec.setdefault("podSelector", {})
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]


def _role_binding(binding: dict[str, Any]) -> None:
    role = binding.get("roleRef")
    if role is not None and not role.get("apiGroup"):
        role["apiGroup"] = _RBAC


def _subject(subject: dict[str, Any]) -> None:
    if subject.get("kind") in ("User", "Group") and not subject.get("apiGroup"):
        subject["apiGroup"] = _RBAC


def _custom_resource_definition_spec(spec: dict[str, Any]) -> None:
    names = spec.setdefault("names", {})
    if kind := names.get("kind"):
        if not names.get("singular"):
            names["singular"] = kind.lower()
        if not names.get("listKind"):
            names["listKind"] = f"{kind}List"
    spec.setdefault("conversion", {"strategy": "None"})


def own_pods(job: Obj) -> None:
    """A new Job, which has its uid, selects its own pods (pkg/registry/batch/job/strategy.go). In place."""
    spec, meta = job.setdefault("spec", {}), job["metadata"]
    if spec.get("manualSelector"):
        return
    uid, name = meta["uid"], meta["name"]
    template_meta = spec.setdefault("template", {}).setdefault("metadata", {})
    for prefix in ("batch.kubernetes.io/", ""):  # the unprefixed ones are older, and still set
        template_meta.setdefault("labels", {}).update(
            {f"{prefix}controller-uid": uid, f"{prefix}job-name": name}
        )
    spec.setdefault("selector", {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}})


_SETTERS: dict[str, Setter] = {
    _CORE + "Container": _container,
    _CORE + "EphemeralContainer": _container,
    _CORE + "Probe": _probe,
    _CORE + "Volume": _volume,
    _CORE + "PodSpec": _pod_spec,
    _CORE + "Pod": _pod,
    _CORE + "ServiceSpec": _service_spec,
    _CORE + "LoadBalancerIngress": _load_balancer_ingress,
    _CORE + "Namespace": _namespace,
    _CORE + "Secret": _secret,
    _CORE + "ReplicationController": _replication_controller,
    _CORE + "PersistentVolumeClaim": _persistent_volume_claim,
    _CORE + "NodeStatus": _node_status,
    _APPS + "DeploymentStrategy": _rolling,
    _APPS + "DaemonSetUpdateStrategy": _rolling,
    _APPS + "StatefulSetUpdateStrategy": _rolling_stateful,
    "io.k8s.api.batch.v1.Job": _job,
    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec": _autoscaler_spec,
    "io.k8s.api.networking.v1.NetworkPolicySpec": _network_policy_spec,
    "io.k8s.api.rbac.v1.RoleBinding": _role_binding,
    "io.k8s.api.rbac.v1.ClusterRoleBinding": _role_binding,
    "io.k8s.api.rbac.v1.Subject": _subject,
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionSpec": (
        _custom_resource_definition_spec
    ),
}
