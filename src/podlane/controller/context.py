"""What every controller is given, and the base of those that have one queue of one kind's keys."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import msgspec

from podlane.controller.client import ApiClient, Obj
from podlane.controller.events import Recorder
from podlane.controller.informer import Informer, Informers, Key, WorkQueue, key_of
from podlane.errors import ConflictError, NotFoundError
from podlane.model.config import NetworkConfig
from podlane.watch.contest import FREE, Contest

log = logging.getLogger(__name__)

_Write = tuple[tuple[str, Key, str, str], bytes]


class ContestedError(ConflictError):
    """What we write is undone again and again: left alone for retry_after_s."""

    code, reason = 409, "Contested"

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(f"{message}: left alone for {wait_s:.0f} s", retry_after_s=wait_s)


class Context:
    """now: wall clock, seconds since 1970; monotonic: one that only runs forward."""

    def __init__(
        self,
        client: ApiClient,
        config: NetworkConfig,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        ca_pem: str = "",
    ) -> None:
        self.client, self.config, self.now, self.ca_pem = client, config, now, ca_pem
        self.monotonic = monotonic
        self.contest = Contest()
        self.informers = Informers(client)
        self.events = Recorder(client, now)

    def informer(self, resource: str) -> Informer:
        return self.informers[resource]

    async def create(self, resource: str, obj: Obj, namespace: str = "") -> Obj:
        return self.informers[resource].wrote(await self.client.create(resource, obj, namespace))

    async def update(self, resource: str, obj: Obj, *, subresource: str = "") -> Obj:
        """obj as it was read, changed: ConflictError if somebody else was first."""
        said = obj.get(subresource) if subresource in obj else {**obj, "metadata": _own(obj["metadata"])}
        write = self._uncontested(resource, obj, subresource, said)
        answer = await self.client.update(resource, obj, subresource=subresource)
        self._wrote(write)
        return self.informers[resource].wrote(answer)

    async def patch(self, resource: str, obj: Obj, patch: Obj, *, subresource: str = "") -> Obj:
        """A merge patch of obj as it was read: ConflictError if it is no longer that."""
        namespace, name = key_of(obj)
        meta = obj["metadata"]
        write = self._uncontested(resource, obj, f"{subresource} {'.'.join(patch)}", patch)
        guarded = {**patch, "metadata": {**patch.get("metadata", {}), "uid": meta["uid"]}}
        guarded["metadata"]["resourceVersion"] = meta["resourceVersion"]
        answer = await self.client.patch(resource, name, namespace, guarded, subresource=subresource)
        self._wrote(write)
        return self.informers[resource].wrote(answer)

    def _uncontested(self, resource: str, obj: Obj, part: str, said: Any) -> _Write:
        """A write's place and content. Raises ContestedError while somebody else insists on another."""
        place = resource, key_of(obj), obj["metadata"].get("uid", ""), part
        content = msgspec.json.encode(_timeless(said))
        if wait_s := self.contest.wait_s(place, content, self.monotonic()):
            raise ContestedError(f"somebody else writes {resource} {'/'.join(key_of(obj))}, too", wait_s)
        return place, content

    def _wrote(self, write: _Write) -> None:
        if self.contest.wrote(*write, self.monotonic()) == FREE:
            resource, key = write[0][:2]
            log.warning(
                "%s %s was written %d times over: somebody else undoes it", resource, "/".join(key), FREE
            )

    async def status(self, resource: str, obj: Obj, status: Obj) -> Obj:
        """Writes obj's status, unless it is that already."""
        if (obj.get("status") or {}) == status:
            return obj
        return await self.update(resource, {**obj, "status": status}, subresource="status")

    async def delete(
        self,
        resource: str,
        obj: Obj,
        *,
        grace_period_s: int | None = None,
        propagation: str = "Background",
    ) -> None:
        """Deletes this incarnation; that it is gone already is as good."""
        namespace, name = key_of(obj)
        try:
            await self.client.delete(
                resource,
                name,
                namespace,
                grace_period_s=grace_period_s,
                uid=obj["metadata"]["uid"],
                propagation=propagation,
            )
        except NotFoundError:
            return
        self.informers[resource].deleting(obj)


def _own(metadata: Obj) -> Obj:
    """Without what the API says of each version."""
    return {k: v for k, v in metadata.items() if k not in ("resourceVersion", "generation", "managedFields")}


def _timeless(said: Any) -> Any:
    """Without the times of conditions: they differ each time the same is said."""
    if isinstance(said, dict):
        return {k: _timeless(v) for k, v in said.items() if not k.endswith("Time")}
    return [_timeless(each) for each in said] if isinstance(said, list) else said


class Runnable(Protocol):
    async def run(self) -> None: ...

    @property
    def idle(self) -> bool: ...


class Controller:
    """Reconciles the objects of one resource: subclasses set `resource` and write `reconcile`."""

    resource: ClassVar[str]
    workers: ClassVar[int] = 4
    settle_s: ClassVar[float] = 0.0
    """How long changes that come in bursts are collected before the object is looked at again."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.objects = context.informer(self.resource)
        self.queue: WorkQueue[Key] = WorkQueue(self.resource, self.reconcile, workers=self.workers)
        self.objects.subscribe(self.changed)
        self.subscribe()

    def subscribe(self) -> None:
        """Other informers' handlers that add keys to the queue."""

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        """A change of an object of the controller's own resource."""
        if (obj := new or old) is not None:
            self.queue.add(key_of(obj))

    async def reconcile(self, key: Key) -> float | None:
        """One look at one object. Returns seconds until it wants another by the clock alone."""
        raise NotImplementedError

    def soon(self, key: Key) -> None:
        """Another object made this one worth a look."""
        if self.settle_s:
            self.queue.add_after(key, self.settle_s)
        else:
            self.queue.add(key)

    async def run(self) -> None:
        await self.queue.run()

    @property
    def idle(self) -> bool:
        return self.queue.idle
