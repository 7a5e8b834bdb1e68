"""The kernel tells when someone else changes what podlane put there.

A netlink socket hears of links, addresses, routes and neighbours. Most of what it hears are the
agent's own doings; a notice matters only if what it says is gone is desired at this moment. Lost
notices (ENOBUFS) mean that anything may have happened.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from podlane.compile.tables import Table
from podlane.errors import KernelError
from podlane.kernel.netlink import NETLINK_ROUTE, Message, attributes
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.rtnl import PROTOCOL, addresses, bridges, links, neighbours, routes

log = logging.getLogger(__name__)

# linux/rtnetlink.h, enum rtnetlink_groups
GROUPS: Final = (1, 3, 5, 7, 9, 11)  # LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE

OURS: Final = "pl"
WATCHED: Final = (
    Table.BRIDGES,
    Table.PORTS,
    Table.LINKS,
    Table.TUNNELS,
    Table.NEIGHBOURS,
    Table.FDB,
    Table.ROUTES,
    Table.ANNOUNCEMENTS,
)
"""What links, addresses, routes and neighbours are the rows of; rulesets have a monitor of their own."""
DEBOUNCE_S: Final = 0.02


class Notice(NamedTuple):
    """damage: tables whose driver must compare; uplink: links or addresses of the node itself changed."""

    damage: Table | None = None
    uplink: bool = False


Desired = Mapping[Table, Mapping[Any, Any]]
NameOf = Callable[[int], str]


def judge(message: Message, desired: Desired, name_of: NameOf, routed: bool = False) -> Notice | None:
    """What a notice means, None for nothing. name_of: link name by index, "" when it is gone.

    routed: the uplink follows from the node's own routes (underlay.canReach).
    """
    kind = message.type
    if kind in (links.RTM_NEWLINK, links.RTM_DELLINK):
        link = links.unpack(message)
        if link.name in desired[Table.BRIDGES]:
            row = desired[Table.BRIDGES][link.name]
            same_mac = link.mac == row.mac or link.alias == bridges.TAKEN_OVER
            right = link.up and same_mac and link.mtu_bytes == row.mtu_bytes
            # Of a bridge there are other notices too: those of its own family tell of its ports.
            gone = kind == links.RTM_DELLINK and message.body[0] == socket.AF_UNSPEC
            return Notice(Table.BRIDGES) if gone or not right else None
        if not link.name.startswith(OURS):
            return Notice(uplink=True)
        if kind == links.RTM_DELLINK and message.body[0] == socket.AF_BRIDGE:  # it left its bridge
            return Notice(Table.PORTS) if link.name in desired[Table.PORTS] else None
        gone = kind == links.RTM_DELLINK or not link.up
        if link.name in desired[Table.LINKS]:
            row = desired[Table.LINKS][link.name]
            return (
                Notice(Table.LINKS)
                if gone or (link.mac, link.mtu_bytes) != (row.mac, row.mtu_bytes)
                else None
            )
        if link.name in desired[Table.TUNNELS]:
            wrong = gone or link.mtu_bytes != desired[Table.TUNNELS][link.name].mtu_bytes
            return Notice(Table.TUNNELS) if wrong else None
        return Notice(Table.ROUTES) if gone and _carries(link.name, desired) else None
    if kind in (addresses.RTM_NEWADDR, addresses.RTM_DELADDR):
        found = addresses.unpack(message)
        if found is None:
            return None
        if found.protocol == PROTOCOL:  # lent: it is none of the node's own
            lost = kind == addresses.RTM_DELADDR and found.address.ip in desired[Table.ANNOUNCEMENTS]
            return Notice(Table.ANNOUNCEMENTS) if lost else None
        name = name_of(found.link)
        for table in (Table.BRIDGES, Table.LINKS, Table.TUNNELS):
            if name in desired[table]:
                return Notice(table) if kind == addresses.RTM_DELADDR else None
        # With an address the kernel drops, in silence, the routes that prefer it as their source.
        if name.startswith(OURS):
            return None
        return Notice(Table.ROUTES if kind == addresses.RTM_DELADDR else None, uplink=True)
    if kind in (routes.RTM_NEWROUTE, routes.RTM_DELROUTE):
        route = routes.unpack(message)
        return None if route is None else _route(kind, route, desired, name_of, routed)
    if kind in (neighbours.RTM_NEWNEIGH, neighbours.RTM_DELNEIGH):
        return _neighbour(message, desired, name_of)
    return None


def _route(
    kind: int, route: routes.KernelRoute, desired: Desired, name_of: NameOf, routed: bool
) -> Notice | None:
    """Of ours what is gone or is not what it was; of others' what takes the place of ours, or leaves it."""
    row = desired[Table.ROUTES].get(route.destination)
    ours = route.protocol == PROTOCOL
    if row is None or route.table != routes.MAIN_TABLE or (not ours and route.metric):
        return Notice(uplink=True) if routed and not ours else None
    wanted = (row.via, row.device, row.source)
    right = ours and kind == routes.RTM_NEWROUTE and (route.via, name_of(route.link), route.source) == wanted
    return None if right else Notice(Table.ROUTES, uplink=routed and not ours)


def _neighbour(message: Message, desired: Desired, name_of: NameOf) -> Notice | None:
    family, index = struct.unpack_from("=Bxxxi", message.body)
    name = name_of(index)
    if not name.startswith(OURS) and name not in desired[Table.BRIDGES]:
        return None
    found = attributes(message.body, 12)
    mac, octets = found.get(2, b"").hex(":"), found.get(1, b"")
    where = ipaddress.ip_address(octets) if len(octets) in (4, 16) else None
    gone = message.type == neighbours.RTM_DELNEIGH
    if family == socket.AF_BRIDGE:
        entry = desired[Table.FDB].get((name, mac))
        return Notice(Table.FDB) if entry is not None and (gone or where != entry.remote) else None
    neighbour = desired[Table.NEIGHBOURS].get((name, where))
    wrong = gone or (neighbour is not None and mac != neighbour.mac)
    return Notice(Table.NEIGHBOURS) if neighbour is not None and wrong else None


def _carries(device: str, desired: Desired) -> bool:
    """Whether a pod's link still has rows. Asked only when such a link vanished."""
    return any(row.device == device for row in desired[Table.ROUTES].values())


class Monitor:
    """Listens on the running loop; calls back a moment after something that matters.

    damaged(tables), uplink_changed(): on the loop. lost notices call both, with all that is watched.
    """

    def __init__(
        self,
        desired: Desired,
        damaged: Callable[[set[Table]], None],
        uplink_changed: Callable[[], None],
        netns_fd: int | None = None,
        *,
        routed: bool = False,
    ) -> None:
        self._routed = routed
        self._desired, self._damaged, self._uplink_changed = desired, damaged, uplink_changed
        self._netlink = Netlink(NETLINK_ROUTE, netns_fd, groups=GROUPS)
        self._loop = asyncio.get_running_loop()
        self._heard: list[Message] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._netlink.fileno(), self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._netlink.fileno())
        self._netlink.close()
        if self._timer is not None:
            self._timer.cancel()

    def _readable(self) -> None:
        try:
            heard = self._netlink.receive()
        except KernelError as error:
            if error.errno != errno.ENOBUFS:
                raise
            log.warning("notices of the kernel were lost; comparing all that they are of")
            self._damaged(set(WATCHED))
            self._uplink_changed()
            return
        # Judged a moment later: what the agent itself is about to remove is then no longer desired.
        self._heard += heard
        if self._timer is None:
            self._timer = self._loop.call_later(DEBOUNCE_S, self._judge)

    def _judge(self) -> None:
        self._timer = None
        heard, self._heard = self._heard, []
        tables: set[Table] = set()
        uplink = False
        for message in heard:
            notice = judge(message, self._desired, _name_of, self._routed)
            if notice is not None:
                uplink |= notice.uplink
                if notice.damage is not None:
                    tables.add(notice.damage)
        if tables:
            log.info("someone changed %s in the kernel; comparing", ", ".join(sorted(tables)))
            self._damaged(tables)
        if uplink:
            self._uplink_changed()


def _name_of(index: int) -> str:
    """In the calling thread's namespace."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
