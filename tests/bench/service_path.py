"""What a service costs its packets: round trips of UDP through a router of veths, and how flows are spread.

    client ──veth── router ──veth── server        a router without any ruleset is the way by hand

Every step runs in one thread, which takes the server's part too: a packet crosses both veths inside of
send(2), so that nothing waits to be woken and differences of a microsecond show.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import time
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from podlane.compile.engine import Compiler, capabilities, changes_of
from podlane.kernel import netns
from podlane.kernel.nft.services import TABLES, ServicesDriver
from podlane.kernel.rtnl import Rtnl
from podlane.model.config import NetworkConfig
from podlane.model.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    Object,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
)
from tests.bench.service_objects import Cluster

CLIENT, SERVER, PORT = "10.244.1.2", "10.244.1.3", 9007
VIRTUAL, SPREAD_VIRTUAL = "10.95.0.1", "10.95.0.2"
ENDS = 10  # of the service whose flows are counted, each a port of the server
ROUNDS, PACKETS, FLOWS = 25, 400, 200

Result = dict[str, Any]


def tested() -> list[Object]:
    """The node, a service of one endpoint and one of ten; all endpoints are ports of the server."""
    node = Node(
        metadata=ObjectMeta(name="node-1"),
        spec=NodeSpec(pod_cidrs=["10.244.1.0/24"]),
        status=NodeStatus(addresses=[NodeAddress("InternalIP", "172.30.1.1")]),
    )
    found: list[Object] = [node]
    for name, address, ports in (
        ("one", VIRTUAL, [PORT]),
        ("spread", SPREAD_VIRTUAL, range(PORT + 1, PORT + 1 + ENDS)),
    ):
        spec = ServiceSpec(
            cluster_ip=address,
            cluster_ips=[address],
            ip_families=["IPv4"],
            ports=[ServicePort(PORT, "echo", "UDP")],
        )
        found.append(Service(metadata=ObjectMeta(name=name, namespace="bench"), spec=spec))
        for port in ports:
            labels = {"kubernetes.io/service-name": name}
            piece = EndpointSlice(
                metadata=ObjectMeta(name=f"{name}-{port}", namespace="bench", labels=labels),
                address_type="IPv4",
                endpoints=[Endpoint(addresses=[SERVER], node_name="node-1")],
                ports=[EndpointPort("echo", "UDP", port)],
            )
            found.append(piece)
    return found


class Way:
    """Three namespaces in a row. services: how many the router serves; None for a router without rules."""

    def __init__(self, services: int | None, endpoints: int = 10) -> None:
        self.client, self.router, self.server = (netns.new() for _ in range(3))
        netns.write_sysctl(self.router, "net/ipv4/ip_forward", 1)
        for end, where, number in ((self.client, CLIENT, 1), (self.server, SERVER, 2)):
            with Rtnl(self.router) as router, Rtnl(end) as inside:
                router.create_veth(f"pl{number}", "eth0", peer_netns=end, up=True, peer_up=True)
                router.add_address(f"pl{number}", ip_interface(f"169.254.{number}.1/32"))
                router.add_route(ip_network(f"{where}/32"), device=f"pl{number}")
                inside.add_address("eth0", ip_interface(f"{where}/32"))
                gateway = ip_address(f"169.254.{number}.1")
                inside.add_route(ip_network("0.0.0.0/0"), via=gateway, device="eth0", onlink=True)
        self.driver = None
        if services is not None:
            config = NetworkConfig()
            compiler = Compiler(
                "node-1", config, [c for c in capabilities() if c.name in ("node", "services")]
            )
            cluster = Cluster(services, endpoints)
            for kind in ("Service", "EndpointSlice"):
                compiler.apply(changes_of(cluster.objects(kind)[1]))
            compiler.apply(changes_of(tested()))
            self.driver = ServicesDriver(config, self.router)
            report = self.driver.resync({table: compiler.tables[table] for table in TABLES})
            assert not report.failures, report
        self.answering = [self._listen(PORT + n) for n in range(1 + ENDS)]
        self.established = self._socket()

    def _listen(self, port: int) -> socket.socket:
        listener = netns.socket_in(self.server, socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((SERVER, port))
        listener.settimeout(2.0)
        return listener

    def _socket(self) -> socket.socket:
        found = netns.socket_in(self.client, socket.AF_INET, socket.SOCK_DGRAM)
        found.bind((CLIENT, 0))
        found.settimeout(2.0)
        return found

    def round_trip_us(self, client: socket.socket, target: tuple[str, int]) -> float:
        server = self.answering[0]
        began_ns = time.perf_counter_ns()
        client.sendto(b"x", target)
        _, peer = server.recvfrom(16)
        server.sendto(b"x", peer)
        client.recv(16)
        return (time.perf_counter_ns() - began_ns) / 1000

    def established_us(self, target: tuple[str, int]) -> float:
        return statistics.median(self.round_trip_us(self.established, target) for _ in range(PACKETS))

    def first_us(self, target: tuple[str, int]) -> float:
        """Every packet begins a flow of its own."""
        times = []
        for _ in range(FLOWS):
            with self._socket() as client:
                times.append(self.round_trip_us(client, target))
        return statistics.median(times)

    def spread(self, flows: int) -> list[int]:
        """How many of the flows each endpoint got."""
        got = [0] * ENDS
        for done in range(flows):
            with self._socket() as client:
                client.sendto(b"x", (SPREAD_VIRTUAL, PORT))
            if done % 100 == 99 or done == flows - 1:
                for number, listener in enumerate(self.answering[1:]):
                    got[number] += _drain(listener)
        return got

    def close(self) -> None:
        if self.driver is not None:
            self.driver.close()
        for each in (*self.answering, self.established):
            each.close()
        for fd in (self.client, self.router, self.server):
            os.close(fd)


def _drain(listener: socket.socket) -> int:
    count = 0
    listener.settimeout(0)
    while True:
        try:
            listener.recv(16)
        except BlockingIOError:
            return count
        count += 1


def sigmas(got: list[int]) -> float:
    """How far the farthest endpoint is from its share, in standard deviations of a fair draw."""
    flows, share = sum(got), 1 / len(got)
    sigma = (flows * share * (1 - share)) ** 0.5
    return max(abs(each - flows * share) for each in got) / sigma


def measure(few: int, many: int, flows: int = 10_000) -> Result:
    """Medians in µs of interleaved rounds: [established, first packet]. bare: a router without rules and
    without conntrack; direct: through a node, past its services; by number of services: through one of
    them. spread: how many flows each of ten endpoints got.
    """
    ways: dict[str, tuple[Way, tuple[str, int]]] = {}
    by_hand, processors = Way(None), os.sched_getaffinity(0)
    try:
        ways["bare"] = by_hand, (SERVER, PORT)
        for number in (few, many):
            ways[str(number)] = Way(number), (VIRTUAL, PORT)
        ways["direct"] = ways[str(few)][0], (SERVER, PORT)
        os.sched_setaffinity(0, {min(processors)})
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (way, target) in ways.items():
                rounds[name].append((way.established_us(target), way.first_us(target)))
        result: Result = {
            name: [statistics.median(each[place] for each in found) for place in (0, 1)]
            for name, found in rounds.items()
        }
        result["spread"] = ways[str(many)][0].spread(flows)
        return result
    finally:
        os.sched_setaffinity(0, processors)
        for way in {id(way): way for way, _ in ways.values()}.values():
            way.close()


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
