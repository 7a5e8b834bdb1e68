"""Is an object one the API server would take? An object is walked along its type; each type has rules.

    RULES     type -> field -> what its value must be
    REQUIRED  type -> field -> detail of "Required value" when it is missing or empty
    CHECKS    type -> what its fields must be to each other
    NAMES     kind -> form of metadata.name
    UPDATES   kind -> what may not change

Objects were decoded (validation_decode) and defaulted before. Everything here is pure; the API server's
answer is made of the errors by validation_field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from podlane.lab.api import (
    schema,
    validation_containers,
    validation_network,
    validation_objects,
    validation_pod,
    validation_service,
    validation_workloads,
)
from podlane.lab.api import validation_field as field
from podlane.lab.api import validation_names as names
from podlane.lab.api.schema import Type
from podlane.lab.api.validation_field import FieldError
from podlane.lab.api.validation_names import Check
from podlane.lab.api.validation_rules import Errors, Rule, join
from podlane.lab.client import Obj

_PARTS = (
    validation_objects,
    validation_containers,
    validation_pod,
    validation_service,
    validation_network,
    validation_workloads,
)


def _merged(table: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in _PARTS:
        found: dict[str, Any] = getattr(part, table)
        assert not merged.keys() & found.keys(), "a type has its rules in one module"
        merged |= found
    return merged


RULES: dict[str, dict[str, Rule]] = _merged("RULES")
REQUIRED: dict[str, dict[str, str]] = _merged("REQUIRED")
CHECKS: dict[str, Callable[[dict[str, Any], str], Errors]] = _merged("CHECKS")


def _cron_job(value: str) -> Any:
    yield from names.dns_subdomain(value)
    if len(value) > 52:
        yield "must be no more than 52 characters"


NAMES: dict[str, Check] = {
    "Namespace": names.dns_label,
    # KEP-5311: names of Services may begin with a digit.
    "Service": names.dns_label,
    "CronJob": _cron_job,
    "IPAddress": names.canonical_ip,
    **dict.fromkeys(("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"), names.path_segment),
}

UPDATES: dict[str, Callable[[Obj, Obj], Errors]] = {
    "Pod": validation_pod.pod_update,
    "Service": validation_service.service_update,
    "EndpointSlice": validation_service.endpoint_slice_update,
    "Deployment": validation_workloads.selector_update,
    "ReplicaSet": validation_workloads.selector_update,
    "DaemonSet": validation_workloads.selector_update,
    "StatefulSet": validation_workloads.stateful_set_update,
    "Job": validation_workloads.job_update,
    "ServiceCIDR": validation_network.service_cidr_update,
    "IPAddress": validation_network.ip_address_update,
    "ConfigMap": validation_objects.data_update,
    "Secret": validation_objects.secret_update,
    "Node": validation_objects.node_update,
    "RoleBinding": validation_objects.role_ref_update,
    "ClusterRoleBinding": validation_objects.role_ref_update,
}

# Kinds that are useless without a spec.
_SPEC = frozenset(
    [
        "Deployment",
        "ReplicaSet",
        "DaemonSet",
        "StatefulSet",
        "Job",
        "CronJob",
        "ReplicationController",
        "Pod",
        "Service",
        "Ingress",
        "ServiceCIDR",
        "IPAddress",
        "PersistentVolumeClaim",
    ]
)


def validate_create(obj: Obj) -> list[FieldError]:
    """What is wrong with a new object; nothing for kinds without a built-in schema but its name."""
    return [*_name(obj), *_object(obj)]


def validate_update(new: Obj, old: Obj, subresource: str = "") -> list[FieldError]:
    """What is wrong with a changed object. Errors that the old object had already, at the same path, stay."""
    if subresource == "status":
        return [*_status(new)]
    errors = _object(new)
    if errors:
        known = {(e.path, e.message) for e in _object(old)}
        errors = [e for e in errors if (e.path, e.message) not in known]
    check = UPDATES.get(new.get("kind", ""))
    # Subresources (binding, ephemeralcontainers, resize) are the ways to change what updates may not.
    if check is not None and not subresource:
        errors += check(new, old)
    return errors


def validate_name(kind: str, name: str) -> list[FieldError]:
    check = NAMES.get(kind, names.dns_subdomain)
    return [field.invalid("metadata.name", name, why) for why in check(name)]


def _name(obj: Obj) -> list[FieldError]:
    return validate_name(obj.get("kind", ""), obj.get("metadata", {}).get("name", ""))


def _object(obj: Obj) -> list[FieldError]:
    kind = obj.get("kind", "")
    errors: list[FieldError] = []
    name = schema.type_name(obj.get("apiVersion", ""), kind)
    if name is None:
        meta = schema.type_named(validation_objects.META + "ObjectMeta")
        _walk(obj.get("metadata", {}), validation_objects.META + "ObjectMeta", meta, "metadata", errors)
        return errors
    if kind in _SPEC and not obj.get("spec"):
        obj = {**obj, "spec": {}}
    _walk(obj, name, schema.type_named(name), "", errors, skip="status")
    return errors


def _status(obj: Obj) -> list[FieldError]:
    """Status is written by our own controllers and kubelets: only its parts with rules are looked at."""
    name = schema.type_name(obj.get("apiVersion", ""), obj.get("kind", ""))
    errors: list[FieldError] = []
    kind = schema.type_named(name) if name is not None else None
    part = kind.fields.get("status") if kind is not None else None
    if part is not None and part.child is not None and obj.get("status"):
        _walk(obj["status"], str(part.of), part.child, "status", errors)
    return errors


def _walk(
    value: dict[str, Any], name: str, kind: Type, path: str, errors: list[FieldError], skip: str = ""
) -> None:
    missing = REQUIRED.get(name)
    if missing is not None:
        for key, detail in missing.items():
            if value.get(key) in (None, "", [], 0) and not isinstance(value.get(key), bool):
                errors.append(field.required(join(path, key), detail))
    rules = RULES.get(name)
    for key, item in value.items():
        if item is None or key == skip:
            continue
        here = f"{path}.{key}" if path else key
        rule = rules.get(key) if rules is not None else None
        told = missing is not None and key in missing and item == 0
        if rule is not None and item != "" and not told:
            errors.extend(rule(item, here))
        known = kind.fields.get(key)
        if known is None or (child := known.child) is None:
            continue
        if known.form == "ref":
            _walk(item, str(known.of), child, here, errors)
        elif known.form == "list":
            of = str(known.element.of)
            for i, element in enumerate(item):
                _walk(element, of, child, f"{here}[{i}]", errors)
    check = CHECKS.get(name)
    if check is not None:
        errors.extend(check(value, path))
