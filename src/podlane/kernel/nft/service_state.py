"""What the service maps should hold, row by row and element by element, with list ids bound. Pure.

`put` takes changes of the tables and returns the operations that bring the kernel along: one endpoint is
one or two elements, whatever else there is. `elements` is everything at once, for comparing with a
dump; `adopt` learns from a dump which id and which order each list has, so that a restarted agent finds
its own numbers, and flows keep theirs.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, Final

from msgspec import structs

from podlane.compile.tables import (
    Backend,
    BackendList,
    Frontend,
    FrontendClass,
    FrontendKey,
    ListKey,
    NodePortKey,
    SetMember,
    SetName,
    Table,
)
from podlane.delta import Delta, news
from podlane.errors import KernelError
from podlane.kernel.conntrack.stale import Front, Kept, ListId
from podlane.kernel.driver import Failure
from podlane.kernel.nft import lists, skeleton
from podlane.kernel.nft import service_elements as pack
from podlane.kernel.nft.codec import Element, interval_elements, intervals
from podlane.kernel.nft.elements import Operation
from podlane.kernel.nft.kernel_lists import KernelLists
from podlane.kernel.nft.list_ids import ListIds
from podlane.kernel.nft.service_plan import Chain, FrontKey, List, Place, Plan, Timeout
from podlane.model import marks
from podlane.model.addresses import Family, Prefix, Protocol, family_of
from podlane.model.marks import Class

_CLASSES: Final = {
    FrontendClass.INTERNAL: Class.INTERNAL,
    FrontendClass.EXTERNAL: Class.EXTERNAL,
    FrontendClass.EXTERNAL_LOCAL: Class.EXTERNAL_LOCAL,
    FrontendClass.DROP: Class.DROP,
    FrontendClass.REJECT: Class.REJECT,
}
_GUARDED: Final = {
    FrontendClass.EXTERNAL: Class.EXTERNAL_GUARDED,
    FrontendClass.EXTERNAL_LOCAL: Class.EXTERNAL_LOCAL_GUARDED,
}


class ServiceState:
    """ids: which numbers lists may get, by family; all when None."""

    def __init__(self, families: Iterable[Family], ids: Mapping[Family, ListIds] | None = None) -> None:
        self.families = frozenset(families)
        self.chains: set[Chain] = set()
        self.timeouts: set[Timeout] = set()
        self.ids = {f: ids[f] if ids is not None else ListIds() for f in self.families}
        self._members: dict[tuple[Family, SetName], set[Prefix]] = {}
        self._rows: dict[ListKey, BackendList] = {}
        self._lists: dict[ListKey, List] = {}
        self._frontends: dict[FrontKey, Frontend] = {}
        self._marks: dict[FrontKey, int] = {}
        self._users: dict[ListKey, set[FrontKey]] = {}
        self._shorts: dict[ListKey, Element] = {}

    @property
    def desired(self) -> dict[Table, dict[Any, Any]]:
        """The rows that were put."""
        sets = (SetMember(name, value) for (_, name), values in self._members.items() for value in values)
        fronts: dict[type, dict[Any, Any]] = {FrontendKey: {}, NodePortKey: {}}
        for key, row in self._frontends.items():
            fronts[type(key)][key] = row
        return {
            Table.SETS: {each: each for each in sets},
            Table.BACKENDS: dict(self._rows),
            Table.FRONTENDS: fronts[FrontendKey],
            Table.NODE_PORTS: fronts[NodePortKey],
        }

    def adopt(self, kernel: KernelLists, desired: Mapping[Table, Mapping[Any, Any]]) -> None:
        """Bind the lists of `desired` to the ids that frontends in the kernel lead to; before any put."""
        for table in (Table.FRONTENDS, Table.NODE_PORTS):
            for key, row in desired.get(table, {}).items():
                family = _family(key)
                if row.backends is None or family not in self.families:
                    continue
                found = kernel.id_of(key)
                self._adopt(kernel, family, row.backends, found)
                if row.short_circuit is not None:
                    self._adopt(kernel, family, row.short_circuit, kernel.short_circuit(family, found))

    def _adopt(self, kernel: KernelLists, family: Family, key: ListKey, list_id: int) -> None:
        if key not in self._lists and self.ids[family].adopt(list_id):
            layout, slots = kernel.layout(family, list_id)
            self._lists[key] = List(list_id, layout, slots=slots, keep=layout)

    def put(self, changes: Mapping[Table, Delta[Any, Any]], *, silent: bool = False) -> Plan:
        """Take changes in. Failures are rows that have no place in the kernel; the rest is planned.

        silent: without operations, for who compares everything afterwards (`operations`).
        """
        plan = Plan(silent=silent)
        self._put_members(changes.get(Table.SETS), plan)
        touched_lists: dict[ListKey, None] = {}
        told: dict[FrontKey, None] = {}
        for table in (Table.FRONTENDS, Table.NODE_PORTS):
            for key, row in news(changes.get(table)):
                if self._speaks(table, key, _family(key), plan):
                    touched_lists.update(dict.fromkeys(self._use(key, row)))
                    told[key] = None
        for key, row in news(changes.get(Table.BACKENDS)):
            if self._speaks(Table.BACKENDS, key, key.family, plan):
                if row is None:
                    self._rows.pop(key, None)
                else:
                    self._rows[key] = row
                touched_lists[key] = None
        touched = dict(told)
        for key in touched_lists:
            if self._lay(key, plan):
                users = self._users.get(key, ())
                touched.update(dict.fromkeys(sorted(users, key=str) if len(users) > 1 else users))
        for key in touched:
            self._front(key, plan)
        for key in told:
            if key.protocol is Protocol.UDP or not silent:
                plan.stale.fronts.update(self._answering(key))
        for key in touched_lists:
            self._short(key, plan)
        for key in {row.backends for k in touched if (row := self._frontends.get(k)) is not None}:
            if key is not None and key not in touched_lists:
                self._short(key, plan)
        return plan

    @property
    def kept(self) -> dict[ListId, Kept]:
        """Of every list the endpoints whose flows may go on."""
        return {
            (key.family, key.protocol, each.id): Kept(self._rows.get(key, _EMPTY).backends, each.keep)
            for key, each in self._lists.items()
        }

    def elements(self) -> dict[Place, dict[tuple[bytes, int], Operation]]:
        """All elements that should be, by place, key and flags, as operations that add them."""
        found: dict[Place, dict[tuple[bytes, int], Operation]] = {}
        for operation in self.operations():
            place = operation.family, operation.set
            found.setdefault(place, {})[operation.element.key, operation.element.flags] = operation
        return found

    def operations(self) -> Iterator[Operation]:
        """Whatever adds everything, one by one: there may be a million of them."""
        for (family, name), values in self._members.items():
            for element, row in _members(family, name, values):
                yield Operation(family, name, element, True, (Table.SETS, row))
        for key, each in self._lists.items():
            for where, element in each.elements():
                yield Operation(key.family, where, element, True, (Table.BACKENDS, key))
        for front, mark in self._marks.items():
            table, where, element = _front_element(front, mark)
            yield Operation(_family(front), where, element, True, (table, front))
        for key, element in self._shorts.items():
            yield Operation(key.family, skeleton.SHORT_CIRCUITS, element, True, (Table.BACKENDS, key))

    # --- sets ---

    def _put_members(self, changes: Delta[Any, Any] | None, plan: Plan) -> None:
        changed: dict[tuple[Family, SetName], list[tuple[SetMember, Any]]] = {}
        for row, new in news(changes):
            family = family_of(row.value)
            if self._speaks(Table.SETS, row, family, plan):
                changed.setdefault((family, row.set), []).append((row, new))
        for place, rows in changed.items():
            values = self._members.setdefault(place, set())
            if place[1] in skeleton.INTERVALS:
                before = intervals(values)
                for row, new in rows:
                    (values.discard if new is None else values.add)(row.value)
                plan.exchange_intervals(place, before, intervals(values), (Table.SETS, rows[0][0]))
                continue
            for row, new in rows:
                if (row.value in values) != (new is not None):
                    self._put_member(place, values, row, new is not None, plan)

    def _put_member(
        self, place: tuple[Family, SetName], values: set[Prefix], row: SetMember, add: bool, plan: Plan
    ) -> None:
        try:
            element = pack.member(row)
        except ValueError as error:
            plan.failures.append(_failure(Table.SETS, row, errno.EINVAL, str(error)))
            return
        (values.add if add else values.discard)(row.value)
        plan.exchange(place, None if add else element, element if add else None, (Table.SETS, row))

    # --- lists ---

    def _lay(self, key: ListKey, plan: Plan) -> bool:
        """Bring one list's elements along. True if what frontends must say of it changed.

        A list that no frontend leads to has no place in the kernel: nothing could tell its number again.
        Frontends of a list that gets no number are left out until it has one.
        """
        old, row = self._lists.get(key), self._rows.get(key)
        if not self._users.get(key):
            if old is None:
                return False
            self._exchange(key, old, List(old.id), plan)
            self._forget(key, old, List(old.id), plan)
            self.ids[key.family].free(old.id)
            del self._lists[key]
            return True
        if old is None:
            try:
                old = List(self.ids[key.family].take())
            except lists.TooLong as error:
                plan.failures.append(_failure(Table.BACKENDS, key, errno.ENOSPC, str(error)))
                return False
        new = self._laid(key, old, row or _EMPTY, plan)
        self._exchange(key, old, new, plan)
        self._forget(key, old, new, plan)
        self._lists[key] = new
        if new.code:
            self.chains.add(Chain(key.family, new.code, bool(new.timeout_s)))
        if new.timeout_s:
            self.timeouts.add(Timeout(key.family, new.timeout_s))
        return (old.id, old.code, bool(old.timeout_s)) != (new.id, new.code, bool(new.timeout_s))

    def _laid(self, key: ListKey, old: List, row: BackendList, plan: Plan) -> List:
        """The new layout, as near to the old one as can be. What is too long is cut, and reported."""
        backends, timeout_s = row.backends, row.affinity_timeout_s
        slots: Mapping[Backend, int] = {}
        if len(backends) > lists.LONGEST:
            why = f"{len(backends)} endpoints; the first {lists.LONGEST} are used"
            plan.failures.append(_failure(Table.BACKENDS, key, errno.E2BIG, why))
            backends = backends[: lists.LONGEST]
        if timeout_s:
            try:
                slots = lists.assign_slots(old.slots, backends)
            except lists.TooLong as error:
                why = f"no session affinity: {error}"
                plan.failures.append(_failure(Table.BACKENDS, key, errno.E2BIG, why))
                timeout_s = 0
        code, layout = lists.lay(structs.replace(row, backends=backends), old.layout)
        keep = row.backends + row.still_serving
        sources = tuple(pack.source_range(old.id, *each, key.family) for each in intervals(row.sources))
        return List(old.id, layout, code, slots, timeout_s, keep, sources)

    def _forget(self, key: ListKey, old: List, new: List, plan: Plan) -> None:
        """Note flows that may have to go, if the list lost endpoints."""
        if not old.keep:
            return
        udp = key.protocol is Protocol.UDP
        keep, chosen = frozenset(new.keep), frozenset(() if udp else new.layout)
        if not keep.issuperset(old.keep) or (not udp and not chosen.issuperset(old.layout)):
            plan.stale.lists[key.family, key.protocol, new.id] = Kept(chosen, keep)

    def _exchange(self, key: ListKey, old: List, new: List, plan: Plan) -> None:
        if plan.silent:
            return
        owner = Table.BACKENDS, key
        for index, (was, now) in enumerate(zip_longest(old.layout, new.layout)):
            if was == now and old.timeout_s == new.timeout_s:
                continue
            before = old.at(index, was) if was is not None else None
            after = new.at(index, now) if now is not None else None
            for name in {each[0] for each in (before, after) if each is not None}:
                plan.exchange((key.family, name), _in(name, before), _in(name, after), owner)
        before_all, after_all = dict.fromkeys(old.beside()), dict.fromkeys(new.beside())
        for name, element in before_all:
            if (name, element) not in after_all:
                plan.exchange((key.family, name), element, None, owner)
        for name, element in after_all:
            if (name, element) not in before_all:
                plan.exchange((key.family, name), None, element, owner)

    # --- frontends ---

    def _use(self, key: FrontKey, row: Frontend | None) -> set[ListKey]:
        """Note which lists a frontend uses. Returns those it begins or ceases to use."""
        old = self._frontends.get(key)
        before, after = _lists_of(old), _lists_of(row)
        if row is None:
            self._frontends.pop(key, None)
        else:
            self._frontends[key] = row
        for each in before - after:
            self._users[each].discard(key)
            if not self._users[each]:
                del self._users[each]
        for each in after - before:
            self._users.setdefault(each, set()).add(key)
        return before ^ after

    def _front(self, key: FrontKey, plan: Plan) -> None:
        row, old = self._frontends.get(key), self._marks.pop(key, None)
        new = self._mark(row) if row is not None else None
        if new is not None:
            self._marks[key] = new
        if plan.silent or old == new:
            return
        table, name, _ = _front_element(key, 0)
        before = _front_element(key, old)[2] if old is not None else None
        after = _front_element(key, new)[2] if new is not None else None
        plan.exchange((_family(key), name), before, after, (table, key))

    def _mark(self, row: Frontend) -> int | None:
        return self._mark_to(row.backends, (_GUARDED if row.guarded else _CLASSES)[row.kind])

    def _mark_to(self, key: ListKey | None, klass: Class) -> int | None:
        if key is None:
            return marks.mark(klass)
        each = self._lists.get(key)
        if each is None:
            return None
        return marks.mark(klass | (marks.AFFINITY if each.timeout_s else 0), each.code, each.id)

    def _answering(self, key: FrontKey) -> Iterator[tuple[Front, frozenset[int] | None]]:
        """For each address of a frontend the ids that may answer; None if it is gone."""
        row = self._frontends.get(key)
        numbers = (
            frozenset(self._lists[each].id for each in _lists_of(row) if each in self._lists)
            if row is not None
            else None
        )
        if isinstance(key, FrontendKey):
            yield (key.protocol, key.address, key.port), numbers
        else:
            for value in self._members.get((key.family, SetName.NODE_PORT_IPS), ()):
                yield (key.protocol, value.network_address, key.port), numbers

    def _short(self, key: ListKey, plan: Plan) -> None:
        """The way from a local list to its service's cluster list. A list has one, whoever uses it."""
        targets = (
            row.short_circuit
            for user in self._users.get(key, ())
            if (row := self._frontends[user]).backends == key and row.short_circuit is not None
        )
        target = min(targets, default=None)
        old, new = self._shorts.pop(key, None), None
        if target is not None and key in self._lists:
            mark = self._mark_to(target, Class.EXTERNAL_LOCAL)
            if mark is not None:
                new = self._shorts[key] = pack.short_circuit(self._lists[key].id, mark)
        plan.exchange((key.family, skeleton.SHORT_CIRCUITS), old, new, (Table.BACKENDS, key))

    def _speaks(self, table: Table, key: Any, family: Family, plan: Plan) -> bool:
        if family in self.families:
            return True
        plan.failures.append(_failure(table, key, errno.EAFNOSUPPORT, f"{family} is not in ipFamilies"))
        return False


_EMPTY: Final = BackendList(())


def _members(
    family: Family, name: SetName, values: Collection[Prefix]
) -> Iterator[tuple[Element, SetMember]]:
    if name in skeleton.INTERVALS:
        rows = [SetMember(name, value) for value in sorted(values, key=str)]
        for first, last in intervals(values):
            for element in interval_elements(first, last, family):
                yield element, rows[0]  # whichever: an interval may be of many
    else:
        for value in values:
            row = SetMember(name, value)
            yield pack.member(row), row


def _family(key: FrontKey) -> Family:
    return key.family if isinstance(key, NodePortKey) else family_of(key.address)


def _front_element(key: FrontKey, mark: int) -> tuple[Table, str, Element]:
    if isinstance(key, NodePortKey):
        return Table.NODE_PORTS, skeleton.NODE_PORTS, pack.node_port(key, mark)
    return Table.FRONTENDS, skeleton.FRONTENDS, pack.frontend(key, mark)


def _lists_of(row: Frontend | None) -> set[ListKey]:
    return {key for key in (row.backends, row.short_circuit) if key is not None} if row else set()


def _in(name: str, found: tuple[str, Element] | None) -> Element | None:
    return found[1] if found is not None and found[0] == name else None


def _failure(table: Table, key: Any, number: int, why: str) -> Failure:
    return Failure(table, key, KernelError.of(number, f"{table} {' '.join(map(str, key))}", why))
