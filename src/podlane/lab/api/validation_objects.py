"""Metadata, selectors, and the kinds with little to say: pkg/apis/core/validation and others. Pure."""

from __future__ import annotations

from typing import Any

from podlane.lab.api import validation_field as field
from podlane.lab.api import validation_names as names
from podlane.lab.api.validation_rules import (
    Errors,
    Rule,
    annotation_map,
    at_least,
    each,
    immutable,
    join,
    labels,
    one_of,
    text,
)
from podlane.lab.client import Obj

CORE = "io.k8s.api.core.v1."
META = "io.k8s.apimachinery.pkg.apis.meta.v1."
RBAC = "io.k8s.api.rbac.v1."
MAX_DATA_BYTES = 1 << 20


def selector_requirement(value: dict[str, Any], path: str) -> Errors:
    operator, given = value.get("operator", ""), value.get("values", [])
    here = join(path, "values")
    if operator in ("In", "NotIn"):
        if not given:
            yield field.required(here, "must be specified when `operator` is 'In' or 'NotIn'")
    elif operator in ("Exists", "DoesNotExist"):
        if given:
            why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            yield field.forbidden(here, why)
    else:
        yield field.invalid(join(path, "operator"), operator, "not a valid selector operator")


def owners(value: Any, path: str) -> Errors:
    managers = []
    for i, owner in enumerate(value):
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                yield field.invalid(f"{path}[{i}].{key}", owner.get(key, ""), f"{key} must not be empty")
        if owner.get("controller"):
            managers.append(owner.get("name"))
    if len(managers) > 1:
        first, second = managers[:2]
        why = (
            "Only one reference can have Controller set to true. "
            f'Found "true" in references for {first} and {second}'
        )
        yield field.invalid(path, value, why)


def finalizers(value: Any, path: str) -> Errors:
    for item in value:
        wrong = list(names.qualified_name(item))
        yield from (field.invalid(path, item, why) for why in wrong)


# --- ConfigMap, Secret ----------------------------------------------------------------------------


def _keys(value: Any, path: str) -> Errors:
    for key in value:
        for why in names.config_key(key):
            yield field.invalid(f"{path}[{key}]", key, why)


def _size(obj: Obj) -> int:
    parts = {**obj.get("data", {}), **obj.get("binaryData", {})}
    return sum(len(v.encode()) for v in parts.values())


def config_map(obj: Obj, path: str) -> Errors:
    both = obj.get("data", {}).keys() & obj.get("binaryData", {}).keys()
    for key in sorted(both):
        yield field.invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
    if _size(obj) > MAX_DATA_BYTES:
        yield field.too_long("data", MAX_DATA_BYTES)


# type -> keys that must be there
_SECRET_KEYS = {
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
}


def secret(obj: Obj, path: str) -> Errors:
    data = obj.get("data", {})
    if _size(obj) * 3 // 4 > MAX_DATA_BYTES:  # base64
        yield field.too_long("data", MAX_DATA_BYTES)
    for key in _SECRET_KEYS.get(obj.get("type", ""), ()):
        if key not in data:
            yield field.required(f"data[{key}]")
    if obj.get("type") == "kubernetes.io/basic-auth" and not data.keys() & {"username", "password"}:
        yield field.required("data[username]")
    account = obj["metadata"].get("annotations", {}).get("kubernetes.io/service-account.name")
    if obj.get("type") == "kubernetes.io/service-account-token" and not account:
        yield field.required("metadata.annotations[kubernetes.io/service-account.name]")


def data_update(new: Obj, old: Obj) -> Errors:
    if old.get("immutable"):
        if not new.get("immutable"):
            yield field.forbidden("immutable", "field is immutable when `immutable` is set")
        for key in ("data", "binaryData"):
            if new.get(key) != old.get(key):
                yield field.forbidden(key, "field is immutable when `immutable` is set")


def secret_update(new: Obj, old: Obj) -> Errors:
    yield from immutable(new.get("type"), old.get("type"), "type")
    yield from data_update(new, old)


# --- Node, volumes, policies ----------------------------------------------------------------------


def node_update(new: Obj, old: Obj) -> Errors:
    """Pod CIDRs are given once."""
    after, before = new.get("spec", {}), old.get("spec", {})
    if before.get("podCIDRs") and after.get("podCIDRs") != before["podCIDRs"]:
        yield field.forbidden("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid')
    if before.get("providerID") and after.get("providerID") != before["providerID"]:
        yield field.forbidden(
            "spec.providerID", 'node updates may not change providerID except from "" to valid'
        )


def pod_cidrs(value: Any, path: str) -> Errors:
    yield from each(text(names.cidr))(value, path)
    versions = [n.version for n in map(names.network, value) if n is not None]
    if len(value) > 2 or len(set(versions)) < len(versions):
        yield field.invalid(path, value, "may specify no more than one CIDR for each IP family")


def disruption_budget(spec: dict[str, Any], path: str) -> Errors:
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        yield field.invalid(path, spec, "minAvailable and maxUnavailable cannot be both set")


def role_ref_update(new: Obj, old: Obj) -> Errors:
    if new.get("roleRef") != old.get("roleRef"):
        yield field.invalid("roleRef", new.get("roleRef"), "cannot change roleRef")


def role_ref(value: Any, path: str) -> Errors:
    if value.get("kind") not in ("ClusterRole", "Role"):
        yield field.not_supported(join(path, "kind"), value.get("kind", ""), ["ClusterRole", "Role"])
    if not value.get("name"):
        yield field.required(join(path, "name"))


def claim_spec(spec: dict[str, Any], path: str) -> Errors:
    if not spec.get("accessModes"):
        yield field.required(join(path, "accessModes"), "at least 1 access mode is required")
    if "storage" not in (spec.get("resources") or {}).get("requests", {}):
        yield field.required(join(path, "resources[storage]"))


# --- tables ---------------------------------------------------------------------------------------

_positive = at_least(1, "must be greater than or equal to 1")

RULES: dict[str, dict[str, Rule]] = {
    META + "ObjectMeta": {
        "labels": labels,
        "annotations": annotation_map,
        "ownerReferences": owners,
        "finalizers": finalizers,
    },
    META + "LabelSelector": {"matchLabels": labels},
    META + "LabelSelectorRequirement": {
        "key": text(names.qualified_name),
        "values": each(text(names.label_value)),
    },
    CORE + "ConfigMap": {"data": _keys, "binaryData": _keys},
    CORE + "Secret": {"data": _keys},
    CORE + "NodeSpec": {"podCIDRs": pod_cidrs},
    CORE + "Taint": {
        "key": text(names.qualified_name),
        "value": text(names.label_value),
        "effect": one_of("NoExecute", "NoSchedule", "PreferNoSchedule"),
    },
    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec": {
        "maxReplicas": at_least(1, "must be greater than 0"),
        "minReplicas": _positive,
    },
    RBAC + "RoleBinding": {"roleRef": role_ref},
    RBAC + "ClusterRoleBinding": {"roleRef": role_ref},
    RBAC + "Subject": {"kind": one_of("Group", "ServiceAccount", "User")},
}

REQUIRED: dict[str, dict[str, str]] = {
    META + "LabelSelectorRequirement": {"key": ""},
    CORE + "Taint": {"key": "", "effect": ""},
    RBAC + "RoleBinding": {"roleRef": ""},
    RBAC + "ClusterRoleBinding": {"roleRef": ""},
    RBAC + "Subject": {"name": "", "kind": ""},
    RBAC + "PolicyRule": {"verbs": "verbs must contain at least one value"},
    "io.k8s.api.storage.v1.StorageClass": {"provisioner": ""},
    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec": {"scaleTargetRef": ""},
}

CHECKS = {
    META + "LabelSelectorRequirement": selector_requirement,
    CORE + "ConfigMap": config_map,
    CORE + "Secret": secret,
    CORE + "PersistentVolumeClaimSpec": claim_spec,
    "io.k8s.api.policy.v1.PodDisruptionBudgetSpec": disruption_budget,
}
