"""IP packets as a TUN device gives and takes them, and as they travel: one bare packet a datagram. Pure.

    TUN      a header of 10 bytes (struct virtio_net_hdr, linux/virtio_net.h), then a packet: up to 64 KiB
             that are yet to be cut (TSO), or with a checksum yet to be finished
    wire     packets as any router would send them: cut, with right checksums, no header before them

`cut` goes from the one to the other, `join` back: what follows one another in one TCP stream is given to
the kernel as one packet. Checksums are those of RFC 1071, taken modulo 65535 of numbers as long as the data:
that is what Python does fastest.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

VNET: Final = struct.Struct("=BBHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""

NO_OFFLOAD: Final = bytes(VNET.size)
NEEDS_CSUM: Final = 1
TCP4, TCP6, UDP_L4, ECN = 1, 4, 5, 0x80

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
MOST_BYTES: Final = 65535

_FIN, _PSH, _ACK, _CWR = 0x01, 0x08, 0x10, 0x80
_CSUM_OF_UDP = 6
_MORE_OR_OFFSET = 0x3FFF

Buffer = bytes | bytearray | memoryview
Summing = Callable[[Buffer], int]

_number = int.from_bytes


def total(data: Buffer) -> int:
    """The sum of 16-bit words modulo 65535; an odd last byte is the high one of its word."""
    found = _number(data, "big")
    return (found << 8 if len(data) & 1 else found) % 0xFFFF


def checksum(data: Buffer, more: int = 0) -> int:
    return -(total(data) + more) % 0xFFFF


@lru_cache(maxsize=64)
def summing(size: int) -> Summing:
    """`total` for data of one size: the number is folded in halves first, which is half the work."""
    bits = 8 * (size + (size & 1))
    steps: list[tuple[int, int]] = []
    while bits > 512 and len(steps) < 3:
        half = (bits // 2 + 15) // 16 * 16
        steps.append((half, (1 << half) - 1))
        bits = half + 1
    if len(steps) < 3:
        return total
    (a, a_low), (b, b_low), (c, c_low) = steps
    shift = 8 * (size & 1)

    def folded(data: Buffer) -> int:
        x = _number(data, "big") << shift
        x = (x >> a) + (x & a_low)
        x = (x >> b) + (x & b_low)
        return ((x >> c) + (x & c_low)) % 0xFFFF

    return folded


def problem(packet: Buffer) -> str:
    """Why it is no IP packet of its own length; "" when it is."""
    size = len(packet)
    version = packet[0] >> 4 if size else 0
    if version == 4:
        header = 4 * (packet[0] & 15)
        if size < 20 or header < 20 or size < header or packet[2] << 8 | packet[3] != size:
            return "malformed"
    elif version == 6:
        if size < 40 or (packet[4] << 8 | packet[5]) + 40 != size:
            return "malformed"
    else:
        return "malformed"
    return ""


def take_hop(packet: bytearray | memoryview) -> bool:
    """One off its TTL or hop limit, in place (RFC 1624 for the checksum). False, and as it was: it is up."""
    if packet[0] >> 4 == 6:
        if packet[7] <= 1:
            return False
        packet[7] -= 1
        return True
    if packet[8] <= 1:
        return False
    packet[8] -= 1
    found = (packet[10] << 8 | packet[11]) + 0x100
    found = (found & 0xFFFF) + (found >> 16)
    packet[10], packet[11] = found >> 8, found & 0xFF
    return True


def source_of(packet: Buffer) -> bytes:
    return bytes(packet[12:16] if packet[0] >> 4 == 4 else packet[8:24])


def target_of(packet: Buffer) -> bytes:
    return bytes(packet[16:20] if packet[0] >> 4 == 4 else packet[24:40])


def finish(packet: bytearray | memoryview, start: int, offset: int) -> None:
    """The checksum that the sender left to the device; the field holds that of the pseudo-header."""
    found = checksum(packet[start:])
    if not found and offset == _CSUM_OF_UDP:
        found = 0xFFFF
    packet[start + offset], packet[start + offset + 1] = found >> 8, found & 0xFF


# --- cutting ---------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _ip(version: int, length: int) -> struct.Struct:
    """4: version and TOS, length, id, fragment, TTL, protocol, checksum, rest. 6: a word, length, rest."""
    return struct.Struct(f">2sHHHBBH{length - 12}s" if version == 4 else f">4sH{length - 6}s")


@lru_cache(maxsize=64)
def _tcp(length: int) -> struct.Struct:
    """Ports, sequence, acknowledgement and offset, flags, window, checksum, urgent pointer and options."""
    return struct.Struct(f">4sI5sB2sH{length - 18}s")


_UDP_HEADER = struct.Struct(">4sHH")

Headers = Callable[[int, int, int, bool, bool], bytes]
"""(number of the piece, its bytes, their sum, first, last) -> its headers."""


def cut(packet: Buffer, kind: int, size: int, start: int) -> tuple[list[Buffer], int]:
    """Packets of at most `size` bytes of payload: (header, payload, header, payload, …), and how long each
    pair is but for the last, which may be shorter. start: of the transport header.

    Raises ValueError for what cannot be cut.
    """
    least = start + (8 if kind == UDP_L4 else 20)
    if kind not in (TCP4, TCP6, UDP_L4) or not size or start < 20 or len(packet) < least:
        raise ValueError(f"a packet of type {kind} to be cut at {size} bytes")
    length = 8 if kind == UDP_L4 else 4 * (packet[start + 12] >> 4)
    begin = start + length
    internet = _internet_headers(packet, start, length)
    transport = _udp_headers(packet, start) if kind == UDP_L4 else _tcp_headers(packet, start, length, size)
    sum_of = summing(size)
    pieces: list[Buffer] = []
    number, end = 0, len(packet)
    while begin < end:
        payload = packet[begin : begin + size]
        count = len(payload)
        found = sum_of(payload) if count == size else total(payload)
        begin += size
        pieces.append(internet(number, count) + transport(number, count, found, not number, begin >= end))
        pieces.append(payload)
        number += 1
    return pieces, start + length + size


def _internet_headers(packet: Buffer, start: int, length: int) -> Callable[[int, int], bytes]:
    version = packet[0] >> 4
    layout = _ip(version, start)
    if version == 6:
        first, _, rest = layout.unpack_from(packet)
        more = start + length - 40
        return lambda _, count: layout.pack(first, more + count, rest)
    first, _, ident, fragment, ttl, protocol, _, rest = layout.unpack_from(packet)
    base = _number(first, "big") + fragment + (ttl << 8 | protocol) + total(rest)
    before = start + length

    def headers(number: int, count: int) -> bytes:
        size, mine = before + count, (ident + number) & 0xFFFF
        return layout.pack(first, size, mine, fragment, ttl, protocol, -(base + size + mine) % 0xFFFF, rest)

    return headers


def _pseudo(packet: Buffer) -> int:
    """The addresses' part of a transport checksum."""
    return total(packet[12:20] if packet[0] >> 4 == 4 else packet[8:40])


def _tcp_headers(packet: Buffer, start: int, length: int, size: int) -> Headers:
    layout = _tcp(length)
    ports, sequence, ack, flags, window, _, rest = layout.unpack_from(packet, start)
    base = _pseudo(packet) + TCP + length + total(ports) + total(ack[:4]) + (ack[4] << 8) + total(window)
    base += total(rest)

    def headers(number: int, count: int, found: int, first: bool, last: bool) -> bytes:
        at = (sequence + number * size) & 0xFFFFFFFF
        mine = flags if last else flags & ~(_FIN | _PSH)
        if not first:
            mine &= ~_CWR
        return layout.pack(ports, at, ack, mine, window, -(base + count + at + mine + found) % 0xFFFF, rest)

    return headers


def _udp_headers(packet: Buffer, start: int) -> Headers:
    ports, _, _ = _UDP_HEADER.unpack_from(packet, start)
    base = _pseudo(packet) + UDP + total(ports)

    def headers(_number: int, count: int, found: int, _first: bool, _last: bool) -> bytes:
        size = 8 + count
        return _UDP_HEADER.pack(ports, size, -(base + 2 * size + found) % 0xFFFF or 0xFFFF)

    return headers


# --- joining ---------------------------------------------------------------------------------------

# What of two headers must be the same for their packets to be one: not the lengths, the id, the checksums,
# the sequence number, nor of the flags FIN and PSH (net/ipv4/tcp_offload.c, tcp_gro_receive).
_SAME4 = "ffff0000 0000ffff ffff0000 ffffffff ffffffff ffffffff 00000000 ffffffff fff6ffff 0000ffff"
_SAME6 = f"ffffffff 0000ffff {'ffffffff ' * 8} ffffffff 00000000 ffffffff fff6ffff 0000ffff"
_SAME = {20: _number(bytes.fromhex(_SAME4), "big"), 40: _number(bytes.fromhex(_SAME6), "big")}
_LENGTH = {20: 0xFFFF << 8 * (40 - 4), 40: 0xFFFF << 8 * (60 - 6)}
"""By where TCP begins. The length is the same too where packets are of one size."""


def join(datagrams: memoryview, size: int) -> Iterator[tuple[memoryview, list[Buffer]]]:
    """Datagrams of `size` bytes each, one after another, the last maybe shorter: as few packets as they make.

    Yields (the first packet, what follows its headers in the others). FIN and PSH of the last are then in the
    first one's header. TCP checksums are not looked at: the datagrams had one of their own.
    """
    at, end = 0, len(datagrams)
    while at < end:
        packet = datagrams[at : at + size]
        at += size
        more: list[Buffer] = []
        shape = _shape(packet)
        if shape and at < end:
            at = _gather(datagrams, size, at, packet, shape, more)
        yield packet, more


def _shape(packet: memoryview) -> tuple[int, int] | None:
    """(where TCP begins, where its payload does) of a packet that others may be joined to."""
    if len(packet) <= 40:
        return None
    if packet[0] == 0x45 and packet[9] == TCP and not (packet[6] << 8 | packet[7]) & _MORE_OR_OFFSET:
        start = 20
    elif packet[0] >> 4 == 6 and packet[6] == TCP and len(packet) > 60:
        start = 40
    else:
        return None
    begin = start + 4 * (packet[start + 12] >> 4)
    if packet[start + 13] != _ACK or not start + 20 <= begin < len(packet) or problem(packet):
        return None
    return start, begin


def _gather(
    datagrams: memoryview,
    size: int,
    at: int,
    packet: memoryview,
    shape: tuple[int, int],
    more: list[Buffer],
) -> int:
    """Appends to more the payloads that follow packet's; returns where the first other packet begins."""
    start, begin = shape
    fixed = start + 20
    same, length = _SAME[start], _LENGTH[start]
    head, options = _number(packet[:fixed], "big"), packet[fixed:begin]
    wanted, wanted_whole, same_whole = head & same, head & (same | length), same | length
    payload = size - begin
    expected = _number(packet[start + 4 : start + 8], "big")
    whole, end, flags = len(packet), len(datagrams), _ACK
    while at < end and flags == _ACK and whole + payload <= MOST_BYTES:
        each = datagrams[at : at + size]
        expected = (expected + payload) & 0xFFFFFFFF
        head = _number(each[:fixed], "big")
        if len(each) == size:
            alike = head & same_whole == wanted_whole
        else:
            alike = len(each) > begin and head & same == wanted and not problem(each)
        if not alike or each[fixed:begin] != options:
            break
        if _number(each[start + 4 : start + 8], "big") != expected:
            break
        more.append(each[begin:])
        whole += len(each) - begin
        flags = each[start + 13]
        at += size
        if len(each) < size:
            break
    packet[start + 13] |= flags
    return at


def joined(packet: memoryview, more: list[Buffer]) -> list[Buffer]:
    """What a TUN device is given for what `join` yields."""
    if not more:
        return [NO_OFFLOAD, packet]
    start = 20 if packet[0] >> 4 == 4 else 40
    begin = start + 4 * (packet[start + 12] >> 4)
    header = bytearray(packet[:begin])
    size = len(packet) + sum(map(len, more))
    if start == 20:
        header[2:4] = size.to_bytes(2, "big")
        header[10:12] = bytes(2)
        header[10:12] = checksum(header[:20]).to_bytes(2, "big")
    else:
        header[4:6] = (size - 40).to_bytes(2, "big")
    pseudo = (_pseudo(header) + TCP + size - start) % 0xFFFF
    header[start + 16 : start + 18] = pseudo.to_bytes(2, "big")
    kind = TCP4 if start == 20 else TCP6
    offload = VNET.pack(NEEDS_CSUM, kind, begin, len(packet) - begin, start, 16)
    return [offload + header, packet[begin:], *more]


# --- what is told to a sender ------------------------------------------------------------------------


def unreachable(packet: Buffer, own: bytes) -> bytes:
    """ICMP: no route to the target (RFC 792 type 3, RFC 4443 type 1). b"" where nothing may be said."""
    return _told(packet, own, 3 if len(own) == 4 else 1)


def time_exceeded(packet: Buffer, own: bytes) -> bytes:
    """ICMP: its TTL is over (RFC 792 type 11, RFC 4443 type 3). b"" where nothing may be said."""
    return _told(packet, own, 11 if len(own) == 4 else 3)


def _told(packet: Buffer, own: bytes, kind: int) -> bytes:
    to = source_of(packet)
    if not _may_be_told(packet, to):
        return b""
    if len(own) == 4:
        quoted = bytes(packet[: 576 - 28])
        body = bytes((kind, 0, 0, 0)) + bytes(4) + quoted
        body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
        header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, ICMP, 0, own, to)
        return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + body
    quoted = bytes(packet[: 1280 - 48])
    body = bytes((kind, 0, 0, 0)) + bytes(4) + quoted
    found = checksum(body, total(own) + total(to) + len(body) + ICMPV6)
    body = body[:2] + found.to_bytes(2, "big") + body[4:]
    return struct.pack(">IHBB16s16s", 6 << 28, len(body), ICMPV6, 64, own, to) + body


def _may_be_told(packet: Buffer, to: bytes) -> bool:
    """RFC 1122, 3.2.2 and RFC 4443, 2.4: not about ICMP errors, later fragments, or to no single host."""
    if not any(to):
        return False
    if len(to) == 16:
        return to[0] != 0xFF and not (packet[6] == ICMPV6 and len(packet) > 40 and packet[40] < 128)
    begin = 4 * (packet[0] & 15)
    later = (packet[6] << 8 | packet[7]) & 0x1FFF
    error = packet[9] == ICMP and len(packet) > begin and packet[begin] not in (0, 8, 13, 14)
    return to[0] < 224 and not later and not error
