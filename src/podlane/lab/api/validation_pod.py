"""PodSpec: volumes, scheduling, DNS, and what of a pod may change. pkg/apis/core/validation. Pure."""

from __future__ import annotations

from typing import Any

from podlane.lab.api import validation_field as field
from podlane.lab.api import validation_names as names
from podlane.lab.api.validation_containers import CORE, containers, relative_path
from podlane.lab.api.validation_rules import (
    Errors,
    Rule,
    at_least,
    between,
    each,
    exactly_one,
    file_mode,
    join,
    labels,
    not_negative,
    one_of,
    text,
    unique,
)
from podlane.lab.client import Obj

_SOURCES_NAMED = {"name"}
_OPERATORS = ("DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn")


def pod_spec(spec: dict[str, Any], path: str) -> Errors:
    yield from containers(spec, path)
    config = spec.get("dnsConfig") or {}
    servers = config.get("nameservers", [])
    if spec.get("dnsPolicy") == "None" and not servers:
        why = "must provide at least one DNS nameserver when `dnsPolicy` is None"
        yield field.required(join(path, "dnsConfig.nameservers"), why)
    if len(servers) > 3:
        why = "must not have more than 3 nameservers"
        yield field.invalid(join(path, "dnsConfig.nameservers"), servers, why)


def volume(value: dict[str, Any], path: str) -> Errors:
    sources = sorted(value.keys() - _SOURCES_NAMED)
    many = "may not specify more than 1 volume type"
    yield from exactly_one(value, path, sources, "must specify a volume type", many)


def projection(value: dict[str, Any], path: str) -> Errors:
    many = "may not specify more than 1 volume type"
    yield from exactly_one(value, path, sorted(value), "must specify a projection", many)


def downward_file(value: dict[str, Any], path: str) -> Errors:
    missing = "one of fieldRef and resourceFieldRef is required"
    many = "fieldRef and resourceFieldRef can not be specified simultaneously"
    found = [k for k in ("fieldRef", "resourceFieldRef") if value.get(k) is not None]
    if len(found) != 1:
        yield field.invalid(path, "resource", many) if found else field.required(path, missing)


def toleration(value: dict[str, Any], path: str) -> Errors:
    operator = value.get("operator") or "Equal"
    if not value.get("key") and operator != "Exists":
        why = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
        yield field.invalid(join(path, "operator"), operator, why)
    if operator == "Exists" and value.get("value"):
        yield field.invalid(join(path, "operator"), value, "value must be empty when `operator` is 'Exists'")
    if value.get("tolerationSeconds") is not None and value.get("effect") != "NoExecute":
        why = "effect must be 'NoExecute' when `tolerationSeconds` is set"
        yield field.invalid(join(path, "effect"), value.get("effect", ""), why)


def node_requirement(value: dict[str, Any], path: str) -> Errors:
    operator, given = value.get("operator"), value.get("values", [])
    here = join(path, "values")
    if operator in ("In", "NotIn") and not given:
        yield field.required(here, "must be specified when `operator` is 'In' or 'NotIn'")
    elif operator in ("Exists", "DoesNotExist") and given:
        yield field.forbidden(here, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
    elif operator in ("Gt", "Lt") and len(given) != 1:
        yield field.required(here, "must be specified single value when `operator` is 'Lt' or 'Gt'")
    elif operator not in _OPERATORS:
        yield field.invalid(join(path, "operator"), operator or "", "not a valid selector operator")


RULES: dict[str, dict[str, Rule]] = {
    CORE + "PodSpec": {
        "restartPolicy": one_of("Always", "Never", "OnFailure"),
        "dnsPolicy": one_of("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
        "terminationGracePeriodSeconds": not_negative,
        "activeDeadlineSeconds": between(1, (1 << 31) - 1),
        "hostname": text(names.dns_label),
        "subdomain": text(names.dns_label),
        "nodeName": text(names.dns_subdomain),
        "serviceAccountName": text(names.dns_subdomain),
        "schedulerName": text(names.dns_subdomain),
        "priorityClassName": text(names.dns_subdomain),
        "nodeSelector": labels,
        "volumes": unique("name"),
        "preemptionPolicy": one_of("Never", "PreemptLowerPriority"),
    },
    CORE + "PodDNSConfig": {"nameservers": each(text(names.ip))},
    CORE + "HostAlias": {"ip": text(names.ip), "hostnames": each(text(names.dns_subdomain))},
    CORE + "Volume": {"name": text(names.dns_label)},
    CORE + "ConfigMapVolumeSource": {"defaultMode": file_mode},
    CORE + "SecretVolumeSource": {"defaultMode": file_mode},
    CORE + "ProjectedVolumeSource": {"defaultMode": file_mode},
    CORE + "DownwardAPIVolumeSource": {"defaultMode": file_mode},
    CORE + "DownwardAPIVolumeFile": {"path": relative_path, "mode": file_mode},
    CORE + "EmptyDirVolumeSource": {
        "medium": lambda v, p: (
            one_of("", "Memory", "HugePages")(v, p) if not v.startswith("HugePages") else iter(())
        )
    },
    CORE + "ServiceAccountTokenProjection": {
        "expirationSeconds": at_least(600, "may not specify a duration less than 10 minutes"),
        "path": relative_path,
    },
    CORE + "Toleration": {
        "key": text(names.qualified_name),
        "operator": one_of("Equal", "Exists"),
        "effect": one_of("NoExecute", "NoSchedule", "PreferNoSchedule"),
    },
    CORE + "NodeSelectorRequirement": {"key": text(names.qualified_name)},
    CORE + "WeightedPodAffinityTerm": {"weight": between(1, 100, "must be in the range 1-100")},
    CORE + "PreferredSchedulingTerm": {"weight": between(1, 100, "must be in the range 1-100")},
    CORE + "TopologySpreadConstraint": {
        "maxSkew": at_least(1, "must be greater than zero"),
        "minDomains": at_least(1, "must be greater than zero"),
        "topologyKey": text(names.qualified_name),
        "whenUnsatisfiable": one_of("DoNotSchedule", "ScheduleAnyway"),
    },
    CORE + "PodAffinityTerm": {"topologyKey": text(names.qualified_name)},
    CORE + "PodReadinessGate": {"conditionType": text(names.qualified_name)},
    CORE + "PodSchedulingGate": {"name": text(names.qualified_name)},
}

REQUIRED: dict[str, dict[str, str]] = {
    CORE + "PodSpec": {"containers": "", "restartPolicy": "", "dnsPolicy": ""},
    CORE + "Volume": {"name": ""},
    CORE + "ConfigMapVolumeSource": {"name": ""},
    CORE + "SecretVolumeSource": {"secretName": ""},
    CORE + "HostPathVolumeSource": {"path": ""},
    CORE + "NFSVolumeSource": {"server": "", "path": ""},
    CORE + "PersistentVolumeClaimVolumeSource": {"claimName": ""},
    CORE + "DownwardAPIVolumeFile": {"path": ""},
    CORE + "ServiceAccountTokenProjection": {"path": ""},
    CORE + "ConfigMapProjection": {"name": ""},
    CORE + "SecretProjection": {"name": ""},
    CORE + "NodeSelector": {"nodeSelectorTerms": "must have at least one node selector term"},
    CORE + "PodAffinityTerm": {"topologyKey": "can not be empty"},
    CORE + "TopologySpreadConstraint": {
        "maxSkew": "",
        "topologyKey": "can not be empty",
        "whenUnsatisfiable": "",
    },
}

CHECKS = {
    CORE + "PodSpec": pod_spec,
    CORE + "Volume": volume,
    CORE + "VolumeProjection": projection,
    CORE + "DownwardAPIVolumeFile": downward_file,
    CORE + "Toleration": toleration,
    CORE + "NodeSelectorRequirement": node_requirement,
}

# --- updates --------------------------------------------------------------------------------------

_MAY_CHANGE = (
    "pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to "
    "existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
    "previously negative)"
)


def pod_update(new: Obj, old: Obj) -> Errors:
    """Only images, a shorter deadline, more tolerations, and gates that are lifted."""
    after, before = dict(new.get("spec", {})), dict(old.get("spec", {}))
    for group in ("containers", "initContainers"):
        found, known = after.get(group, []), before.get(group, [])
        if len(found) != len(known):
            why = "pod updates may not add or remove containers"
            yield field.forbidden(f"spec.{group}", why)
            return
        after[group] = [{**c, "image": ""} for c in found]
        before[group] = [{**c, "image": ""} for c in known]
    deadline, earlier = after.pop("activeDeadlineSeconds", None), before.pop("activeDeadlineSeconds", None)
    if earlier is not None and (deadline is None or deadline > earlier):
        why = "must not update from a positive integer to nil value"
        if deadline is not None:
            why = "must be less than or equal to previous value"
        yield field.invalid("spec.activeDeadlineSeconds", deadline, why)
    tolerations, known_tolerations = after.pop("tolerations", []), before.pop("tolerations", [])
    if any(t not in tolerations for t in known_tolerations):
        why = "existing toleration can not be modified except its tolerationSeconds"
        kept = [{**t, "tolerationSeconds": None} for t in tolerations]
        if any({**t, "tolerationSeconds": None} not in kept for t in known_tolerations):
            yield field.forbidden("spec.tolerations", why)
    gates, known_gates = after.pop("schedulingGates", []), before.pop("schedulingGates", [])
    if any(g not in known_gates for g in gates):
        yield field.forbidden(
            "spec.schedulingGates", "only deletion is allowed, but found new scheduling gate"
        )
    if known_gates:  # a pod that waits may be told more closely where to go
        for spec in (after, before):
            spec.pop("nodeSelector", None)
            spec.pop("affinity", None)
    changed = sorted(k for k in after.keys() | before.keys() if after.get(k) != before.get(k))
    if changed:
        yield field.forbidden("spec", f"{_MAY_CHANGE}; changed: {', '.join(changed)}")
