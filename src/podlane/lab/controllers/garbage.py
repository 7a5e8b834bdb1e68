"""The garbage collector: objects whose owners are gone go too.

https://kubernetes.io/docs/concepts/architecture/garbage-collection/
    Background   the owner is gone at once; its dependents follow
    Foreground   the owner stays (finalizer foregroundDeletion) until dependents that block it are gone
    Orphan       the owner stays (finalizer orphan) until its dependents no longer name it
That an owner is gone is believed only after asking the API itself, by uid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from podlane.errors import NotFoundError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from podlane.lab.controllers.context import Context
from podlane.lab.controllers.everything import Everything, Kind
from podlane.lab.informer import WorkQueue, key_of, owner_uids

ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"


class Item(NamedTuple):
    resource: str
    namespace: str
    name: str
    uid: str


def item_of(kind: Kind, obj: Obj) -> Item:
    return Item(kind.resource, *key_of(obj), obj["metadata"]["uid"])


def finalizers_of(obj: Obj) -> list[str]:
    return obj["metadata"].get("finalizers") or []


class GarbageCollector:
    def __init__(self, context: Context, everything: Everything) -> None:
        self.context, self.everything = context, everything
        self.queue: WorkQueue[Item] = WorkQueue("garbage", self.reconcile, workers=8)
        self._known: dict[str, Item] = {}
        everything.subscribe(self._changed)

    # --- events ---

    def _changed(self, kind: Kind, old: Obj | None, new: Obj | None) -> None:
        if new is not None:
            item = item_of(kind, new)
            self._known[item.uid] = item
            if self._worth_a_look(old, new):
                self.queue.add(item)
        elif old is not None:
            uid = old["metadata"]["uid"]
            self._known.pop(uid, None)
            for each, dependent in self._dependents(uid):
                self.queue.add(item_of(each, dependent))
            for owner in owner_uids(old):  # may wait for us, in the foreground
                if (waiting := self._known.get(owner)) is not None:
                    self.queue.add(waiting)

    def _worth_a_look(self, old: Obj | None, new: Obj) -> bool:
        if facts.is_deleting(new):
            return any(f in finalizers_of(new) for f in (ORPHAN, FOREGROUND))
        refs = new["metadata"].get("ownerReferences")
        if not refs or (old is not None and old["metadata"].get("ownerReferences") == refs):
            return False
        return any(ref.get("uid") not in self._known for ref in refs) or any(
            self._waits(ref["uid"]) for ref in refs
        )

    def _waits(self, uid: str) -> bool:
        item = self._known.get(uid)
        owner = self.context.informer(item.resource).get(item.name, item.namespace) if item else None
        return owner is not None and facts.is_deleting(owner) and FOREGROUND in finalizers_of(owner)

    def _dependents(self, uid: str) -> Iterator[tuple[Kind, Obj]]:
        for kind, informer in self.everything.informers():
            for obj in informer.owned_by(uid):
                yield kind, obj

    # --- work ---

    async def reconcile(self, item: Item) -> float | None:
        kind = self.everything.kinds.get(item.resource)
        obj = self.context.informer(item.resource).get(item.name, item.namespace) if kind else None
        if kind is None or obj is None or obj["metadata"]["uid"] != item.uid:
            return None
        if facts.is_deleting(obj):
            if ORPHAN in finalizers_of(obj):
                await self._orphan(kind, obj)
            elif FOREGROUND in finalizers_of(obj):
                await self._foreground(kind, obj)
            return None
        await self._check_owners(kind, obj)
        return None

    async def _check_owners(self, kind: Kind, obj: Obj) -> None:
        refs = obj["metadata"].get("ownerReferences") or []
        solid: list[Obj] = []
        gone: list[Obj] = []
        waiting: list[Obj] = []
        for ref in refs:
            state = await self._owner(ref, obj)
            (solid if state == "solid" else gone if state == "gone" else waiting).append(ref)
        if not refs or (solid and not gone and not waiting):
            return
        if solid:
            await self.context.patch(kind.resource, obj, {"metadata": {"ownerReferences": solid}})
            return
        propagation = "Background"
        if waiting and any(True for _ in self._dependents(obj["metadata"]["uid"])):
            propagation = "Foreground"
        elif ORPHAN in finalizers_of(obj):
            propagation = "Orphan"
        await self.context.delete(kind.resource, obj, propagation=propagation)

    async def _owner(self, ref: Obj, obj: Obj) -> str:
        """solid, gone, or waiting (it is being deleted in the foreground)."""
        if self._waits(ref["uid"]):
            return "waiting" if ref.get("blockOwnerDeletion") else "solid"
        if ref["uid"] in self._known:
            return "solid"
        kind = self.everything.find(ref.get("apiVersion", ""), ref.get("kind", ""))
        if kind is None:
            return "solid"  # of a kind nobody serves: not ours to judge
        namespace = obj["metadata"].get("namespace", "") if kind.namespaced else ""
        try:
            owner = await self.context.client.get(kind.resource, ref["name"], namespace)
        except NotFoundError:
            return "gone"
        return "solid" if owner["metadata"]["uid"] == ref["uid"] else "gone"

    async def _orphan(self, kind: Kind, owner: Obj) -> None:
        uid = owner["metadata"]["uid"]
        for each, obj in list(self._dependents(uid)):
            refs = [r for r in obj["metadata"]["ownerReferences"] if r.get("uid") != uid]
            try:
                await self.context.patch(each.resource, obj, {"metadata": {"ownerReferences": refs}})
            except NotFoundError:
                continue
        await self._drop(kind, owner, ORPHAN)

    async def _foreground(self, kind: Kind, owner: Obj) -> None:
        uid = owner["metadata"]["uid"]
        blocked = False
        for each, obj in list(self._dependents(uid)):
            ref = next(r for r in obj["metadata"]["ownerReferences"] if r.get("uid") == uid)
            blocked = blocked or bool(ref.get("blockOwnerDeletion"))
            if not facts.is_deleting(obj):
                await self._check_owners(each, obj)
        if not blocked:
            await self._drop(kind, owner, FOREGROUND)

    async def _drop(self, kind: Kind, obj: Obj, finalizer: str) -> None:
        kept = [f for f in finalizers_of(obj) if f != finalizer]
        try:
            await self.context.patch(kind.resource, obj, {"metadata": {"finalizers": kept}})
        except NotFoundError:
            return

    async def run(self) -> None:
        await self.queue.run()

    @property
    def idle(self) -> bool:
        return self.queue.idle
