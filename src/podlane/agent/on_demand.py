"""A driver that is made when the tables ask for it: which backends a node needs, other nodes decide too."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from typing import Any

from podlane.agent.reconciler import EVERY_ROW
from podlane.compile.tables import Table
from podlane.delta import Delta
from podlane.errors import KernelError, UnsupportedError
from podlane.kernel.driver import Driver, Failure, Report

log = logging.getLogger(__name__)

Rows = Mapping[Table, Mapping[Any, Any]]


class OnDemand:
    """The Driver of kernel/driver.py for those rows of `tables` that are `mine`.

    make(): the driver; raises UnsupportedError where there can be none. remove(): takes away what an earlier
    life of the agent left, if no row asks for it. `told` is called with the driver, on the worker's thread.
    """

    def __init__(
        self,
        tables: tuple[Table, ...],
        mine: Callable[[Table, Any], bool],
        make: Callable[[], Driver],
        remove: Callable[[], None],
        *,
        now: bool = False,
    ) -> None:
        self._tables, self._mine, self._make, self._remove = tables, mine, make, remove
        self._looked = False
        self.told: Callable[[Driver], None] = lambda _: None
        self.driver: Driver | None = make() if now else None

    @property
    def tables(self) -> tuple[Table, ...]:
        return self._tables

    def close(self) -> None:
        close = getattr(self.driver, "close", None)
        if close is not None:
            close()

    def resync(self, desired: Rows) -> Report:
        rows = {
            table: {key: row for key, row in desired.get(table, {}).items() if self._mine(table, row)}
            for table in self._tables
        }
        if not any(rows.values()) and self.driver is None:
            if not self._looked:
                self._looked = True
                self._remove()
            return Report()
        return self._with(lambda driver: driver.resync(rows))

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        part = {table: self._part(table, change) for table, change in changes.items()}
        part = {table: change for table, change in part.items() if change}
        return self._with(lambda driver: driver.apply(part)) if part else Report()

    def _part(self, table: Table, change: Delta[Any, Any]) -> Delta[Any, Any]:
        return Delta(
            {key: row for key, row in change.added.items() if self._mine(table, row)},
            {key: each for key, each in change.changed.items() if self._mine(table, each.new)},
            {key: row for key, row in change.removed.items() if self._mine(table, row)},
        )

    def _with(self, work: Callable[[Driver], Report]) -> Report:
        if self.driver is None:
            try:
                self.driver = self._make()
            except UnsupportedError as error:
                why = KernelError.of(errno.EOPNOTSUPP, "another node's backend", str(error))
                return Report(0, (Failure(self._tables[0], EVERY_ROW, why),))
            self.told(self.driver)
        return work(self.driver)
