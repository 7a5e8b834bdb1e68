"""The UDP proxy as a process of its own, with real packets: what is on the wire, what it refuses, what it
survives, and a peer that does no more than Flannel's udp backend."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from podlane.compile.udp import DEVICE
from podlane.engines.udp import packets
from podlane.engines.udp.control import PeerSetting, Request, Settings
from podlane.engines.udp.process import UdpProcess
from podlane.engines.udp.proxy import IFF_NO_PI, IFF_TUN, SOL_UDP, TUNSETIFF, UDP_SEGMENT
from podlane.errors import KernelError
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import Family
from podlane.observe.packet import Packet, decode_ethernet, decode_ip
from tests.property.test_udp_packets import ip, partial, right

PORT = 8285
MTU = 1472 - 20  # IPv6 outside too
LOST_S = 5.0
HERE = {Family.IPV4: "10.244.1.5", Family.IPV6: "fd00:1::5"}
THERE = {Family.IPV4: "10.244.2.9", Family.IPV6: "fd00:2::9"}
OUTER = {
    Family.IPV4: ("172.31.0.1", "172.31.0.2", "172.31.0.3"),
    Family.IPV6: ("fd31::1", "fd31::2", "fd31::3"),
}
BOTH = pytest.mark.parametrize("inner", list(Family), ids=str)


class Site:
    """Two namespaces and a link: `node` with the proxy, `peer` with the outer addresses of two others."""

    def __init__(self, directory: Path, outer: Family) -> None:
        self.outer, self.node, self.peer = outer, netns.new(), netns.new()
        self.local, self.remote, self.stranger = OUTER[outer]
        for fd in (self.node, self.peer):
            netns.write_sysctl(fd, "net/ipv6/conf/default/accept_dad", 0)
        with Rtnl(self.node) as here, Rtnl(self.peer) as there:
            here.create_veth("eth0", "eth0", peer_netns=self.peer, up=True, peer_up=True)
            bits = 24 if outer is Family.IPV4 else 64
            here.add_address("eth0", ip_interface(f"{self.local}/{bits}"))
            for each in (self.remote, self.stranger):
                there.add_address("eth0", ip_interface(f"{each}/{bits}"))
            here.set_up("lo")
            there.set_up("lo")
        self.process = UdpProcess(directory, DEVICE)
        pods = ("10.244.2.0/24", "fd00:2::/64")
        self.settings = Settings(
            local=self.local,
            port=PORT,
            mtu_bytes=MTU,
            own=("10.244.1.0", "fd00:1::"),
            peers={"peer": PeerSetting(self.remote, PORT, pods, ())},
        )
        self.start()
        with Rtnl(self.node) as here:
            here.set_mtu(DEVICE, MTU)
            here.set_up(DEVICE)
            for family, own in HERE.items():
                here.add_address("lo", ip_interface(f"{own}/{family.bits}"))
            for route in ("10.244.0.0/16", "fd00::/16"):
                here.add_route(ip_network(route), device=DEVICE)

    def start(self) -> None:
        with netns.entered(self.node):
            self.process.ensure()
        self.process.ask(Request(self.settings))

    def close(self) -> None:
        self.process.stop()
        for fd in (self.node, self.peer):
            os.close(fd)

    def counted(self) -> dict[str, int]:
        return self.process.ask(Request()).counters

    def pod(self, family: Family, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """On the node, at the address of a pod of it."""
        made = netns.socket_in(self.node, family.af, kind)
        made.settimeout(LOST_S)
        made.bind((HERE[family], 0))
        return made

    def far(self, address: str = "", port: int = PORT) -> socket.socket:
        """Where the proxy's datagrams go, or come from."""
        made = netns.socket_in(self.peer, self.outer.af, socket.SOCK_DGRAM)
        made.settimeout(LOST_S)
        made.bind((address or self.remote, port))
        return made

    def awaits(self, counter: str, more_than: int) -> None:
        until(lambda: self.counted()[counter] > more_than)


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.005)


@pytest.fixture(scope="module", params=list(Family), ids=lambda f: f"over-{f}")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("udp"), request.param)
    yield made
    made.close()


def datagram(
    inner: Family, port: int, payload: bytes = b"hello", *, source: str = "", ttl: int = 64
) -> bytes:
    """A UDP packet from the far pod to port of the near one, with its checksum."""
    ends = (ip_address(source or THERE[inner]).packed, ip_address(HERE[inner]).packed)
    body = struct.pack(">HHHH", 4000, port, 8 + len(payload), 0) + payload
    packet = ip(ends, 17, partial(ends, 17, body, 6), ttl=ttl)
    packets.finish(packet, 20 if inner is Family.IPV4 else 40, 6)
    assert right(bytes(packet))
    return bytes(packet)


@contextmanager
def wire(site: Site) -> Iterator[Callable[[], Packet]]:
    """The next packet between the two proxies, as the link has it."""
    with netns.socket_in(site.peer, socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.bind(("eth0", 3))
        raw.settimeout(LOST_S)

        def following() -> Packet:
            while True:
                found = decode_ethernet(raw.recv(65536))
                if found is not None and PORT in (found.source_port, found.destination_port):
                    return found

        yield following


@BOTH
def test_a_packet_is_bare_in_its_datagram_and_a_hop_older(site: Site, inner: Family) -> None:
    with site.pod(inner) as pod, site.far() as far, wire(site) as following:
        pod.sendto(b"hello", (THERE[inner], 4000))
        received, sender = far.recvfrom(65536)
        assert sender[:2] == (site.local, PORT)
        packet = decode_ip(received)
        assert packet is not None
        assert (str(packet.source), str(packet.destination)) == (HERE[inner], THERE[inner])
        assert (packet.ttl, packet.payload, right(received)) == (63, b"hello", True)
        outside = following()
        assert (outside.source_port, outside.destination_port, outside.ttl) == (PORT, PORT, 64)
        assert outside.inner == packet

        pod.setsockopt(*((0, 12) if inner is Family.IPV4 else (41, 51)), 1)  # IP_RECVTTL, IPV6_RECVHOPLIMIT
        far.sendto(datagram(inner, pod.getsockname()[1], b"back"), sender)
        data, ancillary, _, peer = pod.recvmsg(100, 100)
        assert (data, peer[:2]) == (b"back", (THERE[inner], 4000))
        assert struct.unpack("=i", ancillary[0][2])[0] == 63


@BOTH
def test_what_the_kernel_leaves_to_be_cut_is_cut_with_right_checksums(site: Site, inner: Family) -> None:
    with site.pod(inner) as pod, site.far() as far:
        payload = os.urandom(20_500)
        size = 1000
        options = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))]
        pod.sendmsg([payload], options, 0, (THERE[inner], 4000))
        received = [far.recv(65536) for _ in range(21)]
        assert all(map(right, received))
        assert b"".join(p.payload for p in map(decode_ip, received) if p) == payload


def test_what_is_no_packet_of_a_node_is_counted_and_dropped(site: Site) -> None:
    before = site.counted()
    inner = Family.IPV4
    with site.pod(inner) as pod, site.far() as far, site.far(site.stranger) as stranger:
        port, to = pod.getsockname()[1], (site.local, PORT)
        good = datagram(inner, port)
        stranger.sendto(good, to)
        for garbage in (
            b"",
            b"\0",
            b"garbage",
            good[:-1],
            good + b"\0",
            b"\x95" + good[1:],
            os.urandom(1400),
        ):
            far.sendto(garbage, to)
        far.sendto(datagram(inner, port, bytes(2000)), to)
        far.sendto(datagram(inner, port, source="10.244.3.1"), to)
        far.sendto(datagram(inner, port, source=HERE[inner]), to)
        far.sendto(datagram(inner, port, b"the last"), to)
        assert pod.recv(100) == b"the last"
    after = {name: count - before[name] for name, count in site.counted().items()}
    assert after["unknown_sender"] == 1
    assert after["malformed"] == 7
    assert after["oversized"] == 1
    assert after["foreign_source"] == 2
    assert after["received_packets"] == 1


@BOTH
def test_senders_are_told_by_icmp_what_cannot_be(site: Site, inner: Family) -> None:
    nowhere = "10.244.77.1" if inner is Family.IPV4 else "fd00:77::1"
    receive_errors = (0, 11) if inner is Family.IPV4 else (41, 25)  # IP_RECVERR, IPV6_RECVERR
    ttl = (0, 2) if inner is Family.IPV4 else (41, 16)  # IP_TTL, IPV6_UNICAST_HOPS
    with site.pod(inner) as pod:
        pod.setsockopt(*receive_errors, 1)
        pod.sendto(b"x", (nowhere, 4000))
        with pytest.raises(OSError, match="Network is unreachable") as told:
            pod.recv(10)
        assert told.value.errno == errno.ENETUNREACH
        pod.setsockopt(*ttl, 1)
        pod.sendto(b"x", (THERE[inner], 4000))
        with pytest.raises(OSError, match="host") as told:
            pod.recv(10)
        assert told.value.errno == errno.EHOSTUNREACH
    # And the other side is, by a packet of this node's.
    with site.far() as far:
        far.sendto(datagram(inner, 4000, ttl=1), (site.local, PORT))
        message = decode_ip(far.recv(2000))
        assert message is not None
        assert message.icmp == ((11, 0) if inner is Family.IPV4 else (3, 0))
        assert str(message.destination) == THERE[inner]
        assert message.quoted is not None
        assert message.quoted.destination_port == 4000


def test_peers_come_move_and_go_while_it_runs(site: Site) -> None:
    pid = site.process.pid
    pods = ("10.244.3.0/24", "fd00:3::/64")
    with site.pod(Family.IPV4) as pod, site.far(site.stranger) as far:
        site.process.ask(Request(peers={"other": PeerSetting(site.stranger, PORT, pods)}))
        pod.sendto(b"to a new one", ("10.244.3.7", 9))
        assert b"to a new one" in far.recv(2000)
        site.process.ask(Request(peers={"other": PeerSetting(site.remote, PORT, pods)}))
        with site.far() as moved:
            pod.sendto(b"moved", ("10.244.3.7", 9))
            assert b"moved" in moved.recv(2000)
        before = site.counted()["no_route"]
        site.process.ask(Request(gone=("other",)))
        pod.sendto(b"gone", ("10.244.3.7", 9))
        site.awaits("no_route", before)
    answer = site.process.ask(Request())
    assert answer.settings == site.settings
    assert site.process.pid == pid


def test_settings_that_make_no_sense_change_nothing(site: Site) -> None:
    for wrong in (
        Request(peers={"bad": PeerSetting(site.remote, PORT, ("10.244.0.0/99",))}),
        Request(Settings(local="nonsense", port=PORT)),
    ):
        with pytest.raises(KernelError, match="UDP proxy"):
            site.process.ask(wrong)
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(str(site.process.socket))
        door.sendall(b"nonsense\n")
        assert b"error" in door.recv(1000)
    assert site.process.ask(Request()).settings == site.settings


# --- a peer as Flannel has it ----------------------------------------------------------------------


class Flannelike:
    """One packet a system call, no header, no look at whom it comes from, a hop less each way."""

    def __init__(self, site: Site) -> None:
        self._socket = site.far()
        self._to = (site.local, PORT)
        with netns.entered(site.peer):
            self._tun = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(self._tun, TUNSETIFF, struct.pack("16sH22x", b"flannel0", IFF_TUN | IFF_NO_PI))
        with Rtnl(site.peer) as there:
            there.set_mtu("flannel0", MTU)
            there.set_up("flannel0")
            for family, own in THERE.items():
                there.add_address("flannel0", ip_interface(f"{own}/{family.bits}"))
            for route in ("10.244.0.0/16", "fd00::/16"):
                there.add_route(ip_network(route), device="flannel0")
        self._stop, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._tun, self._socket, self._stop], [], [])
            if self._stop in ready:
                return
            if self._tun in ready:
                self._socket.sendto(_older(os.read(self._tun, 2000)), self._to)
            if self._socket in ready:
                os.write(self._tun, _older(self._socket.recv(2000)))

    def close(self) -> None:
        os.write(self._wake, b"x")
        self._thread.join()
        self._socket.close()
        for fd in (self._tun, self._stop, self._wake):
            os.close(fd)


def _older(packet: bytes) -> bytes:
    found = bytearray(packet)
    if found[0] >> 4 == 6:
        found[7] -= 1
        return bytes(found)
    found[8] -= 1
    found[10:12] = bytes(2)
    words = struct.unpack(">10H", found[:20])
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    found[10:12] = (0xFFFF - ((total & 0xFFFF) + (total >> 16))).to_bytes(2, "big")
    return bytes(found)


def carry(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """size random bytes, which come as they were sent."""
    data = os.urandom(size)
    sending = threading.Thread(target=sender.sendall, args=(data,))
    sending.start()
    found, got = hashlib.sha256(), 0
    while got < size:
        chunk = receiver.recv(1 << 16)
        assert chunk
        found.update(chunk)
        got += len(chunk)
    sending.join()
    assert found.digest() == hashlib.sha256(data).digest()


@BOTH
def test_streams_cross_it_both_ways_with_a_peer_as_flannels(site: Site, inner: Family) -> None:
    peer = Flannelike(site)
    try:
        with netns.socket_in(site.peer, inner.af, socket.SOCK_STREAM) as listener:
            listener.bind((THERE[inner], 0))
            listener.listen()
            with site.pod(inner, socket.SOCK_STREAM) as client:
                client.connect(listener.getsockname()[:2])
                server, _ = listener.accept()
                with server:
                    server.settimeout(LOST_S)
                    before = site.counted()
                    carry(client, server, 3_000_000)
                    carry(server, client, 3_000_000)
                    after = site.counted()
                    assert after["sent_packets"] - before["sent_packets"] > 3_000_000 // MTU
                    assert after["received_packets"] - before["received_packets"] > 3_000_000 // MTU
                    # The proxy dies; its device and the routes stay, and the next one goes on.
                    os.kill(site.process.pid, signal.SIGKILL)
                    until(lambda: not site.process.pid)
                    with Rtnl(site.node) as here:
                        assert here.find_link(DEVICE) is not None
                    site.start()
                    carry(client, server, 100_000)
                    carry(server, client, 100_000)
    finally:
        peer.close()


def test_a_device_of_that_name_that_is_no_tun_is_told(namespaces: Callable[[], int], tmp_path: Path) -> None:
    fd = namespaces()
    with Rtnl(fd) as here:
        here.create_bridge(DEVICE)
    with (
        netns.entered(fd),
        pytest.raises(KernelError, match=f"start the UDP proxy of {DEVICE}: .*Invalid argument"),
    ):
        UdpProcess(tmp_path, DEVICE).ensure()
