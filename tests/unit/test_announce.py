"""Who answers for a load-balancer address: candidates and their order, elections, and frames on the wire."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.compile import facts
from podlane.compile.announce import in_order
from podlane.compile.engine import Compiler, capabilities
from podlane.compile.tables import Announcement, Candidate, SetMember, SetName, Table
from podlane.compile.view import UNDERLAY, Change
from podlane.kernel.announce import frames
from podlane.kernel.announce.election import SILENCE_S, Election
from podlane.model.addresses import Address, Family, address, host_prefix
from podlane.model.config import NetworkConfig
from podlane.model.local import Underlay
from podlane.model.objects import (
    Condition,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from podlane.model.pools import (
    ALLOCATED_FROM,
    ANNOUNCED,
    ANNOUNCING_NODES,
    EXCLUDE_LABEL,
    announcement,
    announcing_node,
)

FOUR, SIX = address("192.0.2.7"), address("2001:db8::7")
MAC = bytes.fromhex("020000000001")


def node(name: str, uid: str = "", **labels: str) -> Node:
    where = NodeAddress("InternalIP", f"172.30.1.{10 + int(name[-1])}")
    return Node(
        metadata=ObjectMeta(name=name, uid=uid or f"uid-{name}", labels=labels),
        status=NodeStatus(addresses=[where]),
    )


def service(*ips: str, local: bool = False, ip_mode: str | None = "VIP", **annotations: str) -> Service:
    return Service(
        metadata=ObjectMeta(
            name="web", namespace="default", annotations={ALLOCATED_FROM: "public", **annotations}
        ),
        spec=ServiceSpec(
            type="LoadBalancer",
            cluster_ip="10.96.0.7",
            cluster_ips=["10.96.0.7"],
            ip_families=["IPv4"],
            ports=[ServicePort(80, "http")],
            external_traffic_policy="Local" if local else "Cluster",
        ),
        status=ServiceStatus(LoadBalancerStatus([LoadBalancerIngress(ip, ip_mode=ip_mode) for ip in ips])),
    )


def piece(**ready: bool | None) -> EndpointSlice:
    """ready: by node; None for one that is going but still serves."""
    conditions = {True: (True, True, False), False: (False, False, False), None: (False, True, True)}
    return EndpointSlice(
        metadata=ObjectMeta(name="web-x", namespace="default", labels={"kubernetes.io/service-name": "web"}),
        address_type="IPv4",
        endpoints=[
            Endpoint(
                addresses=[f"10.244.{i}.2"],
                node_name=name.replace("_", "-"),
                conditions=EndpointConditions(*conditions[each]),
            )
            for i, (name, each) in enumerate(ready.items())
        ],
        ports=[EndpointPort("http", "TCP", 8080)],
    )


def compiled(me: str, *objects: Any) -> Compiler:
    only = [c for c in capabilities() if c.name == "announce"]
    compiler = Compiler(me, NetworkConfig(), only)
    compiler.apply([Change(UNDERLAY, None, Underlay("eth0", 1500))])
    compiler.apply(Change(type(each).__name__, None, each) for each in objects)
    return compiler


def candidates(me: str, *objects: Any, where: Address = FOUR) -> list[str] | None:
    row = compiled(me, *objects).tables[Table.ANNOUNCEMENTS].get(where)
    return None if row is None else [c.node for c in row.candidates]


NODES = [node(f"node-{n}") for n in (1, 2, 3)]


# --- candidates -----------------------------------------------------------------------------------


def test_every_node_finds_the_same_order() -> None:
    orders = [candidates(f"node-{n}", *NODES, service("192.0.2.7")) for n in (1, 2, 3)]
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0] or []) == ["node-1", "node-2", "node-3"]
    tables = compiled("node-2", *NODES, service("192.0.2.7")).tables
    row = tables[Table.ANNOUNCEMENTS][FOUR]
    assert (row.device, row.me) == ("eth0", Candidate("node-2", "uid-node-2"))
    assert SetMember(SetName.CLUSTER_IPS, host_prefix(FOUR)) in tables[Table.SETS]


def test_addresses_spread_and_a_node_that_goes_moves_only_its_own() -> None:
    every = [Candidate(f"node-{n}", "") for n in range(10)]
    where = [address(f"192.0.2.{n}") for n in range(250)]
    first = {each: in_order(each, every)[0].node for each in where}
    shares = Counter(first.values())
    assert len(shares) == 10
    assert max(shares.values()) < 50
    left = [c for c in every if c.node != "node-3"]
    moved = {each for each in where if in_order(each, left)[0].node != first[each]}
    assert moved == {each for each in where if first[each] == "node-3"}


def test_the_first_sixteen_count() -> None:
    every = [Candidate(f"node-{n}", "") for n in range(100)]
    assert in_order(FOUR, every) == in_order(FOUR, list(reversed(every)))
    assert len(in_order(FOUR, every)) == 16


def test_who_may_not() -> None:
    excluded = node("node-2", **{EXCLUDE_LABEL: ""})
    assert candidates("node-2", NODES[0], excluded, service("192.0.2.7")) is None
    assert candidates("node-1", NODES[0], excluded, service("192.0.2.7")) == ["node-1"]
    chosen = service("192.0.2.7", **{ANNOUNCING_NODES: "lb=yes"})
    assert candidates("node-1", NODES[0], node("node-2", lb="yes"), chosen) is None
    assert candidates("node-2", NODES[0], node("node-2", lb="yes"), chosen) == ["node-2"]
    # Another load balancer's, a node's own, one that is not to be translated here, of a family that is off.
    theirs = service("192.0.2.7")
    theirs.metadata.annotations.clear()
    assert candidates("node-1", *NODES, theirs) is None
    assert compiled("node-1", *NODES, service("172.30.1.12")).tables[Table.SETS] == {}
    assert candidates("node-1", *NODES, service("192.0.2.7", ip_mode="Proxy")) is None
    assert candidates("node-1", *NODES, service("not an address", "192.0.2.7")) is not None


def told(name: str, *subnets: str) -> Node:
    """A node whose agent has told its uplink."""
    made = node(name)
    told = Underlay("eth0", 1500, tuple((ip_network(s)[9], ip_network(s)) for s in subnets))
    made.metadata.annotations[facts.UNDERLAY_ANNOTATION] = facts.announcement(told)
    return made


def test_all_candidates_are_on_one_network() -> None:
    racks = [
        told("node-1", "172.30.1.0/24", "fd00:1::/64"),
        told("node-2", "172.30.2.0/24", "fd00:2::/64"),
        told("node-3", "172.30.1.0/24", "fd00:1::/64"),
        told("node-4", "172.30.2.0/24", "fd00:2::/64"),
    ]

    def those(text: str, **annotations: str) -> set[str]:
        objects = [*racks, service(text, **annotations)]
        where = address(text)
        return {n.name for n in racks if candidates(n.name, *objects, where=where) is not None}

    assert those("172.30.2.200") == those("fd00:2::99") == {"node-2", "node-4"}
    # Elsewhere: where the first node is, of those that are meant.
    assert those("192.0.2.7") == those("2001:db8::7") == {"node-1", "node-3"}
    but_one = {ANNOUNCING_NODES: "lb!=no"}
    racks[0].metadata.labels["lb"] = racks[2].metadata.labels["lb"] = "no"
    assert those("192.0.2.7", **but_one) == {"node-2", "node-4"}
    assert those("172.30.1.200", **but_one) == set()
    racks[3].metadata.annotations.clear()
    assert those("172.30.1.200", **but_one) == {"node-4"}, "it may be anywhere"


def test_a_selector_that_is_none_is_told() -> None:
    broken = compiled("node-1", *NODES, service("192.0.2.7", **{ANNOUNCING_NODES: "a b c ("}))
    ((sentence,),) = broken.refused.values()
    assert "default/web: annotation podlane.dev/announcing-nodes" in sentence


def test_policy_local_wants_a_ready_endpoint() -> None:
    def having(**ready: bool | None) -> set[str]:
        objects = [*NODES, service("192.0.2.7", local=True), piece(**ready)]
        return {n.name for n in NODES if candidates(n.name, *objects) is not None}

    assert having(node_1=True, node_2=False, node_3=None) == {"node-1"}
    assert having(node_2=False, node_3=None) == {"node-3"}
    assert having(node_2=False) == set()
    compiler = compiled("node-2", *NODES, service("192.0.2.7", local=True), piece(node_1=True))
    assert not compiler.tables[Table.ANNOUNCEMENTS]
    compiler.apply([Change("EndpointSlice", None, piece(node_1=True, node_2=True))])
    assert FOUR in compiler.tables[Table.ANNOUNCEMENTS]


def test_who_announces_is_read_from_the_condition() -> None:
    told = Condition(ANNOUNCED[Family.IPV4], "True", "Layer2", announcement("node-2", FOUR))
    web = Service(metadata=ObjectMeta(name="web"), status=ServiceStatus(conditions=[told]))
    assert (announcing_node(web, FOUR), announcing_node(web, address("192.0.2.8"))) == ("node-2", "")
    assert announcing_node(web, SIX) == ""


# --- elections ------------------------------------------------------------------------------------


def rows(me: str, *order: str, where: Address = FOUR) -> dict[Address, Announcement]:
    every = {name: Candidate(name, name) for name in order}
    return {where: Announcement(where, "eth0", every[me], tuple(every.values()))}


def test_the_first_answers_at_once_the_second_when_the_first_is_silent() -> None:
    first, second = Election(), Election()
    first.set_rows(rows("a", "a", "b"), [], 100.0)
    second.set_rows(rows("b", "a", "b"), [], 100.0)
    assert FOUR in first.mine(100.0)
    assert not second.mine(101.9)
    assert FOUR in second.mine(102.0)
    assert second.heard("a", 103.0), "it is back"
    assert not second.heard("a", 103.1)
    assert not second.mine(103.0)
    second.set_rows(rows("b", "a", "b"), [], 104.5)
    assert not second.mine(104.9), "rows that change do not make the dead live, nor the living die"
    assert FOUR in second.mine(103.1 + SILENCE_S)


def test_all_before_must_be_silent() -> None:
    third = Election()
    third.set_rows(rows("c", "a", "b", "c"), [], 0.0)
    third.heard("b", 1.0)
    assert not third.mine(2.5)
    assert FOUR in third.mine(3.0)


def test_an_agent_that_comes_back_keeps_what_it_holds_until_a_better_one_speaks() -> None:
    again = Election()
    again.set_rows(rows("b", "a", "b"), [FOUR], 0.0)
    assert FOUR in again.mine(0.0)
    again.heard("a", 0.4)
    assert not again.mine(0.4)


def test_strangers_are_not_heard() -> None:
    one = Election()
    one.set_rows(rows("a", "a"), [], 0.0)
    assert not one.heard("x" * 60, 0.0)
    assert not one.alive("x" * 60, 0.0)


# --- frames ---------------------------------------------------------------------------------------


def test_gratuitous_arp() -> None:
    request, reply = frames.announcements(FOUR, MAC)
    assert request[:14].hex() == "ffffffffffff" + "020000000001" + "0806"
    assert request[14:42].hex() == "0001080006040001" + "020000000001c0000207" + "000000000000c0000207"
    assert reply[14:42].hex() == "0001080006040002" + "020000000001c0000207" + "020000000001c0000207"
    assert len(request) == len(reply) == 60


def test_unsolicited_neighbour_advertisement() -> None:
    (frame,) = frames.announcements(SIX, MAC)
    assert frame[:14].hex() == "333300000001" + "020000000001" + "86dd"
    header, message = frame[14:54], frame[54:]
    assert (header[6], header[7], header[8:24], header[24:40]) == (
        58,
        255,
        SIX.packed,
        address("ff02::1").packed,
    )
    assert message[:2].hex() == "8800"
    assert message[4:8].hex() == "a0000000"
    assert message[8:24] == SIX.packed
    assert message[24:32].hex() == "0201" + "020000000001"
    words = header[8:40] + bytes([0, 0, 0, 32, 0, 0, 0, 58]) + message
    total = sum(int.from_bytes(words[i : i + 2]) for i in range(0, len(words), 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


@pytest.mark.parametrize("identity", ["uid-1", "é", "x" * 253])
def test_heartbeats(identity: str) -> None:
    frame = frames.heartbeat(identity, MAC)
    assert frames.heard(frame) == identity
    assert len(frame) >= 60
    for short in range(len(frame)):
        assert frames.heard(frame[:short]) in (None, identity)


@pytest.mark.parametrize(
    "payload", ["", "706f646c616e6501", "706f646c616e650100", "706f646c616e650205616263"]
)
def test_what_is_no_heartbeat(payload: str) -> None:
    assert frames.heard(frames.heartbeat("a", MAC)[:14] + bytes.fromhex(payload)) is None


@given(st.binary(max_size=300))
def test_whatever_comes_is_read_or_left(frame: bytes) -> None:
    found = frames.heard(frame)
    assert found is None or frame[14:].startswith(b"podlane\x01")
    assert frames.heard(frames.heartbeat("a", MAC)[:22] + frame) is None or frame
