"""What the socket maps should hold, row by row, and what a change of the service tables asks of them. Pure.

There is no transaction over maps, so the order of writes is what keeps every moment right: a program that
runs between two of them meets the old endpoints, the new ones, or nothing, and nothing means nftables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from podlane.compile import socket_lb
from podlane.compile.tables import (
    Backend,
    BackendList,
    Frontend,
    FrontendKey,
    ListKey,
    NodePortKey,
    SetMember,
    Table,
)
from podlane.delta import Delta, news
from podlane.kernel.bpf import layout
from podlane.model.addresses import Address, Family, Protocol, family_of

FrontKey = FrontendKey | NodePortKey
Entries = Mapping[str, Mapping[bytes, bytes]]

# What is written first: (map, whether it is a removal). A list's head is written when the endpoints it counts
# are there, and frontends last; they go first. Endpoints beyond a smaller count go when nobody counts them.
_ORDER: Final = {
    step: rank
    for rank, step in enumerate(
        (
            (layout.FRONTENDS, True),
            (layout.NODE_PORTS, True),
            (layout.NODE_ADDRESSES, True),
            (layout.MEMBERS, False),
            (layout.BACKENDS, False),
            (layout.LISTS, False),
            (layout.NODE_ADDRESSES, False),
            (layout.NODE_PORTS, False),
            (layout.FRONTENDS, False),
            (layout.LISTS, True),
            (layout.BACKENDS, True),
            (layout.MEMBERS, True),
        )
    )
}


class Operation(NamedTuple):
    """value: None to remove. owner: table and key of the row that wants it."""

    map: str
    key: bytes
    value: bytes | None
    owner: tuple[Table, Any]


@dataclass
class Gone:
    """Connections that may not go on. lists: number -> protocol and endpoints that keep theirs. numbers: of
    all lists there are, None to leave unknown ones alone."""

    lists: dict[int, tuple[Protocol, frozenset[Backend]]] = field(default_factory=dict)
    numbers: frozenset[int] | None = None

    def __bool__(self) -> bool:
        return bool(self.lists) or self.numbers is not None

    def update(self, later: Gone) -> None:
        self.lists |= later.lists
        self.numbers = later.numbers if later.numbers is not None else self.numbers

    def has(self, bound: layout.Bound, protocol: Protocol) -> bool:
        """A list that is no more ends datagrams, which would go on for ever, but no connection: its end may
        well be alive."""
        known = self.lists.get(bound.list)
        if known is not None:
            return bound.backend not in known[1]
        return self.numbers is not None and bound.list not in self.numbers and protocol is Protocol.UDP


@dataclass
class Plan:
    """silent: operations are not asked for."""

    silent: bool = False
    operations: list[Operation] = field(default_factory=list)
    gone: Gone = field(default_factory=Gone)

    def ordered(self) -> list[Operation]:
        return sorted(self.operations, key=lambda each: _ORDER[each.map, each.value is None])


class SocketState:
    def __init__(self, families: Iterable[Family]) -> None:
        self.families = frozenset(families)
        self._addresses: dict[Address, SetMember] = {}
        self._rows: dict[ListKey, BackendList] = {}
        self._frontends: dict[FrontKey, Frontend] = {}
        self._users: dict[ListKey, set[FrontKey]] = {}
        self._held: dict[FrontKey, int] = {}
        self._laid: dict[ListKey, tuple[Backend, ...]] = {}
        self._numbers: dict[int, ListKey] = {}
        self._before: dict[int, tuple[Backend, ...]] = {}

    def adopt(self, there: Entries) -> None:
        """Learn in which order the lists in the kernel have their endpoints; before any put."""
        found: dict[int, dict[int, Backend]] = {}
        for key, value in there.get(layout.BACKENDS, {}).items():
            number, index = layout.unpack_place(key)
            found.setdefault(number, {})[index] = layout.unpack_end(value)
        self._before = {
            number: tuple(by_index[index] for index in sorted(by_index)) for number, by_index in found.items()
        }

    @property
    def names(self) -> Mapping[int, ListKey]:
        """The lists that are held, by number."""
        return self._numbers

    def put(self, changes: Mapping[Table, Delta[Any, Any]], *, silent: bool = False) -> Plan:
        """Take changes in. silent: for a state that is to be compared as a whole; nothing is planned."""
        plan = Plan(silent=silent)
        self._put_addresses(changes.get(Table.SETS), plan)
        lists: dict[ListKey, None] = {}
        fronts: dict[FrontKey, None] = {}
        for table in (Table.FRONTENDS, Table.NODE_PORTS):
            for key, row in news(changes.get(table)):
                lists.update(dict.fromkeys(self._use(key, row)))
                fronts[key] = None
        for key, row in news(changes.get(Table.BACKENDS)):
            self._take(key, row, plan)
            lists[key] = None
        for key in lists:
            if self._lay(key, plan):
                fronts.update(dict.fromkeys(sorted(self._users.get(key, ()), key=str)))
        for front in fronts:
            self._front(front, plan)
        self._before = {}
        return plan

    def everything_gone(self) -> Gone:
        """After a start: whatever may have gone meanwhile."""
        held = {
            number: (key.protocol, frozenset(_keeping(self._rows[key])))
            for number, key in self._numbers.items()
        }
        return Gone(held, frozenset(self._numbers))

    def entries(self) -> dict[str, dict[bytes, Operation]]:
        """All that should be, by map and key."""
        found: dict[str, dict[bytes, Operation]] = {name: {} for name in layout.DESIRED}
        for each in self._everything():
            found[each.map][each.key] = each
        return found

    def _everything(self) -> Iterator[Operation]:
        for where, row in self._addresses.items():
            yield Operation(layout.NODE_ADDRESSES, layout.octets(where), layout.ONE, (Table.SETS, row))
        for key in self._laid:
            owner = Table.BACKENDS, key
            for name, place, value in self._lay_out(key, self._laid[key], self._rows[key]):
                yield Operation(name, place, value, owner)
        for front, number in self._held.items():
            name, place, table = _place(front)
            yield Operation(name, place, layout.list_number(number), (table, front))

    # --- addresses of the node ---

    def _put_addresses(self, changes: Delta[Any, Any] | None, plan: Plan) -> None:
        for row, new in news(changes):
            where = socket_lb.node_port_address(row)
            if where is None:
                continue
            if family_of(where) in self.families and (where in self._addresses) != (new is not None):
                if new is None:
                    del self._addresses[where]
                else:
                    self._addresses[where] = row
                value = None if new is None else layout.ONE
                plan.operations.append(
                    Operation(layout.NODE_ADDRESSES, layout.octets(where), value, (Table.SETS, row))
                )

    # --- lists ---

    def _take(self, key: ListKey, row: BackendList | None, plan: Plan) -> None:
        old = self._rows.pop(key, None)
        if row is not None:
            self._rows[key] = row
        lost = set(_keeping(old)) - set(_keeping(row))
        # Without a row the service is gone, and of its connections' ends nothing is known.
        ends = key.protocol is Protocol.UDP or row is not None
        if key in self._laid and lost and ends:
            plan.gone.lists[layout.number(key)] = key.protocol, frozenset(_keeping(row))

    def _lay(self, key: ListKey, plan: Plan) -> bool:
        """Bring one list along. True if it came or went, so that its frontends come or go with it."""
        old, row = self._laid.get(key), self._rows.get(key)
        number = layout.number(key)
        wanted = (
            row is not None
            and bool(self._users.get(key))
            and not socket_lb.why_not(row)
            and key.family in self.families
            and self._numbers.setdefault(number, key) == key  # or two names have one digest: nftables then
        )
        if not wanted or row is None:
            if old is None:
                return False
            del self._laid[key], self._numbers[number]
            self._exchange(key, old, (), plan)
            plan.operations.append(
                Operation(layout.LISTS, layout.list_number(number), None, (Table.BACKENDS, key))
            )
            return True
        new = arrange(old if old is not None else self._before.get(number, ()), row.backends)
        self._laid[key] = new
        self._exchange(key, old or (), new, plan)
        head = layout.list_head(len(new), row.affinity_timeout_s)
        plan.operations.append(
            Operation(layout.LISTS, layout.list_number(number), head, (Table.BACKENDS, key))
        )
        return old is None

    def _exchange(self, key: ListKey, old: tuple[Backend, ...], new: tuple[Backend, ...], plan: Plan) -> None:
        if plan.silent:
            return
        number, owner = layout.number(key), (Table.BACKENDS, key)
        for index in range(max(len(old), len(new))):
            was = old[index] if index < len(old) else None
            now = new[index] if index < len(new) else None
            if was != now:
                value = layout.end(now) if now is not None else None
                plan.operations.append(Operation(layout.BACKENDS, layout.place(number, index), value, owner))
        before, after = set(old), set(new)
        for backend in sorted(before ^ after):
            value = layout.NEVER if backend in after else None
            plan.operations.append(Operation(layout.MEMBERS, layout.member(number, backend), value, owner))

    def _lay_out(
        self, key: ListKey, backends: tuple[Backend, ...], row: BackendList
    ) -> Iterator[tuple[str, bytes, bytes]]:
        number = layout.number(key)
        head = layout.list_head(len(backends), row.affinity_timeout_s)
        yield layout.LISTS, layout.list_number(number), head
        for index, backend in enumerate(backends):
            yield layout.BACKENDS, layout.place(number, index), layout.end(backend)
        for backend in set(backends):
            yield layout.MEMBERS, layout.member(number, backend), layout.NEVER

    # --- frontends ---

    def _use(self, key: FrontKey, row: Frontend | None) -> set[ListKey]:
        """Note which list answers for a frontend. Returns those it begins or ceases to use."""
        old = self._frontends.pop(key, None)
        before = socket_lb.list_for(key.protocol, old).list if old is not None else None
        after = socket_lb.list_for(key.protocol, row).list if row is not None else None
        if row is not None:
            self._frontends[key] = row
        if before == after:
            return set()
        if before is not None:
            self._users[before].discard(key)
            if not self._users[before]:
                del self._users[before]
        if after is not None:
            self._users.setdefault(after, set()).add(key)
        return {each for each in (before, after) if each is not None}

    def _front(self, key: FrontKey, plan: Plan) -> None:
        row, old = self._frontends.get(key), self._held.pop(key, None)
        answering = socket_lb.list_for(key.protocol, row).list if row is not None else None
        new = layout.number(answering) if answering is not None and answering in self._laid else None
        if new is not None:
            self._held[key] = new
        if new != old:
            name, place, table = _place(key)
            value = layout.list_number(new) if new is not None else None
            plan.operations.append(Operation(name, place, value, (table, key)))


def arrange(current: tuple[Backend, ...], wanted: tuple[Backend, ...]) -> tuple[Backend, ...]:
    """`wanted` in an order that differs from `current` in as few places as possible."""
    left: dict[Backend, int] = {}
    for backend in wanted:
        left[backend] = left.get(backend, 0) + 1
    table: list[Backend | None] = [None] * len(wanted)
    for index, backend in enumerate(current[: len(wanted)]):
        if left.get(backend):
            left[backend] -= 1
            table[index] = backend
    missing = (backend for backend, count in left.items() for _ in range(count))
    return tuple(backend if backend is not None else next(missing) for backend in table)


def _place(key: FrontKey) -> tuple[str, bytes, Table]:
    if isinstance(key, NodePortKey):
        return layout.NODE_PORTS, layout.node_port(key), Table.NODE_PORTS
    return layout.FRONTENDS, layout.frontend(key), Table.FRONTENDS


def _keeping(row: BackendList | None) -> tuple[Backend, ...]:
    """The endpoints whose connections may go on."""
    return row.backends + row.still_serving if row is not None else ()
