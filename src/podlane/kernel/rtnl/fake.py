"""RtnlDriver without a kernel: the same tables and verdicts, held in memory."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any

from podlane.compile.tables import Table
from podlane.delta import Delta, delta
from podlane.errors import KernelError
from podlane.kernel.driver import Failure, Report
from podlane.kernel.rtnl.driver import DEVICES, TABLES


class FakeRtnlDriver:
    """devices: names of the links there are besides those of Table.LINKS (the uplink, pods' links).

    refused: (table, key) of rows that fail until they are taken out of the set.
    """

    def __init__(self, devices: Iterable[str] = ()) -> None:
        self.devices = set(devices)
        self.refused: set[tuple[Table, Any]] = set()
        self._rows: dict[Table, dict[Any, Any]] = {table: {} for table in TABLES}

    @property
    def tables(self) -> tuple[Table, ...]:
        return TABLES

    def actual(self) -> dict[Table, dict[Any, Any]]:
        return {table: dict(rows) for table, rows in self._rows.items()}

    def lose(self, device: str) -> None:
        """A link vanishes, and what was on it."""
        self.devices.discard(device)
        for table in DEVICES:
            self._rows[table].pop(device, None)
        for table in (table for table in TABLES if table not in DEVICES):
            rows = self._rows[table]
            for key in [key for key, row in rows.items() if row.device == device]:
                del rows[key]

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        return self.apply({table: delta(desired.get(table, {}), self._rows[table]) for table in TABLES})

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        operations, failures = 0, []
        for table in TABLES:
            if table not in changes:
                continue
            change = changes[table]
            operations += len(change)
            for key, row in {**change.added, **{k: c.new for k, c in change.changed.items()}}.items():
                error = self._refusal(table, key, row)
                if error is not None:
                    failures.append(Failure(table, key, error))
                else:
                    self._rows[table][key] = row
            for key in change.removed:
                self._rows[table].pop(key, None)
        return Report(operations, tuple(failures))

    def _refusal(self, table: Table, key: Any, row: Any) -> KernelError | None:
        if (table, key) in self.refused:
            return KernelError.of(errno.EINVAL, f"set {table} {key}", "refused")
        if table is Table.BRIDGES:
            return None
        device = row.underlay if table is Table.LINKS else row.device
        if device not in self.devices.union(*(self._rows[each] for each in DEVICES)):
            return KernelError.of(errno.ENODEV, f"set {table} {key}", f"there is no link {device}")
        return None
