"""Makes a client speak whose connection has lost its other end.

When the flow of a dead connection is deleted, the client's next segment leads to its reset. But a client that
waits for an answer sends none, and one that repeats itself does so ever more rarely. So it is sent a segment,
in the name of the address it talks to, that it cannot but contradict: a SYN in the middle of a connection is
answered by a challenge ACK, whatever its number (RFC 5961, section 4). That ACK is the segment we want.

The SYN carries a FIN as well. No TCP sends that, and connection tracking, which would take a plain SYN for
the beginning of a flow in the other direction, passes it on and remembers nothing.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from typing import Final

from podlane.kernel import netns
from podlane.kernel.conntrack.codec import Entry, Tuple
from podlane.model.addresses import Address, Family, Protocol, family_of

_TCP: Final = Protocol.TCP.number
_SYN_FIN: Final = 0x03
_TTL: Final = 64
_IPV6_HDRINCL: Final = 36  # linux/in6.h


class Nudger:
    """Sends from the network namespace netns_fd, or that of the calling thread. For one thread."""

    def __init__(self, netns_fd: int | None = None) -> None:
        self._netns_fd = netns_fd
        self._sockets: dict[Family, socket.socket] = {}

    def close(self) -> None:
        for each in self._sockets.values():
            each.close()

    def nudge(self, entries: Iterable[Entry]) -> None:
        """The clients of these flows that are connected. One that cannot be reached learns of it later, by
        itself; one that nobody answered yet tries again anyway."""
        for entry in entries:
            original = entry.original
            if original.protocol == _TCP and not entry.half_open:
                with suppress(OSError):
                    self._socket(family_of(original.source)).sendto(pack(original), (str(original.source), 0))

    def _socket(self, family: Family) -> socket.socket:
        found = self._sockets.get(family)
        if found is None:
            with netns.entered(self._netns_fd) if self._netns_fd is not None else nullcontext():
                found = socket.socket(family.af, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
            if family is Family.IPV6:
                found.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
            self._sockets[family] = found
        return found


def pack(flow: Tuple) -> bytes:
    """The packet from a flow's destination to its source."""
    ports = flow.destination_port, flow.source_port
    segment = struct.pack("!HHIIBBHHH", *ports, secrets.randbits(32), 0, 5 << 4, _SYN_FIN, 0, 0, 0)
    checksum = _checksum(flow.destination, flow.source, segment)
    segment = segment[:16] + checksum + segment[18:]
    ends = flow.destination.packed + flow.source.packed
    if flow.source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(segment), _TCP, _TTL) + ends + segment
    # The kernel fills in the length, the identification and the header's own checksum.
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, _TTL, _TCP, 0) + ends + segment


def _checksum(source: Address, destination: Address, segment: bytes) -> bytes:
    """RFC 9293, section 3.1, over the pseudo header too."""
    data = source.packed + destination.packed + struct.pack("!II", len(segment), _TCP) + segment
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
