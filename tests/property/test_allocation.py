"""Whatever is created, changed and deleted: nothing is held twice, and all that is held is somebody's."""

from __future__ import annotations

import contextlib
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from podlane.errors import ApiError, InvalidError
from podlane.lab.api.allocation import SERVICES, ips_of, ports_of
from podlane.model.config import DEFAULT, with_settings
from tests.unit.test_allocation import Lab

# Small ranges, so that they run full: 14 and 15 addresses, 5 node ports.
SMALL = ["serviceCIDRs=10.96.0.0/28,fd00:10:96::/124", "services.nodePortRange=30000-30004"]
NAMES = st.sampled_from("abcdefgh")
TYPES = st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])
POLICIES = st.sampled_from(["SingleStack", "PreferDualStack", "RequireDualStack"])
IPS = st.sampled_from(["", "", "None", "10.96.0.3", "fd00:10:96::3", "10.96.0.0"])
PORTS = st.sampled_from([0, 0, 30001, 30002, 29999])


class Allocation(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lab = Lab(with_settings(DEFAULT, SMALL))

    def teardown(self) -> None:
        self.lab.store.close()

    def exists(self, name: str) -> bool:
        return self.lab.store.get(SERVICES, "default", name) is not None

    @rule(name=NAMES, kind=TYPES, policy=POLICIES, ip=IPS, port=PORTS)
    def create(self, name: str, kind: str, policy: str, ip: str, port: int) -> None:
        if self.exists(name):
            return
        spec = {
            "type": kind,
            "ports": [{"port": 80, "nodePort": port}] if kind == "NodePort" else [{"port": 80}],
        }
        if kind != "ExternalName":
            spec |= {"ipFamilyPolicy": policy, "clusterIP": ip}
        before = self.lab.addresses
        try:
            self.lab.create(name, **spec)
        except (InvalidError, ApiError):
            assert self.lab.addresses == before

    @rule(name=NAMES, kind=TYPES, policy=POLICIES)
    def change(self, name: str, kind: str, policy: str) -> None:
        if self.exists(name):
            with contextlib.suppress(ApiError):
                self.lab.update(name, type=kind, ipFamilyPolicy=None if kind == "ExternalName" else policy)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if self.exists(name):
            self.lab.delete(name)

    @rule()
    def restart(self) -> None:
        allocator = type(self.lab.allocator)
        self.lab.allocator = allocator(self.lab.store, self.lab.config, random.Random(2))

    @invariant()
    def nothing_is_held_twice_or_by_nobody(self) -> None:
        services = [r.obj for r in self.lab.store.records(SERVICES)]
        ips = [ip for s in services for ip in ips_of(s)]
        ports = [p for s in services for p in set(ports_of(s))]
        assert len(set(ips)) == len(ips)
        assert len(set(ports)) == len(ports)
        assert self.lab.addresses == set(ips)


Allocation.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAllocation = Allocation.TestCase
