"""The third witness: real packets go where the API's documentation and `decide` say, and nowhere else.

Policies are generated; from one case to the next the nodes are updated, never loaded anew. Counts are for a
quick run; PODLANE_POLICY_CASES asks for more (make soak).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.netns.policy_lab import PORTS, PolicyLab, Probe
from tests.policy_oracle import allowed
from tests.property.policy_strategies import World, put, updates, worlds
from tests.property.test_policy_oracle import agree

CASES = int(os.environ.get("PODLANE_POLICY_CASES", "15"))


def probes(lab: PolicyLab) -> Iterator[Probe]:
    for family in (4, 6):
        for source in range(lab.count):
            for target in range(lab.count):
                for protocol, port in PORTS:
                    if source != target:
                        yield Probe(source, target, protocol, port, family)
                    yield Probe(source, target, protocol, port, family, service=True)
                if source != target:
                    yield Probe(source, target, "ICMP", 0, family)
            for outside in (0, 1):
                for protocol, port in (*PORTS[:4], PORTS[5], ("ICMP", 0)):
                    yield Probe(source, "outside", protocol, port, family, outside=outside)
                    yield Probe("outside", source, protocol, port, family, outside=outside)


def right(world: World, probe: Probe) -> bool:
    by_name = {pod["metadata"]["name"]: pod for pod in world["Pod"]}

    def party(which: int | str) -> Any:
        from tests.property.policy_strategies import OUTSIDE

        return OUTSIDE[probe.family][probe.outside] if which == "outside" else by_name[f"p{which}"]

    return allowed(world, party(probe.source), party(probe.target), probe.protocol, probe.port, probe.family)


@settings(
    deadline=None,
    max_examples=CASES,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(world=worlds(corners=False), history=st.lists(updates(corners=False), max_size=2))
def test_packets_go_where_the_documentation_says(
    policy_lab: PolicyLab, world: World, history: list[Any]
) -> None:
    every = list(probes(policy_lab))
    for update in [None, *history]:
        if update is not None:
            kind, value, there = update
            put(world, kind, value, there or kind == "Pod")
        policy_lab.become(world)
        wanted = {probe for probe in every if right(world, probe)}
        seen = policy_lab.arrived(every, wanted)
        assert (sorted(map(str, seen - wanted)), sorted(map(str, wanted - seen))) == ([], [])
        agree(world, policy_lab.compilers)


def test_the_kernel_holds_exactly_what_was_compiled(policy_lab: PolicyLab) -> None:
    assert policy_lab.in_order()
