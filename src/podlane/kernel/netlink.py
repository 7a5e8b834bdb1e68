"""Netlink's messages (RFC 3549): bytes in, bytes out. kernel/netlink_socket.py sends and receives them.

A message is a header of 16 bytes and a body; a body is a fixed structure of its family followed by
attributes (length, type, payload, padded to 4 bytes).

Answers are errors when they carry an errno; the kernel's own words come as an extended
acknowledgement (NETLINK_EXT_ACK) and end up in KernelError.detail.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 1, 2, 3, 4

NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP_INTR = 0x01, 0x02, 0x04, 0x08, 0x10
NLM_F_ROOT, NLM_F_MATCH = 0x100, 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200

NLA_F_NESTED, NLA_F_NET_BYTEORDER = 0x8000, 0x4000
NLA_TYPE_MASK = 0x3FFF

_NLMSGERR_ATTR_MSG, _NLMSGERR_ATTR_MISS_TYPE = 1, 5

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_INT = struct.Struct("=i")

HEADER_BYTES = _HEADER.size


class Truncated(ValueError):
    """The bytes end before the message or attribute they announce."""


class Message(NamedTuple):
    """body: what follows the header, without padding. port: of the socket that asked for what it tells."""

    type: int
    flags: int
    sequence: int
    body: bytes
    port: int = 0


class Request(NamedTuple):
    """What to ask the kernel. flags: beyond NLM_F_REQUEST and NLM_F_ACK; operation: for the error text."""

    type: int
    flags: int
    body: bytes
    operation: str = "netlink request"


class Answer(NamedTuple):
    """An NLMSG_ERROR or NLMSG_DONE. errno: 0 for success; detail: the kernel's words, often empty."""

    errno: int
    detail: str


Attributes: TypeAlias = dict[int, bytes]


# --- codec ----------------------------------------------------------------------------------------


def pack_message(kind: int, flags: int, sequence: int, body: bytes, port: int = 0) -> bytes:
    """A message, padded to 4 bytes so that the next one may follow."""
    size = HEADER_BYTES + len(body)
    return _HEADER.pack(size, kind, flags, sequence, port) + body + b"\0" * (-size & 3)


def unpack_messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram. Raises Truncated."""
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < HEADER_BYTES:
            raise Truncated(f"{end - offset} bytes left, a header has {HEADER_BYTES}")
        size, type_, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if not HEADER_BYTES <= size <= end - offset:
            raise Truncated(f"message of {size} bytes, {end - offset} left")
        yield Message(type_, flags, sequence, data[offset + HEADER_BYTES : offset + size], port)
        offset += (size + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded. Raises ValueError if the payload is above 65531 bytes."""
    size = 4 + len(payload)
    if size > 0xFFFF:
        raise ValueError(f"attribute {kind & NLA_TYPE_MASK} of {len(payload)} bytes; 65531 is the most")
    return _ATTRIBUTE.pack(size, kind) + payload + b"\0" * (-size & 3)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute whose payload is attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(value: str) -> bytes:
    """NUL-terminated, as the kernel writes names."""
    return value.encode() + b"\0"


def unpack_text(payload: bytes) -> str:
    return payload.split(b"\0", 1)[0].decode(errors="surrogateescape")


def u8(value: int) -> bytes:
    return struct.pack("=B", value)


def u16(value: int) -> bytes:
    return struct.pack("=H", value)


def be16(value: int) -> bytes:
    return struct.pack("!H", value)


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def be32(value: int) -> bytes:
    return struct.pack("!I", value)


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def be64(value: int) -> bytes:
    return struct.pack("!Q", value)


def attribute_list(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """(type without its flag bits, payload) in order, repeated types too. Raises Truncated."""
    end = len(data)
    while offset < end:
        if end - offset < 4:
            raise Truncated(f"{end - offset} bytes left, an attribute has at least 4")
        size, type_ = _ATTRIBUTE.unpack_from(data, offset)
        if not 4 <= size <= end - offset:
            raise Truncated(f"attribute {type_ & NLA_TYPE_MASK} of {size} bytes, {end - offset} left")
        yield type_ & NLA_TYPE_MASK, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> Attributes:
    """Attributes from offset on by type; of a repeated type the last. Raises Truncated."""
    found: Attributes = {}
    end, unpack = len(data), _ATTRIBUTE.unpack_from
    while end - offset >= 4:
        size, type_ = unpack(data, offset)
        if not 4 <= size <= end - offset:
            break
        found[type_ & NLA_TYPE_MASK] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    if offset < end:
        found.update(attribute_list(data, offset))  # says what is wrong
    return found


def unpack_answer(message: Message) -> Answer:
    """The verdict in an NLMSG_ERROR or NLMSG_DONE message. Raises Truncated."""
    body = message.body
    if len(body) < 4:
        if message.type == NLMSG_DONE:
            return Answer(0, "")
        raise Truncated(f"answer of {len(body)} bytes")
    errno = -_INT.unpack_from(body)[0]
    if not message.flags & NLM_F_ACK_TLVS:
        return Answer(errno, "")
    start = 4
    if message.type == NLMSG_ERROR:
        if len(body) < 4 + HEADER_BYTES:
            raise Truncated(f"answer of {len(body)} bytes")
        echoed = _HEADER.unpack_from(body, 4)[0]
        start += HEADER_BYTES if message.flags & NLM_F_CAPPED else (echoed + 3) & ~3
    found = attributes(body, start)
    detail = unpack_text(found.get(_NLMSGERR_ATTR_MSG, b""))
    missing = found.get(_NLMSGERR_ATTR_MISS_TYPE)
    if missing is not None and len(missing) == 4:
        detail = f"{detail or 'attribute missing'} (attribute {struct.unpack('=I', missing)[0]})"
    return Answer(errno, detail)
