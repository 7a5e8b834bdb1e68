"""Frames as bytes in, packets as facts out: Ethernet, IPv4, IPv6, TCP, UDP, ICMP, VXLAN. Pure.

Only what a reader of a packet's way needs. A frame that is cut short, or of another protocol, decodes as
far as it goes or to None; nothing here raises on any input.

Sources: RFC 791, RFC 8200 (IPv6 and its extension headers), RFC 9293 (TCP), RFC 768, RFC 792 and
RFC 4443 (errors quote the packet they are about), RFC 7348 (VXLAN).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Container
from typing import Final, TypeAlias

from msgspec import Struct

from podlane.model.addresses import Address

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
NAMES: Final = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6", 132: "SCTP"}
TUNNEL_PORTS: Final = frozenset({8472, 4789, 8285})
"""UDP ports of VXLAN, and of bare packets in datagrams; which of them it is the first byte tells."""

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_FLAGS: Final = ((SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (0x08, "PSH"), (ACK, "ACK"))

_IPV4, _IPV6, _VLAN, _QINQ = 0x0800, 0x86DD, 0x8100, 0x88A8
# Extension headers that tell their length in units of 8 bytes: hop-by-hop, routing, destination options.
_OPTIONS: Final = frozenset({0, 43, 60})
_FRAGMENT: Final = 44
_MAX_DEPTH: Final = 3  # a tunnel in a tunnel, and what an error quotes

_UNREACHABLE4: Final = {
    0: "network",
    1: "host",
    2: "protocol",
    3: "port",
    9: "network",
    10: "host",
    13: "host",
}
_UNREACHABLE6: Final = {0: "route", 1: "host", 3: "host", 4: "port"}


# (source, source port, destination, destination port)
Ends: TypeAlias = tuple[Address, int, Address, int]


class Packet(Struct, frozen=True):
    """One IP packet.

    protocol: IANA number; ports are 0 where the protocol has none. flags: TCP's; sequence and
    acknowledgement are TCP's numbers. icmp: (type, code). payload: what UDP carries, as far as captured.
    inner: what a VXLAN packet carries, with vni, or IP in IP or in a datagram. quoted: the packet an ICMP
    error is about.
    """

    source: Address
    destination: Address
    protocol: int
    ttl: int
    source_port: int = 0
    destination_port: int = 0
    flags: int = 0
    sequence: int = 0
    acknowledgement: int = 0
    payload: bytes = b""
    icmp: tuple[int, int] | None = None
    vni: int | None = None
    inner: Packet | None = None
    quoted: Packet | None = None

    @property
    def ends(self) -> Ends:
        return self.source, self.source_port, self.destination, self.destination_port

    @property
    def reversed_ends(self) -> Ends:
        return self.destination, self.destination_port, self.source, self.source_port

    @property
    def what(self) -> str:
        """TCP's flags, or the protocol's name, or an ICMP error in words."""
        if self.protocol == TCP:
            return ",".join(name for bit, name in _FLAGS if self.flags & bit) or "TCP"
        if self.icmp is not None:
            return _icmp_words(self.protocol, *self.icmp)
        return NAMES.get(self.protocol, f"protocol {self.protocol}")


def decode_ethernet(
    frame: bytes, tunnel_ports: Container[int] = TUNNEL_PORTS, depth: int = 0
) -> Packet | None:
    """The IP packet in an Ethernet frame; None for anything else (ARP, say)."""
    at, kind = 14, int.from_bytes(frame[12:14], "big")
    while kind in (_VLAN, _QINQ) and len(frame) >= at + 4:
        kind = int.from_bytes(frame[at + 2 : at + 4], "big")
        at += 4
    return decode_ip(frame[at:], tunnel_ports, depth) if kind in (_IPV4, _IPV6) else None


def decode_ip(data: bytes, tunnel_ports: Container[int] = TUNNEL_PORTS, depth: int = 0) -> Packet | None:
    """A packet that begins with its IP header (as links without Ethernet carry it)."""
    if depth >= _MAX_DEPTH or not data:
        return None
    version = data[0] >> 4
    if version == 4:
        return _ipv4(data, tunnel_ports, depth)
    return _ipv6(data, tunnel_ports, depth) if version == 6 else None


def _ipv4(data: bytes, tunnel_ports: Container[int], depth: int) -> Packet | None:
    if len(data) < 20:
        return None
    header_bytes = (data[0] & 0x0F) * 4
    length, fragment = struct.unpack_from("!H2xH", data, 2)
    if header_bytes < 20:
        return None
    packet = Packet(ipaddress.IPv4Address(data[12:16]), ipaddress.IPv4Address(data[16:20]), data[9], data[8])
    if fragment & 0x1FFF:
        return packet  # a later fragment has no ports
    # Short frames are padded to 60 bytes; a length of 0 is a packet the kernel has yet to cut up.
    return _transport(packet, data[header_bytes : length or len(data)], tunnel_ports, depth)


def _ipv6(data: bytes, tunnel_ports: Container[int], depth: int) -> Packet | None:
    if len(data) < 40:
        return None
    length, protocol = struct.unpack_from("!HB", data, 4)
    body = data[40 : 40 + length] if length else data[40:]
    later_fragment = False
    while protocol in _OPTIONS or protocol == _FRAGMENT:
        if len(body) < 8:
            break
        if protocol == _FRAGMENT:
            later_fragment = bool(int.from_bytes(body[2:4], "big") & 0xFFF8)
        size = 8 if protocol == _FRAGMENT else (body[1] + 1) * 8
        protocol, body = body[0], body[size:]
    packet = Packet(ipaddress.IPv6Address(data[8:24]), ipaddress.IPv6Address(data[24:40]), protocol, data[7])
    return packet if later_fragment else _transport(packet, body, tunnel_ports, depth)


def _transport(packet: Packet, body: bytes, tunnel_ports: Container[int], depth: int) -> Packet:
    """packet with what its transport header says; an error's quotation may end after 8 bytes of it."""
    from msgspec.structs import replace

    if len(body) < 8:
        return packet
    source_port, destination_port = struct.unpack_from("!HH", body)
    match packet.protocol:
        case 6:  # TCP
            sequence = int.from_bytes(body[4:8], "big")
            acknowledgement = int.from_bytes(body[8:12], "big") if len(body) >= 12 else 0
            return replace(
                packet,
                source_port=source_port,
                destination_port=destination_port,
                sequence=sequence,
                acknowledgement=acknowledgement,
                flags=body[13] if len(body) > 13 else 0,
            )
        case 17:  # UDP
            payload = body[8:]
            vni, inner = (
                _wrapped(payload, tunnel_ports, depth) if destination_port in tunnel_ports else (None, None)
            )
            return replace(
                packet,
                source_port=source_port,
                destination_port=destination_port,
                payload=payload,
                vni=vni,
                inner=inner,
            )
        case 1 | 58:  # ICMP, ICMPv6
            kind = body[0]
            errors = (3, 11, 12) if packet.protocol == ICMP else (1, 2, 3, 4)
            quoted = decode_ip(body[8:], (), depth + 1) if kind in errors else None
            return replace(packet, icmp=(kind, body[1]), quoted=quoted)
        case 4 | 41:  # IP in IP (RFC 2003), IPv6 in IP (RFC 4213)
            return replace(packet, inner=decode_ip(body, tunnel_ports, depth + 1))
        case 132:  # SCTP
            return replace(packet, source_port=source_port, destination_port=destination_port)
    return packet


def _wrapped(payload: bytes, tunnel_ports: Container[int], depth: int) -> tuple[int | None, Packet | None]:
    if payload and payload[0] >> 4 in (4, 6):
        return None, decode_ip(payload, tunnel_ports, depth + 1)
    if len(payload) < 8 or not payload[0] & 0x08:  # the I flag: the VNI is valid
        return None, None
    return int.from_bytes(payload[4:7], "big"), decode_ethernet(payload[8:], tunnel_ports, depth + 1)


def _icmp_words(protocol: int, kind: int, code: int) -> str:
    name = NAMES[protocol]
    if protocol == ICMP:
        words = {0: "echo reply", 8: "echo request", 11: "time exceeded", 5: "redirect"}
        unreachable, too_big = kind == 3, kind == 3 and code == 4
        what = _UNREACHABLE4.get(code, "destination")
    else:
        words = {128: "echo request", 129: "echo reply", 3: "time exceeded", 4: "parameter problem"}
        words |= {135: "neighbour solicitation", 136: "neighbour advertisement"}
        unreachable, too_big = kind == 1, kind == 2
        what = _UNREACHABLE6.get(code, "destination")
    if too_big:
        return f"{name} packet too big"
    if unreachable:
        return f"{name} {what} unreachable"
    return f"{name} {words.get(kind, f'type {kind} code {code}')}"
