"""Which Service has which load-balancer address. Pure; one object for a cluster.

What Services have already is taken over first (`adopt`); only then is anything handed out. All addresses of
a Service are of one pool. An address belongs to one Service, or to several that share it (`Claim.key`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from podlane.errors import PodlaneError
from podlane.model.addresses import Address, Family, Prefix, family_of
from podlane.model.pools import SHARING_KEY, Pool, Range, overlap

Key = tuple[str, str]  # (namespace, name)


class RefusedError(PodlaneError):
    """No address, in words for the Service's event."""


class Claim(Struct, frozen=True):
    """What of a Service decides on its addresses.

    families: in the Service's order; require_all: RequireDualStack or SingleStack, one address of each or
    none. wanted: addresses it asks for, at most one a family; pool: the pool it asks for, "" for any.
    sharing: its key, "" for an address of its own; ports: (protocol, number); spread: what services that
    share must agree on (their traffic policy, and with Local their selector). since: creationTimestamp.
    """

    key: Key
    families: tuple[Family, ...]
    require_all: bool = True
    labels: Mapping[str, str] = {}
    namespace_labels: Mapping[str, str] = {}
    wanted: tuple[Address, ...] = ()
    pool: str = ""
    sharing: str = ""
    ports: frozenset[tuple[str, int]] = frozenset()
    spread: str = ""
    since: str = ""

    @property
    def age(self) -> tuple[str, Key]:
        """The least is the oldest."""
        return self.since, self.key

    @property
    def name(self) -> str:
        return "/".join(self.key)


class Given(NamedTuple):
    """The addresses of one Service, in the order of its families."""

    pool: str
    addresses: tuple[Address, ...]


class Use(NamedTuple):
    """Of one pool and family: addresses that someone has, and those that nobody has."""

    assigned: int
    available: int


class Addresses:
    """pools: those that may be used, by name; refused: the others, and why."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}
        self.refused: dict[str, str] = {}
        self._claims: dict[Key, Claim] = {}
        self._given: dict[Key, tuple[Address, ...]] = {}
        self._holders: dict[Address, set[Key]] = {}
        self._namespaces: dict[str, set[Key]] = {}
        self._assigned: Counter[tuple[str, Family]] = Counter()
        self._sharing: dict[str, set[Key]] = {}
        self._reserved: Counter[Address] = Counter()  # by how many nodes: two may claim one address
        self._reserved_in: Counter[tuple[str, Family]] = Counter()
        self._of_node: dict[str, tuple[Address, ...]] = {}
        self._floors: dict[Range, int] = {}

    # --- pools ---

    def set_pools(self, pools: Iterable[Pool], taken: Mapping[str, Prefix]) -> None:
        """taken: the cluster's own prefixes, which no pool may touch. Of pools that overlap the older is
        used."""
        self.pools, self.refused = {}, {}
        for pool in sorted(pools, key=lambda p: (p.since, p.name)):
            why = overlap(pool, self.pools.values(), taken)
            if why is None:
                self.pools[pool.name] = pool
            else:
                self.refused[pool.name] = why
        self._floors, self._assigned, self._reserved_in = {}, Counter(), Counter()
        for where in self._holders:
            self._count(self._assigned, where, 1)
        for where in self._reserved:
            self._count(self._reserved_in, where, 1)

    def reserve(self, node: str, own: Iterable[Address]) -> None:
        """Addresses of a node, in place of those it had: they are passed over."""
        for where in self._of_node.pop(node, ()):
            self._reserved[where] -= 1
            if not self._reserved[where]:
                del self._reserved[where]
                self._count(self._reserved_in, where, -1)
                self._lower(where)
        for where in (found := tuple(dict.fromkeys(own))):
            if where not in self._reserved:
                self._count(self._reserved_in, where, 1)
            self._reserved[where] += 1
        if found:
            self._of_node[node] = found

    def pool_of(self, where: Address) -> Pool | None:
        return next((pool for pool in self.pools.values() if where in pool), None)

    def use(self, pool: Pool, family: Family) -> Use:
        assigned, reserved = self._assigned[pool.name, family], self._reserved_in[pool.name, family]
        return Use(assigned, pool.size(family) - assigned - reserved)

    # --- what there is ---

    def given(self, key: Key) -> tuple[Address, ...]:
        return self._given.get(key, ())

    def holders(self, where: Address) -> frozenset[Key]:
        return frozenset(self._holders.get(where, ()))

    def adopt(self, claim: Claim, addresses: Sequence[Address]) -> None:
        """claim's Service has these addresses, whether or not anything speaks against it."""
        self.release(claim.key)
        self._claims[claim.key], self._given[claim.key] = claim, tuple(addresses)
        self._namespaces.setdefault(claim.key[0], set()).add(claim.key)
        if claim.sharing:
            self._sharing.setdefault(claim.sharing, set()).add(claim.key)
        for where in addresses:
            if where not in self._holders:
                self._count(self._assigned, where, 1)
            self._holders.setdefault(where, set()).add(claim.key)

    def release(self, key: Key) -> tuple[Address, ...]:
        """The Service has none any more. Returns those it had."""
        claim = self._claims.pop(key, None)
        _forget(self._namespaces, key[0], key)
        _forget(self._sharing, claim.sharing if claim is not None else "", key)
        had = self._given.pop(key, ())
        for where in had:
            holders = self._holders[where]
            holders.discard(key)
            if not holders:
                del self._holders[where]
                self._count(self._assigned, where, -1)
                self._lower(where)
        return had

    def _lower(self, where: Address) -> None:
        """It may be free now: no address below the floor of its range is."""
        for each, floor in self._floors.items():
            if where in each:
                self._floors[each] = min(floor, int(where))

    def _count(self, counter: Counter[tuple[str, Family]], where: Address, step: int) -> None:
        if (pool := self.pool_of(where)) is not None:
            counter[pool.name, family_of(where)] += step

    # --- what there shall be ---

    def settle(self, claim: Claim) -> Given:
        """The addresses of a Service: those it has, as long as nothing speaks against them, else others.

        Raises RefusedError, with none held any more.
        """
        kept = self._keep(claim)
        if kept is None:
            self.release(claim.key)
            kept = self._choose(claim)
        self.adopt(claim, kept.addresses)
        return kept

    def _keep(self, claim: Claim) -> Given | None:
        had = self.given(claim.key)
        pool = self.pool_of(had[0]) if had else None
        if pool is None or self._unsuited(pool, claim) or any(where not in pool for where in had):
            return None
        if any(self.conflict(claim, where, with_older=True) for where in had):
            return None
        by_family = {family_of(where): where for where in had}
        if any(where not in had for where in claim.wanted) or not by_family.keys() & set(claim.families):
            return None
        # A second family asked for later: the first address stays.
        return self._of_pool(claim, pool, by_family, partly=not claim.require_all)

    def _choose(self, claim: Claim) -> Given:
        if not self.pools:
            why = "; ".join(f"{name} is not used: {why}" for name, why in self.refused.items())
            raise RefusedError(f"there is no usable LoadBalancerPool ({why})" if why else "there is no pool")
        reasons: dict[str, str] = {}
        suited = [p for p in self._ordered(claim) if not self._says(reasons, p, self._unsuited(p, claim))]
        asked = {family_of(where): where for where in claim.wanted}
        if claim.wanted:
            suited = [p for p in suited if not self._says(reasons, p, self._lacks(p, claim))]
        for partly in (False, True) if not claim.require_all else (False,):
            for pool in suited:
                found = self._of_pool(claim, pool, asked, partly=partly)
                if found is not None:
                    return found
                reasons[pool.name] = self._exhausted(pool, claim)
        if claim.wanted and not suited and not any(self.pool_of(w) for w in claim.wanted):
            raise RefusedError(f"{_list(claim.wanted)} is in no pool; {_pools(self.pools.values())}")
        raise RefusedError("; ".join(f"pool {name}: {why}" for name, why in reasons.items()))

    @staticmethod
    def _says(reasons: dict[str, str], pool: Pool, why: str | None) -> bool:
        if why is not None:
            reasons[pool.name] = why
        return why is not None

    def _ordered(self, claim: Claim) -> list[Pool]:
        """Those made for somebody in particular first, then by name."""
        return sorted(self.pools.values(), key=lambda p: (not p.particular, p.name))

    def _unsuited(self, pool: Pool, claim: Claim) -> str | None:
        if claim.pool and claim.pool != pool.name:
            return f"the service asks for pool {claim.pool}" + (
                "" if claim.pool in self.pools else ", which is not there"
            )
        if not pool.admits(claim.namespace_labels, claim.labels):
            return "its selectors do not match the service"
        held = self.pool_of(self.given(claim.key)[0]) if self.given(claim.key) else None
        if not (pool.auto_assign or claim.pool or claim.wanted) and held is not pool:
            return "autoAssign is off; ask for the pool or for one of its addresses"
        return None

    def _lacks(self, pool: Pool, claim: Claim) -> str | None:
        for where in claim.wanted:
            if where not in pool:
                return f"it does not have {where}"
            if where in self._reserved:
                return f"{where} is a node's own address"
            if (why := self.conflict(claim, where)) is not None:
                return why
        return None

    def conflict(self, claim: Claim, where: Address, *, with_older: bool = False) -> str | None:
        """Why the Service cannot have an address that others have; None if it can. with_older: of two that
        have it both already, the older keeps it."""
        for key in sorted(self._holders.get(where, ())):
            if key == claim.key:
                continue
            other = self._claims[key]
            if with_older and other.age > claim.age:
                continue
            who = f"{where} belongs to {other.name}"
            if not claim.sharing or claim.sharing != other.sharing:
                return f"{who}; to share it give both one {SHARING_KEY}"
            if twice := sorted(claim.ports & other.ports):
                protocol, number = twice[0]
                return f"{who}, which has port {number}/{protocol} too"
            if claim.spread != other.spread:
                return f"{who}: both need externalTrafficPolicy Cluster, or one selector"
        return None

    def _of_pool(
        self, claim: Claim, pool: Pool, asked: Mapping[Family, Address], *, partly: bool = False
    ) -> Given | None:
        """One address of each family, those asked for where some are; None if the pool has not got them."""
        found: list[Address] = []
        for family in claim.families:
            where = asked.get(family) or self._free(claim, pool, family, already=len(found))
            if where is not None:
                found.append(where)
            elif not partly:
                return None
        return Given(pool.name, tuple(found)) if found else None

    def _free(self, claim: Claim, pool: Pool, family: Family, *, already: int) -> Address | None:
        if claim.sharing:
            for where in sorted(self._shared(claim, pool, family)):
                return where
        if pool.quota and self._held_by(claim.key[0], pool) + already >= pool.quota:
            return None
        for each in pool.of(family):
            for number in range(self._floors.get(each, each.first), each.last + 1):
                where = each.address(number)
                if where not in self._holders:
                    self._floors[each] = number
                    if where not in self._reserved and not pool.avoids(where):
                        return where
        return None

    def _shared(self, claim: Claim, pool: Pool, family: Family) -> Iterator[Address]:
        """Addresses of services with the same key that this one may join."""
        for key in self._sharing.get(claim.sharing, set()) - {claim.key}:
            for where in self._given[key]:
                if family_of(where) is family and where in pool and not self.conflict(claim, where):
                    yield where

    def _held_by(self, namespace: str, pool: Pool) -> int:
        held = {w for key in self._namespaces.get(namespace, ()) for w in self._given[key]}
        return sum(1 for where in held if where in pool)

    def _exhausted(self, pool: Pool, claim: Claim) -> str:
        held = self._held_by(claim.key[0], pool)
        if pool.quota and held + len(claim.families) > pool.quota:
            return f"namespace {claim.key[0]} has {held} of its {pool.quota} addresses (namespaceQuota)"
        for family in claim.families:
            if not pool.size(family):
                return f"it has no {family} addresses"
        return f"all its {_words(claim.families)} addresses are taken"


def _forget(index: dict[str, set[Key]], value: str, key: Key) -> None:
    held = index.get(value, set())
    held.discard(key)
    if not held:
        index.pop(value, None)


_NONE: Final = "no pool is usable"


def _list(addresses: Iterable[Address]) -> str:
    return ", ".join(map(str, addresses))


def _words(families: Iterable[Family]) -> str:
    return " or ".join(families)


def _pools(pools: Iterable[Pool]) -> str:
    have = [f"{pool.name} has {', '.join(map(str, pool.ranges))}" for pool in pools]
    return "; ".join(have) or _NONE
