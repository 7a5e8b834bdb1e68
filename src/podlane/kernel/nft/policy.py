"""Network policy in nftables: the driver of POLICY_SETS, PEERS, POLICIES and GUARDS.

Everything goes by netlink, one transaction a generation: chains, rules, sets and elements of all families. So
a table whose skeleton is another version's is replaced in the transaction that also fills the new one, and no
packet ever meets half a policy, or none.

At the start the ruleset in the kernel is read and repaired by difference; what is right is not touched.
`prepare` loads the skeleton alone, which lets nothing of pods through that it does not know: it is what a
node begins with after a reboot. If the kernel refuses a transaction, the old rules stand; then it is read and
repaired, and a policy that is refused even so is left as it was (or allows nothing, if it is new), while the
others go on.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Collection, Mapping
from typing import Any, Final

from podlane.compile.tables import Table
from podlane.delta import Delta, delta, merge
from podlane.errors import KernelError, KernelNotFoundError
from podlane.kernel.conntrack.cutter import Cutter
from podlane.kernel.driver import Failure, Report
from podlane.kernel.netlink import NETLINK_NETFILTER, Request
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.nft import codec, ruleset
from podlane.kernel.nft.codec import BRIDGE, TableFamily
from podlane.kernel.nft.elements import AGAIN
from podlane.kernel.nft.policy_chains import TABLE
from podlane.kernel.nft.policy_profiles import FUSE_FROM
from podlane.kernel.nft.policy_state import TABLES, PolicyState
from podlane.kernel.nft.ruleset import Chain, Changes, Image, Place, SetSpec, Step, id_of
from podlane.model.addresses import Family
from podlane.model.config import LinkMode, NetworkConfig

_ATTEMPTS: Final = 5
_ROUNDS: Final = 5
EVERY_FAMILY: Final = (*Family, BRIDGE)


class PolicyDriver:
    """For the network namespace netns_fd, or that of the calling thread. Blocking; for one thread."""

    at_once = True

    def __init__(
        self, config: NetworkConfig, netns_fd: int | None = None, *, fuse_from: int = FUSE_FROM
    ) -> None:
        self._families = tuple(config.ip_families)
        self._bridge = config.link.bridge if config.link.mode is LinkMode.BRIDGE else ""
        self._cuts, self._fuse_from = config.policy.cut_established, fuse_from
        self._netlink = Netlink(NETLINK_NETFILTER, netns_fd)
        self._state = self._fresh()
        self._rows: dict[Table, dict[Any, Any]] = {table: {} for table in TABLES}
        self._rows_turn = threading.Lock()
        self.cutter = Cutter(self._copy_rows, netns_fd) if self._cuts else None
        self._ready = False

    @property
    def tables(self) -> tuple[Table, ...]:
        return TABLES

    def close(self) -> None:
        if self.cutter is not None:
            self.cutter.close()
        self._netlink.close()

    def _fresh(self) -> PolicyState:
        return PolicyState(self._families, self._bridge, cuts=self._cuts, fuse_from=self._fuse_from)

    def _copy_rows(self) -> dict[Table, dict[Any, Any]]:
        with self._rows_turn:
            return {table: dict(rows) for table, rows in self._rows.items()}

    def _look_at_flows(self, changes: Mapping[Table, Delta[Any, Any]]) -> None:
        """What policy denies by now is cut, on the cutter's own thread."""
        if self.cutter is None:
            return
        with self._rows_turn:
            for table, change in changes.items():
                merge(self._rows[table], change)
        self.cutter.look()

    def prepare(self) -> None:
        """Make sure that a skeleton is there: unknown pods' packets are dropped from now on.

        A table that is there is left as it is: it knows pods. Raises KernelError.
        """
        empty = self._fresh()
        missing = [family for family in empty.tables if not self._exists(family)]
        if missing:
            self._replace(empty, missing)

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        """Read the kernel and repair by difference. 0 operations when it agrees."""
        self._state = self._fresh()
        everything = {table: delta(desired.get(table, {}), {}) for table in TABLES}
        self._state.put(everything)
        self._state.take()
        report = self._repair()
        self._ready = True
        with self._rows_turn:
            self._rows = {table: {} for table in TABLES}
        self._look_at_flows(everything)
        return report

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        """One generation, as one transaction."""
        if not self._ready:
            return self._apply_early(changes)
        specs = dict(self._state.image.sets)
        self._state.put(changes)
        taken = self._state.take()
        if not taken:
            self._look_at_flows(changes)
            return Report()
        steps = ruleset.steps(TABLE, taken, specs | self._state.image.sets)
        try:
            report = None if self._commit(steps) else Report(len(taken))
        except KernelError:
            report = None  # what was refused is found by the repair
        report = report or self._repair()
        self._look_at_flows(changes)
        return report

    def _apply_early(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        """Links that policy has nothing to do with, before it is known what else is there. The resync that
        comes finds their elements, as it finds those of an earlier life."""
        state = self._fresh()
        state.put(changes)
        taken = state.take()
        refused = self._commit(ruleset.steps(TABLE, taken, state.image.sets))
        known = [(step, error) for step, error in refused if error.errno != errno.EEXIST]
        return Report(
            len(taken) - len(refused),
            tuple(Failure(*state.owner(step.place), error) for step, error in known if step.place),
        )

    def remove(self) -> None:
        """Take policy's tables away: nothing is isolated any more."""
        there = [family for family in EVERY_FAMILY if self._exists(family)]
        self._must([ruleset.delete_table(family, TABLE) for family in there])
        self._ready = False

    # --- repair ---

    def _repair(self) -> Report:
        """Bring the kernel to the state's image."""
        operations = self._tables()
        failures: dict[Place, Failure] = {}
        for _ in range(_ROUNDS):
            actual = self._read()
            changes = ruleset.difference(self._state.image, actual)
            _leave_alone(changes, failures)
            refused = self._commit(ruleset.steps(TABLE, changes, actual.sets | self._state.image.sets))
            if not refused:
                operations += len(changes)
                break
            # Nothing took effect. Without what is at fault the rest can.
            for step, error in refused:
                if step.place is None:
                    raise error
                failures.setdefault(step.place, Failure(*self._state.owner(step.place), error))
        return Report(operations, tuple(failures.values()))

    def _tables(self) -> int:
        """Tables that are missing, or another version's, are made anew with all that belongs in them; those
        of families that are off go. Returns how many that were."""
        wanted = self._state.tables
        stale = [f for f in EVERY_FAMILY if f not in wanted and self._exists(f)]
        self._must([ruleset.delete_table(family, TABLE) for family in stale])
        new = [family for family in wanted if not self._current(family)]
        if new:
            self._replace(self._state, new)
        return len(stale) + len(new)

    def _replace(self, state: PolicyState, families: list[TableFamily]) -> None:
        steps: list[Step] = []
        for family in families:
            if self._exists(family):
                steps.append(ruleset.delete_table(family, TABLE))
            steps.append(ruleset.add_table(family, TABLE))
        changes = _only(ruleset.difference(state.image, Image()), families)
        for family in families:
            changes.chains[family, state.version(family)] = None, Chain()
        steps += ruleset.steps(TABLE, changes, state.image.sets)
        self._must(steps)

    # --- reading ---

    def _exists(self, family: TableFamily) -> bool:
        return self._asks(codec.get_table(family, TABLE))

    def _current(self, family: TableFamily) -> bool:
        return self._asks(codec.get_chain(family, TABLE, self._state.version(family)))

    def _asks(self, request: Request) -> bool:
        try:
            self._netlink.ask(request)
        except KernelNotFoundError:
            return False
        return True

    def _read(self) -> Image:
        image = Image()
        for family in self._state.tables:
            self._read_chains(family, image)
            for message in self._netlink.dump(codec.get_sets(family, TABLE)):
                name = codec.unpack_set_name(message)
                place = family, name
                image.sets[place] = self._state.image.sets.get(place, _FOREIGN)
                elements = [
                    element
                    for part in self._netlink.dump(codec.get_elements(family, TABLE, name))
                    for element in codec.unpack_elements(part)
                ]
                if elements:
                    image.elements[place] = {id_of(each): each for each in elements}
        return image

    def _read_chains(self, family: TableFamily, image: Image) -> None:
        rules: dict[str, list[ruleset.Rule]] = {}
        for message in self._netlink.dump(ruleset.get_chains(family)):
            table, name = ruleset.unpack_chain(message)
            if table == TABLE and name != self._state.version(family):
                rules[name] = []
        for message in self._netlink.dump(ruleset.get_rules(family, TABLE)):
            table, name, rule = ruleset.unpack_rule(message)
            if table == TABLE and name in rules:
                rules[name].append(rule)
        for name, found in rules.items():
            image.chains[family, name] = Chain(tuple(found))

    # --- writing ---

    def _must(self, steps: list[Step]) -> None:
        refused = self._commit(steps)
        if refused:
            raise refused[0][1]

    def _commit(self, steps: list[Step]) -> list[tuple[Step, KernelError]]:
        """What the kernel refused; then nothing has taken effect."""
        begin, end = codec.batch()
        refused: list[tuple[Step, KernelError]] = []
        for attempt in range(1, _ATTEMPTS + 1):
            if not steps:
                break
            try:
                verdicts = self._netlink.transaction([each.request for each in steps], begin=begin, end=end)
            except KernelError as error:
                if error.errno not in AGAIN or attempt == _ATTEMPTS:
                    raise
                continue
            pairs = zip(steps, verdicts, strict=True)
            refused = [(step, error) for step, error in pairs if error is not None]
            if not refused or any(error.errno not in AGAIN for _, error in refused):
                break
        return refused


_FOREIGN: Final = SetSpec(())


def _only(changes: Changes, families: list[TableFamily]) -> Changes:
    found = Changes()
    found.sets = {p: each for p, each in changes.sets.items() if p[0] in families}
    found.chains = {p: each for p, each in changes.chains.items() if p[0] in families}
    found.elements = {p: each for p, each in changes.elements.items() if p[0] in families}
    return found


def _leave_alone(changes: Changes, places: Collection[Place]) -> None:
    """No change to what was refused. A chain that is not there yet must be: others lead to it."""
    for place in places:
        changes.sets.pop(place, None)
        changes.elements.pop(place, None)
        pair = changes.chains.pop(place, None)
        if pair is not None and pair[0] is None:
            changes.chains[place] = None, Chain()
