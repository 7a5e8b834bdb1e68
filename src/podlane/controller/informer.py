"""A resource's objects, kept current by list and watch, and queues of keys to look at again.

    Informer    one resource: cache, indexes, handlers. Shared by all who read that resource
    Informers   the informers of a process, made on first use, run together
    WorkQueue   keys waiting to be reconciled: each at most once, one at a time, retried with backoff

What a caller writes it hands to `Informer.wrote` or `Informer.deleting`: the cache then answers with it
at once, so nobody acts twice on a cache that lags behind its own writes (the reason for "expectations"
elsewhere). An event the cache already holds is dropped. This rests on resourceVersions being integers
that grow with every write, as the lab's API server gives them (and Kubernetes since KEP-5504).

Objects in the cache are shared: do not change them.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeAlias, TypeVar

from podlane.controller.client import RETRY_FIRST_S, RETRY_LAST_S, ApiClient, Event, Listed, Obj
from podlane.errors import ApiError, ConflictError
from podlane.observe.exposition import WORK_BUCKETS_S, Histogram
from podlane.watch.backoff import LONGEST_WAIT_S

log = logging.getLogger(__name__)

Key: TypeAlias = tuple[str, str]
"""(namespace, name)"""
Handler: TypeAlias = Callable[[Obj | None, Obj | None], None]
"""Called with (old, new): None for what was or is not there. Must not block."""


def key_of(obj: Obj) -> Key:
    meta = obj["metadata"]
    return meta.get("namespace", ""), meta["name"]


def version_of(obj: Obj) -> int:
    return int(obj["metadata"].get("resourceVersion") or 0)


def owner_uids(obj: Obj) -> Iterator[str]:
    for ref in obj["metadata"].get("ownerReferences") or ():
        yield ref.get("uid", "")


class Informer:
    """The objects of one resource."""

    def __init__(self, client: ApiClient, resource: str) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
        self._client = client
        self._objects: dict[Key, Obj] = {}
        self._namespaces: dict[str, dict[Key, Obj]] = {}
        self._owners: dict[str, dict[Key, Obj]] = {}
        self._nodes: dict[str, dict[Key, Obj]] = {}
        self._handlers: list[Handler] = []
        self._version = 0
        self._deleting: set[str] = set()

    # --- reading ---

    def get(self, name: str, namespace: str = "") -> Obj | None:
        return self._objects.get((namespace, name))

    def list(self, namespace: str = "") -> Iterable[Obj]:
        """Those of one namespace, or all. A snapshot: the cache may change while it is walked."""
        found = self._namespaces.get(namespace, {}) if namespace else self._objects
        return tuple(found.values())

    def owned_by(self, uid: str) -> Iterable[Obj]:
        """Those with an owner reference, controlling or not, to uid."""
        return tuple(self._owners.get(uid, {}).values())

    def on_node(self, node: str) -> Iterable[Obj]:
        """Pods whose spec.nodeName is node ("" for those not yet bound)."""
        return tuple(self._nodes.get(node, {}).values())

    def __len__(self) -> int:
        return len(self._objects)

    # --- writing, by the one who wrote to the API ---

    def wrote(self, obj: Obj) -> Obj:
        """Takes what the API answered to a create, update or patch. Returns obj.

        Not of an object in deletion: such a write may have been its last (a finalizer taken away).
        """
        if version_of(obj) > self._version and not obj["metadata"].get("deletionTimestamp"):
            self._upsert(obj)
        return obj

    def deleting(self, obj: Obj) -> None:
        """A delete of obj was accepted: it counts as terminating from now on."""
        if self._current(obj) is not None:
            self._deleting.add(obj["metadata"]["uid"])
            self._upsert(obj, again=True)

    def assume(self, obj: Obj) -> None:
        """obj is what the API will show, from a write that answered nothing (a binding)."""
        if (current := self._current(obj)) is not None and version_of(current) <= version_of(obj):
            self._upsert(obj, again=True)

    def _current(self, obj: Obj) -> Obj | None:
        current = self._objects.get(key_of(obj))
        same = current is not None and current["metadata"].get("uid") == obj["metadata"].get("uid")
        return current if same else None

    # --- handlers ---

    def subscribe(self, handler: Handler) -> None:
        """handler is told of every object there is, then of every change."""
        self._handlers.append(handler)
        for obj in self.list():
            handler(None, obj)

    def _tell(self, old: Obj | None, new: Obj | None) -> None:
        for handler in self._handlers:
            try:
                handler(old, new)
            except Exception:  # as in WorkQueue: one odd object must not stop all controllers
                log.exception("%s: a handler failed on %s", self.resource, key_of(new or old or {}))

    # --- the cache ---

    def _upsert(self, obj: Obj, *, again: bool = False) -> None:
        """again: obj differs from the cached object of the same version."""
        meta = obj["metadata"]
        if meta.get("uid") in self._deleting:
            if meta.get("deletionTimestamp"):
                self._deleting.discard(meta["uid"])
            else:
                obj = {**obj, "metadata": {**meta, "deletionTimestamp": meta.get("creationTimestamp") or "-"}}
        key = key_of(obj)
        old = self._objects.get(key)
        if old is not None:
            if not again and version_of(old) >= version_of(obj):
                return
            self._unindex(key, old)
        self._objects[key] = obj
        for index, value in self._places(obj):
            index.setdefault(value, {})[key] = obj
        self._tell(old, obj)

    def _remove(self, key: Key, version: int) -> None:
        old = self._objects.get(key)
        if old is None or version_of(old) > version:
            return
        del self._objects[key]
        self._unindex(key, old)
        self._deleting.discard(old["metadata"].get("uid", ""))
        self._tell(old, None)

    def _unindex(self, key: Key, obj: Obj) -> None:
        for index, value in self._places(obj):
            bucket = index.get(value)
            if bucket is not None and bucket.pop(key, None) is not None and not bucket:
                del index[value]

    def _places(self, obj: Obj) -> Iterator[tuple[dict[str, dict[Key, Obj]], str]]:
        yield self._namespaces, obj["metadata"].get("namespace", "")
        for uid in owner_uids(obj):
            yield self._owners, uid
        if self.resource == "pods":
            yield self._nodes, obj.get("spec", {}).get("nodeName") or ""

    def replace(self, objects: Iterable[Obj], version: int) -> None:
        """A list as of version: handlers hear only of differences. Own newer writes stay.

        A version below those seen is of a database put back to an older state: what is newer is no more.
        """
        listed = {key_of(obj): obj for obj in objects}
        rewound = version < self._version
        for key, old in list(self._objects.items()):
            new = listed.get(key)
            if new is None or new["metadata"].get("uid") != old["metadata"].get("uid"):
                self._remove(key, version_of(old) if rewound else version)
        for key, obj in listed.items():
            known = self._objects.get(key)
            self._upsert(obj, again=rewound and known is not None and version_of(known) != version_of(obj))
        self._version = version if rewound else max(self._version, version)

    def clear(self) -> None:
        """There are none any more."""
        for key, obj in list(self._objects.items()):
            self._remove(key, version_of(obj))

    # --- the loop ---

    async def run(self) -> None:
        """Follows the resource until cancelled."""
        await self._client.follow(self.resource, self._heard)

    def _heard(self, news: Listed | Event) -> None:
        if isinstance(news, Listed):
            self.replace(news.objects, news.version)
            self.synced.set()
        else:
            self._event(*news)

    def _event(self, kind: str, obj: Obj) -> None:
        version = version_of(obj)
        if kind == "DELETED":
            self._remove(key_of(obj), version)
        elif kind in ("ADDED", "MODIFIED"):
            current = self._objects.get(key_of(obj))
            if current is not None and current["metadata"].get("uid") != obj["metadata"].get("uid"):
                self._remove(key_of(obj), version)
            self._upsert(obj)
        self._version = max(self._version, version)


class Informers:
    """Every resource once. A process's readers ask here, so that each resource is watched once."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._informers: dict[str, Informer] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._started: asyncio.TaskGroup | None = None

    def __getitem__(self, resource: str) -> Informer:
        informer = self._informers.get(resource)
        if informer is None:
            informer = self._informers[resource] = Informer(self._client, resource)
            if self._started is not None:
                self._run(informer)
        return informer

    def _run(self, informer: Informer) -> None:
        assert self._started is not None
        task = self._started.create_task(informer.run(), name=f"informer {informer.resource}")
        self._tasks[informer.resource] = task

    def forget(self, resource: str) -> None:
        """The resource is no longer served: its objects are gone, and nobody watches it."""
        if (task := self._tasks.pop(resource, None)) is not None:
            task.cancel()
        if (informer := self._informers.pop(resource, None)) is not None:
            informer.clear()

    def start(self, group: asyncio.TaskGroup) -> None:
        """Runs those there are, and those asked for later, in group."""
        self._started = group
        for informer in self._informers.values():
            self._run(informer)

    async def synced(self) -> None:
        """Until every informer there is has been listed."""
        for informer in tuple(self._informers.values()):
            await informer.synced.wait()


K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys to reconcile.

    A key added while it waits is not added twice; added while it is worked on, it is worked on once
    more afterwards, never at the same time. A reconcile that fails is retried after 5 ms, doubling up to
    5 s, or when the API asked for more, after that; one that returns a number is called again after that
    many seconds at the latest.
    """

    def __init__(
        self,
        name: str,
        reconcile: Callable[[K], Awaitable[float | None]],
        *,
        workers: int = 4,
        order: Callable[[K], Any] | None = None,
    ) -> None:
        """order: smallest first among those waiting; without it, first come, first served.

        Counted are keys that came to wait (added), looks that failed (retried), and seconds a look took.
        """
        self.name = name
        self._reconcile = reconcile
        self._workers = workers
        self._order = order
        self._waiting: set[K] = set()
        self._busy: set[K] = set()
        self._dirty: set[K] = set()
        self._heap: list[tuple[Any, int, K]] = []
        self._count = itertools.count()
        self._ready = asyncio.Event()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self.added = self.retried = 0
        self.took = Histogram(WORK_BUCKETS_S)

    @property
    def depth(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, key: K) -> None:
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if key in self._busy:
            self._dirty.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self.added += 1
            rank = self._order(key) if self._order is not None else 0
            heapq.heappush(self._heap, (rank, next(self._count), key))
            self._ready.set()

    def add_after(self, key: K, delay_s: float) -> None:
        """At the latest after delay_s; an earlier appointment stands."""
        if key in self._waiting:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + delay_s
        if (timer := self._timers.get(key)) is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(when, self.add, key)

    @property
    def idle(self) -> bool:
        """Nothing waits to be done now, and nothing is being done."""
        return not (self._waiting or self._busy)

    async def run(self) -> None:
        """Works until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._workers):
                    group.create_task(self._work(), name=f"{self.name} {number}")
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    async def _work(self) -> None:
        while True:
            while not self._heap:
                self._ready.clear()
                await self._ready.wait()
            # An API in the same process answers without a pause: let others have a turn.
            await asyncio.sleep(0)
            if not self._heap:
                continue
            _, _, key = heapq.heappop(self._heap)
            self._waiting.discard(key)
            self._busy.add(key)
            try:
                again_s = await self._attempt(key)
            finally:
                self._busy.discard(key)
            if key in self._dirty:
                self._dirty.discard(key)
                self.add(key)
            elif again_s is not None:
                self.add_after(key, again_s)

    async def _attempt(self, key: K) -> float | None:
        """Seconds until the key wants another look."""
        began_s = time.monotonic()
        try:
            again_s = await self._reconcile(key)
        except Exception as error:  # a controller outlives any one object
            count = self._failures[key] = self._failures.get(key, 0) + 1
            delay_s = min(RETRY_FIRST_S * 2.0 ** min(count - 1, 16), RETRY_LAST_S)
            if isinstance(error, ApiError):
                delay_s = max(delay_s, min(error.retry_after_s, LONGEST_WAIT_S))
            self.retried += 1
            expected = isinstance(error, ApiError)
            if not isinstance(error, ConflictError):
                what = f"{self.name} {'/'.join(filter(None, key)) if isinstance(key, tuple) else key}"
                log.warning(
                    "%s: %s; again in %.3f s",
                    what,
                    error,
                    delay_s,
                    exc_info=not expected,
                    extra={"object": what, "error": error},
                )
            return delay_s
        finally:
            self.took.observe(time.monotonic() - began_s)
        self._failures.pop(key, None)
        return again_s
