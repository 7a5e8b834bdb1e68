"""Field selectors: `metadata.name=web,status.phase!=Running`, for the fields each kind supports.

The tables are those of the API server (the field label conversion functions of pkg/apis/*/v1). What a
kind does not list is refused, as there.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from podlane.errors import ApiError
from podlane.lab.client import Obj

_COMMON = ("metadata.name", "metadata.namespace")

_EVENTS = (
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
)

# storage name of the resource -> fields beyond name and namespace
SELECTABLE: dict[str, tuple[str, ...]] = {
    "pods": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ),
    "services": ("spec.clusterIP", "spec.type"),
    "nodes": ("spec.unschedulable",),
    "namespaces": ("status.phase",),
    "secrets": ("type",),
    "events": _EVENTS,
    "replicasets.apps": ("status.replicas",),
    "replicationcontrollers": ("status.replicas",),
    "jobs.batch": ("status.successful",),
}

_ALIASES = {
    "source": ("source.component", "reportingComponent"),
    "reportingComponent": ("reportingComponent", "source.component"),
    "status.successful": ("status.succeeded",),
}

_DEFAULTS = {
    "spec.unschedulable": "false",
    "spec.hostNetwork": "false",
    "status.replicas": "0",
    "status.successful": "0",
}


class FieldRequirement(NamedTuple):
    path: str
    equal: bool
    value: str


class FieldSelector(tuple[FieldRequirement, ...]):
    """All requirements must hold. Empty: everything."""

    __slots__ = ()

    def matches(self, obj: Obj) -> bool:
        return all((value_of(obj, r.path) == r.value) is r.equal for r in self)

    def exact(self, path: str) -> str | None:
        """The value a field must have, if one is given."""
        return next((r.value for r in self if r.path == path and r.equal), None)


EVERYTHING = FieldSelector()


def value_of(obj: Obj, path: str) -> str:
    """A field as selectors see it: text, "" when absent."""
    for candidate in _ALIASES.get(path, (path,)):
        found: Any = obj
        for part in candidate.split("."):
            found = found.get(part) if isinstance(found, dict) else None
            if found is None:
                break
        if found is not None and found != "":
            return _text(found)
    return _DEFAULTS.get(path, "")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(str(v.get("ip", "")) if isinstance(v, dict) else str(v) for v in value)
    return str(value)


_TERM = re.compile(r"(?P<path>(?:[^=!\\,]|\\.)+)(?P<operator>==|!=|=)(?P<value>(?:[^,\\=]|\\.)*)(?:,|$)")


def parse(text: str, resource: str, *, extra: tuple[str, ...] = ()) -> FieldSelector:
    """resource: storage name; extra: paths a custom resource made selectable. Raises ApiError(400)."""
    if not text:
        return EVERYTHING
    allowed = {*_COMMON, *SELECTABLE.get(resource, ()), *extra}
    found, position = [], 0
    while position < len(text):
        term = _TERM.match(text, position)
        if not term:
            raise bad(f"invalid selector: {text!r}; can't understand {text[position:]!r}")
        path = term["path"].strip()
        if path not in allowed:
            usable = ", ".join(sorted(allowed))
            raise bad(f'"{path}" is not a known field selector: only {usable} are supported')
        value = re.sub(r"\\(.)", r"\1", term["value"])
        found.append(FieldRequirement(path, term["operator"] != "!=", value))
        position = term.end()
    return FieldSelector(found)


def bad(message: str) -> ApiError:
    return ApiError(message, code=400, reason="BadRequest")


_FOOTPRINTS = {
    resource: tuple(tuple(c.split(".")) for path in paths for c in _ALIASES.get(path, (path,)))
    for resource, paths in SELECTABLE.items()
}


def footprint(resource: str, obj: Obj) -> Obj:
    """The part of a former state that selectors may ask about; small, for the event log."""
    metadata = obj["metadata"]
    kept: Obj = {"metadata": {k: metadata[k] for k in ("name", "namespace", "labels") if k in metadata}}
    for parts in _FOOTPRINTS.get(resource, ()):
        found: Any = obj
        for part in parts:
            found = found.get(part) if isinstance(found, dict) else None
        if found is not None and not isinstance(found, dict):
            target = kept
            for part in parts[:-1]:
                target = target.setdefault(part, {})
            target[parts[-1]] = found
    return kept
