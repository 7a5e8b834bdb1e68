"""What NetworkPolicy costs: compiling and loading, one change, and the first and later packets of a flow.

A node with LOCAL of PODS pods, and POLICIES policies over all of them. For packets, a router of veths as in
service_path.py: every packet crosses both links inside of send(2), so that a microsecond shows. Beside it
in the same run stands the common linear layout: for each pod rules that compare its address and jump to a
chain of its own, one after the other.
"""

from __future__ import annotations

import gc
import ipaddress
import os
import random
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec import structs

from podlane.compile.engine import Compiler
from podlane.compile.policy import CAPABILITY
from podlane.compile.tables import Table
from podlane.compile.view import ATTACHMENT, Change
from podlane.kernel import netns
from podlane.kernel.netlink import NETLINK_NETFILTER, Request
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.nft import codec
from podlane.kernel.nft.policy import TABLES, PolicyDriver
from podlane.kernel.rtnl import Rtnl
from podlane.model.config import NetworkConfig
from podlane.model.local import Attachment
from podlane.model.objects import Namespace, NetworkPolicy, ObjectMeta, Pod
from tests.netns.policy_lab import build

PODS, LOCAL, POLICIES, NAMESPACES = 10_000, 200, 2_000, 100
EVENTS = 200
ROUNDS, FLOWS = 15, 1500
CLIENT, SERVER = "10.244.1.2", "10.244.1.3"
LINKS = ("plffffffff01", "plffffffff02")


# --- a large cluster ------------------------------------------------------------------------------


class Cluster:
    def __init__(self, scale: float) -> None:
        self.pods = max(200, int(PODS * scale))
        self.policies = max(40, int(POLICIES * scale))
        count = max(20, int(LOCAL * scale))
        self.local = sorted(random.Random(5).sample(range(self.pods), count))
        self._here = set(self.local)

    def pod(self, index: int, **labels: str) -> Pod:
        ips = [str(ipaddress.ip_address(0x0AF40000 + index)), f"fd00:10:244::{index:x}"]
        known = {"app": f"a{index // NAMESPACES % 20}", "tier": f"t{index % 3}", "hash": f"h{index // 10}"}
        return msgspec.convert(
            {
                "metadata": {
                    "name": f"p{index}",
                    "namespace": f"ns{index % NAMESPACES}",
                    "labels": known | labels,
                },
                "spec": {
                    "nodeName": "here" if index in self._here else f"n{index % 49}",
                    "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}],
                },
                "status": {"phase": "Running", "podIPs": [{"ip": each} for each in ips]},
            },
            Pod,
        )

    def policy(self, index: int) -> NetworkPolicy:
        number = index // NAMESPACES

        def app(offset: int) -> Any:
            return {"matchLabels": {"app": f"a{(number + offset) % 20}"}}

        team = {"matchLabels": {"team": f"t{index % 10}"}}
        outside = {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}
        wide = [{"port": 8080}, {"port": 9000, "endPort": 9100}]
        spec = {
            "podSelector": app(0),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"podSelector": app(1)}], "ports": [{"port": "http"}]},
                {"from": [{"namespaceSelector": team, "podSelector": app(2)}], "ports": wide},
            ],
            "egress": [
                {"to": [{"podSelector": app(3)}]},
                {"to": [outside], "ports": [{"port": 443}]},
                {"ports": [{"protocol": "UDP", "port": 53}]},
            ],
        }
        meta = {"name": f"np{index}", "namespace": f"ns{index % NAMESPACES}"}
        return msgspec.convert({"metadata": meta, "spec": spec}, NetworkPolicy)

    def namespace(self, index: int) -> Namespace:
        return Namespace(metadata=ObjectMeta(name=f"ns{index}", labels={"team": f"t{index % 10}"}))

    def attachment(self, index: int) -> Attachment:
        pod = self.pod(index)
        where = tuple(ipaddress.ip_address(each.ip) for each in pod.status.pod_ips)
        device = f"pl{index:010x}"
        return Attachment(f"c{index}", "eth0", device, "02:00:00:00:00:01", where, pod.namespace, pod.name)

    def changes(self) -> list[Change]:
        return [
            *(Change("Namespace", None, self.namespace(i)) for i in range(NAMESPACES)),
            *(Change("Pod", None, self.pod(i)) for i in range(self.pods)),
            *(Change("NetworkPolicy", None, self.policy(i)) for i in range(self.policies)),
            *(Change(ATTACHMENT, None, self.attachment(i)) for i in self.local),
        ]


def control(scale: float) -> dict[str, object]:
    cluster, fd = Cluster(scale), netns.new()
    compiler, driver = Compiler("here", NetworkConfig(), [CAPABILITY]), PolicyDriver(NetworkConfig(), fd)
    try:
        changes = cluster.changes()
        gc.collect()
        gc.freeze()  # as the agent does: what stays is not looked through again and again
        started_s = time.perf_counter()
        compiler.apply(changes)
        compiled_s = time.perf_counter()
        driver.resync({table: dict(compiler.tables[table]) for table in TABLES})
        loaded_s = time.perf_counter()
        gc.collect()
        gc.freeze()
        size = f"{cluster.policies} policies, {cluster.pods} pods, {len(cluster.local)} here"
        found: dict[str, object] = {
            f"compile {size}, s": round(compiled_s - started_s, 2),
            "load it, s": round(loaded_s - compiled_s, 2),
            "policies and peer sets in use": f"{len(compiler.tables[Table.POLICIES])}"
            f", {len(compiler.tables[Table.POLICY_SETS])}",
        }
        for what, change in events(cluster).items():
            found[f"{what}, from event to kernel, ms"] = _latencies(compiler, driver, change)
        return found
    finally:
        gc.unfreeze()
        driver.close()
        os.close(fd)


def events(cluster: Cluster) -> dict[str, Callable[[int], Change]]:
    used = {cluster.pod(i).metadata.labels["app"] + cluster.pod(i).namespace for i in cluster.local}
    mine = [i for i in range(cluster.policies) if f"a{i // NAMESPACES % 20}ns{i % NAMESPACES}" in used] or [0]

    def policy(turn: int) -> Change:
        old = cluster.policy(mine[turn % len(mine)])
        ports = [{"port": 7000 + turn}]
        more = msgspec.convert({"metadata": {}, "spec": {"ingress": [{"ports": ports}]}}, NetworkPolicy)
        spec = structs.replace(old.spec, ingress=[*(old.spec.ingress or []), *(more.spec.ingress or [])])
        return Change("NetworkPolicy", None, structs.replace(old, spec=spec))

    return {
        "a pod of another node comes": lambda turn: Change("Pod", None, cluster.pod(cluster.pods + turn)),
        "its label changes": lambda turn: Change(
            "Pod", None, cluster.pod(cluster.pods + turn, app=f"a{turn % 20}", extra="x")
        ),
        "a policy in use changes": policy,
    }


def _latencies(compiler: Compiler, driver: PolicyDriver, change: Callable[[int], Change]) -> str:
    found = []
    for turn in range(EVENTS):
        event = change(turn)
        started_s = time.perf_counter()
        deltas = compiler.apply([event])
        part = {table: deltas[table] for table in TABLES if table in deltas}
        if part:
            assert not driver.apply(part).failures
        found.append(time.perf_counter() - started_s)
    found.sort()
    return f"{found[EVENTS // 2] * 1e3:.2f} median, {found[EVENTS * 99 // 100] * 1e3:.2f} p99"


# --- packets --------------------------------------------------------------------------------------

PATH_PODS, PATH_POLICIES = 1000, 100
TRACKED = "table ip base { chain f { type filter hook forward priority 0; ct state new counter; }; }"


class Router:
    """client ──veth── router ──veth── server; the client's packets are made by hand."""

    def __init__(self) -> None:
        self.node, self.client, self.server = netns.new(), netns.new(), netns.new()
        netns.write_sysctl(self.node, "net/ipv4/ip_forward", 1)
        with Rtnl(self.node) as node:
            for fd, address, link in (
                (self.client, CLIENT, LINKS[0]),
                (self.server, SERVER, LINKS[1]),
            ):
                node.create_veth(link, "eth0", peer_netns=fd, up=True, peer_up=True)
                node.add_route(ipaddress.ip_network(address), device=link)
                with Rtnl(fd) as pod:
                    pod.add_address("eth0", ipaddress.ip_interface(f"{address}/32"))
                    gateway = ipaddress.ip_address("169.254.1.1")
                    pod.set_neighbour("eth0", gateway, node.link(link).mac)
                    anywhere = ipaddress.ip_network("0.0.0.0/0")
                    pod.add_route(anywhere, via=gateway, device="eth0", onlink=True)
                    node.set_neighbour(link, ipaddress.ip_address(address), pod.link("eth0").mac)
        self.sender = netns.socket_in(self.client, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.sender.connect((SERVER, 0))
        # Nobody listens: what the ends would say to that would be packets too.
        for fd in (self.client, self.server):
            self.nft(fd, "table ip quiet { chain in { type filter hook input priority 0; drop; }; }")
        first = range(1024, 1024 + FLOWS)
        self.answer = build(SERVER, CLIENT, "UDP", 80, 1024, 1)
        self.answerer = netns.socket_in(self.server, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.new = [build(CLIENT, SERVER, "UDP", port, 80, port) for port in first]

    def nft(self, fd: int, text: str) -> None:
        netns.inside(fd, lambda: subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True))

    def close(self) -> None:
        self.sender.close()
        self.answerer.close()
        for fd in (self.node, self.client, self.server):
            os.close(fd)

    def forget(self) -> None:
        with Netlink(NETLINK_NETFILTER, self.node) as conntrack:
            conntrack.do(Request(1 << 8 | 2, 0, codec.header(None), "forget all flows"))

    def us_per_packet(self, *, new: bool) -> float:
        """CPU time of the sender, in which everything happens. new: every packet begins a flow."""
        packets = self.new if new else [self.new[0]] * FLOWS
        self.forget()
        if not new:
            self.sender.send(packets[0])
            self.answerer.sendto(self.answer, (CLIENT, 0))
        started_s = time.thread_time()
        for packet in packets:
            self.sender.send(packet)
        return (time.thread_time() - started_s) / FLOWS * 1e6


@contextmanager
def podlane(router: Router, policies: int) -> Iterator[None]:
    """PATH_PODS pods here, and `policies` that select the server; the last of them lets the client in."""
    compiler, driver = (
        Compiler("here", NetworkConfig(), [CAPABILITY]),
        PolicyDriver(NetworkConfig(), router.node),
    )

    def pod(name: str, address: str, **labels: str) -> Pod:
        return msgspec.convert(
            {
                "metadata": {"name": name, "namespace": "bench", "labels": labels},
                "spec": {"nodeName": "here", "containers": []},
                "status": {"phase": "Running", "podIPs": [{"ip": address}]},
            },
            Pod,
        )

    changes = [Change("Namespace", None, Namespace(metadata=ObjectMeta(name="bench")))]
    ends = [("client", CLIENT, LINKS[0], "peer"), ("server", SERVER, LINKS[1], "server")]
    for i in range(PATH_PODS):
        ends.append((f"p{i}", str(ipaddress.ip_address("10.244.8.0") + i), f"pl{i:010x}", f"other{i % 50}"))
    for name, address, device, app in ends:
        where = (ipaddress.ip_address(address),)
        changes.append(Change("Pod", None, pod(name, address, app=app)))
        link = Attachment(name, "eth0", device, "02:00:00:00:00:01", where, "bench", name)
        changes.append(Change(ATTACHMENT, None, link))
    for i in range(policies):
        app = "peer" if i == policies - 1 else f"other{i % 50}"
        spec = {
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {"app": app}}}],
                    "ports": [{"port": 80, "protocol": "UDP"}],
                }
            ],
        }
        meta = {"name": f"np{i:03}", "namespace": "bench"}
        changes.append(
            Change("NetworkPolicy", None, msgspec.convert({"metadata": meta, "spec": spec}, NetworkPolicy))
        )
    compiler.apply(changes)
    driver.resync({table: dict(compiler.tables[table]) for table in TABLES})
    try:
        yield
    finally:
        driver.remove()
        driver.close()


@contextmanager
def linear(router: Router, policies: int) -> Iterator[None]:
    """A rule for each pod and direction, and a set for each policy; the client and the server come last."""
    pods = [str(ipaddress.ip_address("10.244.8.0") + i) for i in range(PATH_PODS)] + [CLIENT, SERVER]
    lines = ["table ip linear {"]
    for i in range(policies):
        member = CLIENT if i == policies - 1 else f"10.244.8.{i % 50}"
        lines.append(f"set s{i} {{ type ipv4_addr; elements = {{ {member} }}; }}")
    for i in range(len(pods)):
        lines.append(f"chain pod{i} {{")
        if pods[i] == SERVER:
            lines += [f"ip saddr @s{n} udp dport 80 accept" for n in range(policies)] + ["drop"]
        lines.append("}")
    lines.append("chain forward { type filter hook forward priority 0; ct state established,related accept;")
    for i, address in enumerate(pods):
        lines += [f"ip saddr {address} jump pod{i};", f"ip daddr {address} jump pod{i};"]
    lines += ["}", "}"]
    router.nft(router.node, "\n".join(lines) + "\n")
    try:
        yield
    finally:
        router.nft(router.node, "delete table ip linear\n")


def path() -> dict[str, object]:
    router = Router()
    try:
        router.nft(router.node, TRACKED + "\n")
        layouts: dict[str, Callable[[], Any]] = {
            "podlane, no policy on the pod": lambda: podlane(router, 0),
            "podlane, 1 policy on the pod": lambda: podlane(router, 1),
            f"podlane, {PATH_POLICIES} policies on the pod": lambda: podlane(router, PATH_POLICIES),
            f"one chain a pod, {PATH_POLICIES} policies on the pod": lambda: linear(router, PATH_POLICIES),
        }
        found: dict[str, object] = {}
        for name, layout in layouts.items():
            for new in (True, False):
                added = []
                for _ in range(3):
                    bare = _best(router, new=new)
                    with layout():
                        added.append(_best(router, new=new) - bare)
                kind = "new flow" if new else "later packet"
                found[f"{name}: added to a {kind}, us"] = round(statistics.median(added), 2)
        return found
    finally:
        router.close()


def _best(router: Router, *, new: bool) -> float:
    return min(router.us_per_packet(new=new) for _ in range(ROUNDS))


def measure(scale: float = 1.0) -> dict[str, object]:
    return control(scale) | path()
