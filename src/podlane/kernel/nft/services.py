"""Services in nftables: the driver of SETS, BACKENDS, FRONTENDS and NODE_PORTS.

The ruleset is constant (skeleton.py) and loaded when it is not there, or another version's is. Everything
else is elements, written in one transaction a generation (so that no packet meets a frontend without
its list, or a list without its endpoints), of both families at once.

If the kernel refuses an operation it is not what we took it to be: somebody else wrote there. Then it is read
and repaired by difference; what is refused even so is reported row by row, and the others stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from podlane.compile.tables import SetName, Table
from podlane.delta import Delta
from podlane.errors import KernelError
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.conntrack.sweeper import Sweeper
from podlane.kernel.driver import Failure, Report
from podlane.kernel.netlink import Request
from podlane.kernel.nft import command, counts, skeleton, text
from podlane.kernel.nft.codec import Element, unpack_intervals, unpack_mark
from podlane.kernel.nft.elements import Elements, Operation
from podlane.kernel.nft.kernel_lists import KernelLists
from podlane.kernel.nft.list_ids import ListIds
from podlane.kernel.nft.service_plan import Chain, Missing, Place, Plan, Timeout
from podlane.kernel.nft.service_state import ServiceState
from podlane.kernel.sweeping import Gone
from podlane.model import marks
from podlane.model.addresses import Family
from podlane.model.config import NetworkConfig

TABLES: Final = (Table.SETS, Table.BACKENDS, Table.FRONTENDS, Table.NODE_PORTS)

_MAPS: Final = (
    skeleton.FRONTENDS,
    skeleton.NODE_PORTS,
    skeleton.ENDPOINTS,
    skeleton.SHORT_CIRCUITS,
    skeleton.PICKS,
    skeleton.SLOTS,
    skeleton.SOURCE_RANGES,
    *SetName,
)
_ROUNDS: Final = 5
_NONE: Final[dict[bytes, Element]] = {}


class ServicesDriver:
    """For the network namespace netns_fd, or that of the calling thread. Blocking; for one thread.

    serve: False leaves services to another proxy; what leaves the cluster is masqueraded in any case.
    gone: tells which endpoints' pods are no more, so that connections to them end (kernel/conntrack).
    Raises UnsupportedError without the program nft, KernelError when the ruleset cannot be loaded.
    """

    at_once: Final = True

    def __init__(
        self,
        config: NetworkConfig,
        netns_fd: int | None = None,
        *,
        serve: bool = True,
        gone: Gone | None = None,
    ) -> None:
        self._config, self._serve = config, serve
        self._netns_fd = netns_fd
        self._elements = Elements(skeleton.TABLE, netns_fd)
        self._flows = Flows(netns_fd)
        self._sweeper = Sweeper(netns_fd, gone if config.services.reset_gone_endpoints else None)
        self._state = ServiceState(config.ip_families)
        self._chains: set[Chain] = set()
        self._timeouts: set[Timeout] = set()
        self._ready = False

    @property
    def tables(self) -> tuple[Table, ...]:
        return TABLES

    @property
    def sweeper(self) -> Sweeper:
        """Deletes stale flows after a generation."""
        return self._sweeper

    def close(self) -> None:
        self._sweeper.close()
        self._flows.close()
        self._elements.close()

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        """Read the kernel and repair by difference. 0 operations when it agrees.

        List ids are taken over from what is there, so that running flows keep their meaning.
        """
        dump = self._dump()
        self._state = ServiceState(self._config.ip_families, self._new_ids())
        self._state.adopt(KernelLists(dump), desired)
        plan = self._state.put(
            {table: Delta(dict(desired.get(table, {})), {}, {}) for table in TABLES}, silent=True
        )
        loaded = self._load()
        done, failures = self._repair(self._dump() if loaded else dump)
        if self._serve and (not self._ready or done):
            plan.stale.every, plan.stale.families = self._state.kept, self._state.families
            self._sweeper.submit(plan.stale)
        self._ready = True
        return self._report(loaded + done, plan, failures)

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        """One generation, as one transaction."""
        if not self._ready:
            raise RuntimeError("resync comes first: it loads the ruleset and learns what is there")
        self._look_for_free_ids()
        plan = self._state.put(changes)
        try:
            made = self._make_room()
            refused = self._elements.commit(plan, made)
        except KernelError:
            refused = None
        if refused is None or refused:
            # The kernel as it is, against the state that was just put.
            loaded = self._load()
            done, failures = self._repair(self._dump())
        else:
            self._remember_chains()
            loaded, done, failures = 0, plan.count, []
        self._sweeper.submit(plan.stale)
        return self._report(loaded + done, plan, failures)

    def _new_ids(self) -> dict[Family, ListIds]:
        """What was in use before, or what flows carry from an earlier life, rests."""
        if self._ready:
            self._look_for_free_ids()
            return {family: ListIds(ids.known) for family, ids in self._state.ids.items()}
        return {family: ListIds(self._carried(family)) for family in self._config.ip_families}

    def _look_for_free_ids(self) -> None:
        for family, ids in self._state.ids.items():
            if ids.tight:
                ids.rested(self._carried(family))

    def _carried(self, family: Family) -> set[int]:
        return {marks.LIST.of(mark) for mark in self._flows.marks(family)}

    def _report(self, operations: int, plan: Plan, refused: Iterable[Failure]) -> Report:
        failures = [*plan.failures, *refused]
        if error := self._sweeper.take_error():
            failures.append(Failure(Table.BACKENDS, "stale flows", error))
        return Report(operations, tuple(failures))

    def remove(self) -> None:
        """Take podlane's tables away. Flows that run keep their translation until they end."""
        for family in Family:
            if self._elements.table_exists(family):
                command.load(skeleton.remove(family), self._netns_fd)
        self._ready = False

    # --- the ruleset ---

    def _load(self) -> int:
        """Load what is not there, replace what another version left. Returns how many tables that were."""
        parts: list[str] = []
        loaded = 0
        for family in Family:
            wanted = family in self._state.families
            exists = self._elements.table_exists(family)
            if not wanted:
                parts += [skeleton.remove(family)] if exists else []
            elif not exists:
                parts.append(skeleton.skeleton(family, self._config, serve=self._serve))
            elif not self._elements.chain_exists(
                family, skeleton.version(family, self._config, serve=self._serve)
            ):
                parts += [skeleton.replace(family)]
                parts += [skeleton.skeleton(family, self._config, serve=self._serve)]
                parts += self._contents(family)
            else:
                continue
            loaded += wanted or exists
        if parts:
            command.load("".join(parts), self._netns_fd)
        return loaded

    def _contents(self, family: Family) -> list[str]:
        """Everything of one family as text, to be loaded together with the skeleton."""
        chains = (c for c in sorted(self._state.chains) if c.family is family)
        timeouts = (t for t in sorted(self._state.timeouts) if t.family is family)
        parts = [skeleton.count_chain(family, c.code, affinity=c.affinity) for c in chains]
        parts += [skeleton.sticky(family, each.seconds) for each in timeouts]
        for (owner, name), operations in self._state.elements().items():
            if owner is family:
                parts.append(text.elements(family, name, (each.element for each in operations.values())))
        return parts

    def _make_room(self) -> list[Request]:
        """Sets and rules for new affinity timeouts are loaded; the messages for new counts are returned."""
        missing = sorted(self._state.timeouts - self._timeouts)
        if missing:
            rules = "".join(skeleton.sticky(each.family, each.seconds) for each in missing)
            command.load(rules, self._netns_fd)
            self._timeouts.update(missing)
        chains = sorted(self._state.chains - self._chains)
        return [r for c in chains for r in counts.chain(c.family, c.code, affinity=c.affinity)]

    def _remember_chains(self) -> None:
        self._chains |= self._state.chains

    # --- elements ---

    def _dump(self) -> dict[Place, list[Element]]:
        """Every element of every set; also notes which chains and timeouts there are."""
        dump: dict[Place, list[Element]] = {}
        self._chains, self._timeouts = set(), set()
        for family in self._config.ip_families:
            there = set(self._elements.sets(family))
            for name in sorted(there & set(_MAPS)):
                dump[family, name] = self._elements.read(family, name)
            for name in there:
                if name.startswith(skeleton.STICKY):
                    self._timeouts.add(Timeout(family, int(name.removeprefix(skeleton.STICKY))))
                    dump[family, name] = self._elements.read(family, name)
            if skeleton.COUNTS in there:
                for element in self._elements.read(family, skeleton.COUNTS):
                    self._chains.add(Chain(family, *counts.unpack_key(unpack_mark(element.key))))
        return dump

    def _repair(self, dump: Mapping[Place, Iterable[Element]]) -> tuple[int, list[Failure]]:
        """Bring the kernel from `dump` to the state. Returns operations done, and what was refused."""
        plan = self._difference(dump)
        failures: dict[Any, Failure] = {}
        for _ in range(_ROUNDS):
            made = self._make_room()
            refused = self._elements.commit(plan, made)
            if not refused:
                self._remember_chains()
                return plan.count, list(failures.values())
            # Nothing took effect. Without the rows at fault the others can.
            for operation, error in refused:
                owner: tuple[Table, Any] = operation.owner
                failures[owner] = Failure(*owner, error)
            plan.without(failures)
        return 0, list(failures.values())

    def _difference(self, dump: Mapping[Place, Iterable[Element]]) -> Plan:
        there = {place: {e.key: e for e in elements} for place, elements in dump.items() if elements}
        if not there:
            return Plan(missing=Missing(self._state.operations))
        plan = Plan()
        edges: dict[Place, list[Operation]] = {place: [] for place in there if place[1] in skeleton.INTERVALS}
        for operation in self._state.operations():
            family, name, element, _, owner = operation
            if name in skeleton.INTERVALS:
                edges.setdefault((family, name), []).append(operation)
                continue
            found = there.get((family, name), _NONE).pop(element.key, None)
            if found is None:
                plan.additions.append(operation)
            elif found != element:
                plan.exchange((family, name), found, element, owner)
        for place, wanted in edges.items():
            there.pop(place, None)
            self._compare_intervals(place, dump.get(place, ()), wanted, plan)
        for place, left in there.items():
            for element in left.values():
                plan.exchange(place, element, None, (_table_of(place[1]), element.key.hex()))
        return plan

    def _compare_intervals(
        self, place: Place, there: Iterable[Element], wanted: list[Operation], plan: Plan
    ) -> None:
        owner = wanted[0].owner if wanted else (Table.SETS, place[1])
        old = unpack_intervals(there, place[0])
        new = unpack_intervals((each.element for each in wanted), place[0])
        plan.exchange_intervals(place, old, new, owner)


def _table_of(name: str) -> Table:
    known = {skeleton.FRONTENDS: Table.FRONTENDS, skeleton.NODE_PORTS: Table.NODE_PORTS}
    return known.get(name) or (Table.SETS if name in list(SetName) else Table.BACKENDS)
