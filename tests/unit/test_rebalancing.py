"""Shares of endpoints by age and by connections, and the changes that they enter the compiler as."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import count
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from podlane.agent.rebalancing import Rebalancing
from podlane.compile.engine import Compiler
from podlane.compile.rebalancing import age_share, combined, load_shares, matters
from podlane.compile.tables import Backend, ListKey, Table
from podlane.compile.view import Change
from podlane.kernel.conntrack.codec import SEEN_REPLY, Entry, Filter, Tuple
from podlane.model.addresses import Family, Protocol, address
from podlane.model.config import NetworkConfig
from podlane.model.local import WHOLE_SHARE
from podlane.model.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
)

KEY = ListKey("default", "web", "http", Protocol.TCP, Family.IPV4, "cluster")


def backend(number: int) -> Backend:
    return Backend(address(f"10.244.1.{number}"), 8080)


# --- shares ---


def test_equal_loads_have_equal_shares() -> None:
    assert set(
        load_shares({backend(n): 7 for n in range(4)}, {backend(n): 1 for n in range(4)}).values()
    ) == {16}
    assert load_shares({}, {}) == {}


def test_the_busier_an_endpoint_the_smaller_its_share() -> None:
    loads = {backend(1): 12, backend(2): 6, backend(3): 3}
    found = load_shares(loads, dict.fromkeys(loads, 1))
    assert found[backend(1)] < found[backend(2)] < found[backend(3)] == WHOLE_SHARE


def test_a_load_is_measured_by_the_weight() -> None:
    found = load_shares({backend(1): 90, backend(2): 10}, {backend(1): 9, backend(2): 1, backend(3): 0})
    assert found == {backend(1): 16, backend(2): 16}


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=300))
def test_shares_are_in_bounds_and_many_endpoints_have_few_steps(loads: list[int]) -> None:
    members = {Backend(address(f"10.1.{n >> 8}.{n & 255}"), 80): load for n, load in enumerate(loads)}
    found = load_shares(members, dict.fromkeys(members, 1))
    assert all(1 <= share <= WHOLE_SHARE for share in found.values())
    step = min(found.values())
    assert sum(found.values()) / step <= max(512, len(loads))


def test_counting_again_and_again_evens_connections_out() -> None:
    """Ten connections arrive between two counts, by the shares, and none ends."""
    conns = {backend(1): 60, backend(2): 20, backend(3): 0}
    weights = dict.fromkeys(conns, 1)
    for _ in range(16):
        shares = load_shares(conns, weights)
        for each, share in shares.items():
            conns[each] += round(10 * share / sum(shares.values()))
    assert max(conns.values()) - min(conns.values()) <= 12


def test_age() -> None:
    assert [age_share(s, 32) for s in (0, 1, 2, 16, 31.9, 32, 1e9)] == [1, 1, 1, 8, 15, 16, 16]


def test_both_shares_count_and_equal_ones_say_nothing() -> None:
    one, other = {backend(1): 8, backend(2): 16}, {backend(1): 8}
    assert combined(one, other) == {backend(1): 4, backend(2): 16}
    assert combined({backend(1): 8, backend(2): 8}, {}) == {}


def test_a_sixteenth_that_wavers_is_not_worth_a_change() -> None:
    assert not matters({backend(1): 8}, {backend(1): 9})
    assert matters({backend(1): 8}, {backend(1): 10})
    assert matters({backend(1): 8}, {backend(2): 8})
    assert matters({}, {backend(1): 16})
    assert matters({backend(1): 16}, {})


# --- in the agent ---


def service(**notes: str) -> Service:
    return Service(
        metadata=ObjectMeta(
            name="web",
            namespace="default",
            annotations={f"podlane.dev/{k.replace('_', '-')}": v for k, v in notes.items()},
        ),
        spec=ServiceSpec(
            cluster_ip="10.96.0.1",
            cluster_ips=["10.96.0.1"],
            ip_families=["IPv4"],
            ports=[ServicePort(80, "http", "TCP", 8080, 30080)],
        ),
    )


def piece(*numbers: int) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(name="web-1", namespace="default", labels={"kubernetes.io/service-name": "web"}),
        address_type="IPv4",
        endpoints=[Endpoint(addresses=[f"10.244.1.{n}"]) for n in numbers],
        ports=[EndpointPort("http", "TCP", 8080)],
    )


class Agent:
    """The compiler and what rebalances it, as the agent wires them."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        self.config = config or NetworkConfig()
        self.compiler = Compiler("n1", self.config)
        self.settled = True
        self.flows: list[Entry] = []
        self.read: list[Filter] = []
        self.rebalancing = Rebalancing(
            self.compiler.view, self.config.services, lambda: self.settled, self._read
        )

    def _read(self, filters: list[Filter]) -> list[Entry]:
        self.read = filters
        return self.flows

    def put(self, *objects: Any, now_s: float = 0.0, gone: bool = False) -> None:
        def changes() -> Any:
            for each in objects:
                kind = type(each).__name__
                change = Change(kind, each, None) if gone else Change(kind, None, each)
                yield change
                yield from self.rebalancing.follow(change, now_s)

        self.compiler.apply(changes())

    def look(self, now_s: float) -> None:
        self.compiler.apply(list(self.rebalancing._told(("default", "web"), now_s)))

    @property
    def list(self) -> dict[int, int]:
        row = self.compiler.tables[Table.BACKENDS][KEY]
        return dict(Counter(int(str(b.address).rpartition(".")[2]) for b in row.backends))


def test_a_new_endpoint_starts_slowly_in_the_generation_that_brings_it() -> None:
    agent = Agent()
    agent.put(service(slow_start="32s"), piece(1, 2))
    assert agent.list == {1: 1, 2: 1}
    agent.put(piece(1, 2, 3), now_s=100)
    assert agent.list == {1: 16, 2: 16, 3: 1}
    agent.look(116)
    assert agent.list == {1: 2, 2: 2, 3: 1}
    agent.look(132)
    assert agent.list == {1: 1, 2: 1, 3: 1}
    # One that was gone is new when it comes again.
    agent.put(piece(1, 2), now_s=200)
    agent.put(piece(1, 2, 3), now_s=201)
    assert agent.list[3] == 1
    assert agent.list[1] == 16


def test_what_is_there_when_the_agent_starts_is_old() -> None:
    agent = Agent()
    agent.settled = False
    agent.put(piece(1), service(slow_start="32s"))
    agent.put(piece(1, 2), now_s=1)
    assert agent.list == {1: 1, 2: 1}


def test_a_service_that_asks_no_longer_has_equal_endpoints_again() -> None:
    agent = Agent()
    agent.put(service(slow_start="32s"), piece(1))
    agent.put(piece(1, 2), now_s=100)
    assert agent.list == {1: 16, 2: 1}
    agent.put(service())
    assert agent.list == {1: 1, 2: 1}
    assert not agent.compiler.view.shares
    agent.put(service(slow_start="32s"))
    agent.put(piece(1, 2, 3), now_s=200)
    agent.put(service(slow_start="32s"), gone=True)
    assert not agent.compiler.view.shares


def entry(number: int, end: int, state: int = 3) -> Entry:
    client = address("10.244.1.99")
    return Entry(
        Tuple(client, address("10.96.0.1"), 6, number, 80),
        Tuple(address(f"10.244.1.{end}"), client, 6, 8080, number),
        0,
        number,
        status=SEEN_REPLY,
        tcp_state=state,
    )


def test_connections_are_counted_and_the_busy_endpoint_gets_fewer() -> None:
    agent = Agent()
    agent.put(service(balancing="least-connections"), piece(1, 2))
    assert agent.rebalancing.counting() == [("default", "web")]
    wanted = agent.rebalancing.filters([("default", "web")])
    assert Filter(Family.IPV4, 6, address("10.96.0.1"), 80) in wanted
    assert Filter(Family.IPV6, 6, None, 30080) in wanted
    ended = [entry(n, 2, state=7) for n in range(100, 200)]
    agent.rebalancing.count([("default", "web")], [*(entry(n, 1) for n in range(30)), *ended])
    agent.look(0)
    assert agent.list[2] >= 3 * agent.list[1]
    agent.rebalancing.count([("default", "web")], [])
    agent.look(1)
    assert agent.list == {1: 1, 2: 1}
    # What was counted means nothing once the service does not ask for it.
    agent.rebalancing.count([("default", "web")], [entry(n, 1) for n in range(30)])
    agent.put(service(slow_start="32s"), now_s=2)
    assert agent.list == {1: 1, 2: 1}


def test_many_services_are_read_at_once() -> None:
    agent = Agent(NetworkConfig())
    agent.put(service(balancing="least-connections"))
    keys = agent.rebalancing.counting()
    many = count(1)
    ports = [ServicePort(next(many), f"p{n}", "TCP", 8080) for n in range(20)]
    web = service(balancing="least-connections")
    agent.put(
        Service(
            metadata=web.metadata, spec=ServiceSpec(cluster_ip="10.96.0.1", ip_families=["IPv4"], ports=ports)
        )
    )
    assert agent.rebalancing.filters(keys) == [Filter(Family.IPV4, 6)]


def test_the_loop_counts_and_tells() -> None:
    async def scenario() -> list[Change]:
        agent = Agent()
        agent.put(service(balancing="least-connections"), piece(1, 2))
        agent.flows = [entry(n, 1) for n in range(30)]
        told: asyncio.Queue[list[Change]] = asyncio.Queue()
        task = asyncio.create_task(agent.rebalancing.run(told.put_nowait))
        try:
            return await asyncio.wait_for(told.get(), 10)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    (change,) = asyncio.run(scenario())
    assert change.new.key == ("default", "web")
    assert {port for _, port, _ in change.new.endpoints} == {8080}
