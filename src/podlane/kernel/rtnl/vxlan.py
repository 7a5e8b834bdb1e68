"""What it takes for a VXLAN device to become the one a row describes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from podlane.compile.tables import VxlanLink
from podlane.kernel.netlink import Request
from podlane.kernel.rtnl import links, tunnels
from podlane.kernel.rtnl.addresses import SCOPE_UNIVERSE, InterfaceAddress
from podlane.kernel.rtnl.links import Link, Vxlan
from podlane.model.addresses import Prefix


def same_device(row: VxlanLink, present: Link, underlay: int) -> bool:
    """False: a parameter that cannot be changed is wrong, and only a new device will do."""
    return present.vxlan == _parameters(row, underlay)


def create(row: VxlanLink, underlay: int) -> list[Request]:
    """Down and without addresses: `repair` does the rest."""
    vxlan = _parameters(row, underlay)
    return links.create_vxlan(row.name, vxlan, mac=row.mac, mtu_bytes=row.mtu_bytes, link_local=False)


def repair(row: VxlanLink, present: Link, held: Iterable[InterfaceAddress]) -> list[Request]:
    """Changes to a device whose parameters are right. Empty if all of it is."""
    return tunnels.repair(row, present, held, row.mac)


def rows(
    tunnels: Iterable[Link], names: Mapping[int, str], held: Iterable[InterfaceAddress]
) -> dict[str, VxlanLink]:
    """The rows that describe the devices there are. names: link name by index."""
    by_link: dict[int, list[Prefix]] = {}
    for address in held:
        if address.scope == SCOPE_UNIVERSE:
            by_link.setdefault(address.link, []).append(address.address.network)
    found: dict[str, VxlanLink] = {}
    for link in tunnels:
        vxlan = link.vxlan
        if vxlan is not None and vxlan.local is not None:
            found[link.name] = VxlanLink(
                name=link.name,
                vni=vxlan.vni,
                port=vxlan.port,
                underlay=names.get(vxlan.underlay, ""),
                local=vxlan.local,
                mac=link.mac,
                mtu_bytes=link.mtu_bytes,
                addresses=tuple(by_link.get(link.index, ())),
                gbp=vxlan.gbp,
            )
    return found


def _parameters(row: VxlanLink, underlay: int) -> Vxlan:
    return Vxlan(row.vni, row.port, underlay, row.local, learning=False, gbp=row.gbp)
