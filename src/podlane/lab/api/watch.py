"""Watches: every write goes to whoever asked for it, encoded once, and nobody may fall behind without bound.

    store commit ──> Hub ──> Watcher queue (bounded) ──> HTTP connection or in-process controller

A watcher whose queue is full is dropped: its connection ends, and its client goes on from the last
resourceVersion it saw, out of the event log. Belongs to one thread, that of the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from podlane.errors import ApiError, GoneError
from podlane.lab.api.fields import FieldSelector
from podlane.lab.api.store import LogEvent, Record, Store
from podlane.model.selectors import Selector

QUEUE_LENGTH = 8192
"""Events a watcher may be behind by."""


class Delivery(NamedTuple):
    """What one watcher sees of one write. type differs from the write's own when a selector is crossed."""

    type: str
    record: Record
    event: LogEvent | None

    @property
    def line(self) -> bytes:
        """One line of JSON; shared by all watchers that see the write as it is."""
        if self.event is not None and self.event.type == self.type:
            return self.event.line
        return b'{"type":"%b","object":%b}\n' % (self.type.encode(), self.record.data)


class Scope(NamedTuple):
    """What a list or watch is about: resource (storage name), namespace ("": all), selectors."""

    resource: str
    namespace: str
    labels: Selector
    fields: FieldSelector

    def matches(self, record: Record) -> bool:
        if self.namespace and record.namespace != self.namespace:
            return False
        obj = record.obj
        if not self.labels.empty and not self.labels.matches(obj["metadata"].get("labels")):
            return False
        return not self.fields or self.fields.matches(obj)

    def view(self, event: LogEvent) -> str:
        """The type of an event for this scope; "" when it is not concerned."""
        record = event.record
        if self.namespace and record.namespace != self.namespace:
            return ""
        if self.labels.empty and not self.fields:
            return event.type
        now = event.type != "DELETED" and self.matches(record)
        if event.type == "ADDED":
            return "ADDED" if now else ""
        if event.before is None:
            return "MODIFIED" if now else "DELETED"
        before = self.labels.matches(event.before["metadata"].get("labels")) and self.fields.matches(
            event.before
        )
        if now:
            return "MODIFIED" if before else "ADDED"
        return "DELETED" if before else ""


class Watcher:
    """One reader's queue."""

    def __init__(self, hub: Hub, scope: Scope, limit: int) -> None:
        self._hub, self.scope, self._limit = hub, scope, limit
        self._queue: deque[Delivery] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._lost: ApiError | None = None

    def offer(self, event: LogEvent) -> None:
        type_ = self.scope.view(event)
        if not type_ or self._lost:
            return
        if len(self._queue) >= self._limit:
            self.end(GoneError(f"the watch fell more than {self._limit} events behind; list again"))
            return
        self._queue.append(Delivery(type_, event.record, event))
        self._wake()

    def end(self, error: ApiError) -> None:
        """The reader gets no more; its next `batch` raises error."""
        self._lost = error
        self._queue.clear()
        self._hub.remove(self)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    @property
    def idle(self) -> bool:
        """Everything that was written so far has been read."""
        return not self._queue and self._lost is None

    async def batch(self, timeout_s: float | None = None) -> list[Delivery]:
        """Everything there is, waiting for the first; [] after timeout_s. Raises what `end` was given."""
        if not self._queue and self._lost is None:
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait((self._waiting,), timeout=timeout_s)
            finally:
                self._waiting = None
        if self._lost is not None:
            raise self._lost
        found = list(self._queue)
        self._queue.clear()
        return found

    def close(self) -> None:
        self._hub.remove(self)


class Hub:
    """Watchers by resource."""

    def __init__(self, store: Store, *, queue_length: int = QUEUE_LENGTH) -> None:
        self._store, self._queue_length = store, queue_length
        self._watchers: dict[str, set[Watcher]] = {}
        store.subscribe(self._publish)

    def watch(self, scope: Scope, since: int) -> Watcher:
        """Events after `since`: those of the log at once, then the new ones. Raises GoneError."""
        watcher = Watcher(self, scope, self._queue_length)
        for event in self._store.events_since(scope.resource, since):
            watcher.offer(event)
        self._watchers.setdefault(scope.resource, set()).add(watcher)
        return watcher

    def remove(self, watcher: Watcher) -> None:
        self._watchers.get(watcher.scope.resource, set()).discard(watcher)

    def end(self, resource: str | None, error: ApiError) -> None:
        """End the watches of a resource (None: all): it is no longer served, or the server stops."""
        for key, watchers in list(self._watchers.items()):
            if resource is None or key == resource:
                for watcher in list(watchers):
                    watcher.end(error)

    def _publish(self, events: list[LogEvent]) -> None:
        for event in events:
            watchers = self._watchers.get(event.resource)
            if watchers:
                for watcher in tuple(watchers):
                    watcher.offer(event)
