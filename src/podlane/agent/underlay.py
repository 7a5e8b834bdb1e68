"""Which link carries this node's InternalIP. Pure, but for the reading of links and addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from podlane.kernel.rtnl import InterfaceAddress, Link
from podlane.model.addresses import Address
from podlane.model.local import Underlay


def find(
    wanted: Sequence[Address],
    links: Iterable[Link],
    held: Iterable[InterfaceAddress],
    ours: Callable[[str], bool] = lambda _: False,
) -> Underlay | None:
    """The link that has the first of `wanted` which any link has; None if none does.

    ours: whether a link of that name is podlane's; then its addresses are none of the node's.

    The addresses of loopback count: some networks route a node's address to it (BGP to the host); but
    then there is no one underlay, and the tunnel's is chosen by the route.
    """
    by_index = {link.index: link for link in links}
    held = list(held)
    for address in wanted:
        for found in held:
            if found.address.ip == address:
                link = by_index[found.link]
                here = tuple(
                    (each.address.ip, each.address.network) for each in held if each.link == link.index
                )
                theirs = (each for each in held if not ours(by_index[each.link].name))
                return Underlay(link.name, link.mtu_bytes, here, _own(theirs))
    return None


def _own(held: Iterable[InterfaceAddress]) -> tuple[Address, ...]:
    """In an order of their own: a link that is made anew changes nothing."""
    found = {each.address.ip for each in held}
    usable = [ip for ip in found if not (ip.is_loopback or ip.is_link_local or ip.is_multicast)]
    return tuple(sorted(usable, key=lambda ip: (ip.version, int(ip))))


def complaint(wanted: Sequence[Address], links: Iterable[Link], held: Iterable[InterfaceAddress]) -> str:
    """Why find returned None, for the status and the log."""
    names = {link.index: link.name for link in links}
    usable = [a for a in held if not (a.address.is_loopback or a.address.is_link_local)]
    there = ", ".join(f"{names.get(a.link, a.link)} {a.address.ip}" for a in usable) or "no address at all"
    asked = " or ".join(map(str, wanted)) or "any InternalIP (the Node has none)"
    return f"no link of this node has {asked}; there is {there}. Set the kubelet's --node-ip to one of them"
