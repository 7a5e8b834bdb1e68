"""What the data path costs against the bare kernel: the same packets over a VXLAN made by hand, same run."""

from __future__ import annotations

import ipaddress
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.bench.lab import podlane

LAB = "bench"
ROUNDS, PACKETS = 7, 2000
VXLAN_MTU_BYTES = 1450

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: near}
spec: {nodeName: node-1, containers: [{name: c, image: absent, ports: [{containerPort: 7, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: far}}
spec: {nodeName: node-2, containers: [{name: c, image: absent, ports: [{containerPort: 7, protocol: UDP}]}]}
---
# No selector: on the ports of a service that selects it, the pod's own responder would listen.
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {ports: [{name: echo, port: 9007, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: far-1, labels: {kubernetes.io/service-name: far}}
addressType: IPv4
ports: [{name: echo, port: 9007, protocol: UDP}]
endpoints: [{addresses: [10.244.1.2], conditions: {ready: true}}]
"""


@contextmanager
def echo(namespace: int, port: int) -> Iterator[None]:
    """A UDP echo in namespace; the same program on every path, so that it cancels out."""
    server = netns.socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", port))
    server.settimeout(0.2)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                data, peer = server.recvfrom(2048)
            except TimeoutError:
                continue
            server.sendto(data, peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        server.close()


def round_trips_us(namespace: int, address: str, port: int) -> tuple[float, float]:
    """Medians of (established, first packet of a new flow), in microseconds."""
    with netns.socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2.0)
        client.connect((address, port))
        times = []
        for _ in range(PACKETS):
            started = time.perf_counter_ns()
            client.send(b"x")
            client.recv(16)
            times.append(time.perf_counter_ns() - started)
    firsts = []
    for _ in range(PACKETS // 5):
        with netns.socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(2.0)
            started = time.perf_counter_ns()
            client.sendto(b"x", (address, port))
            client.recv(16)
            firsts.append(time.perf_counter_ns() - started)
    return statistics.median(times) / 1000, statistics.median(firsts) / 1000


@contextmanager
def by_hand(*, tunnel: bool = True) -> Iterator[tuple[int, int]]:
    """Two pods on two nodes with nothing but veth, routes and, with tunnel, a static VXLAN: the floor."""
    fabric, *nodes = [netns.new() for _ in range(3)]
    pods = [netns.new() for _ in range(2)]
    try:
        with Rtnl(fabric) as switch:
            switch.create_bridge("br0", up=True)
            for n, node in enumerate(nodes, 1):
                switch.create_veth(f"p{n}", "eth0", peer_netns=node, up=True, peer_up=True, master="br0")
        for n, (node, pod) in enumerate(zip(nodes, pods, strict=True), 1):
            other = 3 - n
            netns.write_sysctl(node, "net/ipv4/ip_forward", 1)
            with Rtnl(node) as here, Rtnl(pod) as inside:
                here.add_address("eth0", ipaddress.ip_interface(f"172.31.0.{n}/24"))
                via, device = ipaddress.ip_address(f"172.31.0.{other}"), "eth0"
                if tunnel:
                    via, device = _vxlan(here, n, other), "vx"
                here.add_route(
                    ipaddress.ip_network(f"10.9.{other}.0/24"), via=via, device=device, onlink=True
                )
                here.create_veth("pod", "eth0", peer_netns=pod, up=True, peer_up=True)
                if tunnel:
                    inside.set_mtu("eth0", VXLAN_MTU_BYTES)
                here.add_address("pod", ipaddress.ip_interface(f"10.9.{n}.1/32"))
                here.add_route(ipaddress.ip_network(f"10.9.{n}.2/32"), device="pod")
                inside.add_address("eth0", ipaddress.ip_interface(f"10.9.{n}.2/24"))
                inside.add_route(
                    ipaddress.ip_network("0.0.0.0/0"), via=ipaddress.ip_address(f"10.9.{n}.1"), device="eth0"
                )
        yield pods[0], pods[1]
    finally:
        for fd in (fabric, *nodes, *pods):
            os.close(fd)


def _vxlan(here: Rtnl, n: int, other: int) -> ipaddress.IPv4Address:
    """Where the other's pods are routed to."""
    here.create_vxlan(
        "vx",
        vni=9,
        port=4789,
        underlay="eth0",
        local=ipaddress.ip_address(f"172.31.0.{n}"),
        mac=f"02:00:00:00:00:0{n}",
        mtu_bytes=VXLAN_MTU_BYTES,
        up=True,
    )
    here.add_address("vx", ipaddress.ip_interface(f"10.9.{n}.0/32"))
    peer = ipaddress.IPv4Address(f"10.9.{other}.0")
    here.set_neighbour("vx", peer, f"02:00:00:00:00:0{other}")
    here.set_fdb("vx", f"02:00:00:00:00:0{other}", ipaddress.ip_address(f"172.31.0.{other}"))
    return peer


def pod_namespaces(lab: str) -> dict[str, int]:
    """Descriptors of pods' namespaces, by pod name."""
    from podlane.lab.paths import LabPaths
    from podlane.lab.supervisor.client import Supervisor

    with Supervisor(LabPaths(lab).supervisor_socket) as supervisor:
        return {
            p.labels["pod"]: netns.open_pid(p.pid)
            for p in supervisor.list()
            if p.kind == "sandbox" and p.exit_status is None
        }


def measure() -> dict[str, object]:
    import tempfile
    from pathlib import Path

    podlane("down", LAB)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pods.yaml").write_text(PODS)
        podlane("up", LAB, "--nodes", "2", "-f", folder)
    found = pod_namespaces(LAB)
    try:
        with by_hand() as (near, far), echo(far, 9007), echo(found["far"], 9007):
            ratios = compare(
                {
                    "hand": lambda: round_trips_us(near, "10.9.2.2", 9007),
                    "pod": lambda: round_trips_us(found["near"], "10.244.1.2", 9007),
                    "service": lambda: round_trips_us(found["near"], cluster_ip(LAB, "far"), 9007),
                }
            )
    finally:
        for fd in found.values():
            os.close(fd)
        podlane("down", LAB)
    return ratios


def cluster_ip(lab: str, service: str) -> str:
    from podlane.lab import rest
    from podlane.lab.paths import LabPaths

    with rest.Client.from_kubeconfig(LabPaths(lab).kubeconfig) as client:
        address: str = client.get("services", service, "default")["spec"]["clusterIP"]
        return address


def compare(paths: dict[str, Callable[[], tuple[float, float]]]) -> dict[str, object]:
    """Interleaved rounds, so that what the machine does meanwhile touches all alike."""
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, run in paths.items():
            rounds[name].append(run())
    middle = {
        name: tuple(statistics.median(r[i] for r in values) for i in (0, 1))
        for name, values in rounds.items()
    }
    established, first = middle["hand"]
    return {
        "cross-node round trip by hand-made VXLAN": f"{established:.1f} µs, first packet {first:.1f} µs",
        "pod to pod, established": f"{middle['pod'][0] / established:.2f} of by hand",
        "pod to pod, first packet": f"{middle['pod'][1] / first:.2f} of by hand",
        "pod to service, established": f"{middle['service'][0] / established:.2f} of by hand",
        "pod to service, first packet": f"{middle['service'][1] / first:.2f} of by hand",
    }
