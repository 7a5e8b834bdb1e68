"""Connections whose endpoint vanished, began too early, or meet packets out of their window."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from msgspec import structs

from podlane.agent import sysctls
from podlane.kernel import netns
from podlane.kernel.conntrack.codec import Filter
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.conntrack.sweeper import Gone
from podlane.kernel.nft.services import ServicesDriver
from podlane.model.addresses import Address, Family, Protocol
from podlane.model.config import NetworkConfig
from podlane.model.objects import EndpointConditions, EndpointSlice
from tests.netns.agent_nodes import wait_until
from tests.netns.service_lab import PODS, ServiceLab, service_lab
from tests.netns.test_services import CONFIG, NODE_PORT, Net, echo, piece, service

LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"


@pytest.fixture(scope="module")
def built() -> Iterator[ServiceLab]:
    with service_lab() as lab:
        yield lab


@pytest.fixture(params=list(Family))
def net(built: ServiceLab, request: pytest.FixtureRequest) -> Iterator[Net]:
    net = Net(built, request.param)
    net.driver.remove()
    net.driver.resync(net.tables)
    yield net
    net.driver.remove()
    net.driver.close()


def drive(net: Net, gone: Gone, config: NetworkConfig = CONFIG) -> None:
    """From here on by a driver that asks `gone`."""
    net.driver.close()
    net.driver = ServicesDriver(config, net.lab.fds["node"], gone=gone)
    net.driver.resync(net.tables)


def all_of(addresses: frozenset[Address]) -> frozenset[Address]:
    return addresses


@contextmanager
def silent(net: Net, name: str, what: str = "") -> Iterator[None]:
    """The place takes nothing in (or not `what`) and says nothing, as one whose machine lost its power."""
    chain = "type filter hook input priority 0;" + (f" {what} drop;" if what else " policy drop;")
    net.lab.run(name, "nft", f"add table inet silent; add chain inet silent in {{ {chain} }}")
    try:
        yield
    finally:
        net.lab.run(name, "nft", "delete table inet silent")


def ways_in(net: Net) -> list[tuple[str, tuple[str, int]]]:
    cluster_ip = net.plan.services.format(10), 80
    return [("client", cluster_ip), ("outside", (net.plan.node, NODE_PORT)), ("node", cluster_ip)]


@pytest.mark.parametrize("left", [("remote",), ()])
def test_a_connection_to_a_pod_that_is_gone_is_reset(net: Net, left: tuple[str, ...]) -> None:
    """Another endpoint, or the refusal of a service without any, does it; and a client that only waits is
    brought to say something."""
    drive(net, all_of)
    web = service(net.plan, net.family, type="NodePort")
    for who, where in ways_in(net):
        net.set(web, piece(net.plan, net.family, "local-1"))
        stream, answer = net.lab.connect(who, *where)
        with stream, silent(net, "local-1"):
            assert answer.server == "local-1"
            net.set(web, piece(net.plan, net.family, *left))
            stream.settimeout(10)
            with pytest.raises(ConnectionError):
                stream.recv(64)


def test_a_connection_to_a_pod_that_only_left_the_service_goes_on_until_it_is_gone(net: Net) -> None:
    alive = True
    asked: list[frozenset[Address]] = []

    def gone(addresses: frozenset[Address]) -> frozenset[Address]:
        asked.append(addresses)
        return frozenset() if alive else addresses

    drive(net, gone)
    web = service(net.plan, net.family)
    net.set(web, piece(net.plan, net.family, "local-1"))
    stream, _ = net.lab.connect("client", net.plan.services.format(10))
    with stream:
        net.set(web, piece(net.plan, net.family, "remote"))
        assert {str(a) for each in asked for a in each} == {net.plan.pod(PODS["local-1"])}
        echo(stream)
        alive = False
        deleted = net.driver.sweeper.deleted
        wait_until(lambda: net.driver.sweeper.deleted > deleted, "the pod is asked for again")
        with pytest.raises(ConnectionError):
            echo(stream)


def test_what_is_configured_to_stay_stays(net: Net) -> None:
    services = structs.replace(CONFIG.services, reset_gone_endpoints=False)
    drive(net, all_of, structs.replace(CONFIG, services=services))
    web = service(net.plan, net.family)
    net.set(web, piece(net.plan, net.family, "local-1"))
    stream, _ = net.lab.connect("client", net.plan.services.format(10))
    with stream:
        net.set(web, piece(net.plan, net.family, "remote"))
        echo(stream)


def test_connections_to_others_and_of_draining_endpoints_are_left_alone(net: Net) -> None:
    drive(net, all_of)
    web, where = service(net.plan, net.family), net.plan.services.format(10)
    both = piece(net.plan, net.family, "local-1", "remote")
    net.set(web, both)
    streams = {}
    for _ in range(60):
        stream, answer = net.lab.connect("client", where)
        if answer.server in streams:
            stream.close()
        streams.setdefault(answer.server, stream)
    net.set(web, draining(both, 0))
    for stream in streams.values():
        echo(stream)
    net.set(web, piece(net.plan, net.family, "remote"))
    echo(streams["remote"])
    for stream in streams.values():
        stream.close()


def draining(found: EndpointSlice, at: int) -> EndpointSlice:
    ends = list(found.endpoints or ())
    going = EndpointConditions(ready=False, serving=False, terminating=True)
    ends[at] = structs.replace(ends[at], conditions=going)
    return structs.replace(found, endpoints=ends)


def test_a_client_that_nobody_answered_comes_to_another_endpoint(net: Net) -> None:
    """Its SYN is sent again, as a first packet, once the endpoint is not chosen any more: long before
    connect gives up."""
    web, ends = service(net.plan, net.family, type="NodePort"), ("local-1", "remote")
    for who, where in ways_in(net):
        net.set(web, piece(net.plan, net.family, "local-1"))
        with silent(net, "local-1"), net.lab.socket(who, where[0], socket.SOCK_STREAM) as stream:
            stream.setblocking(False)
            stream.connect_ex(where)
            net.set(web, draining(piece(net.plan, net.family, *ends), 0))
            stream.settimeout(20)
            assert stream.recv(4096)  # the greeting of whoever answered: `remote`


def test_a_client_that_began_before_the_service_comes_to_it(net: Net) -> None:
    """To an address beyond, that became an external IP after the first SYN."""
    where = net.plan.outside, 4444
    with (
        silent(net, "outside", "tcp dport 4444"),
        net.lab.socket("client", where[0], socket.SOCK_STREAM) as stream,
    ):
        stream.setblocking(False)
        stream.connect_ex(where)
        ports = [structs.replace(service(net.plan, net.family).spec.ports[0], port=4444, node_port=0)]
        net.set(
            service(net.plan, net.family, external_ips=[where[0]], ports=ports),
            piece(net.plan, net.family, "remote"),
        )
        stream.settimeout(20)
        assert b"remote" in stream.recv(4096)


def test_the_kernel_brings_what_a_filter_wants(net: Net) -> None:
    """By port alone, and what nobody answered: lists that are read often are read narrowly."""
    net.set(service(net.plan, net.family, type="NodePort"), piece(net.plan, net.family, "remote"))
    flows, tcp = Flows(net.lab.fds["node"]), Protocol.TCP.number
    try:
        stream, _ = net.lab.connect("outside", net.plan.node, NODE_PORT)
        with stream, net.lab.socket("client", net.plan.services.format(10), socket.SOCK_STREAM) as other:
            mine = stream.getsockname()[1]
            by_port = flows.list(Filter(net.family, tcp, None, NODE_PORT))
            assert mine in {entry.original.source_port for entry in by_port}
            assert {entry.original.destination_port for entry in by_port} == {NODE_PORT}
            with silent(net, "peer"):
                other.setblocking(False)
                other.connect_ex((net.plan.services.format(10), 80))
                wait_until(
                    lambda: flows.list(Filter(net.family, tcp, unanswered=True)), "a SYN is on its way"
                )
                waiting = flows.list(Filter(net.family, tcp, unanswered=True))
            assert {entry.state for entry in waiting} == {"SYN_SENT"}
            assert mine not in {entry.original.source_port for entry in waiting}
    finally:
        flows.close()


# --- packets out of the window (kubernetes/kubernetes#74839) ---


@pytest.mark.parametrize("liberal", [True, False])
def test_a_packet_out_of_the_window_resets_nothing(net: Net, liberal: bool) -> None:
    """Taken for invalid it would pass untranslated, and the client would reset what it does not know. The
    agent's setting is what prevents it: without it the connection is lost."""
    node = net.lab.fds["node"]
    netns.write_sysctl(node, LIBERAL, 0)
    if liberal:
        with netns.entered(node):
            found = [s for s in sysctls.wanted([net.family], "eth0", sysctls.read) if s.name == LIBERAL]
            assert sysctls.apply(found) == []
    net.set(service(net.plan, net.family), piece(net.plan, net.family, "local-1"))
    stream, answer = net.lab.connect("client", net.plan.services.format(10))
    with stream:
        assert answer.server == "local-1"
        echo(stream)
        server = next(s for s in net.lab._streams if s.getpeername()[:2] == stream.getsockname()[:2])
        stray(net, server)
        if liberal:
            echo(stream)
        else:
            with pytest.raises(ConnectionError):
                echo(stream)


_REPAIR, _QUEUE, _QUEUE_SEQ, _REPAIR_OFF = 19, 20, 21, -1  # TCP_REPAIR and its kind (linux/tcp.h)


def stray(net: Net, server: socket.socket) -> None:
    """A segment from the server's pod, a long way beyond the window, that acknowledges what it may."""
    server.setsockopt(socket.IPPROTO_TCP, _REPAIR, 1)
    numbers = []
    for queue in (2, 1):  # TCP_SEND_QUEUE, TCP_RECV_QUEUE
        server.setsockopt(socket.IPPROTO_TCP, _QUEUE, queue)
        numbers.append(server.getsockopt(socket.IPPROTO_TCP, _QUEUE_SEQ) & 0xFFFFFFFF)
    server.setsockopt(socket.IPPROTO_TCP, _REPAIR, _REPAIR_OFF)
    sequence, acknowledged = (numbers[0] + 0x10000000) & 0xFFFFFFFF, numbers[1]
    (here, port), (there, peer_port) = server.getsockname()[:2], server.getpeername()[:2]
    segment = struct.pack("!HHIIBBHHH", port, peer_port, sequence, acknowledged, 5 << 4, 0x10, 1000, 0, 0)
    family = socket.AF_INET6 if ":" in here else socket.AF_INET
    with netns.socket_in(net.lab.fds["local-1"], family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.bind((here, 0))
        if family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, 16)
        else:
            segment = segment[:16] + checksum(here, there, segment) + segment[18:]
        raw.sendto(segment, (there, 0))


def checksum(here: str, there: str, segment: bytes) -> bytes:
    pseudo = socket.inet_aton(here) + socket.inet_aton(there) + struct.pack("!HH", 6, len(segment)) + segment
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
