"""The seam between the agent and everything that holds desired state: the kernel and the engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from podlane.compile.tables import Table
from podlane.delta import Delta
from podlane.errors import KernelError


class Failure(NamedTuple):
    """A row the kernel refused. The others stand; the reconciler tries this one again."""

    table: Table
    key: Any
    error: KernelError


class Report(Struct, frozen=True):
    """operations: how many changes were sent (0: the kernel already agreed)."""

    operations: int = 0
    failures: tuple[Failure, ...] = ()


class Driver(Protocol):
    """Blocking; called on one worker thread a driver, so that calls are ordered.

    A driver binds the numbers its part of the kernel needs (ids, marks, indexes) and reads them back
    at `resync`. It never touches what it did not make. One with a true attribute `at_once` gets a
    generation's additions and removals together.
    """

    @property
    def tables(self) -> tuple[Table, ...]: ...

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        """Read the kernel and repair by difference, without a moment in which right rows are absent."""
        ...

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        """One generation's changes, in this driver's own safe order."""
        ...
