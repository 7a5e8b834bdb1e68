"""What policy's rows are in the kernel, kept current row by row. Pure: no socket, no clock.

Several rows may want one thing: pods share a profile's chain, policies a set of ports, pods for a moment an
address. All of it is counted, and what a change of rows changes in the ruleset is known without
comparing the rest.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from podlane.compile.tables import (
    Direction,
    Guard,
    NamedPort,
    Peer,
    PodSet,
    Policy,
    PolicyKey,
    Table,
)
from podlane.delta import Delta
from podlane.kernel.nft import policy_chains as chains
from podlane.kernel.nft.codec import BRIDGE, Element, TableFamily
from podlane.kernel.nft.policy_chains import Contents
from podlane.kernel.nft.ruleset import Chain, Changes, ElementId, Image, Place, SetSpec, id_of
from podlane.model.addresses import Address, Family, family_of

TABLES: Final = (Table.POLICY_SETS, Table.PEERS, Table.POLICIES, Table.GUARDS)


class _Counted(NamedTuple):
    """What one row wants to be there."""

    chains: dict[Place, Chain]
    contents: dict[Place, Contents]
    elements: dict[tuple[Place, ElementId], Element]


class PolicyState:
    """bridge: "" for routed links. cuts: flows may be cut. `image` is what the kernel should hold."""

    def __init__(self, families: Iterable[Family], bridge: str = "", *, cuts: bool = False) -> None:
        self._cuts = cuts
        self.families = tuple(families)
        self.bridge = bridge
        self.image = Image()
        self._changes = Changes()
        self._counts: Counter[Any] = Counter()
        self._sets: dict[str, PodSet | NamedPort] = {}
        self._policies: dict[str, PolicyKey] = {}  # by the name of the chain
        for family, sets, skeleton in self._skeleton():
            for name, contents in sets.items():
                self._put_set(place := (family, name), contents.spec)
                for element in contents.elements:
                    self._put_element(place, id_of(element), element)
            for name, chain in skeleton.items():
                self._put_chain((family, name), chain)
        self.take()

    @property
    def tables(self) -> tuple[TableFamily, ...]:
        """The families that have a table."""
        return (*self.families, BRIDGE) if self.bridge else self.families

    def version(self, family: TableFamily) -> str:
        """The name of an empty chain that says which skeleton a table was made with."""
        parts = next(each for each in self._skeleton() if each[0] == family)
        return "version-" + hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def _skeleton(self) -> Iterator[tuple[TableFamily, dict[str, Contents], dict[str, Chain]]]:
        for family in self.families:
            sets = chains.skeleton_sets(family, self.bridge)
            yield family, sets, chains.skeleton_chains(family, self.bridge, cuts=self._cuts)
        if self.bridge:
            yield BRIDGE, chains.bridge_sets(), chains.bridge_chains()

    # --- rows ---

    def put(self, changes: Mapping[Table, Delta[Any, Any]]) -> None:
        """Take rows in."""
        for table in TABLES:
            delta = changes.get(table)
            if delta is not None:
                for key, row in delta.added.items():
                    self._row(table, key, None, row)
                for key, change in delta.changed.items():
                    self._row(table, key, change.old, change.new)
        for table in reversed(TABLES):
            delta = changes.get(table)
            if delta is not None:
                for key, row in delta.removed.items():
                    self._row(table, key, row, None)

    def take(self) -> Changes:
        """What that changed in `image` since the last call."""
        changes, self._changes = self._changes, Changes()
        changes.sets = {p: pair for p, pair in changes.sets.items() if pair[0] != pair[1]}
        changes.chains = {p: pair for p, pair in changes.chains.items() if pair[0] != pair[1]}
        for place, found in list(changes.elements.items()):
            kept = {each: pair for each, pair in found.items() if pair[0] != pair[1]}
            if kept:
                changes.elements[place] = kept
            else:
                del changes.elements[place]
        return changes

    def _row(self, table: Table, key: Any, old: Any, new: Any) -> None:
        match table:
            case Table.POLICY_SETS:
                for family in self.families:
                    self._put_set((family, key), chains.peer_set(new, family) if new is not None else None)
                if new is None:
                    del self._sets[key]
                else:
                    self._sets[key] = new
            case Table.PEERS:
                self._peer(old, new)
            case Table.POLICIES:
                if new is None:
                    del self._policies[chains.policy_chain(key)]
                else:
                    self._policies[chains.policy_chain(key)] = key
                self._exchange(self._of_policy(key, old), self._of_policy(key, new))
            case Table.GUARDS:
                self._exchange(self._of_guard(old), self._of_guard(new))

    def _peer(self, old: Peer | None, new: Peer | None) -> None:
        before, after = set(self._members(old)), set(self._members(new))
        for place, key in after - before:
            self._count_member(place, key, +1)
        for place, key in before - after:
            self._count_member(place, key, -1)

    def _members(self, peer: Peer | None) -> Iterator[tuple[Place, bytes]]:
        if peer is None:
            return
        for where in peer.addresses:
            family = family_of(where)
            if family not in self.families:
                continue
            for name in peer.sets:
                yield (family, name), where.packed
            for port in peer.ports:
                yield from self._named(family, port.set, where, port.number)

    def _named(self, family: Family, name: str, where: Address, number: int) -> Iterator[tuple[Place, bytes]]:
        value = self._sets[name]
        assert isinstance(value, NamedPort)
        yield (family, name), chains.port_key(where, value.protocol, number)

    def _count_member(self, place: Place, key: bytes, change: int) -> None:
        counted = place, key
        before = self._counts[counted]
        self._counts[counted] = before + change
        if not before:
            element = Element(key)
            self._put_element(place, (key, b"", 0), element)
        elif not before + change:
            del self._counts[counted]
            self._put_element(place, (key, b"", 0), None)

    def _of_policy(self, key: PolicyKey, row: Policy | None) -> _Counted:
        found = _Counted({}, {}, {})
        if row is not None:
            for family in self.families:
                chain, sets = chains.policy(key, row, family)
                found.chains[family, chains.policy_chain(key)] = chain
                found.contents.update(((family, name), contents) for name, contents in sets.items())
        return found

    def _of_guard(self, guard: Guard | None) -> _Counted:
        found = _Counted({}, {}, {})
        if guard is None:
            return found
        for family in self.families:
            for direction in Direction:
                policies = guard.policies(direction)
                if policies is not None:
                    name = chains.profile_chain(direction, policies)
                    found.chains[family, name] = chains.profile(policies)
            for name, element in chains.guard_elements(guard, family):
                found.elements[(family, name), id_of(element)] = element
        if self.bridge:
            for name, element in chains.source_elements(guard):
                found.elements[(BRIDGE, name), id_of(element)] = element
        return found

    def owner(self, place: Place) -> tuple[Table, Any]:
        """The row that something in the kernel is for, as far as it is one row's."""
        name = place[1]
        if name in self._policies:
            return Table.POLICIES, self._policies[name]
        if name in self._sets:
            return Table.POLICY_SETS, name
        return Table.GUARDS, name

    # --- counting ---

    def _exchange(self, old: _Counted, new: _Counted) -> None:
        for place, contents in new.contents.items():
            if self._first(place, place in old.contents):
                self._put_set(place, contents.spec)
                for element in contents.elements:
                    self._put_element(place, id_of(element), element)
        for place, chain in new.chains.items():
            self._first(place, place in old.chains)
            self._put_chain(place, chain)
        for (place, each), element in new.elements.items():
            self._first((place, each), (place, each) in old.elements)
            self._put_element(place, each, element)
        for place, each in old.elements:
            if (place, each) not in new.elements and self._last((place, each)):
                self._put_element(place, each, None)
        for place in old.chains:
            if place not in new.chains and self._last(place):
                self._put_chain(place, None)
        for place in old.contents:
            if place not in new.contents and self._last(place):
                for each in list(self.image.elements.get(place, ())):
                    self._put_element(place, each, None)
                self._put_set(place, None)

    def _first(self, what: Any, known: bool) -> bool:
        if known:
            return False
        self._counts[what] += 1
        return self._counts[what] == 1

    def _last(self, what: Any) -> bool:
        self._counts[what] -= 1
        if self._counts[what]:
            return False
        del self._counts[what]
        return True

    # --- the image, and what changed in it ---

    def _put_set(self, place: Place, spec: SetSpec | None) -> None:
        old = self.image.sets.get(place)
        first = self._changes.sets.get(place, (old, None))[0]
        self._changes.sets[place] = first, spec
        if spec is None:
            self.image.sets.pop(place, None)
        else:
            self.image.sets[place] = spec

    def _put_chain(self, place: Place, chain: Chain | None) -> None:
        old = self.image.chains.get(place)
        if old == chain:
            return
        first = self._changes.chains.get(place, (old, None))[0]
        self._changes.chains[place] = first, chain
        if chain is None:
            self.image.chains.pop(place, None)
        else:
            self.image.chains[place] = chain

    def _put_element(self, place: Place, each: ElementId, element: Element | None) -> None:
        there = self.image.elements.setdefault(place, {})
        changed = self._changes.elements.setdefault(place, {})
        first = changed[each][0] if each in changed else there.get(each)
        changed[each] = first, element
        if element is None:
            there.pop(each, None)
        else:
            there[each] = element
        if not there:
            del self.image.elements[place]
