"""Connection tracking entries on the wire (ctnetlink, linux/netfilter/nfnetlink_conntrack.h). Pure.

A flow has two tuples: the original, as its first packet came, and the reply, as answers come back. After
a translation of the destination the reply's source is the endpoint. Filters are the kernel's own, so a
dump brings the flows that match and no others.
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from podlane.kernel.netlink import (
    Attributes,
    Message,
    Request,
    attribute,
    attribute_list,
    attributes,
    be16,
    be32,
    nested,
    u8,
    u32,
)
from podlane.model.addresses import Address, Family, Protocol, family_of
from podlane.model.marks import CONNTRACK_LABEL

_SUBSYSTEM: Final = 1  # NFNL_SUBSYS_CTNETLINK
_GET: Final = _SUBSYSTEM << 8 | 1
_DELETE: Final = _SUBSYSTEM << 8 | 2
_NEW: Final = _SUBSYSTEM << 8 | 0

_ORIGINAL, _REPLY, _MARK, _ID, _ZONE, _MARK_MASK, _FILTER = 1, 2, 8, 12, 18, 21, 25  # CTA_*
_STATUS, _PROTOCOL_INFO, _TIMEOUT, _COUNTS_ORIGINAL, _COUNTS_REPLY, _STATUS_MASK = 3, 4, 7, 9, 10, 26
_LABELS, _LABELS_MASK, _LABEL_BYTES = 22, 23, 16
_PACKETS, _BYTES = 1, 2  # CTA_COUNTERS_*
_INFO_TCP, _TCP_STATE = 1, 1  # CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_*
_SOURCE = {Family.IPV4: 1, Family.IPV6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; the destination's is one more

# CTA_FILTER_ORIG_FLAGS and what of the tuple is compared.
_FILTER_ORIGINAL, _FILTER_REPLY = 1, 2
_BY_DESTINATION, _BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 1, 1 << 3, 1 << 5

SEEN_REPLY: Final = 1 << 1  # IPS_SEEN_REPLY
ASSURED: Final = 1 << 2  # IPS_ASSURED
_CONNECTED: Final = (Protocol.TCP.number, Protocol.SCTP.number)
_TCP_STATES: Final = (
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)

CUT: Final = CONNTRACK_LABEL[0].mask

_NFGENMSG = struct.Struct("!BBH")


class Tuple(NamedTuple):
    """One direction of a flow. The ports are 0 for protocols without."""

    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0


class Counts(NamedTuple):
    """What one direction has carried; nothing while nf_conntrack_acct is off."""

    packets: int = 0
    octets: int = 0


class Entry(NamedTuple):
    """id: tells this entry from a later one with the same tuples. status: bits IPS_*. tcp_state: of
    enum tcp_conntrack, 0 for other protocols. timeout_s: when it is forgotten, if nothing more comes."""

    original: Tuple
    reply: Tuple
    mark: int
    id: int
    zone: int = 0
    status: int = 0
    tcp_state: int = 0
    timeout_s: int = 0
    sent: Counts = Counts()
    answered: Counts = Counts()
    labels: int = 0

    @property
    def is_cut(self) -> bool:
        """Policy has cut the flow."""
        return bool(self.labels & CUT)

    @property
    def half_open(self) -> bool:
        """A connection that nobody has answered yet."""
        return self.original.protocol in _CONNECTED and not self.status & SEEN_REPLY

    @property
    def state(self) -> str:
        """As conntrack(8) calls it; UNREPLIED or ASSURED where there is no state of the protocol's."""
        if self.original.protocol == Protocol.TCP.number and self.tcp_state < len(_TCP_STATES):
            return _TCP_STATES[self.tcp_state]
        return "UNREPLIED" if not self.status & SEEN_REPLY else "ASSURED" if self.status & ASSURED else ""


class Filter(NamedTuple):
    """Which flows of a family: all that is given must match. mark: compared under mask. unanswered: only
    those without a reply so far (Linux before 5.19 brings all)."""

    family: Family
    protocol: int = 0
    destination: Address | None = None
    destination_port: int = 0
    mark: int = 0
    mask: int = 0
    unanswered: bool = False


def get(wanted: Filter) -> Request:
    """A dump of the flows that match."""
    family = wanted.family
    body = _NFGENMSG.pack(family.af, 0, 0)
    if wanted.mask:
        body += attribute(_MARK, be32(wanted.mark)) + attribute(_MARK_MASK, be32(wanted.mask))
    if wanted.unanswered:
        body += attribute(_STATUS, be32(0)) + attribute(_STATUS_MASK, be32(SEEN_REPLY))
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


def label(entry: Entry, *, cut: bool) -> Request:
    """Sets or clears what says that the flow is cut."""
    family = family_of(entry.original.source)
    body = _NFGENMSG.pack(family.af, 0, 0) + nested(_ORIGINAL, *_pack(entry.original))
    if entry.zone:
        body += attribute(_ZONE, be16(entry.zone))
    body += attribute(_LABELS, label_bytes(CUT if cut else 0)) + attribute(_LABELS_MASK, label_bytes(CUT))
    return Request(_NEW, 0, body, f"{'cut' if cut else 'allow'} flow {entry.original}")


def label_bytes(bits: int) -> bytes:
    """Labels as the kernel has them: words of the host's order."""
    return bits.to_bytes(_LABEL_BYTES, sys.byteorder)


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
    info = attributes(attributes(found.get(_PROTOCOL_INFO, b"")).get(_INFO_TCP, b""))
    return Entry(
        original,
        reply,
        _number(found, _MARK),
        _number(found, _ID),
        _number(found, _ZONE),
        _number(found, _STATUS),
        _number(info, _TCP_STATE),
        _number(found, _TIMEOUT),
        _counts(found.get(_COUNTS_ORIGINAL)),
        _counts(found.get(_COUNTS_REPLY)),
        int.from_bytes(found.get(_LABELS, b""), sys.byteorder),
    )


def unpack_mark(message: Message) -> int:
    """The mark alone, for who goes through all flows. Raises netlink.Truncated."""
    for kind, value in attribute_list(message.body, _NFGENMSG.size):
        if kind == _MARK:
            return int.from_bytes(value, "big")
    return 0


def _counts(data: bytes | None) -> Counts:
    if data is None:
        return _NOTHING
    found = attributes(data)
    return Counts(_number(found, _PACKETS), _number(found, _BYTES))


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


_NOTHING: Final = Counts()


def _number(found: Attributes, kind: int) -> int:
    return int.from_bytes(found.get(kind, b""), "big")
