"""Sockets of a network namespace that are connected to services, and ending them (sock_diag(7)).

The kernel tells what a BPF map keeps with each TCP socket (INET_DIAG_REQ_SK_BPF_STORAGES), and a map says it
of UDP sockets, by the cookie that the kernel tells too. So what is found is exactly what the programs did,
and nobody else's sockets are touched. Structures: linux/inet_diag.h, linux/sock_diag.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Final, NamedTuple

from podlane.errors import KernelError
from podlane.kernel.bpf import layout
from podlane.kernel.netlink import (
    Message,
    Request,
    attribute,
    attributes,
    nested,
    u32,
)
from podlane.kernel.netlink_socket import Netlink
from podlane.model.addresses import Address, Family, Protocol

NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY, _DESTROY = 20, 21
_REQUEST: Final = struct.Struct("=BBBxI48s")  # struct inet_diag_req_v2
_MESSAGE: Final = struct.Struct("=BBxx48sIIIII")  # struct inet_diag_msg
_ID: Final = struct.Struct("!HH16s16s")  # the beginning of struct inet_diag_sockid: ports, addresses
_REQ_STORAGES, _STORAGES = 2, 20  # INET_DIAG_REQ_SK_BPF_STORAGES, INET_DIAG_SK_BPF_STORAGES
_REQ_MAP, _STORAGE, _MAP_VALUE = 1, 1, 3
_TIME_WAIT, _CLOSE, _LISTEN = 6, 7, 10
_COOKIE_BYTES: Final = 8
_MAPPED: Final = bytes(10) + b"\xff\xff"


class Seen(NamedTuple):
    """A socket that is connected to a service. local: its own address and port. place: what the kernel wants
    to find it again."""

    family: Family
    protocol: Protocol
    local: tuple[Address, int]
    bound: layout.Bound
    place: bytes


def request(family: Family, protocol: Protocol, storage: int) -> Request:
    """A dump of all that may be connected. storage: descriptor of the map to tell."""
    states = 0xFFF & ~(1 << _TIME_WAIT | 1 << _LISTEN)
    head = _REQUEST.pack(family.af, protocol.number, 0, states, bytes(48))
    return Request(
        _BY_FAMILY, 0, head + nested(_REQ_STORAGES, attribute(_REQ_MAP, u32(storage))), "list sockets"
    )


def destroy(seen: Seen) -> Request:
    head = _REQUEST.pack(seen.family.af, seen.protocol.number, 0, 0xFFFFFFFF, seen.place)
    return Request(_DESTROY, 0, head, f"end the socket of {seen.local[0]} port {seen.local[1]}")


def unpack(message: Message, protocol: Protocol, udp_users: Mapping[bytes, bytes]) -> Seen | None:
    """None for a socket that is connected to no service."""
    af, state, place, *_ = _MESSAGE.unpack_from(message.body)
    value = udp_users.get(place[-_COOKIE_BYTES:]) if protocol is Protocol.UDP else _stored(message)
    bound = layout.unpack_bound(value) if value is not None else None
    if bound is None or state == _CLOSE:
        return None
    port, _, source, _ = _ID.unpack_from(place)
    family = Family.IPV4 if af == Family.IPV4.af else Family.IPV6
    where = source[:4] if family is Family.IPV4 else source.removeprefix(_MAPPED)
    return Seen(family, protocol, (ip_address(where), port), bound, place)


def _stored(message: Message) -> bytes | None:
    storages = attributes(message.body, _MESSAGE.size).get(_STORAGES, b"")
    return attributes(attributes(storages).get(_STORAGE, b"")).get(_MAP_VALUE)


class Sockets:
    """Of the namespace netns_fd. storage: descriptor of map `connected`; udp_users: that map's contents."""

    def __init__(self, netns_fd: int, storage: int, udp_users: Mapping[bytes, bytes]) -> None:
        self._netlink = Netlink(NETLINK_SOCK_DIAG, netns_fd)
        self._storage, self._udp_users = storage, udp_users

    def __enter__(self) -> Sockets:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def seen(self) -> Iterator[Seen]:
        for family in Family:
            for protocol in (Protocol.TCP, Protocol.UDP):
                for message in self._netlink.dump(request(family, protocol, self._storage)):
                    found = unpack(message, protocol, self._udp_users)
                    if found is not None:
                        yield found

    def end(self, sockets: Iterable[Seen]) -> int:
        """Their next call fails with ECONNABORTED. Returns how many that were. Raises KernelError."""
        verdicts = self._netlink.execute([destroy(each) for each in sockets])
        for error in verdicts:
            if error is not None and error.errno != errno.ENOENT:  # it may have ended by itself
                raise KernelError(error.errno, error.operation, error.detail)
        return sum(error is None for error in verdicts)
