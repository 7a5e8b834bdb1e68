"""rtnetlink messages of neighbours and of forwarding entries (linux/neighbour.h). Pure.

A neighbour maps an IP address on a link to a MAC address (ARP, RFC 4861). A forwarding entry (FDB) of a
VXLAN device maps a MAC address to the host that has it (RFC 7348). Both are ndmsg messages.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

from podlane.kernel import netlink as nl
from podlane.kernel.netlink import Message, Request, attribute, attributes
from podlane.kernel.rtnl.links import pack_mac, unpack_mac
from podlane.model.addresses import Address, Family, family_of

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
_AF_BRIDGE = 7
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
_NTF_SELF = 0x02

_NDMSG = struct.Struct("=BxxxiHBB")


class KernelNeighbour(NamedTuple):
    """mac: "" while it is not resolved."""

    link: int
    address: Address
    mac: str
    permanent: bool = True


class KernelFdb(NamedTuple):
    """remote: None for an entry that names no host (those of a bridge)."""

    link: int
    mac: str
    remote: Address | None
    permanent: bool = True


def _neighbour(entry: KernelNeighbour) -> bytes:
    return (
        _NDMSG.pack(family_of(entry.address).af, entry.link, _NUD_PERMANENT, 0, 0)
        + attribute(_NDA_DST, entry.address.packed)
        + attribute(_NDA_LLADDR, pack_mac(entry.mac))
    )


def set_neighbour(link: int, address: Address, mac: str) -> Request:
    """A permanent entry, in place of whatever the address had."""
    body = _neighbour(KernelNeighbour(link, address, mac))
    return Request(RTM_NEWNEIGH, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body, f"set neighbour {address}")


def delete_neighbour(link: int, address: Address) -> Request:
    body = _NDMSG.pack(family_of(address).af, link, 0, 0, 0) + attribute(_NDA_DST, address.packed)
    return Request(RTM_DELNEIGH, 0, body, f"delete neighbour {address}")


def get_neighbours(family: Family) -> Request:
    return Request(RTM_GETNEIGH, 0, _NDMSG.pack(family.af, 0, 0, 0, 0), f"list {family} neighbours")


def unpack_neighbour(message: Message) -> KernelNeighbour | None:
    """None for what is no IPv4 or IPv6 neighbour. Raises netlink.Truncated or struct.error."""
    family, link, state, _, _ = _NDMSG.unpack_from(message.body)
    found = attributes(message.body, _NDMSG.size)
    if family not in (2, 10) or _NDA_DST not in found:
        return None
    address = ipaddress.ip_address(found[_NDA_DST])
    return KernelNeighbour(
        link, address, unpack_mac(found.get(_NDA_LLADDR, b"")), bool(state & _NUD_PERMANENT)
    )


def _fdb(link: int, mac: str, remote: Address) -> bytes:
    return (
        _NDMSG.pack(_AF_BRIDGE, link, _NUD_PERMANENT, _NTF_SELF, 0)
        + attribute(_NDA_LLADDR, pack_mac(mac))
        + attribute(_NDA_DST, remote.packed)
    )


def is_group_mac(mac: str) -> bool:
    """Multicast or all-zero: an address for which one entry may name several hosts."""
    octets = pack_mac(mac)
    return bool(octets[0] & 1) or not any(octets)


def set_fdb(link: int, mac: str, remote: Address) -> Request:
    """A permanent entry. One host has a MAC address; to a group address (or 00:..:00) hosts are added."""
    flags = nl.NLM_F_CREATE | (nl.NLM_F_APPEND if is_group_mac(mac) else nl.NLM_F_REPLACE)
    return Request(RTM_NEWNEIGH, flags, _fdb(link, mac, remote), f"set FDB {mac} to {remote}")


def delete_fdb(link: int, mac: str, remote: Address) -> Request:
    return Request(RTM_DELNEIGH, 0, _fdb(link, mac, remote), f"delete FDB {mac} to {remote}")


def get_fdb(link: int) -> Request:
    """The forwarding entries of one device."""
    return Request(RTM_GETNEIGH, 0, _NDMSG.pack(_AF_BRIDGE, link, 0, 0, 0), "list FDB")


def unpack_fdb(message: Message) -> KernelFdb | None:
    """None for what is no forwarding entry. Raises netlink.Truncated or struct.error."""
    family, link, state, _, _ = _NDMSG.unpack_from(message.body)
    found = attributes(message.body, _NDMSG.size)
    if family != _AF_BRIDGE or _NDA_LLADDR not in found:
        return None
    remote = found.get(_NDA_DST)
    return KernelFdb(
        link,
        unpack_mac(found[_NDA_LLADDR]),
        ipaddress.ip_address(remote) if remote else None,
        bool(state & _NUD_PERMANENT),
    )
