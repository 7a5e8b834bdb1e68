"""The maps of native/socket_lb.bpf.c: their sizes, and rows as their bytes. Pure.

    frontends       address, protocol, port              -> list
    node_ports      family, protocol, port               -> list     (of this node's addresses:)
    node_addresses  address                              -> 1
    lists           list                                 -> number of endpoints, affinity timeout
    backends        list, index                          -> address, port
    members         list, address, port                  -> how often it was chosen
    affinity        list, network namespace's cookie     -> address, port, when it was last chosen
    connected       (with a TCP socket)                  the service it was connected to, and the endpoint
    datagrams       (with an unconnected UDP socket)     the same, of the last eight services
    udp_users       cookie of a connected UDP socket     -> the same
    settings        0                                    -> layout, cookie of the node's namespace

An address is 16 bytes, IPv4 mapped into them; ports are in network order, all else in the machine's. A list
is named by a digest of its key, so that it has one number on every node, and the same after a restart.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final, NamedTuple

from podlane.compile.tables import Backend, FrontendKey, ListKey, NodePortKey
from podlane.kernel.bpf.syscall import (
    MAP_ARRAY,
    MAP_HASH,
    MAP_LRU_HASH,
    MAP_SK_STORAGE,
    NO_PREALLOC,
    MapSpec,
)
from podlane.model.addresses import Address, Family

LAYOUT: Final = 1
"""Changes with any struct of the C source; maps of another layout are not adopted."""

FRONTENDS, NODE_PORTS, NODE_ADDRESSES = "frontends", "node_ports", "node_addresses"
LISTS, BACKENDS, MEMBERS = "lists", "backends", "members"
AFFINITY, CONNECTED, DATAGRAMS, SETTINGS = "affinity", "connected", "datagrams", "settings"
UDP_USERS: Final = "udp_users"

SLOTS: Final = 8
_PLACE: Final = struct.Struct("=QII")
_MEMBER: Final = struct.Struct("=Q20sI")
_BOUND: Final = struct.Struct("=Q20s20s")

SPECS: Final = {
    spec.name: spec
    for spec in (
        MapSpec(FRONTENDS, MAP_HASH, 20, 8, 1024, NO_PREALLOC),
        MapSpec(NODE_PORTS, MAP_HASH, 4, 8, 256, NO_PREALLOC),
        MapSpec(NODE_ADDRESSES, MAP_HASH, 16, 4, 64, NO_PREALLOC),
        MapSpec(LISTS, MAP_HASH, 8, 8, 1024, NO_PREALLOC),
        MapSpec(BACKENDS, MAP_HASH, 16, 20, 4096, NO_PREALLOC),
        MapSpec(MEMBERS, MAP_HASH, 32, 8, 4096, NO_PREALLOC),
        MapSpec(AFFINITY, MAP_LRU_HASH, 16, 32, 16384),
        MapSpec(CONNECTED, MAP_SK_STORAGE, 4, _BOUND.size, 0, NO_PREALLOC),
        MapSpec(DATAGRAMS, MAP_SK_STORAGE, 4, 8 + SLOTS * _BOUND.size, 0, NO_PREALLOC),
        MapSpec(UDP_USERS, MAP_HASH, 8, _BOUND.size, 16384, NO_PREALLOC),
        MapSpec(SETTINGS, MAP_ARRAY, 4, 16, 1),
    )
}
DESIRED: Final = (FRONTENDS, NODE_PORTS, NODE_ADDRESSES, LISTS, BACKENDS, MEMBERS)
"""The maps whose contents follow from the tables, and which grow when they are full."""

ONE: Final = struct.pack("=I", 1)
NEVER: Final = bytes(8)

_MAPPED: Final = bytes(10) + b"\xff\xff"
_FAMILIES: Final = {Family.IPV4: 4, Family.IPV6: 6}


class Bound(NamedTuple):
    """What is kept with a socket: the list, the service's address and port, the endpoint's."""

    list: int
    service: Backend
    backend: Backend


def number(key: ListKey) -> int:
    """Never 0."""
    digest = blake2b("\0".join(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def octets(where: Address) -> bytes:
    return _MAPPED + where.packed if where.version == 4 else where.packed


def frontend(key: FrontendKey) -> bytes:
    return octets(key.address) + struct.pack("!HBx", key.port, key.protocol.number)


def node_port(key: NodePortKey) -> bytes:
    return struct.pack("!BBH", _FAMILIES[key.family], key.protocol.number, key.port)


def list_number(value: int) -> bytes:
    return struct.pack("=Q", value)


def list_head(count: int, timeout_s: int) -> bytes:
    return struct.pack("=II", count, timeout_s)


def place(number: int, index: int) -> bytes:
    return _PLACE.pack(number, index, 0)


def unpack_place(key: bytes) -> tuple[int, int]:
    """(list, index)"""
    number, index, _ = _PLACE.unpack(key)
    return number, index


def end(backend: Backend) -> bytes:
    """An endpoint's address and port."""
    return (_MAPPED + backend if len(backend) == 6 else bytes(backend)) + b"\0\0"


def unpack_end(value: bytes) -> Backend:
    return Backend.packed(value[12:18] if value.startswith(_MAPPED) else value[:18])


def member(number: int, backend: Backend) -> bytes:
    return _MEMBER.pack(number, end(backend), 0)


def unpack_member(key: bytes) -> tuple[int, Backend]:
    number, where, _ = _MEMBER.unpack(key)
    return number, unpack_end(where)


def settings(netns_cookie: int) -> bytes:
    return struct.pack("=IIQ", LAYOUT, 0, netns_cookie)


def layout_of(value: bytes) -> int:
    return int(struct.unpack_from("=I", value)[0])


def unpack_bound(value: bytes) -> Bound | None:
    """Of `connected` and `udp_users`. None: it is connected to no service any more."""
    number, service, backend = _BOUND.unpack(value)
    return Bound(number, unpack_end(service), unpack_end(backend)) if number else None
