"""Owner references: what belongs to whom, and pods made from templates.

An object has at most one controlling owner (metadata.ownerReferences with controller: true). A controller
adopts orphans its selector matches, and releases what its selector no longer matches.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from podlane.errors import ConfigError, NotFoundError
from podlane.lab.client import Obj
from podlane.lab.controllers.context import Context
from podlane.lab.controllers.facts import is_deleting, labels_of
from podlane.lab.informer import Informer, key_of
from podlane.model import selectors
from podlane.model.selectors import NOTHING, Selector

API_VERSIONS = {
    "ReplicationController": "v1",
    "ReplicaSet": "apps/v1",
    "Deployment": "apps/v1",
    "DaemonSet": "apps/v1",
    "StatefulSet": "apps/v1",
    "Job": "batch/v1",
    "CronJob": "batch/v1",
}
_SAFE = "bcdfghjklmnpqrstvwxz2456789"
"""Letters of generated names: no vowels (no words), nothing that looks like another."""


def controller_of(obj: Obj) -> Obj | None:
    """The controlling owner reference."""
    for ref in obj["metadata"].get("ownerReferences") or ():
        if ref.get("controller"):
            return ref  # type: ignore[no-any-return]
    return None


def reference(owner: Obj, kind: str) -> Obj:
    return {
        "apiVersion": API_VERSIONS[kind],
        "kind": kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def selector_of(owner: Obj) -> Selector:
    """spec.selector; what cannot be read selects nothing (the API refuses it on the way in)."""
    try:
        return selectors.from_dict(owner["spec"].get("selector"))
    except ConfigError:
        return NOTHING


def stable_hash(value: Any, length: int = 10) -> str:
    """Same JSON value, same short name part."""
    number = int.from_bytes(hashlib.sha256(msgspec.json.encode(value, order="sorted")).digest()[:16], "big")
    letters = []
    for _ in range(length):
        number, digit = divmod(number, len(_SAFE))
        letters.append(_SAFE[digit])
    return "".join(letters)


def pod_from(
    template: Obj,
    owner: Obj,
    kind: str,
    *,
    name: str = "",
    prefix: str = "",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Obj:
    """A pod of template, owned by owner. name, or prefix for the API to complete."""
    meta = template.get("metadata") or {}
    metadata: Obj = {
        "namespace": owner["metadata"]["namespace"],
        "labels": {**(meta.get("labels") or {}), **(labels or {})},
        "annotations": {**(meta.get("annotations") or {}), **(annotations or {})},
        "ownerReferences": [reference(owner, kind)],
    }
    if meta.get("finalizers"):
        metadata["finalizers"] = list(meta["finalizers"])
    if name:
        metadata["name"] = name
    else:
        metadata["generateName"] = prefix or f"{owner['metadata']['name']}-"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": copy.deepcopy(template.get("spec") or {}),
    }


async def claim(
    context: Context,
    owner: Obj,
    kind: str,
    owner_resource: str,
    resource: str,
    selector: Selector,
    accepts: Callable[[Obj], bool] = lambda obj: True,
) -> list[Obj]:
    """The objects of resource that owner controls, after adopting and releasing.

    accepts: which orphans it would take beyond its selector.
    """
    informer = context.informer(resource)
    uid, namespace = owner["metadata"]["uid"], owner["metadata"]["namespace"]
    gone = is_deleting(owner)
    mine = []
    for obj in informer.owned_by(uid):
        ref = controller_of(obj)
        if ref is None or ref["uid"] != uid:
            continue
        if selector.matches(labels_of(obj)) or gone:
            mine.append(obj)
        elif not is_deleting(obj):
            refs = [r for r in obj["metadata"]["ownerReferences"] if r.get("uid") != uid]
            await _patch_refs(context, resource, obj, refs)
    if gone:
        return mine
    for obj in informer.list(namespace):
        if controller_of(obj) is not None or is_deleting(obj):
            continue
        if selector.matches(labels_of(obj)) and accepts(obj):
            if not await _still_there(context, owner, owner_resource):
                break
            refs = [*(obj["metadata"].get("ownerReferences") or ()), reference(owner, kind)]
            if (adopted := await _patch_refs(context, resource, obj, refs)) is not None:
                mine.append(adopted)
    return mine


async def _still_there(context: Context, owner: Obj, resource: str) -> bool:
    """Asked of the API itself: who adopts for an owner that is gone makes garbage."""
    try:
        live = await context.client.get(resource, owner["metadata"]["name"], owner["metadata"]["namespace"])
    except NotFoundError:
        return False
    return live["metadata"]["uid"] == owner["metadata"]["uid"] and not is_deleting(live)


async def _patch_refs(context: Context, resource: str, obj: Obj, refs: list[Obj]) -> Obj | None:
    try:
        return await context.patch(resource, obj, {"metadata": {"ownerReferences": refs}})
    except NotFoundError:
        return None


def owners_of(obj: Obj, kind: str, owners: Informer) -> list[Obj]:
    """Who has to look when obj changes: its controller; for an orphan, all whose selector matches."""
    ref = controller_of(obj)
    namespace = obj["metadata"].get("namespace", "")
    if ref is not None:
        owner = owners.get(ref["name"], namespace) if ref.get("kind") == kind else None
        return [owner] if owner is not None and owner["metadata"]["uid"] == ref["uid"] else []
    if is_deleting(obj):
        return []
    labels = labels_of(obj)
    return [o for o in owners.list(namespace) if selector_of(o).matches(labels)]


def add_owners(queue_add: Any, kind: str, owners: Informer) -> Any:
    """A handler that adds the keys of the owners of what changed."""

    def handler(old: Obj | None, new: Obj | None) -> None:
        for obj in (old, new):
            if obj is not None:
                for owner in owners_of(obj, kind, owners):
                    queue_add(key_of(owner))

    return handler
