"""What a pod whose root has gone wrong sends under another's name is lost, with and without policy."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.agent_nodes import FAMILIES, TestNode, two_nodes
from tests.netns.test_agent import Echo, ask

ETH_ALL = 3
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
MARK = b"under another's name"


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data + b"\0" * (len(data) % 2))) if data else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp4(source: str, target: str, port: int, payload: bytes = MARK) -> bytes:
    datagram = struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0,
                       ip_address(source).packed, ip_address(target).packed)  # fmt: skip
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + datagram


def ipv6(source: str, target: str, protocol: int, body: bytes, at: int) -> bytes:
    """at: where the body has its checksum."""
    ends = ip_address(source).packed + ip_address(target).packed
    padded = body + b"\0" * (len(body) % 2)
    total = checksum(ends + struct.pack("!IHBB", len(body), 0, 0, protocol) + padded)
    body = body[:at] + struct.pack("!H", total) + body[at + 2 :]
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 255) + ends + body


def udp6(source: str, target: str, port: int) -> bytes:
    return ipv6(source, target, 17, struct.pack("!HHHH", 40000, port, 8 + len(MARK), 0) + MARK, 6)


class Liar:
    """A pod's end, on which any frame can be sent."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        with Rtnl(fd) as rt:
            self.mac = rt.link("eth0").mac
            gateways = {r.via for r in rt.routes() if r.via is not None}
            self.gateway = next(n.mac for n in rt.neighbours() if n.address in gateways)
        self.socket = netns.socket_in(fd, socket.AF_PACKET, socket.SOCK_RAW)
        self.socket.bind(("eth0", 0))

    def send(self, kind: int, packet: bytes, *, mac: str = "", to: str = "") -> None:
        frame = octets(to or self.gateway) + octets(mac or self.mac) + struct.pack("!H", kind) + packet
        self.socket.send(frame)


class Ear:
    """Whether the mark arrives at a UDP port of an address."""

    def __init__(self, fd: int, address: str, port: int) -> None:
        self.socket = netns.socket_in(fd, 10 if ":" in address else 2, socket.SOCK_DGRAM)
        self.socket.bind((address, port))

    def heard(self, wait_s: float = 0.3) -> str:
        """Whom the mark came from, "" if it did not come."""
        self.socket.settimeout(wait_s)
        try:
            data, peer = self.socket.recvfrom(2048)
        except TimeoutError:
            return ""
        assert data == MARK
        return str(peer[0])


@contextmanager
def site(
    where: Path, mode: str, policy: str
) -> Iterator[tuple[TestNode, TestNode, dict[str, dict[str, str]]]]:
    with two_nodes(where, FAMILIES["both"], {"link": {"mode": mode}}) as (_api, one, two):
        for node in (one, two):
            node.start(f"--policy={policy}")
        for node in (one, two):
            node.wait_ready()
        pods = {name: one.add_pod(name) for name in ("liar", "mate")} | {"far": two.add_pod("far")}
        yield one, two, pods


@pytest.mark.parametrize("policy", ["off", "on"])
@pytest.mark.parametrize("mode", ["routed", "bridge"])
def test_a_pod_cannot_speak_under_anothers_name(tmp_path: Path, mode: str, policy: str) -> None:
    with site(tmp_path, mode, policy) as (one, two, pods):
        liar = Liar(one.pods["liar"])
        own, mate, far = (pods[name] for name in ("liar", "mate", "far"))
        # To another node's pod, and to the node itself: under its own name it arrives, under others' not.
        for fd, index in ((two.pods["far"], None), (one.fd, 0)):
            for family in FAMILIES["both"]:
                at = far[family] if index is None else one.addresses[FAMILIES["both"].index(family)]
                ear = Ear(fd, at, 7000)
                kind, udp = (IPV4, udp4) if family == "IPv4" else (IPV6, udp6)
                liar.send(kind, udp(own[family], at, 7000))
                assert ear.heard(5) == own[family]
                foreign = [mate[family], far[family], two.addresses[FAMILIES["both"].index(family)]]
                for lie in (*foreign, "192.0.2.9" if family == "IPv4" else "2001:db8::9"):
                    if lie != at:
                        liar.send(kind, udp(lie, at, 7000))
                assert ear.heard() == ""
                ear.socket.close()
        if mode == "bridge":
            assert_macs(one, liar, own, mate)
        # What neighbours are told: the mate's address is not the liar's.
        fake = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2) + octets(liar.mac) + ip_address(mate["IPv4"]).packed
        liar.send(ARP, fake + octets(liar.gateway) + ip_address("10.244.1.1").packed)
        target = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + ip_address(mate["IPv6"]).packed
        advertisement = target + b"\x02\x01" + octets(liar.mac)
        liar.send(IPV6, ipv6(own["IPv6"], "ff02::1", 58, advertisement, 2), to="33:33:00:00:00:01")
        # A router that is none.
        prefix = (
            b"\x03\x04\x40\xc0" + struct.pack("!III", 3600, 3600, 0) + ip_address("2001:db8:bad::").packed
        )
        router = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
        for source in ("fe80::bad", own["IPv6"]):
            liar.send(IPV6, ipv6(source, "ff02::1", 58, router, 2), to="33:33:00:00:00:01")
        for fd in (one.fd, one.pods["mate"]):
            with Rtnl(fd) as rt:
                told = {n.mac for n in rt.neighbours() if str(n.address) in (mate["IPv4"], mate["IPv6"])}
                assert liar.mac not in told
                assert not [
                    r for r in rt.routes() if "2001:db8" in str(r.destination) or str(r.via) == "fe80::bad"
                ]
        for family in FAMILIES["both"]:
            with Echo(one.pods["mate"], mate[family]) as echo:
                assert ask(one.fd, mate[family], server=echo)


def assert_macs(one: TestNode, liar: Liar, own: dict[str, str], mate: dict[str, str]) -> None:
    """Frames under the mate's MAC address do not make the bridge send the mate's to the liar."""
    with Rtnl(one.pods["mate"]) as rt:
        victim = rt.link("eth0").mac
    ear = Ear(one.fd, one.addresses[0], 7001)
    liar.send(IPV4, udp4(own["IPv4"], one.addresses[0], 7001), mac=victim)
    assert ear.heard() == ""
    ear.socket.close()
    with Rtnl(one.fd) as rt:
        ports = {link.name: link.index for link in rt.links() if link.master}
        mine = [e for index in ports.values() for e in rt.fdb(index) if e.mac == victim]
        with Rtnl(one.pods["mate"]) as inner:
            assert {e.link for e in mine} <= {inner.link("eth0").peer}


@pytest.mark.parametrize("policy", ["off", "on"])
def test_frames_for_the_tunnel_come_from_nodes_alone(tmp_path: Path, policy: str) -> None:
    with site(tmp_path, "routed", policy) as (one, two, pods):
        liar, far = Liar(one.pods["liar"]), pods["far"]
        with Rtnl(two.fd) as rt:
            vtep = rt.link("plvxlan").mac
        inner = octets(vtep) + octets("02:00:00:00:00:99") + struct.pack("!H", IPV4)
        inner += udp4("10.244.1.77", far["IPv4"], 7000)
        wrapped = struct.pack("!II", 0x08000000, 85 << 8) + inner
        ear = Ear(two.pods["far"], far["IPv4"], 7000)
        node, other = one.addresses[0], two.addresses[0]
        # From a node it is what the tunnel is for: the test's frame is a good one.
        with netns.socket_in(one.fd, socket.AF_INET, socket.SOCK_DGRAM) as good:
            good.bind((node, 0))
            good.sendto(wrapped, (other, 8472))
        assert ear.heard(5) == "10.244.1.77"
        # From a pod, under its own name or a node's.
        for source in (pods["liar"]["IPv4"], node):
            liar.send(IPV4, udp4(source, other, 8472, wrapped))
        # From a stranger on the nodes' own network.
        with Rtnl(one.fd) as rt:
            rt.add_address("eth0", ip_interface("172.30.1.66/24"))
        with netns.socket_in(one.fd, socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("172.30.1.66", 0))
            stranger.sendto(wrapped, (other, 8472))
        assert ear.heard() == ""
