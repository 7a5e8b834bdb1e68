"""All objects of the lab, in SQLite and in memory, with one resourceVersion counting every write.

A write goes to SQLite first (one transaction, WAL, synchronous=NORMAL: it survives the process, and a power
cut may lose the last moment but never tears), then to whoever subscribed. Readers are served from memory.

The event log holds the last writes, so that a watch goes on from its resourceVersion also after a restart
of the process. What is older than the log is Expired (410).

Everything here is synchronous and belongs to one thread. Objects that come out are shared: nobody may
change them.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from podlane.errors import GoneError
from podlane.lab.api.fields import footprint
from podlane.lab.client import Obj

LOG_LENGTH = 10_000
"""Events kept. A reader that is further behind lists again."""

_TRIM_EVERY = 512

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
  resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
  revision INTEGER NOT NULL, data BLOB NOT NULL,
  PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
  revision INTEGER PRIMARY KEY, resource TEXT NOT NULL, type TEXT NOT NULL,
  data BLOB NOT NULL, before BLOB);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""

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


class Transaction:
    """Reads and writes that happen together or not at all. Reads see the transaction's own writes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.events: list[LogEvent] = []
        self._undo: list[tuple[str, tuple[str, str], Record | None]] = []

    def get(self, resource: str, namespace: str, name: str) -> Record | None:
        return self._store.get(resource, namespace, name)

    def records(self, resource: str, namespace: str = "") -> list[Record]:
        return self._store.records(resource, namespace)

    def put(self, resource: str, obj: Obj) -> Record:
        """Create or replace. Sets metadata.resourceVersion in obj, which now belongs to the store."""
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
        store = self._store
        revision = store.revision + 1
        obj["metadata"]["resourceVersion"] = str(revision)
        data = _encoder.encode(obj)
        record = Record(*key, revision, obj, data)
        cursor = store.connection
        if type_ == "DELETED":
            cursor.execute(
                "DELETE FROM objects WHERE resource=? AND namespace=? AND name=?", (resource, *key)
            )
        else:
            cursor.execute(
                "INSERT OR REPLACE INTO objects VALUES (?,?,?,?,?)", (resource, *key, revision, data)
            )
        previous = _encoder.encode(footprint(resource, before.obj)) if before else None
        cursor.execute("INSERT INTO events VALUES (?,?,?,?,?)", (revision, resource, type_, data, previous))
        self._undo.append((resource, key, before))
        store.revision = revision
        if type_ == "DELETED":
            store.table(resource).drop(key)
        else:
            store.table(resource).put(record)
        self.events.append(LogEvent(type_, resource, record, before.obj if before else None))
        return record

    def undo(self) -> None:
        """Memory as it was; SQLite is rolled back by the store."""
        for resource, key, before in reversed(self._undo):
            if before is None:
                self._store.table(resource).drop(key)
            else:
                self._store.table(resource).put(before)


class Store:
    """database: a path or ":memory:". Subscribers are called after each commit with its events, in order."""

    def __init__(self, database: Path | str, *, log_length: int = LOG_LENGTH) -> None:
        self.connection = sqlite3.connect(str(database), isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.executescript(_SCHEMA)
        self._log_length = log_length
        self._tables: dict[str, _Table] = {}
        self._open: Transaction | None = None
        self._subscribers: list[Callable[[list[LogEvent]], None]] = []
        self.connection.execute("INSERT OR IGNORE INTO meta VALUES ('revision', 1), ('floor', 1)")
        # floor: the newest revision that is no longer in the log.
        self.revision, self.floor = self._meta("revision"), self._meta("floor")
        self._load()

    def _meta(self, key: str) -> int:
        return int(self.connection.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()[0])

    def _load(self) -> None:
        query = "SELECT resource, namespace, name, revision, data FROM objects"
        for resource, namespace, name, revision, data in self.connection.execute(query):
            self.table(resource).put(Record(namespace, name, revision, _decoder.decode(data), data))

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

    @contextmanager
    def transaction(self, *, dry_run: bool = False) -> Iterator[Transaction]:
        """All or nothing. Inside another one: part of it. dry_run: nothing, but everything was tried."""
        if self._open is not None:
            yield self._open
            return
        before = self.revision
        self._open = transaction = Transaction(self)
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield transaction
            if not dry_run and transaction.events:
                self.connection.execute(
                    "INSERT OR REPLACE INTO meta VALUES ('revision', ?)", (self.revision,)
                )
                self._trim(before)
                self.connection.execute("COMMIT")
        finally:
            self._open = None
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
                transaction.undo()
                self.revision = before
                transaction.events.clear()
        if transaction.events:
            for subscriber in self._subscribers:
                subscriber(transaction.events)

    def _trim(self, before: int) -> None:
        if before // _TRIM_EVERY == self.revision // _TRIM_EVERY and self._log_length >= _TRIM_EVERY:
            return
        floor = self.revision - self._log_length
        if floor > self.floor:
            self.connection.execute("DELETE FROM events WHERE revision<=?", (floor,))
            self.connection.execute("INSERT OR REPLACE INTO meta VALUES ('floor', ?)", (floor,))
            self.floor = floor

    def events_since(self, resource: str, revision: int) -> list[LogEvent]:
        """A resource's events after revision, oldest first. Raises GoneError when the log is shorter."""
        if revision < self.floor:
            raise GoneError(f"too old resource version: {revision} ({self.floor + 1})")
        if revision >= self.revision:
            return []
        query = "SELECT revision, type, data, before FROM events WHERE revision>? AND resource=? "
        query += "ORDER BY revision"
        found = []
        for at, type_, data, before in self.connection.execute(query, (revision, resource)):
            obj = _decoder.decode(data)
            metadata = obj["metadata"]
            record = Record(metadata.get("namespace") or "", metadata["name"], at, obj, data)
            found.append(LogEvent(type_, resource, record, _decoder.decode(before) if before else None))
        return found

    def close(self) -> None:
        self.connection.close()
