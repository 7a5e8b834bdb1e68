"""The process between a TUN device and a UDP socket: `python -m podlane.engines.udp.proxy DEVICE SOCKET`.

    pod -> kernel -> TUN -> which node has the target? -> a hop less -> cut into datagrams -> its address
    datagram -> is its sender a node, and the packet's source behind it? -> a hop less -> joined -> TUN -> pod

One bare IP packet a datagram, as Flannel's udp backend sends and takes them. Segmentation offload on the
device (IFF_VNET_HDR, TUNSETOFFLOAD) and on the socket (UDP_SEGMENT, UDP_GRO; udp(7)) makes one system call
of forty. The device stays when the process ends (TUNSETPERSIST), and routes with it.

It knows what it is told over its socket (control.py) and needs nobody to go on.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

import msgspec

from podlane.engines.udp import control, packets
from podlane.engines.udp.control import Answer, Prefixes, Request, Settings
from podlane.engines.udp.counters import (
    COUNTERS,
    FOREIGN_SOURCE,
    MALFORMED,
    MULTICAST,
    NO_ROUTE,
    NOT_DELIVERED,
    NOT_SENT,
    OVERSIZED,
    QUEUE_FULL,
    RECEIVED_BYTES,
    RECEIVED_PACKETS,
    SENT_BYTES,
    SENT_PACKETS,
    TIME_EXCEEDED,
    UNKNOWN_SENDER,
)
from podlane.engines.udp.packets import NO_OFFLOAD, VNET, Buffer

# linux/if_tun.h
TUN_DEVICE: Final = "/dev/net/tun"
TUNSETIFF, TUNSETPERSIST, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454CB, 0x400454D0, 0x400454D8
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TCP_OFFLOADS = 0x01 | 0x02 | 0x04 | 0x08  # CSUM, TSO4, TSO6, TSO_ECN
_UDP_OFFLOADS = 0x20 | 0x40  # USO4, USO6: since Linux 6.2

# linux/udp.h, linux/in.h, linux/in6.h, asm-generic/socket.h
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DONT = 10, 23, 0
IP_FREEBIND, IPV6_FREEBIND = 15, 78
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33

_BUFFER_BYTES = 8 << 20
_MOST_SEGMENTS = 64  # UDP_MAX_SEGMENTS of older kernels
_MOST_DATAGRAM = 65507
_READS = 64
_RECEIVES = 8
_TOLD_A_SECOND = 100
_KNOWN = 1 << 16

Where = tuple[str, int]


def open_device(name: str) -> int:
    """The TUN device, made when it is not there. Raises OSError."""
    fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET.size))
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, _TCP_OFFLOADS | _UDP_OFFLOADS)
        except OSError:
            fcntl.ioctl(fd, TUNSETOFFLOAD, _TCP_OFFLOADS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_socket(local: str, port: int) -> socket.socket:
    """Bound to local, also before a link has it. Raises OSError."""
    six = ":" in local
    made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
            made.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        # A tunnel's packets may be cut on their way rather than lost in a place that says nothing.
        if six:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            made.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DONT)
        else:
            made.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            made.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
        with suppress(OSError):  # before Linux 5.0 datagrams come one by one
            made.setsockopt(SOL_UDP, UDP_GRO, 1)
        made.bind((local, port))
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


class Sender:
    """Datagrams out: as many of one size and target as may be in one system call."""

    def __init__(self, counters: Counter[str]) -> None:
        self.socket: socket.socket | None = None
        self._counters = counters
        self._waiting: list[Buffer] = []
        self._to: Where = ("", 0)
        self._size = self._bytes = 0

    def add(self, packet: bytes, to: Where) -> None:
        """One packet, sent with the next ones; `flush` when there are none for now."""
        size = len(packet)
        if self._waiting and (
            to != self._to
            or size > self._size
            or self._bytes + size > _MOST_DATAGRAM
            or len(self._waiting) == _MOST_SEGMENTS
        ):
            self.flush()
        if not self._waiting:
            self._to, self._size, self._bytes = to, size, 0
        self._waiting.append(packet)
        self._bytes += size
        if size < self._size:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._send(waiting, 1, self._size, self._to)

    def pieces(self, pieces: list[Buffer], size: int, to: Where) -> None:
        """(header, payload, …), each pair of size bytes but for the last."""
        self.flush()
        most = 2 * min(_MOST_SEGMENTS, _MOST_DATAGRAM // size)
        for first in range(0, len(pieces), most):
            self._send(pieces[first : first + most], 2, size, to)

    def _send(self, buffers: list[Buffer], parts: int, size: int, to: Where) -> None:
        count = len(buffers) // parts
        if self.socket is None:
            self._counters[NOT_SENT] += count
            return
        options = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))] if count > 1 else []
        try:
            sent = self.socket.sendmsg(buffers, options, 0, to)
        except BlockingIOError:
            self._counters[QUEUE_FULL] += count
        except OSError as error:
            if count > 1 and error.errno in (errno.EIO, errno.EINVAL, errno.EMSGSIZE):
                # The link cannot: one by one.
                for first in range(0, len(buffers), parts):
                    self._send(buffers[first : first + parts], parts, size, to)
            else:
                self._counters[NOT_SENT] += count
        else:
            self._counters[SENT_PACKETS] += count
            self._counters[SENT_BYTES] += sent


class Proxy:
    """device: a TUN device's descriptor."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self.settings = Settings()
        self._sender = Sender(self.counters)
        self._frame = bytearray(VNET.size + packets.MOST_BYTES)
        self._frame_view = memoryview(self._frame)
        self._datagrams = bytearray(1 << 17)
        self._datagrams_view = memoryview(self._datagrams)
        self._ancillary = socket.CMSG_SPACE(4)
        self._own: dict[int, bytes] = {}
        self._may_tell, self._tell_since_s = _TOLD_A_SECOND, 0.0
        self._learn(Settings(), Rows(Settings()))

    @property
    def socket(self) -> socket.socket | None:
        return self._sender.socket

    # --- what it is told -------------------------------------------------------------------------

    def configure(self, request: Request) -> None:
        """Raises ValueError, OSError: then it goes on as it was."""
        before = self.settings
        peers = dict(before.peers) if request.settings is None else dict(request.settings.peers)
        for node in request.gone:
            peers.pop(node, None)
        peers |= request.peers
        settings = msgspec.structs.replace(request.settings or before, peers=peers)
        rows = Rows(settings)
        if (settings.local, settings.port) != (before.local, before.port):
            made = open_socket(settings.local, settings.port)
            if self._sender.socket is not None:
                self._sender.socket.close()
            self._sender.socket = made
        self._learn(settings, rows)

    def _learn(self, settings: Settings, rows: Rows) -> None:
        self.settings = settings
        self._pods, self._senders, self._peers = rows.pods, rows.senders, rows.peers
        self._own = rows.own
        # What was looked up already; forgotten with every change.
        self._to: dict[bytes, Where | None] = {}
        self._behind: dict[bytes, str | None] = {}

    # --- from the device to the others -----------------------------------------------------------

    def from_device(self) -> None:
        """All that waits, up to a bound, so that others have their turn."""
        try:
            for _ in range(_READS):
                size = os.readv(self.device, (self._frame,))
                self._outward(size)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EIO):  # EIO: the link is down
                raise
        self._sender.flush()

    def _outward(self, size: int) -> None:
        flags, kind, _, piece, start, offset = VNET.unpack_from(self._frame)
        packet = self._frame_view[VNET.size : size]
        if len(packet) < 20:
            self.counters[MALFORMED] += 1
            return
        target = packets.target_of(packet)
        to = self._to.get(target)
        if to is None and (to := self._route(target)) is None:
            self._nowhere(packet, target)
            return
        if not packets.take_hop(packet):
            self.counters[TIME_EXCEEDED] += 1
            self._tell(packet, packets.time_exceeded)
            return
        if kind & ~packets.ECN:
            try:
                pieces, whole = packets.cut(packet, kind & ~packets.ECN, piece, start)
            except ValueError:
                self.counters[MALFORMED] += 1
                return
            self._sender.pieces(pieces, whole, to)
            return
        if flags & packets.NEEDS_CSUM:
            packets.finish(packet, start, offset)
        self._sender.add(bytes(packet), to)

    def _route(self, target: bytes) -> Where | None:
        found = self._pods.find(target)
        if found is not None:
            if len(self._to) >= _KNOWN:
                self._to.clear()
            self._to[target] = found
        return found

    def _nowhere(self, packet: memoryview, target: bytes) -> None:
        if target[0] >= 224 if len(target) == 4 else target[0] == 0xFF:
            self.counters[MULTICAST] += 1  # the kernel's own talk on every link
            return
        self.counters[NO_ROUTE] += 1
        self._tell(packet, packets.unreachable)

    def _tell(self, packet: memoryview, message: Callable[[Buffer, bytes], bytes]) -> None:
        """To a sender on this node."""
        own = self._own.get(len(packets.source_of(packet)))
        if own is None or not self._allowed():
            return
        if told := message(packet, own):
            self._write([NO_OFFLOAD, told])

    def _allowed(self) -> bool:
        """RFC 4443, 2.4 (f): not more than so many a second."""
        now_s = time.monotonic()
        if now_s - self._tell_since_s >= 1:
            self._may_tell, self._tell_since_s = _TOLD_A_SECOND, now_s
        self._may_tell -= 1
        return self._may_tell >= 0

    # --- from the others to the device -----------------------------------------------------------

    def from_socket(self) -> None:
        door = self._sender.socket
        if door is None:
            return
        for _ in range(_RECEIVES):
            try:
                size, ancillary, _, sender = door.recvmsg_into((self._datagrams,), self._ancillary)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH):
                    continue
                raise
            one = struct.unpack("=i", ancillary[0][2])[0] if ancillary else size
            self._inward(self._datagrams_view[:size], one or size, sender[0])
        self._sender.flush()

    def _inward(self, datagrams: memoryview, size: int, sender: str) -> None:
        counters = self.counters
        if sender not in self._peers:
            counters[UNKNOWN_SENDER] += -(-len(datagrams) // size) if size else 1
            return
        if not size:
            counters[MALFORMED] += 1
            return
        for packet, more in packets.join(datagrams, size):
            if why := self._wrong(packet, sender):
                counters[why] += 1 + len(more)
                continue
            if not packets.take_hop(packet):
                counters[TIME_EXCEEDED] += 1 + len(more)
                self._tell_back(packet, sender)
                continue
            if self._write(packets.joined(packet, more)):
                counters[RECEIVED_PACKETS] += 1 + len(more)
                counters[RECEIVED_BYTES] += len(packet) + sum(map(len, more))
            else:
                counters[NOT_DELIVERED] += 1 + len(more)

    def _wrong(self, packet: memoryview, sender: str) -> str:
        """Why a packet of a known node is dropped; "" for none."""
        if why := packets.problem(packet):
            return why
        if len(packet) > self.settings.mtu_bytes:
            return OVERSIZED
        source = packets.source_of(packet)
        behind = self._behind.get(source)
        if behind is None:
            behind = self._senders.find(source)
            if len(self._behind) >= _KNOWN:
                self._behind.clear()
            self._behind[source] = behind
        return "" if behind == sender else FOREIGN_SOURCE

    def _tell_back(self, packet: memoryview, sender: str) -> None:
        own = self._own.get(len(packets.source_of(packet)))
        if own is not None and self._allowed() and (told := packets.time_exceeded(packet, own)):
            self._sender.add(told, self._peers[sender])

    def _write(self, buffers: list[Buffer]) -> bool:
        try:
            os.writev(self.device, buffers)
        except OSError:
            return False
        return True


class Rows:
    """Settings as the way needs them. Raises ValueError for what is no address or prefix."""

    def __init__(self, settings: Settings) -> None:
        peers = settings.peers.values()
        self.pods: Prefixes[Where] = Prefixes(
            (p, (each.remote, each.port)) for each in peers for p in each.pods
        )
        self.senders: Prefixes[str] = Prefixes(
            (p, each.remote) for each in peers for p in (*each.pods, *each.sources)
        )
        self.peers: dict[str, Where] = {each.remote: (each.remote, each.port) for each in peers}
        self.own = {len(octets): octets for octets in map(_octets, settings.own)}


def _octets(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


class Control:
    """The proxy's socket: a request a line, an answer a line."""

    def __init__(self, path: str, proxy: Proxy, poll: select.epoll) -> None:
        self._proxy, self._poll = proxy, poll
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with suppress(FileNotFoundError):
            os.unlink(path)
        self.door.bind(path)
        os.chmod(path, 0o600)
        self.door.listen(8)
        self.door.setblocking(False)
        self.talks: dict[int, tuple[socket.socket, bytearray]] = {}
        poll.register(self.door.fileno(), select.EPOLLIN)

    def accept(self) -> None:
        with suppress(BlockingIOError):
            made, _ = self.door.accept()
            made.setblocking(False)
            self.talks[made.fileno()] = (made, bytearray())
            self._poll.register(made.fileno(), select.EPOLLIN)

    def hear(self, fd: int) -> None:
        talk, heard = self.talks[fd]
        try:
            chunk = talk.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        heard += chunk
        if heard.endswith(b"\n"):
            line = bytes(heard)
            heard.clear()
            talk.settimeout(1.0)  # the agent reads at once
            try:
                talk.sendall(control.encode(self._answer(line)))
                talk.setblocking(False)
            except OSError:
                chunk = b""
        if not chunk:
            self._poll.unregister(fd)
            del self.talks[fd]
            talk.close()

    def _answer(self, line: bytes) -> Answer:
        proxy, before = self._proxy, self._proxy.socket
        try:
            request = control.request(line)
            if request == Request():
                return Answer(proxy.settings, dict(proxy.counters))
            proxy.configure(request)
        except (ValueError, OSError) as error:
            return Answer(error=str(error) or repr(error))
        if proxy.socket is not before and proxy.socket is not None:
            # The old one left the poll when it was closed.
            self._poll.register(proxy.socket.fileno(), select.EPOLLIN)
        return Answer()


def run(device: str, path: str) -> NoReturn:
    """Until SIGTERM. Raises OSError when there can be no device or socket."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    poll = select.epoll()
    proxy = Proxy(open_device(device))
    door = Control(path, proxy, poll)
    poll.register(proxy.device, select.EPOLLIN)
    # Nothing here is made in cycles: there is nothing to be collected.
    gc.collect()
    gc.disable()
    while True:
        for fd, _ in poll.poll():
            if fd == proxy.device:
                proxy.from_device()
            elif fd == door.door.fileno():
                door.accept()
            elif fd in door.talks:
                door.hear(fd)
            else:
                proxy.from_socket()


if __name__ == "__main__":
    try:
        run(*sys.argv[1:3])
    except OSError as problem:
        print(f"{' '.join(sys.argv[1:])}: {problem}", file=sys.stderr)
        sys.exit(1)
