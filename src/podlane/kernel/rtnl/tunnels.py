"""What it takes for a tunnel's device to have the MTU and the addresses of its row. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Protocol

from podlane.kernel.netlink import Request
from podlane.kernel.rtnl import addresses, links
from podlane.kernel.rtnl.addresses import SCOPE_UNIVERSE, InterfaceAddress
from podlane.kernel.rtnl.links import Link
from podlane.model.addresses import Prefix


class Device(Protocol):
    """A row of a tunnel's device."""

    @property
    def name(self) -> str: ...
    @property
    def mtu_bytes(self) -> int: ...
    @property
    def addresses(self) -> tuple[Prefix, ...]: ...


def repair(row: Device, present: Link, held: Iterable[InterfaceAddress], mac: str = "") -> list[Request]:
    """Changes to a device whose parameters are right. Empty if all of it is. mac: "" for any."""
    requests: list[Request] = []
    mac = mac if mac != present.mac else ""
    mtu_bytes = row.mtu_bytes if row.mtu_bytes != present.mtu_bytes else 0
    if mac or mtu_bytes or not present.up:
        change = links.change(present.index, up=True, mac=mac, mtu_bytes=mtu_bytes, what=row.name)
        requests.append(change)
    own = {address.address for address in held if address.scope == SCOPE_UNIVERSE}
    wanted = {ipaddress.ip_interface(prefix): prefix for prefix in row.addresses}
    for address in wanted:
        if address not in own:
            requests.append(addresses.add(present.index, address, what=row.name))
    for address in own - wanted.keys():
        requests.append(addresses.delete(present.index, address, what=row.name))
    return requests
