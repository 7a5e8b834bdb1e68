"""A real packet through two nodes, a tunnel and a translation, found again on every link."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from podlane.kernel import netns
from podlane.kernel.capture import SETTLE_S, Capture
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import Family, Protocol
from podlane.observe.explanation import Outcome
from podlane.observe.hops import Hop
from podlane.observe.packet import decode_ethernet
from podlane.observe.text import trace_lines
from podlane.observe.trace import Trace, trace
from tests.netns.two_nodes import PODS, VNI, Nodes
from tests.netns.two_nodes import PORT as VXLAN_PORT


@contextmanager
def server(nodes: Nodes, family: Family, protocol: Protocol, answers: bool = True) -> Iterator[None]:
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    with netns.socket_in(nodes.places["default/pod/server"], family.af, kind) as listener:
        listener.bind(("", 8080))
        if kind is socket.SOCK_STREAM:
            listener.listen()
            yield
            return
        listener.settimeout(0.1)
        stop = threading.Event()

        def echo() -> None:
            while not stop.is_set():
                try:
                    data, peer = listener.recvfrom(2048)
                except TimeoutError:
                    continue
                if answers:
                    listener.sendto(data, peer)

        thread = threading.Thread(target=echo)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def nodes(namespaces: Callable[[], int]) -> Nodes:
    return Nodes(namespaces)


def traced(nodes: Nodes, family: Family, port: int, protocol: Protocol, timeout_s: float = 2.0) -> Trace:
    service = ipaddress.ip_address(PODS[family][3])
    return trace(nodes.places, "default/pod/client", service, port, protocol, timeout_s=timeout_s)


def way(hops: list[Hop]) -> list[tuple[str, str, str]]:
    return [(h.place.rpartition("/")[2], h.link, h.way) for h in hops]


THERE = [
    ("client", "eth0", "out"),
    ("node-1", "plpod1", "in"),
    ("node-1", "plvxlan", "out"),
    ("node-1", "eth0", "out"),
    ("fabric", "node-1", "in"),
    ("fabric", "node-2", "out"),
    ("node-2", "eth0", "in"),
    ("node-2", "plvxlan", "in"),
    ("node-2", "plpod2", "out"),
    ("server", "eth0", "in"),
]
BACK = [(place, link, "in" if way == "out" else "out") for place, link, way in reversed(THERE)]


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_request_and_reply_are_seen_on_every_link_in_order(
    nodes: Nodes, family: Family, protocol: Protocol
) -> None:
    with server(nodes, family, protocol):
        told = traced(nodes, family, 80, protocol)
    assert len(list(trace_lines(told))) > len(told.hops)
    request = [h for h in told.hops if h.leg == "request"]
    reply = [h for h in told.hops if h.leg == "reply"]
    assert told.verdict is Outcome.DELIVERED
    assert way(request) == THERE
    assert way(reply) == BACK
    assert told.hops == request + reply
    assert [h.time_us for h in told.hops] == sorted(h.time_us for h in told.hops)
    assert told.hops[0].time_us == 0


@pytest.mark.parametrize("family", list(Family))
def test_translation_wrapping_and_ttl_are_told_where_they_happen(nodes: Nodes, family: Family) -> None:
    with server(nodes, family, Protocol.TCP):
        told = traced(nodes, family, 80, Protocol.TCP)
    by = {(h.leg, *w): h for h, w in zip(told.hops, way(told.hops), strict=True)}
    _, own, _, service, _, _ = PODS[family]
    target = own.format(2) if family is Family.IPV4 else f"[{own.format(2)}]"
    virtual = service if family is Family.IPV4 else f"[{service}]"
    translated = by["request", "node-1", "plvxlan", "out"]
    assert f"DNAT {virtual}:80 -> {target}:8080" in translated.changes
    assert "ttl 64 -> 63" in translated.changes
    assert translated.destination == f"{target}:8080"
    wrapped = by["request", "node-1", "eth0", "out"]
    assert wrapped.outer is not None
    assert (wrapped.outer.source, wrapped.outer.destination) == ("172.30.0.1", "172.30.0.2")
    assert (wrapped.outer.vni, wrapped.outer.port) == (VNI, VXLAN_PORT)
    assert wrapped.changes == ["wrapped: VXLAN 85, 172.30.0.1 -> 172.30.0.2"]
    assert by["request", "node-2", "plvxlan", "in"].changes == ["unwrapped: VXLAN 85"]
    assert [h for h in told.hops if any("SNAT" in c for c in h.changes)] == [
        by["reply", "node-1", "plpod1", "out"]
    ]
    assert by["reply", "client", "eth0", "in"].source == f"{virtual}:80"
    assert by["request", "client", "eth0", "out"].what == "SYN"
    assert by["reply", "client", "eth0", "in"].what == "SYN,ACK"


@pytest.mark.parametrize("family", list(Family))
def test_a_port_nobody_listens_on_is_refused_by_the_pod(nodes: Nodes, family: Family) -> None:
    told = traced(nodes, family, 80, Protocol.TCP)
    assert told.verdict is Outcome.REFUSED
    assert "by default/pod/server (RST,ACK)" in told.why
    told = traced(nodes, family, 80, Protocol.UDP)
    assert told.verdict is Outcome.REFUSED
    assert "by default/pod/server (ICMP" in told.why
    assert "port unreachable" in told.why


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_reject_is_told_with_who_did_it(nodes: Nodes, protocol: Protocol) -> None:
    told = traced(nodes, Family.IPV4, 81, protocol)
    assert told.verdict is Outcome.REFUSED
    assert "by node/node-1" in told.why
    assert way(told.hops)[:2] == THERE[:2]


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_drop_is_told_with_the_link_it_was_last_seen_on(nodes: Nodes, protocol: Protocol) -> None:
    told = traced(nodes, Family.IPV4, 82, protocol, timeout_s=0.3)
    assert told.verdict is Outcome.DROPPED
    assert "last seen in node/node-1, link plpod1 (in)" in told.why


def test_a_datagram_that_is_not_answered_was_delivered_all_the_same(nodes: Nodes) -> None:
    with server(nodes, Family.IPV4, Protocol.UDP, answers=False):
        told = traced(nodes, Family.IPV4, 80, Protocol.UDP, timeout_s=0.3)
    assert told.verdict is Outcome.DELIVERED
    assert way(told.hops) == THERE


def test_what_cannot_even_leave_is_no_route(namespaces: Callable[[], int]) -> None:
    told = trace({"lonely": namespaces()}, "lonely", ipaddress.ip_address("10.0.0.1"), 80, Protocol.TCP)
    assert told.verdict is Outcome.NO_ROUTE
    assert told.hops == []


def test_a_capture_sees_both_ways_with_kernel_times(namespaces: Callable[[], int]) -> None:
    fd = namespaces()
    with Rtnl(fd) as inside:
        inside.set_up("lo")
    with Capture(fd) as capture, netns.socket_in(fd, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        time.sleep(SETTLE_S)
        before_ns = time.time_ns()
        sender.sendto(b"hello", ("127.0.0.1", 9))
        after_ns = time.time_ns()
        time.sleep(0.02)
        found = [s for s in capture.read() if (p := decode_ethernet(s.data)) and p.payload == b"hello"]
        assert [(s.link, s.outgoing) for s in found] == [("lo", True), ("lo", False)]
        assert all(before_ns <= s.time_ns <= after_ns for s in found)
        assert capture.dropped() == 0


def test_what_a_node_sends_is_found_although_it_is_translated_before_any_link(nodes: Nodes) -> None:
    rules = """table ip o {
 chain out { type nat hook output priority -100; ip daddr 10.96.0.1 tcp dport 80 dnat to 10.244.2.2:8080; }
 chain post { type nat hook postrouting priority 100; oifname plvxlan masquerade fully-random; }
}
"""
    node = nodes.places["node/node-1"]
    netns.inside(node, lambda: subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True))
    with server(nodes, Family.IPV4, Protocol.TCP):
        told = trace(nodes.places, "node/node-1", ipaddress.ip_address("10.96.0.1"), 80, Protocol.TCP)
    assert told.verdict is Outcome.DELIVERED
    assert way(told.hops)[:8] == THERE[2:]
    first = told.hops[0]
    assert "DNAT 10.96.0.1:80 -> 10.244.2.2:8080" in first.changes
    assert first.changes[0].startswith("SNAT 172.30.0.1:")
    assert first.source.startswith("10.244.1.0:")
