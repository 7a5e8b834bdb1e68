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
    PodKey,
    PodSet,
    Policy,
    PolicyKey,
    Table,
)
from podlane.delta import Delta
from podlane.kernel.nft import policy_chains as chains
from podlane.kernel.nft import policy_profiles
from podlane.kernel.nft.codec import BRIDGE, Element, TableFamily
from podlane.kernel.nft.policy_chains import Contents
from podlane.kernel.nft.policy_profiles import ProfileKey, Unions
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

    def __init__(
        self,
        families: Iterable[Family],
        bridge: str = "",
        *,
        cuts: bool = False,
        fuse_from: int = policy_profiles.FUSE_FROM,
    ) -> None:
        self._cuts, self._fuse_from = cuts, fuse_from
        self.families = tuple(families)
        self.bridge = bridge
        self.image = Image()
        self._changes = Changes()
        self._counts: Counter[Any] = Counter()
        self._sets: dict[str, PodSet | NamedPort] = {}
        self._policies: dict[str, PolicyKey] = {}  # by the name of the chain
        self._rows: dict[PolicyKey, Policy] = {}
        self._peers: dict[PodKey, Peer] = {}
        self._profiles: dict[ProfileKey, tuple[_Counted, Unions]] = {}
        self._using: dict[PolicyKey, set[ProfileKey]] = {}  # policy -> profiles it is in
        self._unions_of: dict[str, set[str]] = {}  # PodSet -> unions it is part of
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
                if new is None:
                    del self._peers[key]
                else:
                    self._peers[key] = new
            case Table.POLICIES:
                if new is None:
                    del self._policies[chains.policy_chain(key)], self._rows[key]
                else:
                    self._policies[chains.policy_chain(key)], self._rows[key] = key, new
                self._exchange(self._of_policy(key, old), self._of_policy(key, new))
                for profile in sorted(self._using.get(key, ())):
                    self._put_profile(profile)
            case Table.GUARDS:
                before, after = _profiles_of(old), _profiles_of(new)
                for profile in after:
                    if profile not in before and self._first(profile, False):
                        self._put_profile(profile)
                self._exchange(self._of_guard(old), self._of_guard(new))
                for profile in before:
                    if profile not in after and self._last(profile):
                        self._drop_profile(profile)

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
                for union in self._unions_of.get(name, ()):
                    yield (family, union), where.packed
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
            for name, element in chains.guard_elements(guard, family):
                found.elements[(family, name), id_of(element)] = element
        if self.bridge:
            for name, element in chains.source_elements(guard):
                found.elements[(BRIDGE, name), id_of(element)] = element
        return found

    # --- profiles ---

    def _put_profile(self, key: ProfileKey) -> None:
        """As the policies are now."""
        old, before = self._profiles.get(key, (_Counted({}, {}, {}), {}))
        new = _Counted({}, {}, {})
        after: dict[str, frozenset[str]] = {}
        for family in self.families:
            made = policy_profiles.profile(key, self._rows, family, self._fuse_from)
            new.chains[family, chains.profile_chain(*key)] = made.chain
            new.contents.update(((family, name), contents) for name, contents in made.contents.items())
            after |= made.unions
        for name, ids in after.items():
            if name not in before and self._first(name, False):
                self._put_union(name, ids)
        self._exchange(old, new)
        self._profiles[key] = new, after
        self._drop_unions({name: ids for name, ids in before.items() if name not in after})
        for policy in key[1]:
            self._using.setdefault(policy, set()).add(key)

    def _drop_profile(self, key: ProfileKey) -> None:
        old, before = self._profiles.pop(key)
        self._exchange(old, _Counted({}, {}, {}))
        self._drop_unions(before)
        for policy in key[1]:
            self._using[policy].discard(key)
            if not self._using[policy]:
                del self._using[policy]

    def _put_union(self, name: str, ids: frozenset[str]) -> None:
        for family in self.families:
            self._put_set((family, name), chains.union_set(ids, family))
        for each in ids:
            self._unions_of.setdefault(each, set()).add(name)
        for peer in self._peers.values():
            if not ids.isdisjoint(peer.sets):
                for where in peer.addresses:
                    if family_of(where) in self.families:
                        self._count_member((family_of(where), name), where.packed, +1)

    def _drop_unions(self, unions: Unions) -> None:
        for name, ids in unions.items():
            if not self._last(name):
                continue
            for each in ids:
                self._unions_of[each].discard(name)
                if not self._unions_of[each]:
                    del self._unions_of[each]
            for family in self.families:
                for each_id in list(self.image.elements.get((family, name), ())):
                    del self._counts[(family, name), each_id[0]]
                    self._put_element((family, name), each_id, None)
                self._put_set((family, name), None)

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


def _profiles_of(guard: Guard | None) -> list[ProfileKey]:
    if guard is None:
        return []
    found = [(direction, guard.policies(direction)) for direction in Direction]
    return [(direction, policies) for direction, policies in found if policies is not None]
