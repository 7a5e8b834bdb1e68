"""Frames as they were on a wire, byte by byte, and what is read out of them."""

from __future__ import annotations

import ipaddress

import pytest

from podlane.observe.packet import TCP, UDP, decode_ethernet, decode_ip

ETH4 = bytes.fromhex("02aabbccdd01 02aabbccdd02 0800".replace(" ", ""))
ETH6 = ETH4[:12] + b"\x86\xdd"
# 10.244.1.2:43210 -> 10.96.0.80:80, SYN, seq 0x11223344, TTL 64 (RFC 791, RFC 9293)
SYN4 = bytes.fromhex(
    "4500003c1c4640004006b1e6 0af40102 0a600050"
    "a8ca0050 11223344 00000000 a002faf0 00000000 020405b40402080a0000000000000000 01030307".replace(" ", "")
)
# [fd00:10:244:1::2]:8080 -> [fd00:10:244::5]:40000, SYN,ACK, ack 0x11223345, hop limit 62
SYNACK6 = bytes.fromhex(
    "600000000014063e fd000010024400010000000000000002 fd000010024400000000000000000005"
    "1f909c40 aabbccdd 11223345 5012fa00 00000000".replace(" ", "")
)
UDP4 = (
    bytes.fromhex("45000021000040003f11 0000 0a000001 0a000002 c000 0035 000d 0000".replace(" ", ""))
    + b"token"
)
VXLAN_HEADER = bytes.fromhex("0800000000005500")


def outer4(payload: bytes, port: int = 8472) -> bytes:
    """172.30.1.11 -> 172.30.1.12, UDP to the VXLAN port."""
    udp = b"\xd9\x03" + port.to_bytes(2, "big") + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload
    length = (20 + len(udp)).to_bytes(2, "big")
    return bytes.fromhex("4500") + length + bytes.fromhex("0000000040110000ac1e010bac1e010c") + udp


def test_a_syn_of_ipv4() -> None:
    packet = decode_ethernet(ETH4 + SYN4)
    assert packet is not None
    assert (str(packet.source), packet.source_port) == ("10.244.1.2", 43210)
    assert (str(packet.destination), packet.destination_port) == ("10.96.0.80", 80)
    assert (packet.protocol, packet.what, packet.ttl, packet.sequence) == (TCP, "SYN", 64, 0x11223344)


def test_an_answer_of_ipv6() -> None:
    packet = decode_ethernet(ETH6 + SYNACK6)
    assert packet is not None
    assert packet.ends == (
        ipaddress.ip_address("fd00:10:244:1::2"),
        8080,
        ipaddress.ip_address("fd00:10:244::5"),
        40000,
    )
    assert (packet.what, packet.ttl, packet.acknowledgement) == ("SYN,ACK", 62, 0x11223345)


def test_a_datagram_and_its_padding() -> None:
    packet = decode_ethernet(ETH4 + UDP4 + b"\0" * 13)  # Ethernet pads to 60 bytes
    assert packet is not None
    assert (packet.protocol, packet.destination_port, packet.payload) == (UDP, 53, b"token")


@pytest.mark.parametrize("inner", [ETH4 + SYN4, ETH6 + SYNACK6], ids=["IPv4", "IPv6"])
def test_vxlan_is_unwrapped(inner: bytes) -> None:
    packet = decode_ethernet(ETH4 + outer4(VXLAN_HEADER + inner))
    assert packet is not None
    assert (str(packet.source), str(packet.destination), packet.vni) == ("172.30.1.11", "172.30.1.12", 85)
    assert packet.inner == decode_ethernet(inner)


def test_vxlan_is_only_what_goes_to_its_port_with_a_valid_vni() -> None:
    frame = ETH4 + outer4(VXLAN_HEADER + ETH4 + SYN4, port=53)
    packet = decode_ethernet(frame)
    assert packet is not None
    assert packet.inner is None
    assert decode_ethernet(frame, {53}).inner is not None  # type: ignore[union-attr]
    invalid = decode_ethernet(ETH4 + outer4(b"\0" * 8 + ETH4 + SYN4))
    assert invalid is not None
    assert (invalid.inner, invalid.vni) == (None, None)


def test_a_tunnel_in_a_tunnel_ends_somewhere() -> None:
    frame = ETH4 + SYN4
    for _ in range(20):
        frame = ETH4 + outer4(VXLAN_HEADER + frame)
    packet = decode_ethernet(frame)
    depth = 0
    while packet is not None:
        packet, depth = packet.inner, depth + 1
    assert depth == 3


def test_an_error_quotes_what_it_is_about() -> None:
    header = bytes.fromhex("450000000000000040010000 0a000002 0a000001 0303 0000 00000000".replace(" ", ""))
    packet = decode_ip(header + UDP4)
    assert packet is not None
    assert packet.what == "ICMP port unreachable"
    assert packet.quoted == decode_ip(UDP4)
    six = (
        bytes.fromhex("600000000000 3a40".replace(" ", ""))
        + SYNACK6[8:40]
        + bytes.fromhex("0104000000000000")
    )
    packet = decode_ip(six + SYNACK6)
    assert packet is not None
    assert packet.what == "ICMPv6 port unreachable"
    assert packet.quoted == decode_ip(SYNACK6)


def test_an_error_that_quotes_eight_bytes_still_tells_the_sequence_number() -> None:
    header = bytes.fromhex("450000000000000040010000 0a000002 0a000001 0301 0000 00000000".replace(" ", ""))
    packet = decode_ip(header + SYN4[:28])
    assert packet is not None
    assert packet.quoted is not None
    assert (packet.quoted.sequence, packet.what) == (0x11223344, "ICMP host unreachable")


def test_extension_headers_are_passed_over() -> None:
    options = b"\x06\x00" + b"\x01\x04\0\0\0\0"  # next: TCP; 8 bytes of destination options
    length = (20 + len(options)).to_bytes(2, "big")
    packet = decode_ip(SYNACK6[:4] + length + b"\x3c" + SYNACK6[7:40] + options + SYNACK6[40:])
    assert packet is not None
    assert (packet.protocol, packet.source_port, packet.what) == (TCP, 8080, "SYN,ACK")


def test_later_fragments_have_no_ports() -> None:
    packet = decode_ip(SYN4[:6] + b"\x00\x10" + SYN4[8:])
    assert packet is not None
    assert (packet.source_port, packet.destination_port, packet.flags) == (0, 0, 0)


@pytest.mark.parametrize("frame", [b"", ETH4, ETH4[:12] + b"\x08\x06" + b"\0" * 28, b"\0" * 14 + SYN4])
def test_what_is_no_ip_is_none(frame: bytes) -> None:
    assert decode_ethernet(frame) is None


def test_vlan_tags_are_passed_over() -> None:
    assert decode_ethernet(ETH4[:12] + b"\x81\x00\x00\x07\x08\x00" + SYN4) == decode_ethernet(ETH4 + SYN4)
