"""Ethernet frames that say who has an address, and who is alive. Pure.

    gratuitous ARP    RFC 826, RFC 5227 section 3: sender and target address are the same, to everybody;
                      once as a request and once as a reply, as hosts differ in which they heed
    unsolicited NA    RFC 4861 section 7.2.6: to all nodes, flags router and override
    heartbeat         EtherType 0x88b5 (IEEE 802: for local experiments) to a multicast address of our own:

                      "podlane" | version 1 | length | identity of the sender, at most 253 octets

Switches and bridges carry heartbeats as far as ARP, and no further: who hears one is where an ARP answer of
its sender would be heard. They are no secret and are not signed: who can forge them can forge ARP.
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from typing import Final

from podlane.model.addresses import Address

HEARTBEAT: Final = 0x88B5
HEARTBEAT_MAC: Final = bytes.fromhex("03706c000055")
MOST_IDENTITY_BYTES: Final = 253  # a Node's name, where it has no uid

_ARP, _IPV6 = 0x0806, 0x86DD
_BROADCAST: Final = b"\xff" * 6
_MAGIC: Final = b"podlane\x01"
_ALL_NODES: Final = IPv6Address("ff02::1")
_ALL_NODES_MAC: Final = bytes.fromhex("333300000001")
_ICMPV6, _NEIGHBOUR_ADVERTISEMENT = 58, 136
_ROUTER_OVERRIDE: Final = 0xA0000000
_TARGET_LINK_LAYER_ADDRESS: Final = b"\x02\x01"
_LEAST_BYTES: Final = 60  # without the frame check sequence


def _frame(to: bytes, mac: bytes, ethertype: int, payload: bytes) -> bytes:
    return (to + mac + struct.pack("!H", ethertype) + payload).ljust(_LEAST_BYTES, b"\0")


def announcements(where: Address, mac: bytes) -> list[bytes]:
    """Frames after which everybody sends what is for `where` to `mac`."""
    if isinstance(where, IPv6Address):
        return [_advertisement(where, mac)]
    return [_gratuitous(where, mac, operation) for operation in (1, 2)]


def _gratuitous(where: Address, mac: bytes, operation: int) -> bytes:
    target = b"\0" * 6 if operation == 1 else mac
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + where.packed + target + where.packed
    return _frame(_BROADCAST, mac, _ARP, body)


def _advertisement(where: IPv6Address, mac: bytes) -> bytes:
    message = struct.pack("!BBHI", _NEIGHBOUR_ADVERTISEMENT, 0, 0, _ROUTER_OVERRIDE)
    message += where.packed + _TARGET_LINK_LAYER_ADDRESS + mac
    pseudo = where.packed + _ALL_NODES.packed + struct.pack("!II", len(message), _ICMPV6)
    message = message[:2] + struct.pack("!H", _checksum(pseudo + message)) + message[4:]
    header = struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, 255) + where.packed + _ALL_NODES.packed
    return _frame(_ALL_NODES_MAC, mac, _IPV6, header + message)


def _checksum(data: bytes) -> int:
    """RFC 1071; data of an even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def heartbeat(identity: str, mac: bytes) -> bytes:
    """Raises ValueError for an identity that does not fit."""
    octets = identity.encode()
    if len(octets) > MOST_IDENTITY_BYTES:
        raise ValueError(f"identity {identity[:20]}... is longer than {MOST_IDENTITY_BYTES} octets")
    return _frame(HEARTBEAT_MAC, mac, HEARTBEAT, _MAGIC + bytes([len(octets)]) + octets)


def heard(frame: bytes) -> str | None:
    """The identity in a heartbeat frame; None for anything else."""
    payload = frame[14:]
    if len(payload) <= len(_MAGIC) or not payload.startswith(_MAGIC):
        return None
    length = payload[len(_MAGIC)]
    octets = payload[len(_MAGIC) + 1 : len(_MAGIC) + 1 + length]
    if len(octets) < length or not 0 < length <= MOST_IDENTITY_BYTES:
        return None
    return octets.decode("utf-8", "replace")
