"""Cutting and joining packets for UDP datagrams, against scalar oracles that know nothing of big numbers."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.engines.udp import packets
from podlane.engines.udp.control import Prefixes
from podlane.observe.packet import decode_ip

V4 = (ip_address("10.244.1.7").packed, ip_address("10.244.2.9").packed)
V6 = (ip_address("fd00::1").packed, ip_address("fd00::2").packed)


def summed(data: bytes) -> int:
    """RFC 1071, word by word."""
    found = 0
    for high, low in zip(data[::2], (*data[1::2], 0) if len(data) & 1 else data[1::2], strict=True):
        found += high << 8 | low
        found = (found & 0xFFFF) + (found >> 16)
    return found


def right(packet: bytes) -> bool:
    """Every checksum of a TCP or UDP packet holds."""
    if packet[0] >> 4 == 4:
        start = 4 * (packet[0] & 15)
        if summed(packet[:start]) != 0xFFFF:
            return False
        pseudo, protocol = packet[12:20], packet[9]
    else:
        start, pseudo, protocol = 40, packet[8:40], packet[6]
    body = packet[start:]
    return summed(pseudo + struct.pack(">HH", protocol, len(body)) + body) == 0xFFFF


def ip(
    ends: tuple[bytes, bytes], protocol: int, body: bytes, *, ttl: int = 64, options: bytes = b""
) -> bytearray:
    if len(ends[0]) == 16:
        return bytearray(struct.pack(">IHBB", 6 << 28, len(body), protocol, ttl) + b"".join(ends) + body)
    words = (20 + len(options)) // 4
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x40 | words, 0, 4 * words + len(body), 7, 0x4000, ttl, protocol, 0, *ends
    )
    header += options
    return bytearray(header[:10] + packets.checksum(header).to_bytes(2, "big") + header[12:] + body)


def tcp(sequence: int, flags: int, payload: bytes, options: bytes = b"") -> bytes:
    """Its checksum is still to be put in."""
    head = struct.pack(">HHIIBBHHH", 4000, 80, sequence, 99, (5 + len(options) // 4) << 4, flags, 500, 0, 0)
    return head + options + payload


def partial(ends: tuple[bytes, bytes], protocol: int, body: bytes, at: int) -> bytes:
    """As a sender that leaves the checksum to its device: the field has the pseudo-header's sum."""
    pseudo = summed(b"".join(ends) + struct.pack(">HH", protocol, len(body)))
    return body[:at] + pseudo.to_bytes(2, "big") + body[at + 2 :]


@given(st.binary(max_size=3000))
def test_sums_agree_with_words_added_one_by_one(data: bytes) -> None:
    wanted = summed(data) % 0xFFFF
    assert packets.total(data) == wanted
    assert packets.summing(len(data))(data) == wanted


@given(
    ends=st.sampled_from([V4, V6]),
    size=st.integers(8, 1500),
    payload=st.binary(min_size=1, max_size=6000),
    sequence=st.integers(0, 2**32 - 1),
    flags=st.sampled_from([0x10, 0x18, 0x11, 0x19, 0x90]),
    options=st.sampled_from([b"", bytes(12), bytes(40)]),
)
def test_what_was_cut_is_right_and_joins_to_what_it_was(
    ends: tuple[bytes, bytes], size: int, payload: bytes, sequence: int, flags: int, options: bytes
) -> None:
    start = 20 if ends is V4 else 40
    whole = ip(ends, packets.TCP, tcp(sequence, flags, payload, options))
    kind = packets.TCP4 if ends is V4 else packets.TCP6
    pieces, each = packets.cut(memoryview(whole), kind, size, start)
    cut = [bytes(pieces[i]) + bytes(pieces[i + 1]) for i in range(0, len(pieces), 2)]
    assert all(map(right, cut))
    assert all(not packets.problem(packet) for packet in cut)
    assert [len(packet) for packet in cut[:-1]] == [each] * (len(cut) - 1)
    begin = start + 20 + len(options)
    assert b"".join(packet[begin:] for packet in cut) == payload
    seen = [decode_ip(packet) for packet in cut]
    assert [p.sequence for p in seen if p] == [(sequence + i * size) % 2**32 for i in range(len(cut))]
    assert [packet[start + 13] & 9 for packet in cut] == [0] * (len(cut) - 1) + [flags & 9]
    assert [packet[start + 13] & 0x80 for packet in cut] == [flags & 0x80] + [0] * (len(cut) - 1)
    if flags & 0x80:
        return
    if ends is V4:
        assert [packet[4] << 8 | packet[5] for packet in cut] == [7 + i for i in range(len(cut))]
    back = [packets.joined(p, more) for p, more in packets.join(memoryview(bytearray(b"".join(cut))), each)]
    assert len(back) == 1
    frame = b"".join(map(bytes, back[0]))
    told, packet = packets.VNET.unpack_from(frame), frame[10:]
    assert packet[begin:] == payload
    assert packet[start + 13] == flags
    if len(cut) > 1:
        assert told == (1, kind, begin, size, start, 16)
        finished = bytearray(packet)
        packets.finish(finished, start, 16)
        assert right(finished)


@given(
    ends=st.sampled_from([V4, V6]), size=st.integers(1, 1400), payload=st.binary(min_size=1, max_size=5000)
)
def test_udp_is_cut_into_datagrams_of_its_own(ends: tuple[bytes, bytes], size: int, payload: bytes) -> None:
    start = 20 if ends is V4 else 40
    whole = ip(ends, packets.UDP, struct.pack(">HHHH", 1, 2, 0, 0) + payload)
    pieces, _ = packets.cut(memoryview(whole), packets.UDP_L4, size, start)
    cut = [bytes(pieces[i]) + bytes(pieces[i + 1]) for i in range(0, len(pieces), 2)]
    assert all(map(right, cut))
    assert b"".join(packet[start + 8 :] for packet in cut) == payload
    assert all(packet[start + 6 : start + 8] != bytes(2) for packet in cut)


@given(ends=st.sampled_from([V4, V6]), payload=st.binary(max_size=100))
def test_a_checksum_left_to_the_device_is_finished(ends: tuple[bytes, bytes], payload: bytes) -> None:
    start = 20 if ends is V4 else 40
    for protocol, body, at in (
        (packets.TCP, tcp(5, 0x10, payload), 16),
        (packets.UDP, struct.pack(">HHHH", 1, 2, 8 + len(payload), 0) + payload, 6),
    ):
        packet = ip(ends, protocol, partial(ends, protocol, body, at))
        packets.finish(memoryview(packet), start, at)
        assert right(packet)


def stream(*parts: tuple[int, int, bytes], ends: tuple[bytes, bytes] = V4, **of_ip: int) -> list[bytearray]:
    found = []
    for sequence, flags, payload in parts:
        packet = ip(ends, packets.TCP, partial(ends, 6, tcp(sequence, flags, payload), 16), **of_ip)  # type: ignore[arg-type]
        packets.finish(packet, 20 if ends is V4 else 40, 16)
        found.append(packet)
    return found


def joined_sizes(*datagrams: bytearray) -> list[int]:
    view = memoryview(bytearray(b"".join(datagrams)))
    return [1 + len(more) for _, more in packets.join(view, len(datagrams[0]))]


@pytest.mark.parametrize("ends", [V4, V6])
def test_only_what_follows_in_one_stream_is_joined(ends: tuple[bytes, bytes]) -> None:
    a, b, c = stream((1, 0x10, b"x" * 50), (51, 0x10, b"y" * 50), (101, 0x18, b"z" * 20), ends=ends)
    (gap,) = stream((200, 0x10, b"x" * 50), ends=ends)
    assert joined_sizes(a, b, c) == [3]
    assert joined_sizes(a, gap) == [1, 1]
    assert joined_sizes(b, a) == [1, 1]
    assert joined_sizes(c, *stream((121, 0x10, b"q" * 20), ends=ends)) == [1, 1]  # PSH ends it
    assert joined_sizes(*stream((1, 0x02, b"x" * 50), (51, 0x10, b"y" * 50), ends=ends)) == [1, 1]
    assert joined_sizes(a, *stream((51, 0x10, b"y" * 50), ends=ends, ttl=9)) == [1, 1]
    swapped = stream((51, 0x10, b"y" * 50), ends=(ends[1], ends[0]) if ends is V6 else V4)
    assert joined_sizes(a, swapped[0]) == ([1, 1] if ends is V6 else [2])
    fragment = stream((51, 0x10, b"y" * 50))[0]
    fragment[6] |= 0x20
    assert joined_sizes(stream((1, 0x10, b"x" * 50))[0], fragment) == [1, 1]
    lying = bytearray(c)
    lying[3 if ends is V4 else 5] += 1
    assert joined_sizes(a, b, lying) == [2, 1]


def test_no_more_is_joined_than_a_packet_may_hold() -> None:
    parts = [(1 + 1400 * i, 0x10, b"x" * 1400) for i in range(50)]
    sizes = joined_sizes(*stream(*parts))
    assert sum(sizes) == 50
    assert max(sizes) * 1400 + 40 <= 65535 < (max(sizes) + 1) * 1400 + 40


@given(st.binary(max_size=200), st.integers(1, 120))
def test_garbage_is_neither_joined_nor_fatal(data: bytes, size: int) -> None:
    for packet, more in packets.join(memoryview(bytearray(data)), size):
        if packets.problem(packet):
            assert not more
        else:
            packets.joined(packet, more)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        bytes(20),
        b"\x44" + bytes(30),
        b"\x60" + bytes(20),
        b"\x50" + bytes(60),
        b"\x45\0\0\x15" + bytes(16),
    ],
)
def test_what_is_no_packet_is_said_to_be_none(packet: bytes) -> None:
    assert packets.problem(packet) == "malformed"


@pytest.mark.parametrize("ends", [V4, V6])
def test_hops_are_counted_and_told_about(ends: tuple[bytes, bytes]) -> None:
    own = ip_address("10.244.1.0").packed if ends is V4 else ip_address("fd00::").packed
    body = struct.pack(">HHHH", 1, 2, 8, 0)
    packet = ip(ends, packets.UDP, body, ttl=2)
    assert packets.take_hop(packet)
    assert packet[8 if ends is V4 else 7] == 1
    assert ends is V6 or summed(bytes(packet[:20])) == 0xFFFF
    before = bytes(packet)
    assert not packets.take_hop(packet)
    assert bytes(packet) == before
    for told, kinds in ((packets.time_exceeded, (11, 3)), (packets.unreachable, (3, 1))):
        message = told(packet, own)
        seen = decode_ip(message)
        assert seen is not None
        assert (seen.source.packed, seen.destination.packed) == (own, ends[0])
        assert seen.icmp == (kinds[0] if ends is V4 else kinds[1], 0)
        assert seen.quoted is not None
        assert seen.quoted.destination.packed == ends[1]
        if ends is V4:
            assert summed(message[:20]) == summed(message[20:]) == 0xFFFF
        else:
            pseudo = message[8:40] + struct.pack(">HH", packets.ICMPV6, len(message) - 40)
            assert summed(pseudo + message[40:]) == 0xFFFF
        # Nothing is told about what was told, to many, or about a later fragment.
        assert told(message, own) == b""
        group = bytearray(packet)
        group[12 if ends is V4 else 8] = 0xFF
        assert told(group, own) == b""
    if ends is V4:
        packet[7] = 5
        assert packets.unreachable(packet, own) == b""


@pytest.mark.parametrize("arguments", [(2, 100, 20), (1, 0, 20), (1, 100, 4), (1, 100, 900)])
def test_what_cannot_be_cut_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="to be cut"):
        packets.cut(ip(V4, packets.TCP, tcp(1, 0x10, b"x" * 500)), *arguments)


def test_the_longest_prefix_has_an_address() -> None:
    table = Prefixes([("10.0.0.0/8", "a"), ("10.1.0.0/16", "b"), ("10.1.2.3/32", "c"), ("fd00::/64", "d")])
    found = [
        table.find(ip_address(a).packed) for a in ("10.9.9.9", "10.1.9.9", "10.1.2.3", "11.0.0.1", "fd00::7")
    ]
    assert found == ["a", "b", "c", None, "d"]
    assert table.find(ip_address("fd01::").packed) is None
