"""Two nodes with pods and a host outside, with the tables and drivers of an agent: for policy's real packets.

                outside 198.51.100.9, 203.0.113.7
                 |                             |
    pods ---- [ n1 172.30.1.1 ] ---- VXLAN ---- [ n2 172.30.1.2 ] ---- pods

Every pod has a service of its own. A probe is one packet, written by hand, with a tag that no translation
touches; it has arrived when the socket that watches the target's link sees the tag.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterable
from itertools import count
from typing import Any, NamedTuple

from podlane.agent import sysctls
from podlane.cni.leases import Lease
from podlane.cni.link import PodLinks, pod_mac
from podlane.compile.engine import Compiler
from podlane.compile.pods import host_device
from podlane.compile.view import ATTACHMENT, UNDERLAY, Change
from podlane.kernel import netns
from podlane.kernel.driver import Driver, Report
from podlane.kernel.netlink import NETLINK_NETFILTER, Request
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.nft import codec
from podlane.kernel.nft.policy import PolicyDriver
from podlane.kernel.nft.services import ServicesDriver
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.rtnl.driver import RtnlDriver
from podlane.model.config import LinkMode, NetworkConfig, with_settings
from podlane.model.local import Underlay
from podlane.model.objects import Object
from tests.property.policy_strategies import NAMESPACES, OUTSIDE, World, address, place, typed

MTU = 1450
NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}
ARRIVAL_S, SETTLE_S = 5.0, 0.02


PORTS = [("TCP", 80), ("TCP", 81), ("TCP", 443), ("UDP", 80), ("UDP", 81), ("SCTP", 80), ("SCTP", 81)]


class Probe(NamedTuple):
    """source, target: numbers of pods, names of nodes, or "outside" with `outside` saying which address.
    service: by way of the target's service. lie: a pod whose address is pretended."""

    source: int | str
    target: int | str
    protocol: str
    port: int
    family: int
    service: bool = False
    outside: int = 0
    lie: int | None = None


class PolicyLab:
    def __init__(self, mode: str, pods: int = 6, settings: Iterable[str] = (), **driver: Any) -> None:
        self._driver = driver
        self.mode = mode
        self.config = with_settings(NetworkConfig(), [f"link.mode={mode}", *settings])
        self.fds: dict[int | str, int] = {}
        self.count = pods
        self.compilers: dict[str, Compiler] = {}
        self.drivers: dict[str, list[Driver]] = {}
        self.links: list[PodLinks] = []
        self._watch: dict[int | str, socket.socket] = {}
        self._send: dict[tuple[int | str, int], socket.socket] = {}
        self._tags = count(1)
        self._ports = PORTS

    # --- wiring ---

    def build(self) -> None:
        for name in ("outside", "n1", "n2", *range(self.count)):
            self.fds[name] = netns.new()
            with Rtnl(self.fds[name]) as rt:
                rt.set_up("lo")
        self._cables()
        for number in (1, 2):
            self._node(number)
        for number in range(self.count):
            self._pod(number)
        for name in ("outside", "n1", "n2", *range(self.count)):
            self._sockets(name)

    def _cables(self) -> None:
        with Rtnl(self.fds["n1"]) as one, Rtnl(self.fds["n2"]) as two, Rtnl(self.fds["outside"]) as out:
            one.create_veth("eth0", "eth0", peer_netns=self.fds["n2"], up=True, peer_up=True)
            for number, node in ((1, one), (2, two)):
                name = f"ext{number}"
                out.create_veth(name, "ext0", peer_netns=self.fds[f"n{number}"], up=True, peer_up=True)
                for prefix in (f"172.30.1.{number}/24", f"fd00:172:30::{number}/112"):
                    node.add_address("eth0", ipaddress.ip_interface(prefix))
                for mine, its, pods in (
                    (f"198.18.{number}.1", f"198.18.{number}.2", f"10.244.{number}.0/24"),
                    (f"2001:db8:{number}::1", f"2001:db8:{number}::2", f"fd00:10:244:{number}::/64"),
                ):
                    bits = 30 if "." in mine else 126
                    out.add_address(name, ipaddress.ip_interface(f"{mine}/{bits}"))
                    node.add_address("ext0", ipaddress.ip_interface(f"{its}/{bits}"))
                    via = ipaddress.ip_address(its)
                    out.add_route(ipaddress.ip_network(pods), via=via, device=name)
                    self._default_route(f"n{number}", mine)
            for each in (*OUTSIDE[4], *OUTSIDE[6]):
                out.add_address("lo", ipaddress.ip_interface(each))

    def _default_route(self, node: str, via: str) -> None:
        """Not by our own protocol number, or the driver would take it away again."""
        command = ["ip", "route", "add", "default", "via", via]
        netns.inside(self.fds[node], lambda: subprocess.run(command, check=True))

    def _node(self, number: int) -> None:
        name = f"n{number}"
        fd = self.fds[name]
        bridged = self.config.link.mode is LinkMode.BRIDGE
        netns.inside(fd, lambda: self._settings(bridged))
        for setting in ("net/ipv4/icmp_ratemask", "net/ipv6/icmp/ratelimit"):
            netns.write_sysctl(fd, setting, 0)
        compiler = self.compilers[name] = Compiler(name, self.config)
        policy = PolicyDriver(self.config, fd, **self._driver)
        policy.prepare()
        self.drivers[name] = [policy, RtnlDriver(fd), ServicesDriver(self.config, fd)]
        addresses = tuple(
            (ipaddress.ip_address(a), ipaddress.ip_network(n))
            for a, n in (
                (f"172.30.1.{number}", "172.30.1.0/24"),
                (f"fd00:172:30::{number}", "fd00:172:30::/112"),
            )
        )
        compiler.apply([Change(UNDERLAY, None, Underlay("eth0", 1500, addresses))])
        compiler.apply(Change(kind, None, each) for kind, each in self._objects())
        for driver in self.drivers[name]:
            assert not driver.resync({t: dict(compiler.tables[t]) for t in driver.tables}).failures

    def _settings(self, bridged: bool) -> None:
        wanted = sysctls.wanted(self.config.ip_families, "eth0", sysctls.read, bridged=bridged)
        assert not sysctls.apply(wanted)

    def _objects(self) -> Iterable[tuple[str, Object]]:
        for number in (1, 2):
            ips = [f"172.30.1.{number}", f"fd00:172:30::{number}"]
            yield (
                "Node",
                typed(
                    "Node",
                    {
                        "metadata": {"name": f"n{number}"},
                        "spec": {"podCIDRs": [f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"]},
                        "status": {"addresses": [{"type": "InternalIP", "address": a} for a in ips]},
                    },
                ),
            )
        for pod in range(self.count):
            ports = [(f"{p.lower()}-{n}", p, n) for p, n in self._ports]
            meta = {"name": f"s{pod}", "namespace": NAMESPACES[pod % 3]}
            vips = [self.vip(pod, 4), self.vip(pod, 6)]
            spec = {
                "clusterIP": vips[0],
                "clusterIPs": vips,
                "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{"name": m, "protocol": p, "port": n, "targetPort": n} for m, p, n in ports],
            }
            yield "Service", typed("Service", {"metadata": meta, "spec": spec})
            for family in (4, 6):
                piece = {
                    "metadata": {
                        **meta,
                        "name": f"s{pod}-{family}",
                        "labels": {"kubernetes.io/service-name": f"s{pod}"},
                    },
                    "addressType": f"IPv{family}",
                    "endpoints": [
                        {"addresses": [self.address(pod, family)], "nodeName": f"n{place(pod)[0]}"}
                    ],
                    "ports": [{"name": m, "protocol": p, "port": n} for m, p, n in ports],
                }
                yield "EndpointSlice", typed("EndpointSlice", piece)

    def _pod(self, number: int) -> None:
        node = f"n{place(number)[0]}"
        bridge = self.config.link.bridge if self.config.link.mode is LinkMode.BRIDGE else ""
        identity = f"{self.mode}-{number}"
        lease = Lease(
            identity,
            "eth0",
            "podlane",
            host_device(identity, "eth0"),
            pod_mac(identity, "eth0"),
            tuple(ipaddress.ip_address(self.address(number, family)) for family in (4, 6)),
            NAMESPACES[number % 3],
            f"p{number}",
            bridge,
        )
        pools = [
            ipaddress.ip_network(f"10.244.{node[1]}.0/24"),
            ipaddress.ip_network(f"fd00:10:244:{node[1]}::/64"),
        ]
        links = PodLinks(self.fds[node])
        self.links.append(links)
        links.create(lease, self.fds[number], MTU, pools)
        self.apply(node, [Change(ATTACHMENT, None, lease.attachment)])

    def _sockets(self, name: int | str) -> None:
        fd = self.fds[name]
        watch = netns.socket_in(fd, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        watch.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        watch.setblocking(False)
        self._watch[name] = watch
        self._send[name, 4] = netns.socket_in(fd, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._send[name, 6] = netns.socket_in(fd, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        for each in (self._send[name, 4], self._send[name, 6]):
            each.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)  # SO_SNDBUFFORCE

    def close(self) -> None:
        for each in (*self._watch.values(), *self._send.values(), *self.links):
            each.close()
        for drivers in self.drivers.values():
            for driver in drivers:
                driver.close()  # type: ignore[attr-defined]
        for fd in self.fds.values():
            os.close(fd)

    # --- what there is ---

    def address(self, pod: int, family: int) -> str:
        return address(*place(pod), family)

    def vip(self, pod: int, family: int) -> str:
        return f"10.96.0.{10 + pod}" if family == 4 else f"fd00:10:96::{10 + pod:x}"

    def apply(self, node: str, changes: Iterable[Change]) -> list[Report]:
        """One generation on one node, as the agent's reconciler applies it."""
        deltas = self.compilers[node].apply(changes)
        reports = []
        for driver in self.drivers[node]:
            part = {table: deltas[table] for table in driver.tables if table in deltas}
            if part:
                reports.append(driver.apply(part))
                assert not reports[-1].failures, reports[-1]
        return reports

    def become(self, world: World) -> None:
        """The difference between what the nodes know and the world, as one generation each."""
        for node, compiler in self.compilers.items():
            changes = []
            for kind in ("Namespace", "Pod", "NetworkPolicy"):
                wanted = {
                    each.name if kind == "Namespace" else each.key: each
                    for each in (typed(kind, w) for w in world[kind])
                }
                known = compiler.view.objects(kind)
                changes += [Change(kind, known[key], None) for key in known if key not in wanted]
                changes += [
                    Change(kind, None, each) for key, each in wanted.items() if known.get(key) != each
                ]
            self.apply(node, changes)

    def in_order(self) -> bool:
        """A comparison with the kernel finds nothing to repair."""
        return all(
            self.drivers[node][0].resync({t: dict(c.tables[t]) for t in self.drivers[node][0].tables})
            == Report()
            for node, c in self.compilers.items()
        )

    # --- packets ---

    def arrived(self, probes: list[Probe], expected: Iterable[Probe]) -> set[Probe]:
        """Sends all; returns those that reached their target: waits for the expected, and a moment more."""
        self._forget_flows()
        self._drain()
        tags = {next(self._tags) & 0xFFFFFFFF: probe for probe in probes}
        for tag, probe in tags.items():
            self._fire(tag, probe)
        wanted, seen = set(expected), set()
        end_s = time.monotonic() + ARRIVAL_S
        while True:
            seen |= {tags[tag] for where, tag in self._drain() if tag in tags and tags[tag].target == where}
            if wanted <= seen or time.monotonic() > end_s:
                break
            time.sleep(0.001)
        time.sleep(SETTLE_S)
        return seen | {tags[tag] for where, tag in self._drain() if tag in tags and tags[tag].target == where}

    def _fire(self, tag: int, probe: Probe) -> None:
        family = probe.family
        if isinstance(probe.source, int):
            source = self.address(probe.source if probe.lie is None else probe.lie, family)
        elif probe.source == "outside":
            source = OUTSIDE[family][probe.outside]
        else:
            number = probe.source[-1]
            source = f"172.30.1.{number}" if family == 4 else f"fd00:172:30::{number}"
        if probe.target == "outside":
            target = OUTSIDE[family][probe.outside]
        else:
            target = (self.vip if probe.service else self.address)(int(probe.target), family)
        packet = build(source, target, probe.protocol, 20000 + tag % 40000, probe.port, tag)
        self._send[probe.source, family].sendto(packet, (target, 0))

    def _drain(self) -> Iterable[tuple[int | str, int]]:
        found = []
        for name, watch in self._watch.items():
            while True:
                try:
                    data, where = watch.recvfrom(2048)
                except BlockingIOError:
                    break
                if where[2] != socket.PACKET_OUTGOING and where[0] != "lo":
                    tag = tag_of(data)
                    if tag is not None:
                        found.append((name, tag))
        return found

    def _forget_flows(self) -> None:
        for node in self.compilers:
            with Netlink(NETLINK_NETFILTER, self.fds[node]) as conntrack:
                # IPCTNL_MSG_CT_DELETE without a tuple: every flow.
                conntrack.do(Request(1 << 8 | 2, 0, codec.header(None), "forget all flows"))


# --- the bytes of a probe -------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _crc32c_table()


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC32C[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def build(source: str, target: str, protocol: str, source_port: int, port: int, tag: int) -> bytes:
    """The first packet of a flow: a SYN, a datagram, an INIT or an echo request."""
    a, b = ipaddress.ip_address(source), ipaddress.ip_address(target)
    number = NUMBERS.get(protocol) or (1 if a.version == 4 else 58)
    match protocol:
        case "TCP":
            at, body = (
                16,
                bytearray(struct.pack("!HHIIBBHHH", source_port, port, tag, 0, 0x50, 2, 1024, 0, 0)),
            )
        case "UDP":
            at, body = 6, bytearray(struct.pack("!HHHHI", source_port, port, 12, 0, tag))
        case "SCTP":
            body = bytearray(struct.pack("!HHII", source_port, port, 0, 0))
            body += struct.pack("!BBHIIHHI", 1, 0, 20, tag, 65536, 1, 1, tag)
            body[8:12] = struct.pack("<I", crc32c(bytes(body)))
            at = -1
        case _:
            at, body = (
                2,
                bytearray(struct.pack("!BBHHHI", 8 if number == 1 else 128, 0, 0, source_port, 1, tag)),
            )
    if at >= 0:
        pseudo = a.packed + b.packed + struct.pack("!II", len(body), number) if number != 1 else b""
        body[at : at + 2] = struct.pack("!H", checksum(pseudo + bytes(body)))
    if a.version == 6:
        return struct.pack("!IHBB", 0x60000000, len(body), number, 64) + a.packed + b.packed + bytes(body)
    head = (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), tag & 0xFFFF, 0, 64, number, 0)
        + a.packed
        + b.packed
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + bytes(body)


def tag_of(packet: bytes) -> int | None:
    if not packet:
        return None
    if packet[0] >> 4 == 4:
        number, body = packet[9], packet[(packet[0] & 15) * 4 :]
    elif packet[0] >> 4 == 6:
        number, body = packet[6], packet[40:]
    else:
        return None
    if len(body) < 12:
        return None
    if number == 6:
        return int.from_bytes(body[4:8], "big") if body[13] == 2 else None
    if number == 17:
        return int.from_bytes(body[8:12], "big")
    if number == 132:
        return int.from_bytes(body[16:20], "big") if len(body) >= 20 and body[12] == 1 else None
    if (number, body[0]) in ((1, 8), (58, 128)):
        return int.from_bytes(body[8:12], "big")
    return None
