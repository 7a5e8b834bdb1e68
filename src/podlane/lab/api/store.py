"""All objects of the lab in memory, and the transactions that write them to where they outlive the process.

A write goes to the database first (`sqlite_store`, or `etcd_store`), then to whoever subscribed. Readers are
served from memory. Each state has a resourceVersion, greater than that of every state before it.

The event log holds the last writes, so that a watch goes on from its resourceVersion also after a restart
of the process. What is older than the log is Expired (410).

Everything here is synchronous and belongs to one thread. Objects that come out are shared: nobody may
change them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from podlane.errors import ConflictError, GoneError
from podlane.lab.client import Obj

LOG_LENGTH = 10_000
"""Events kept. A reader that is further behind lists again."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


def encode(obj: Any) -> bytes:
    return _encoder.encode(obj)


def decode(data: bytes | str) -> Any:
    """Raises msgspec.DecodeError."""
    return _decoder.decode(data)


def copied(obj: Obj) -> Obj:
    """A deep copy that may be changed."""
    found: Obj = _decoder.decode(_encoder.encode(obj))
    return found


class Record:
    """One stored state of one object: decoded and as the bytes that go to clients."""

    __slots__ = ("data", "name", "namespace", "obj", "revision")

    def __init__(self, namespace: str, name: str, revision: int, obj: Obj, data: bytes) -> None:
        self.namespace, self.name, self.revision = namespace, name, revision
        self.obj, self.data = obj, data

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name


class LogEvent:
    """One write. type: ADDED, MODIFIED or DELETED (record: the last state, with the deletion's revision).

    before: the state that was replaced, None for ADDED and for what was read back from the log's bytes
    too old to have one. Events are compared with selectors on both sides of the write.
    """

    __slots__ = ("_line", "before", "record", "resource", "type")

    def __init__(self, type_: str, resource: str, record: Record, before: Obj | None) -> None:
        self.type, self.resource, self.record, self.before = type_, resource, record, before
        self._line: bytes | None = None

    @property
    def line(self) -> bytes:
        """The event as every plain watcher gets it: encoded once."""
        if self._line is None:
            self._line = b'{"type":"%b","object":%b}\n' % (self.type.encode(), self.record.data)
        return self._line


class _Table:
    """The objects of one resource, with their keys in order."""

    __slots__ = ("_order", "records")

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], Record] = {}
        self._order: list[tuple[str, str]] | None = None

    def put(self, record: Record) -> None:
        if record.key not in self.records:
            self._order = None
        self.records[record.key] = record

    def drop(self, key: tuple[str, str]) -> None:
        if self.records.pop(key, None) is not None:
            self._order = None

    def sorted(self, namespace: str) -> list[Record]:
        if self._order is None:
            self._order = sorted(self.records)
        keys = self._order
        if namespace:
            keys = keys[bisect_left(keys, (namespace, "")) : bisect_left(keys, (namespace + "\0", ""))]
        return [self.records[k] for k in keys]


def revived(
    revision: int, resource: str, type_: str, data: bytes, before: bytes | None, obj: Obj | None = None
) -> LogEvent:
    """An event of the log's bytes. before: the footprint of the state that was replaced, if it is known."""
    obj = _decoder.decode(data) if obj is None else obj
    metadata = obj["metadata"]
    record = Record(metadata.get("namespace") or "", metadata["name"], revision, obj, data)
    return LogEvent(type_, resource, record, _decoder.decode(before) if before else None)


class Transaction:
    """Reads and writes that happen together or not at all. Reads see the transaction's own writes.

    revision: of its first write. step: what a further write adds to it (0: they all have the same).
    """

    def __init__(self, store: Store, revision: int, step: int) -> None:
        self._store, self._next, self._step = store, revision, step
        self.events: list[LogEvent] = []
        self._undo: list[tuple[str, tuple[str, str], Record | None]] = []

    def get(self, resource: str, namespace: str, name: str) -> Record | None:
        return self._store.get(resource, namespace, name)

    def records(self, resource: str, namespace: str = "") -> list[Record]:
        return self._store.records(resource, namespace)

    def put(self, resource: str, obj: Obj) -> Record:
        """Create or replace. Sets metadata.resourceVersion in obj, which now belongs to the store.

        The revision is final when the transaction is over.
        """
        metadata = obj["metadata"]
        key = (metadata.get("namespace") or "", metadata["name"])
        before = self._store.get(resource, *key)
        return self._write("MODIFIED" if before else "ADDED", resource, key, obj, before)

    def delete(self, resource: str, namespace: str, name: str, last: Obj | None = None) -> Record | None:
        """Remove; the answer (and the event) is the last state (or `last`) with a revision of its own."""
        before = self._store.get(resource, namespace, name)
        if before is None:
            return None
        state = last if last is not None else before.obj
        final = {**state, "metadata": dict(state["metadata"])}
        return self._write("DELETED", resource, before.key, final, before)

    def _write(
        self, type_: str, resource: str, key: tuple[str, str], obj: Obj, before: Record | None
    ) -> Record:
        revision, self._next = self._next, self._next + self._step
        obj["metadata"]["resourceVersion"] = str(revision)
        record = Record(*key, revision, obj, _encoder.encode(obj))
        self._undo.append((resource, key, before))
        event = LogEvent(type_, resource, record, before.obj if before else None)
        self._store.revision = revision
        self._store.follow(event)
        self.events.append(event)
        return record

    def replaced(self) -> Iterator[tuple[str, tuple[str, str], Record | None]]:
        """What was there before the first write, key by key: (resource, key, state)."""
        seen = set()
        for resource, key, before in self._undo:
            if (resource, key) not in seen:
                seen.add((resource, key))
                yield resource, key, before

    def undo(self) -> bool:
        """Memory as it was; the database is the store's to roll back. Whether there was anything to undo."""
        found = bool(self._undo)
        for resource, key, before in reversed(self._undo):
            table = self._store.table(resource)
            if before is None:
                table.drop(key)
            else:
                table.put(before)
        self._undo.clear()
        self.events.clear()
        return found


class RacedError(ConflictError):
    """Another process wrote one of the transaction's objects first: read again, and try again."""


class Store(ABC):
    """Subscribers are called after each commit with its events, in order of their revisions.

    revision: of the last write. floor: the newest revision that is no longer in the log.
    """

    step = 1
    """What each write of a transaction adds to the revision."""

    def __init__(self) -> None:
        self.revision = self.floor = 1
        self._tables: dict[str, _Table] = {}
        self._open: Transaction | None = None
        self._subscribers: list[Callable[[list[LogEvent]], None]] = []

    def table(self, resource: str) -> _Table:
        found = self._tables.get(resource)
        if found is None:
            found = self._tables[resource] = _Table()
        return found

    def get(self, resource: str, namespace: str, name: str) -> Record | None:
        return self.table(resource).records.get((namespace, name))

    def records(self, resource: str, namespace: str = "") -> list[Record]:
        """In order of namespace and name. namespace "": all."""
        return self.table(resource).sorted(namespace)

    def subscribe(self, subscriber: Callable[[list[LogEvent]], None]) -> None:
        self._subscribers.append(subscriber)

    def publish(self, events: list[LogEvent]) -> None:
        if events:
            for subscriber in self._subscribers:
                subscriber(events)

    def follow(self, event: LogEvent) -> None:
        """Memory as it is after the event."""
        if event.type == "DELETED":
            self.table(event.resource).drop(event.record.key)
        else:
            self.table(event.resource).put(event.record)

    @contextmanager
    def transaction(self, *, dry_run: bool = False) -> Iterator[Transaction]:
        """All or nothing. Inside another one: part of it. dry_run: nothing, but everything was tried.

        At its end raises ApiError when the database cannot be written (then nothing of it holds), and
        RacedError when another process that writes to the same database was first.
        """
        if self._open is not None:
            yield self._open
            return
        self.poll()
        before = self.revision
        self._open = transaction = Transaction(self, before + 1, self.step)
        events: list[LogEvent] = []
        try:
            yield transaction
            if not dry_run and transaction.events:
                events = self._commit(transaction, before)
        finally:
            self._open = None
            if not events and transaction.undo():
                self.revision = before
        self.publish(events)

    @abstractmethod
    def _commit(self, transaction: Transaction, before: int) -> list[LogEvent]:
        """Write transaction.events; what is to be published. Raises: then nothing was written.

        before: the revision when it began.
        """

    @abstractmethod
    def events_since(self, resource: str, revision: int) -> list[LogEvent]:
        """A resource's events after revision, oldest first. Raises GoneError when the log is shorter."""

    @abstractmethod
    def attend(self, wake: Callable[[], None]) -> None:
        """wake is called, on any thread, when somebody else has written and `poll` would tell it."""

    @abstractmethod
    def poll(self) -> None:
        """Take in and publish what other processes wrote to the same database."""

    @abstractmethod
    def close(self) -> None:
        """No write follows."""

    def check_kept(self, revision: int) -> None:
        """Raises GoneError when events after revision are no longer all there."""
        if revision < self.floor:
            raise GoneError(f"too old resource version: {revision} ({self.floor + 1})")
