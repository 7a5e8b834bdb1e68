"""Packets as the links of a network namespace see them, with the kernel's own time (packet(7)).

One AF_PACKET socket that is bound to no link sees every link of its namespace, each packet once on its
way in and once on its way out. The time is taken when the packet passes the link, not when it is read, so
that sightings in several namespaces can be put in order.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from podlane.errors import KernelError
from podlane.kernel import netns

ETH_P_ALL: Final = 0x0003
PACKET_OUTGOING: Final = 4
_SO_TIMESTAMPNS: Final = 35  # the answer is of the same type: struct timespec
_SO_RCVBUFFORCE: Final = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_TIMESPEC: Final = struct.Struct("@qq")

# linux/if_arp.h: links whose frames begin with an Ethernet header; others (tun, ipip) begin with IP.
_WITH_ETHERNET: Final = frozenset({1, 772})

# Turning time stamps on is done by a kernel worker: packets before that would get the time of reading.
SETTLE_S: Final = 0.02


class Sighting(NamedTuple):
    """One packet on one link. time_ns: Unix time. outgoing: leaving the namespace's stack by that link.

    ethernet: whether data begins with an Ethernet header, or with IP at once.
    """

    link: str
    outgoing: bool
    time_ns: int
    data: bytes
    ethernet: bool


class Capture:
    """Sees every link of namespace netns_fd, from now until `close`. Raises KernelError.

    snap_bytes: how much of a packet is kept. buffer_bytes: what the kernel holds until it is read.
    """

    def __init__(self, netns_fd: int, *, snap_bytes: int = 512, buffer_bytes: int = 4 << 20) -> None:
        self._snap_bytes = snap_bytes
        self._dropped = 0
        try:
            protocol = socket.htons(ETH_P_ALL)
            self._socket = netns.socket_in(netns_fd, socket.AF_PACKET, socket.SOCK_RAW, protocol)
            try:
                self._socket.setblocking(False)
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            except OSError:
                self._socket.close()
                raise
        except OSError as error:
            raise KernelError.of(error.errno or 0, "open a packet socket") from None

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> Iterator[Sighting]:
        """What was seen since, in the kernel's order; ends when there is no more for now."""
        while True:
            try:
                data, controls, _, where = self._socket.recvmsg(self._snap_bytes, 64)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == 100:  # ENETDOWN: a link it saw went down; others are still seen
                    continue
                raise KernelError.of(error.errno or 0, "read a packet socket") from None
            link, _, kind, hardware = where[:4]
            yield Sighting(
                link, kind == PACKET_OUTGOING, _time_ns(controls), data, hardware in _WITH_ETHERNET
            )

    def dropped(self) -> int:
        """How many packets were not kept, for want of buffer, since the capture began."""
        # The kernel's counters begin anew each time they are read.
        raw = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._dropped += int(struct.unpack("=II", raw)[1])
        return self._dropped


def _time_ns(controls: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in controls:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return time.time_ns()
