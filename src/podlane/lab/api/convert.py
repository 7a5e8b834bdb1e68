"""Objects of one resource under two versions: Events of two groups, autoscaling v1 and v2, custom ones."""

from __future__ import annotations

from podlane.lab.api.resources import Resource
from podlane.lab.client import Obj

# events.k8s.io/v1 field -> core/v1 field (pkg/apis/events/v1/conversion.go)
_EVENT_FIELDS = {
    "note": "message",
    "regarding": "involvedObject",
    "reportingController": "reportingComponent",
    "deprecatedCount": "count",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedSource": "source",
}
_EVENT_BACK = {core: new for new, core in _EVENT_FIELDS.items()}


def to_storage(resource: Resource, obj: Obj) -> Obj:
    """obj, or a new object in the version that is stored."""
    if not resource.converted:
        return obj
    if resource.custom:
        found = obj
    elif resource.kind == "Event":
        found = {_EVENT_FIELDS.get(k, k): v for k, v in obj.items()}
    else:
        found = _autoscaler_v2(obj)
    return {**found, "apiVersion": resource.storage_version, "kind": resource.kind}


def from_storage(resource: Resource, obj: Obj) -> Obj:
    """obj, or a new object in the resource's version. obj is not changed."""
    if not resource.converted:
        return obj
    if resource.custom:
        found = obj
    elif resource.kind == "Event":
        found = {_EVENT_BACK.get(k, k): v for k, v in obj.items()}
    else:
        found = _autoscaler_v1(obj)
    return {**found, "apiVersion": resource.api_version, "kind": resource.kind}


def field_selector(resource: Resource, text: str) -> str:
    """A field selector of the resource's version, in the words of the stored one."""
    if text and resource.storage == "events" and resource.converted:
        text = text.replace("regarding.", "involvedObject.")
        return text.replace("reportingController", "reportingComponent")
    return text


def _autoscaler_v2(obj: Obj) -> Obj:
    spec = dict(obj.get("spec") or {})
    target = spec.pop("targetCPUUtilizationPercentage", None)
    if target is not None:
        wanted = {"type": "Utilization", "averageUtilization": target}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": wanted}}]
    status = dict(obj.get("status") or {})
    current = status.pop("currentCPUUtilizationPercentage", None)
    if current is not None:
        found = {"name": "cpu", "current": {"averageUtilization": current}}
        status["currentMetrics"] = [{"type": "Resource", "resource": found}]
    return {**obj, "spec": spec, **({"status": status} if status else {})}


def _autoscaler_v1(obj: Obj) -> Obj:
    spec, status = dict(obj.get("spec") or {}), dict(obj.get("status") or {})
    spec.pop("behavior", None)
    status.pop("conditions", None)
    for metric in spec.pop("metrics", None) or ():
        of = metric.get("resource") or {}
        if of.get("name") == "cpu" and "averageUtilization" in (of.get("target") or {}):
            spec["targetCPUUtilizationPercentage"] = of["target"]["averageUtilization"]
    for metric in status.pop("currentMetrics", None) or ():
        of = metric.get("resource") or {}
        if of.get("name") == "cpu" and "averageUtilization" in (of.get("current") or {}):
            status["currentCPUUtilizationPercentage"] = of["current"]["averageUtilization"]
    return {**obj, "spec": spec, **({"status": status} if status else {})}
