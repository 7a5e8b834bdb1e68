"""rtnetlink messages of routes (linux/rtnetlink.h), both families through one path. Pure."""

from __future__ import annotations

import enum
import ipaddress
import struct
from typing import NamedTuple

from podlane.kernel import netlink as nl
from podlane.kernel.netlink import Message, Request, attribute, attributes, nested, u32
from podlane.model.addresses import Address, Family, Prefix, family_of

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

PROTOCOL = 85  # marks podlane's routes: nothing else is read or removed
MAIN_TABLE = 254

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
_RTNH_F_ONLINK = 4
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_IPV6_METRIC = 1024  # what the kernel makes of an IPv6 route without one

_RTMSG = struct.Struct("=BBBBBBBBI")


class RouteKind(enum.IntEnum):
    """Route types (RTN_*). All but UNICAST have no next hop: they refuse in their own way."""

    UNICAST = 1
    LOCAL = 2
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8


class KernelRoute(NamedTuple):
    """link: index of the link it leaves by, 0 for none. metric: 0 for the family's default.

    scope: RT_SCOPE_*, None for what follows from the next hop; it is not read back.
    """

    destination: Prefix
    via: Address | None
    link: int
    source: Address | None = None
    onlink: bool = False
    mtu_bytes: int = 0
    metric: int = 0
    protocol: int = PROTOCOL
    table: int = MAIN_TABLE
    kind: int = RouteKind.UNICAST
    advmss_bytes: int = 0
    scope: int | None = None


def _pack(route: KernelRoute, scope: int) -> bytes:
    # Tables above 255 go into the attribute alone.
    head = _RTMSG.pack(
        family_of(route.destination).af,
        route.destination.prefixlen,
        0,
        0,
        route.table if route.table < 256 else 0,
        route.protocol,
        scope,
        route.kind,
        _RTNH_F_ONLINK if route.onlink else 0,
    )
    body = head + attribute(_RTA_TABLE, u32(route.table))
    if route.destination.prefixlen:
        body += attribute(_RTA_DST, route.destination.network_address.packed)
    if route.link:
        body += attribute(_RTA_OIF, u32(route.link))
    if route.via is not None:
        body += attribute(_RTA_GATEWAY, route.via.packed)
    if route.metric:
        body += attribute(_RTA_PRIORITY, u32(route.metric))
    return body


def add(route: KernelRoute, *, replace: bool = False) -> Request:
    """replace: takes the place of the route of the same destination and metric, whosever it is.

    Without it such a route is an error (KernelExistsError).
    """
    on_link = route.via is None and route.link and route.destination.version == 4
    scope = _SCOPE_LINK if on_link else _SCOPE_UNIVERSE
    body = _pack(route, scope if route.scope is None else route.scope)
    if route.source is not None:
        body += attribute(_RTA_PREFSRC, route.source.packed)
    metrics = ((_RTAX_MTU, route.mtu_bytes), (_RTAX_ADVMSS, route.advmss_bytes))
    if any(value for _, value in metrics):
        body += nested(_RTA_METRICS, *(attribute(kind, u32(value)) for kind, value in metrics if value))
    flags = nl.NLM_F_CREATE | (nl.NLM_F_REPLACE if replace else nl.NLM_F_EXCL)
    return Request(RTM_NEWROUTE, flags, body, f"add route {route.destination}")


def delete(route: KernelRoute) -> Request:
    """Matches destination, table, protocol, and link, next hop and metric where given."""
    nowhere = 255 if route.destination.version == 4 else _SCOPE_UNIVERSE
    return Request(RTM_DELROUTE, 0, _pack(route, nowhere), f"delete route {route.destination}")


def get_all(family: Family, *, protocol: int = 0, table: int = 0) -> Request:
    """protocol, table: only routes of these (0: of any); the kernel does the choosing."""
    body = _RTMSG.pack(family.af, 0, 0, 0, table if table < 256 else 0, protocol, 0, 0, 0)
    if table:
        body += attribute(_RTA_TABLE, u32(table))
    return Request(RTM_GETROUTE, 0, body, f"list {family} routes")


def look_up(destination: Address) -> Request:
    """Asks which route a packet of this namespace to destination takes."""
    family = family_of(destination)
    body = _RTMSG.pack(family.af, family.bits, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, destination.packed)
    return Request(RTM_GETROUTE, 0, body, f"look up {destination}")


def unpack(message: Message) -> KernelRoute | None:
    """None for what is neither IPv4 nor IPv6. Raises netlink.Truncated or struct.error."""
    family, length, _, _, table, protocol, _, kind, flags = _RTMSG.unpack_from(message.body)
    if family not in (2, 10):
        return None
    found = attributes(message.body, _RTMSG.size)
    size = 4 if family == 2 else 16
    destination = ipaddress.ip_network((found.get(_RTA_DST, bytes(size)), length))
    via, source = found.get(_RTA_GATEWAY), found.get(_RTA_PREFSRC)
    metric = _u32(found.get(_RTA_PRIORITY))
    metrics = attributes(found.get(_RTA_METRICS, b""))
    return KernelRoute(
        destination=destination,
        via=ipaddress.ip_address(via) if via else None,
        # An IPv6 route that refuses is shown on lo.
        link=_u32(found.get(_RTA_OIF)) if kind in (RouteKind.UNICAST, RouteKind.LOCAL) else 0,
        source=ipaddress.ip_address(source) if source else None,
        onlink=bool(flags & _RTNH_F_ONLINK),
        mtu_bytes=_u32(metrics.get(_RTAX_MTU)),
        metric=0 if family == 10 and metric == _IPV6_METRIC else metric,
        protocol=protocol,
        table=_u32(found.get(_RTA_TABLE)) or table,
        kind=kind,
        advmss_bytes=_u32(metrics.get(_RTAX_ADVMSS)),
    )


def _u32(payload: bytes | None) -> int:
    value: int = struct.unpack("=I", payload)[0] if payload else 0
    return value
