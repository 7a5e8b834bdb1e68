"""Any sequence of takes, releases and restarts: no address ever has two holders, and none is lost."""

from __future__ import annotations

import shutil
import tempfile
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from podlane.cni.leases import Lease, Leases, given_out
from podlane.errors import CniError

# The second is inside the first: an address lent from one is not free in the other.
POOLS = [ip_network("10.0.0.0/28"), ip_network("10.0.0.8/29"), ip_network("fd00::/125")]
HOLDERS = st.tuples(st.sampled_from([f"c{n}" for n in range(20)]), st.sampled_from(["eth0", "net1"]))


class LeaseMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp())
        self.boot = 0
        self.held: dict[tuple[str, str], Lease] = {}
        self.leases = self.open()

    def open(self) -> Leases:
        return Leases(self.dir / "leases.sqlite", f"boot-{self.boot}")

    @rule(holder=HOLDERS, pools=st.sets(st.sampled_from(POOLS), min_size=1))
    def take(self, holder, pools):
        # A pool with its own subset would be asked for two addresses of one family: no node has that.
        if POOLS[0] in pools:
            pools = pools - {POOLS[1]}
        asked = Lease(*holder, "podlane", "pl0", "02:00:00:00:00:01")
        used = {address for lease in self.held.values() for address in lease.addresses}
        free = all(
            any(pool[n - int(pool[0])] not in used for n in range(given_out(pool)[0], given_out(pool)[1] + 1))
            for pool in pools
        )
        if holder in self.held or not free:
            with pytest.raises(CniError):
                self.leases.take(asked, sorted(pools, key=str))
            return
        taken = self.leases.take(asked, sorted(pools, key=str))
        assert not used & set(taken.addresses)
        for pool, address in zip(sorted(pools, key=str), taken.addresses, strict=True):
            assert given_out(pool)[0] <= int(address) <= given_out(pool)[1]
        self.held[holder] = taken

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        holder = data.draw(st.sampled_from(sorted(self.held)))
        self.leases.release(*holder)
        del self.held[holder]

    @rule(holder=HOLDERS)
    def release_anything(self, holder):
        self.leases.release(*holder)
        self.held.pop(holder, None)

    @rule()
    def restart(self):
        self.leases.close()
        self.leases = self.open()

    @rule()
    def reboot(self):
        self.leases.close()
        self.boot += 1
        self.held.clear()
        self.leases = self.open()

    @invariant()
    def database_and_memory_agree(self):
        assert self.leases.all() == [self.held[key] for key in sorted(self.held)]

    def teardown(self):
        self.leases.close()
        shutil.rmtree(self.dir)


LeaseMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestLeases = LeaseMachine.TestCase
