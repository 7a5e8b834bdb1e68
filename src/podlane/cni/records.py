"""Notes of plugin types about attachments: a small SQLite database that outlives the agent.

Network namespaces do not survive a reboot, and neither do the links that notes are about. Notes of an
earlier boot are kept apart (`lost`) until what they name beside the kernel, as files of leases, is gone.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from podlane.cni.plugins.base import Owner
from podlane.cni.protocol import IO_FAILURE
from podlane.errors import CniError, PodlaneError

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS note (
    kind TEXT NOT NULL, network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
    boot_id TEXT NOT NULL, note TEXT NOT NULL,
    PRIMARY KEY (kind, network, container_id, ifname)) WITHOUT ROWID;
"""


class NoteBook:
    """The database at path, made if it is not there (plugins/base.py: Records). boot_id: of this boot.

    Safe to use from several threads. Raises PodlaneError if the file cannot be used.
    """

    def __init__(self, path: Path | str, boot_id: str) -> None:
        self._path, self._boot_id = path, boot_id
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        except sqlite3.Error as error:
            raise PodlaneError(f"notes {path}: {error}") from None
        try:
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _SCHEMA)
        except sqlite3.Error as error:
            self._db.close()
            raise PodlaneError(f"notes {path}: {error}; move the file away to begin anew") from None

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def put(self, kind: str, owner: Owner, note: Mapping[str, Any]) -> None:
        self._do(
            "INSERT OR REPLACE INTO note VALUES (?, ?, ?, ?, ?, ?)",
            (kind, *owner, self._boot_id, json.dumps(note)),
        )

    def get(self, kind: str, owner: Owner) -> dict[str, Any] | None:
        where = "kind = ? AND network = ? AND container_id = ? AND ifname = ? AND boot_id = ?"
        rows = self._do(f"SELECT note FROM note WHERE {where}", (kind, *owner, self._boot_id))
        return json.loads(rows[0][0]) if rows else None

    def remove(self, kind: str, owner: Owner) -> None:
        where = "kind = ? AND network = ? AND container_id = ? AND ifname = ?"
        self._do(f"DELETE FROM note WHERE {where}", (kind, *owner))

    def all(self, kind: str, network: str | None = None) -> list[tuple[Owner, dict[str, Any]]]:
        """In the order of their owners."""
        found = self._of(kind, "boot_id = ?")
        return [(owner, note) for owner, note in found if network in (None, owner.network)]

    def lost(self, kind: str) -> list[tuple[Owner, dict[str, Any]]]:
        """Notes of earlier boots."""
        return self._of(kind, "boot_id != ?")

    def _of(self, kind: str, boot: str) -> list[tuple[Owner, dict[str, Any]]]:
        order = "ORDER BY network, container_id, ifname"
        rows = self._do(
            f"SELECT network, container_id, ifname, note FROM note WHERE kind = ? AND {boot} {order}",
            (kind, self._boot_id),
        )
        return [(Owner(*owner), json.loads(note)) for *owner, note in rows]

    def _do(self, statement: str, values: tuple[str, ...]) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise CniError(IO_FAILURE, f"notes {self._path}: {error}") from None
