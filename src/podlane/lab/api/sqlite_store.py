"""The lab's objects in SQLite: one transaction a commit, WAL, synchronous=NORMAL.

What was committed survives the process; a power cut may lose the last moment but never tears.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from podlane.lab.api.fields import footprint
from podlane.lab.api.store import LOG_LENGTH, LogEvent, Record, Store, Transaction, decode, encode, revived

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


class SqliteStore(Store):
    """database: a path or ":memory:". Each write has a revision of its own."""

    def __init__(self, database: Path | str, *, log_length: int = LOG_LENGTH) -> None:
        super().__init__()
        self._connection = sqlite3.connect(str(database), isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(_SCHEMA)
        self._log_length = log_length
        self._connection.execute("INSERT OR IGNORE INTO meta VALUES ('revision', 1), ('floor', 1)")
        self.revision, self.floor = self._meta("revision"), self._meta("floor")
        query = "SELECT resource, namespace, name, revision, data FROM objects"
        for resource, namespace, name, revision, data in self._connection.execute(query):
            self.table(resource).put(Record(namespace, name, revision, decode(data), data))

    def _meta(self, key: str) -> int:
        return int(self._connection.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()[0])

    def _commit(self, transaction: Transaction, before: int) -> list[LogEvent]:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            for event in transaction.events:
                self._write(event)
            execute("INSERT OR REPLACE INTO meta VALUES ('revision', ?)", (self.revision,))
            floor = self._trim(before)
            execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                execute("ROLLBACK")
        self.floor = floor
        return transaction.events

    def _write(self, event: LogEvent) -> None:
        record, execute = event.record, self._connection.execute
        at = (event.resource, *record.key)
        if event.type == "DELETED":
            execute("DELETE FROM objects WHERE resource=? AND namespace=? AND name=?", at)
        else:
            execute("INSERT OR REPLACE INTO objects VALUES (?,?,?,?,?)", (*at, record.revision, record.data))
        previous = encode(footprint(event.resource, event.before)) if event.before else None
        row = (record.revision, event.resource, event.type, record.data, previous)
        execute("INSERT INTO events VALUES (?,?,?,?,?)", row)

    def _trim(self, before: int) -> int:
        """The floor after it."""
        if before // _TRIM_EVERY == self.revision // _TRIM_EVERY and self._log_length >= _TRIM_EVERY:
            return self.floor
        floor = self.revision - self._log_length
        if floor <= self.floor:
            return self.floor
        self._connection.execute("DELETE FROM events WHERE revision<=?", (floor,))
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('floor', ?)", (floor,))
        return floor

    def events_since(self, resource: str, revision: int) -> list[LogEvent]:
        self.check_kept(revision)
        if revision >= self.revision:
            return []
        query = "SELECT revision, resource, type, data, before FROM events WHERE revision>? AND resource=? "
        query += "ORDER BY revision"
        return [revived(*row) for row in self._connection.execute(query, (revision, resource))]

    def attend(self, wake: Callable[[], None]) -> None:
        """Nobody else writes to the file."""

    def poll(self) -> None:
        """There is nothing to take in."""

    def close(self) -> None:
        self._connection.close()
