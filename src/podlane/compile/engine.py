"""Objects in, the desired tables of one node out; one change costs what the change costs.

A **capability** is two pure functions over a View:

    units_of(change, view) -> unit keys      which units a change touches: the union over old and new
    compile_unit(key, view) -> rows          that unit's rows; nothing for a unit that is no more

`units_of` sees the view after the change (what was before is in change.old). The engine drops changes
that change nothing, compiles each touched unit once, and lets the store merge the rows.

Two laws hold for every capability (tests/property/test_compile_laws.py): any sequence of changes ends
in the same rows as a fresh compile, and the work for one change does not grow with the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from podlane.compile.store import Compiled, Contradiction, Store, UnitKey
from podlane.compile.tables import Rows, Table
from podlane.compile.view import ATTACHMENT, CONFIG, UNDERLAY, Change, Objects, View
from podlane.delta import Delta
from podlane.model.config import NetworkConfig
from podlane.model.local import Attachment, Underlay
from podlane.model.objects import Object

__all__ = ["Capability", "Change", "Compiled", "Compiler", "UnitKey", "View", "capabilities", "compile_node"]


class Capability(NamedTuple):
    """name: the first field of its unit keys. reads: API kinds that must be listed before its rows
    may be removed from a kernel. compile_unit may return bare rows or a Compiled."""

    name: str
    units_of: Callable[[Change, View], Iterable[UnitKey]]
    compile_unit: Callable[[UnitKey, View], Rows | Compiled]
    reads: frozenset[str] = frozenset({"Node"})


# Modules of this package with a CAPABILITY, in no order that matters.
_MODULES = ("node", "pods", "bridge", "peers", "services", "announce", "advertise", "policy")


@cache
def capabilities() -> tuple[Capability, ...]:
    """Every capability there is."""
    found = []
    for name in _MODULES:
        try:
            module = import_module(f"podlane.compile.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"podlane.compile.{name}":
                raise
            continue
        capability: Capability = module.CAPABILITY
        found.append(capability)
    return tuple(found)


class Compiler:
    """One node's desired tables, kept current.

    units_compiled and rows_compared count work done, for metrics and for the second law.
    """

    def __init__(
        self, node_name: str, config: NetworkConfig, only: Iterable[Capability] | None = None
    ) -> None:
        self.capabilities = tuple(only) if only is not None else capabilities()
        self.units_compiled = 0
        self._by_name = {c.name: c for c in self.capabilities}
        self._objects = Objects(node_name, config)
        self._store = Store()
        # What the configuration alone compiles to is part of the first answer of `apply`.
        self._recompile(self._touched([Change(CONFIG, None, config)]))

    @property
    def view(self) -> View:
        return self._objects

    @property
    def tables(self) -> Mapping[Table, Mapping[Any, Any]]:
        """What this node should hold now. Live: copy what is handed to another thread."""
        return self._store.tables

    @property
    def reads(self) -> frozenset[str]:
        """The API kinds that the capabilities compile from."""
        return frozenset().union(*(c.reads for c in self.capabilities))

    @property
    def contradictions(self) -> list[Contradiction]:
        return self._store.contradictions

    def owner(self, table: Table, key: Any) -> UnitKey | None:
        """The unit that a row comes from."""
        return self._store.owner(table, key)

    @property
    def complaints(self) -> int:
        """Grows with every change of `contradictions` or `refused`."""
        return self._store.complaints

    @property
    def refused(self) -> dict[UnitKey, tuple[str, ...]]:
        return self._store.refused

    @property
    def rows_compared(self) -> int:
        return self._store.compared

    def apply(self, changes: Iterable[Change]) -> dict[Table, Delta[Any, Any]]:
        """Take changes in; returns what that changed in the tables."""
        self._recompile(self._touched(changes))
        return self._store.take()

    def _touched(self, changes: Iterable[Change]) -> dict[UnitKey, None]:
        touched: dict[UnitKey, None] = {}
        for change in changes:
            real = self._objects.put(change)
            if real is not None:
                for each in (real, *self._objects.derived()):
                    for capability in self.capabilities:
                        touched.update(dict.fromkeys(capability.units_of(each, self._objects)))
        return touched

    def _recompile(self, touched: Iterable[UnitKey]) -> None:
        for key in touched:
            self.units_compiled += 1
            result = self._by_name[key.capability].compile_unit(key, self._objects)
            self._store.put(key, result if isinstance(result, Compiled) else Compiled(result))


def changes_of(objects: Iterable[Object]) -> Iterator[Change]:
    """Objects as changes that bring them in."""
    for value in objects:
        yield Change(type(value).__name__, None, value)


def compile_node(
    objects: Iterable[Object],
    *,
    node: str,
    config: NetworkConfig,
    underlay: Underlay | None = None,
    attachments: Iterable[Attachment] | None = None,
    only: Iterable[Capability] | None = None,
) -> dict[Table, dict[Any, Any]]:
    """A fresh compile of everything: all tables of `node`.

    underlay: derived from the Node object when None. attachments: derived from the status.podIPs of
    the pods bound to the node when None (their devices and MACs then are names for the reader, see
    compile/pods.py).
    """
    from podlane.compile.peers import underlay_from_node
    from podlane.compile.pods import attachments_from_status

    compiler = Compiler(node, config, only)
    compiler.apply(changes_of(objects))
    if underlay is None:
        underlay = underlay_from_node(compiler.view)
    if attachments is None:
        attachments = attachments_from_status(compiler.view)
    compiler.apply(
        [Change(UNDERLAY, None, underlay), *(Change(ATTACHMENT, None, each) for each in attachments)]
    )
    return {table: dict(rows) for table, rows in compiler.tables.items()}
