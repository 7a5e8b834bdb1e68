"""rtnetlink messages of interface addresses (linux/if_addr.h). Pure."""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

from podlane.kernel import netlink as nl
from podlane.kernel.netlink import Message, Request, attribute, attributes, u32
from podlane.model.addresses import Interface, family_of

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
IFA_F_NODAD, IFA_F_TENTATIVE, IFA_F_NOPREFIXROUTE = 0x02, 0x40, 0x200
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO = 1, 2, 6, 8, 11
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253

_IFADDR = struct.Struct("=BBBBi")


class InterfaceAddress(NamedTuple):
    """link: index; address: with its prefix, as 10.0.0.1/24. protocol: who made it, 0 for anybody (since
    Linux 5.18; the numbers are those of routes)."""

    link: int
    address: Interface
    flags: int
    scope: int
    protocol: int = 0


def _pack(link: int, address: Interface, flags: int, scope: int) -> bytes:
    head = _IFADDR.pack(family_of(address).af, address.network.prefixlen, 0, scope, link)
    body = head + attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)
    return body + attribute(_IFA_FLAGS, u32(flags)) if flags else body


def add(
    link: int,
    address: Interface,
    *,
    nodad: bool = True,
    noprefixroute: bool = False,
    scope: int = SCOPE_UNIVERSE,
    what: str = "",
) -> Request:
    """nodad: usable at once, without duplicate address detection (IPv6; IPv4 knows none)."""
    flags = IFA_F_NODAD if nodad and address.version == 6 else 0
    flags |= IFA_F_NOPREFIXROUTE if noprefixroute else 0
    body = _pack(link, address, flags, scope)
    return Request(
        RTM_NEWADDR, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body, f"add address {address} to {what or link}"
    )


def lend(link: int, address: Interface, *, valid_s: int, protocol: int, what: str = "") -> Request:
    """An address that goes by itself after valid_s seconds; asked again, it begins that time anew.

    It brings no route, and the kernel does not choose it as a source for IPv6 (deprecated, RFC 6724).
    """
    body = _pack(link, address, IFA_F_NODAD | IFA_F_NOPREFIXROUTE, SCOPE_UNIVERSE)
    body += attribute(_IFA_CACHEINFO, struct.pack("=IIII", 0, valid_s, 0, 0))
    body += attribute(_IFA_PROTO, bytes([protocol]))
    flags = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
    return Request(RTM_NEWADDR, flags, body, f"lend address {address} to {what or link}")


def delete(link: int, address: Interface, *, what: str = "") -> Request:
    body = _pack(link, address, 0, 0)
    return Request(RTM_DELADDR, 0, body, f"delete address {address} of {what or link}")


def get_all(link: int = 0) -> Request:
    """link 0: of all links."""
    return Request(RTM_GETADDR, 0, _IFADDR.pack(0, 0, 0, 0, link), "list addresses")


def unpack(message: Message) -> InterfaceAddress | None:
    """None for an address that is neither IPv4 nor IPv6. Raises netlink.Truncated or struct.error."""
    family, length, short_flags, scope, link = _IFADDR.unpack_from(message.body)
    found = attributes(message.body, _IFADDR.size)
    # IFA_LOCAL is our end, IFA_ADDRESS the other of a point-to-point link; IPv6 often has only the latter.
    octets = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if family not in (2, 10) or octets is None:
        return None
    flags = struct.unpack("=I", found[_IFA_FLAGS])[0] if _IFA_FLAGS in found else short_flags
    protocol = found[_IFA_PROTO][0] if found.get(_IFA_PROTO) else 0
    return InterfaceAddress(link, ipaddress.ip_interface((octets, length)), flags, scope, protocol)
