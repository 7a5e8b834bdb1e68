"""Subresources that speak another kind than their resource: scale, binding, eviction, token.

status and finalize speak the resource's own kind and are doors of Registry.update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from podlane.errors import ApiError
from podlane.lab.api import deletion, metadata, status
from podlane.lab.api.deletion import DeleteOptions
from podlane.lab.api.registry import DEFAULT_WRITE, Registry, WriteOptions
from podlane.lab.api.resources import Resource
from podlane.lab.client import Obj

OTHER_KINDS = ("scale", "binding", "eviction", "token")


def read(registry: Registry, resource: Resource, namespace: str, name: str, subresource: str) -> Obj:
    """GET. Raises ApiError(405) where there is nothing to read."""
    if subresource != "scale":
        raise status.method_not_allowed()
    return _scale_of(registry, resource, registry.get(resource, namespace, name).obj)


def write(
    registry: Registry,
    resource: Resource,
    namespace: str,
    name: str,
    subresource: str,
    body: Obj,
    options: WriteOptions = DEFAULT_WRITE,
) -> Obj:
    """PUT of a Scale, POST of a Binding or Eviction. The answer's body."""
    match subresource:
        case "scale":
            return _set_scale(registry, resource, namespace, name, body, options)
        case "binding":
            return bind(registry, resource, namespace, name, body, options)
        case "eviction":
            return _evict(registry, resource, namespace, name, body, options)
        case _:
            raise ApiError("the server could not find the requested resource", code=404, reason="NotFound")


def change(
    registry: Registry,
    resource: Resource,
    namespace: str,
    name: str,
    subresource: str,
    apply: Callable[[Obj], Obj],
    options: WriteOptions = DEFAULT_WRITE,
) -> Obj:
    """PATCH of a Scale."""
    before = read(registry, resource, namespace, name, subresource)
    return write(registry, resource, namespace, name, subresource, apply(before), options)


# --- scale ----------------------------------------------------------------------------------------


class ScalePaths(tuple[str, str, str]):
    """(spec.replicas, status.replicas, label selector) as dotted paths below the object."""


_WORKLOADS = ScalePaths(("spec.replicas", "status.replicas", "spec.selector"))


def _paths(registry: Registry, resource: Resource) -> ScalePaths:
    if resource.custom:
        found = registry.custom.scale_paths(resource) if registry.custom else None
        if found is None:
            raise ApiError("the server could not find the requested resource", code=404, reason="NotFound")
        return ScalePaths(found)
    return _WORKLOADS


def _at(obj: Any, path: str) -> Any:
    """A dotted path below an object; None when it, or the path, is absent."""
    if not path:
        return None
    for part in path.split("."):
        obj = obj.get(part) if isinstance(obj, dict) else None
    return obj


def _scale_of(registry: Registry, resource: Resource, obj: Obj) -> Obj:
    spec_path, status_path, selector_path = _paths(registry, resource)
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    scale: Obj = {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {k: obj["metadata"][k] for k in kept if k in obj["metadata"]},
        "spec": {},
        "status": {"replicas": _at(obj, status_path) or 0},
    }
    replicas = _at(obj, spec_path)
    if replicas is not None:
        scale["spec"]["replicas"] = replicas
    selector = _at(obj, selector_path)
    if selector:
        scale["status"]["selector"] = _selector_text(selector)
    return scale


def _selector_text(selector: Any) -> str:
    from podlane.model import selectors

    if isinstance(selector, str):
        return selector
    if "matchLabels" in selector or "matchExpressions" in selector:
        return str(selectors.from_dict(selector))
    return str(selectors.from_labels(selector))


def _set_scale(
    registry: Registry, resource: Resource, namespace: str, name: str, body: Obj, options: WriteOptions
) -> Obj:
    spec_path = _paths(registry, resource)[0]
    metadata.check_place(resource, namespace, name, body)
    replicas = _at(body, "spec.replicas") or 0
    if isinstance(replicas, bool) or not isinstance(replicas, int):
        raise status.bad_request("Scale: spec.replicas: expected a number")
    if replicas < 0:
        why = "must be greater than or equal to 0"
        raise status.invalid(resource, name, [status.invalid_value("spec.replicas", replicas, why)])

    def apply(old: Obj) -> Obj:
        wanted = body["metadata"].get("resourceVersion")
        if wanted and wanted != old["metadata"]["resourceVersion"]:
            raise status.conflict(resource, name)
        return _with(old, spec_path.strip(".").split("."), replicas)

    record = registry.change(resource, namespace, name, apply, options)
    return _scale_of(registry, resource, record.obj)


def _with(obj: Obj, path: list[str], value: Any) -> Obj:
    """A copy of obj with one field set."""
    head, *rest = path
    return {**obj, head: _with(obj.get(head) or {}, rest, value) if rest else value}


# --- pods -----------------------------------------------------------------------------------------


def bind(
    registry: Registry, resource: Resource, namespace: str, name: str, body: Obj, options: WriteOptions
) -> Obj:
    """A Binding: the pod's node, once and for all (pkg/registry/core/pod/storage)."""
    target = body.get("target") or {}
    node = target.get("name")
    if not node:
        raise status.invalid(resource, name, [status.required("target.name")])
    uid = (body.get("metadata") or {}).get("uid")

    def apply(pod: Obj) -> Obj:
        bound = (pod.get("spec") or {}).get("nodeName")
        if uid and uid != pod["metadata"]["uid"]:
            raise status.conflict(resource, name, f"Precondition failed: UID in precondition: {uid}")
        if "deletionTimestamp" in pod["metadata"]:
            raise status.conflict(
                resource, name, f"pod {name} is being deleted, cannot be assigned to a host"
            )
        if bound:
            raise status.conflict(resource, name, f'pod {name} is already assigned to node "{bound}"')
        conditions = [
            c for c in (pod.get("status") or {}).get("conditions") or () if c.get("type") != "PodScheduled"
        ]
        scheduled = {
            "type": "PodScheduled",
            "status": "True",
            "lastProbeTime": None,
            "lastTransitionTime": metadata.timestamp(),
        }
        return {
            **pod,
            "spec": {**pod["spec"], "nodeName": node},
            "status": {**(pod.get("status") or {}), "conditions": [*conditions, scheduled]},
        }

    registry.change(resource, namespace, name, apply, options, subresource="binding")
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _evict(
    registry: Registry, resource: Resource, namespace: str, name: str, body: Obj, options: WriteOptions
) -> Obj:
    """An Eviction: a deletion that PodDisruptionBudgets may refuse (429)."""
    given = body.get("deleteOptions") or {}
    preconditions = given.get("preconditions") or {}
    pod = registry.get(resource, namespace, name).obj
    delete = DeleteOptions(
        grace_period_s=given.get("gracePeriodSeconds"),
        uid=preconditions.get("uid") or "",
        resource_version=preconditions.get("resourceVersion") or "",
        propagation=given.get("propagationPolicy") or "",
        dry_run=options.dry_run,
    )
    deletion.check(resource, pod, delete)
    ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed", "Pending")
    if not ended and "deletionTimestamp" not in pod["metadata"]:
        _check_budgets(registry, namespace, pod)
    registry.delete(resource, namespace, name, delete)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _check_budgets(registry: Registry, namespace: str, pod: Obj) -> None:
    from podlane.model import selectors

    for record in registry.store.records("poddisruptionbudgets.policy", namespace):
        budget = record.obj
        if not selectors.from_dict(budget["spec"].get("selector")).matches(pod["metadata"].get("labels")):
            continue
        if int((budget.get("status") or {}).get("disruptionsAllowed") or 0) <= 0:
            message = "Cannot evict pod as it would violate the pod's disruption budget."
            cause = {
                "reason": "DisruptionBudget",
                "message": f"The disruption budget {record.name} does not allow another disruption now.",
            }
            raise ApiError(message, code=429, reason="TooManyRequests", details={"causes": [cause]})
