"""Connection tracking entries on the wire (ctnetlink, linux/netfilter/nfnetlink_conntrack.h). Pure.

A flow has two tuples: the original, as its first packet came, and the reply, as answers come back. After
a translation of the destination the reply's source is the endpoint. Filters are the kernel's own, so a
dump brings the flows that match and no others.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from podlane.kernel.netlink import (
    Attributes,
    Message,
    Request,
    attribute,
    attributes,
    be16,
    be32,
    nested,
    u8,
    u32,
)
from podlane.model.addresses import Address, Family, family_of

_SUBSYSTEM: Final = 1  # NFNL_SUBSYS_CTNETLINK
_GET: Final = _SUBSYSTEM << 8 | 1
_DELETE: Final = _SUBSYSTEM << 8 | 2

_ORIGINAL, _REPLY, _MARK, _ID, _ZONE, _MARK_MASK, _FILTER = 1, 2, 8, 12, 18, 21, 25  # CTA_*
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_*
_SOURCE = {Family.IPV4: 1, Family.IPV6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; the destination's is one more

# CTA_FILTER_ORIG_FLAGS and what of the tuple is compared.
_FILTER_ORIGINAL, _FILTER_REPLY = 1, 2
_BY_DESTINATION, _BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 1, 1 << 3, 1 << 5

_NFGENMSG = struct.Struct("!BBH")


class Tuple(NamedTuple):
    """One direction of a flow. The ports are 0 for protocols without."""

    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0


class Entry(NamedTuple):
    """id: tells this entry from a later one with the same tuples."""

    original: Tuple
    reply: Tuple
    mark: int
    id: int
    zone: int = 0


class Filter(NamedTuple):
    """Which flows of a family: all that is given must match. mark: compared under mask."""

    family: Family
    protocol: int = 0
    destination: Address | None = None
    destination_port: int = 0
    mark: int = 0
    mask: int = 0


def get(wanted: Filter) -> Request:
    """A dump of the flows that match."""
    family = wanted.family
    body = _NFGENMSG.pack(family.af, 0, 0)
    if wanted.mask:
        body += attribute(_MARK, be32(wanted.mark)) + attribute(_MARK_MASK, be32(wanted.mask))
    flags = 0
    parts: list[bytes] = []
    if wanted.destination is not None:
        flags |= _BY_DESTINATION
        parts.append(nested(_TUPLE_IP, attribute(_SOURCE[family] + 1, wanted.destination.packed)))
    if wanted.protocol:
        flags |= _BY_PROTOCOL
        ports = attribute(_NUMBER, u8(wanted.protocol))
        if wanted.destination_port:
            flags |= _BY_DESTINATION_PORT
            ports += attribute(_DESTINATION_PORT, be16(wanted.destination_port))
        parts.append(nested(_TUPLE_PROTOCOL, ports))
    if flags:
        body += nested(_ORIGINAL, *parts)
        body += nested(_FILTER, attribute(_FILTER_ORIGINAL, u32(flags)), attribute(_FILTER_REPLY, u32(0)))
    return Request(_GET, 0, body, f"list {family} flows")


def delete(entry: Entry) -> Request:
    family = family_of(entry.original.source)
    body = _NFGENMSG.pack(family.af, 0, 0) + nested(_ORIGINAL, *_pack(entry.original))
    if entry.zone:
        body += attribute(_ZONE, be16(entry.zone))
    return Request(_DELETE, 0, body + attribute(_ID, be32(entry.id)), f"delete flow {entry.original}")


def _pack(which: Tuple) -> Iterator[bytes]:
    first = _SOURCE[family_of(which.source)]
    ends = attribute(first, which.source.packed), attribute(first + 1, which.destination.packed)
    yield nested(_TUPLE_IP, *ends)
    yield nested(
        _TUPLE_PROTOCOL,
        attribute(_NUMBER, u8(which.protocol)),
        attribute(_SOURCE_PORT, be16(which.source_port)),
        attribute(_DESTINATION_PORT, be16(which.destination_port)),
    )


def unpack(message: Message) -> Entry | None:
    """None for what has no addresses podlane knows. Raises netlink.Truncated."""
    found = attributes(message.body, _NFGENMSG.size)
    original, reply = _unpack(found.get(_ORIGINAL, b"")), _unpack(found.get(_REPLY, b""))
    if original is None or reply is None:
        return None
    return Entry(original, reply, _number(found, _MARK), _number(found, _ID), _number(found, _ZONE))


def _unpack(data: bytes) -> Tuple | None:
    parts = attributes(data)
    ends, protocol = attributes(parts.get(_TUPLE_IP, b"")), attributes(parts.get(_TUPLE_PROTOCOL, b""))
    for first in _SOURCE.values():
        if first in ends and first + 1 in ends:
            return Tuple(
                ipaddress.ip_address(ends[first]),
                ipaddress.ip_address(ends[first + 1]),
                _number(protocol, _NUMBER),
                _number(protocol, _SOURCE_PORT),
                _number(protocol, _DESTINATION_PORT),
            )
    return None


def _number(found: Attributes, kind: int) -> int:
    return int.from_bytes(found.get(kind, b""), "big")
