"""What it takes for a link to become the bridge a row describes. Pure.

A bridge of the wanted name that somebody else made (another network plugin, before podlane came) is taken
over as it stands, ports and all: only its MTU and addresses become ours. It keeps its MAC address for as
long as it is there: pods that run have it in their neighbour entries. The alias says so, and is how a
bridge that is no longer wanted is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from podlane.compile.tables import BridgeLink
from podlane.kernel.netlink import Request
from podlane.kernel.rtnl import addresses, links
from podlane.kernel.rtnl.addresses import SCOPE_UNIVERSE, InterfaceAddress
from podlane.kernel.rtnl.links import Link
from podlane.model.addresses import Interface

ALIAS: Final = "podlane"
TAKEN_OVER: Final = "podlane, taken over"


def ours(link: Link) -> bool:
    return link.kind == "bridge" and link.alias in (ALIAS, TAKEN_OVER)


def create(row: BridgeLink) -> list[Request]:
    """Down and without addresses: `repair` does the rest."""
    return links.create_bridge(row.name, mac=row.mac, mtu_bytes=row.mtu_bytes, link_local=False)


def repair(row: BridgeLink, present: Link, held: Iterable[InterfaceAddress]) -> list[Request]:
    """Changes to a bridge. Empty if all of it is right. The address that goes does so after the new one."""
    requests: list[Request] = []
    alias = ALIAS if present.mac == row.mac or present.alias == ALIAS else TAKEN_OVER
    mac = row.mac if alias == ALIAS else present.mac
    if (present.up, present.alias, present.mac, present.mtu_bytes) != (True, alias, mac, row.mtu_bytes):
        change = links.change(
            present.index,
            up=True,
            alias=alias,
            # Set to what it is, it does not follow its ports any more.
            mac=mac if (mac, alias) != (present.mac, present.alias) else "",
            mtu_bytes=row.mtu_bytes if row.mtu_bytes != present.mtu_bytes else 0,
            what=row.name,
        )
        requests.append(change)
    own = {each.address for each in held if each.scope == SCOPE_UNIVERSE}
    for address in row.addresses:
        if address not in own:
            requests.append(addresses.add(present.index, address, noprefixroute=True, what=row.name))
    for address in own.difference(row.addresses):
        requests.append(addresses.delete(present.index, address, what=row.name))
    return requests


def rows(bridges: Iterable[Link], held: Iterable[InterfaceAddress]) -> dict[str, BridgeLink]:
    """The rows that describe the bridges there are."""
    by_link: dict[int, list[Interface]] = {}
    for each in held:
        if each.scope == SCOPE_UNIVERSE:
            by_link.setdefault(each.link, []).append(each.address)
    return {
        link.name: BridgeLink(link.name, link.mac, link.mtu_bytes, tuple(by_link.get(link.index, ())))
        for link in bridges
    }
