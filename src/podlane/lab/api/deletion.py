"""How an object goes: grace, finalizers, propagation.

An object with finalizers stays, with a deletionTimestamp, until they are gone; a pod on a node stays until
its kubelet has stopped it and deletes it with grace 0. Owner references are the garbage collector's work:
`orphan` and `foregroundDeletion` among the finalizers tell it which way was asked for
(k8s.io/apiserver pkg/registry/generic/registry/store.go, pkg/registry/rest/delete.go).
"""

from __future__ import annotations

import calendar
import time

from msgspec import Struct

from podlane.lab.api import metadata, status
from podlane.lab.api.resources import Resource
from podlane.lab.client import Obj

ORPHAN = "orphan"
FOREGROUND = "foregroundDeletion"

# Kinds whose dependents stay when nobody says otherwise (their strategies' DefaultGarbageCollectionPolicy).
_ORPHANING = ("jobs.batch", "replicationcontrollers")


class DeleteOptions(Struct, frozen=True, kw_only=True):
    """metav1.DeleteOptions. grace_period_s None: the object's own; propagation "": the kind's own."""

    grace_period_s: int | None = None
    uid: str = ""
    resource_version: str = ""
    propagation: str = ""
    dry_run: bool = False


class Step(Struct, frozen=True):
    """What a deletion does now: `obj` is stored, or, when `gone`, is the last state of what is removed."""

    obj: Obj
    gone: bool


def check(resource: Resource, old: Obj, options: DeleteOptions) -> None:
    """Preconditions. Raises ConflictError."""
    found = old["metadata"]
    for label, wanted, actual in (
        ("UID", options.uid, found["uid"]),
        ("ResourceVersion", options.resource_version, found["resourceVersion"]),
    ):
        if wanted and wanted != actual:
            why = f"Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {actual}"
            raise status.conflict(resource, found["name"], why)


def step(resource: Resource, new: Obj, options: DeleteOptions, now_s: float) -> Step:
    """new: a copy of the stored object, changed in place."""
    _propagate(resource, new, options)
    meta = new["metadata"]
    grace_s = _grace_s(resource, new, options)
    was_deleting = "deletionTimestamp" in meta
    before_s = int(meta.get("deletionGracePeriodSeconds") or 0)
    if was_deleting and (before_s and (options.grace_period_s is None or grace_s >= before_s)):
        return Step(new, False)  # already on its way, and not to be slowed down
    if grace_s > 0 and not was_deleting:
        mark(new, now_s, grace_s)
        return Step(new, False)
    if grace_s > 0:  # sooner than was said before
        ends_s = _seconds(meta["deletionTimestamp"]) - before_s + grace_s
        meta["deletionTimestamp"] = metadata.timestamp(ends_s)
        meta["deletionGracePeriodSeconds"] = grace_s
        return Step(new, False)
    if resource.storage == "namespaces":
        if not was_deleting:
            mark(new, now_s, None)
        new["status"] = {**(new.get("status") or {}), "phase": "Terminating"}
        return Step(new, not (new.get("spec") or {}).get("finalizers") and not metadata.finalizers(new))
    if metadata.finalizers(new):
        if not was_deleting:
            mark(new, now_s, 0)
        elif before_s:
            meta["deletionGracePeriodSeconds"] = 0
        return Step(new, False)
    return Step(new, True)


def mark(obj: Obj, now_s: float, grace_s: int | None) -> None:
    """Deletion begins: deletionTimestamp is when it may be enforced."""
    meta = obj["metadata"]
    meta["deletionTimestamp"] = metadata.timestamp(now_s + (grace_s or 0))
    if grace_s is not None:
        meta["deletionGracePeriodSeconds"] = grace_s
    if meta.get("generation"):
        meta["generation"] += 1


def due(obj: Obj) -> bool:
    """An update took the last thing away that held a deleted object."""
    meta = obj["metadata"]
    if "deletionTimestamp" not in meta or meta.get("finalizers"):
        return False
    if obj.get("kind") == "Namespace" and (obj.get("spec") or {}).get("finalizers"):
        return False
    return not meta.get("deletionGracePeriodSeconds")


def _grace_s(resource: Resource, obj: Obj, options: DeleteOptions) -> int:
    if resource.storage != "pods":
        return 0
    spec = obj.get("spec") or {}
    phase = (obj.get("status") or {}).get("phase")
    if not spec.get("nodeName") or phase in ("Succeeded", "Failed"):
        return 0
    if options.grace_period_s is not None:
        return max(options.grace_period_s, 0)
    return int(spec.get("terminationGracePeriodSeconds") or 30)


def _propagate(resource: Resource, obj: Obj, options: DeleteOptions) -> None:
    """The finalizers that tell the garbage collector what becomes of dependents."""
    current = list(metadata.finalizers(obj))
    policy = options.propagation
    if not policy:
        if ORPHAN in current or FOREGROUND in current:
            return
        policy = "Orphan" if resource.storage in _ORPHANING else "Background"
    wanted = {"Orphan": ORPHAN, "Foreground": FOREGROUND}.get(policy)
    kept = [f for f in current if f not in (ORPHAN, FOREGROUND) or f == wanted]
    if wanted and wanted not in kept:
        kept.append(wanted)
    if kept:
        obj["metadata"]["finalizers"] = kept
    else:
        obj["metadata"].pop("finalizers", None)


def _seconds(timestamp: str) -> float:
    return calendar.timegm(time.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ"))
