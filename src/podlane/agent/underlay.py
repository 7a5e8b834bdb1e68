"""Which link and which addresses this node meets the others by. Pure, but for what it is handed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from podlane.kernel.rtnl import InterfaceAddress, Link
from podlane.model.addresses import Address, Family, family_of
from podlane.model.local import Underlay
from podlane.model.underlay import UnderlayChoice

Ours = Callable[[str], bool]


class Lead(NamedTuple):
    """Where a route leads: the index of the link, and the source the kernel would take."""

    link: int
    source: Address | None


def find(
    wanted: Sequence[Address],
    links: Iterable[Link],
    held: Iterable[InterfaceAddress],
    ours: Ours = lambda _: False,
) -> Underlay | None:
    """The link that has the first of `wanted` which any link has; None if none does.

    ours: whether a link of that name is podlane's; then its addresses are none of the node's.

    The addresses of loopback count: some networks route a node's address to it (BGP to the host); but
    then there is no one underlay, and the tunnel's is chosen by the route.
    """
    links, held = list(links), list(held)
    by_index = {link.index: link for link in links}
    for address in wanted:
        for found in held:
            if found.address.ip == address:
                return _underlay(by_index[found.link], links, held, ours)
    return None


def choose(
    choice: UnderlayChoice,
    families: Sequence[Family],
    links: Sequence[Link],
    held: Sequence[InterfaceAddress],
    leads: Iterable[Lead],
    ours: Ours = lambda _: False,
) -> Underlay | None:
    """What the configuration asks for; None if there is no such thing. families: the primary one first; one
    link has to do for all of them. leads: of choice.canReach, in its order."""
    by_index = {link.index: link for link in links if not ours(link.name)}
    for link, preferred in _candidates(choice, families, list(by_index.values()), held, leads):
        usable = [a.address.ip for a in held if a.link == link.index and _usable(a)]
        fitting = [ip for ip in (*preferred, *usable) if ip in usable]
        if choice.cidrs:
            fitting = [ip for ip in fitting if any(ip in cidr for cidr in choice.prefixes)]
        chosen = [next((ip for ip in fitting if family_of(ip) is family), None) for family in families]
        if any(chosen):
            found = _underlay(link, links, held, ours)
            return Underlay(
                found.device,
                found.mtu_bytes,
                found.addresses,
                found.node_addresses,
                tuple(ip for ip in chosen if ip is not None),
            )
    return None


def _candidates(
    choice: UnderlayChoice,
    families: Sequence[Family],
    links: Sequence[Link],
    held: Sequence[InterfaceAddress],
    leads: Iterable[Lead],
) -> Iterator[tuple[Link, list[Address]]]:
    """Links in the order of their right to be it, and addresses that are preferred there."""
    by_index = {link.index: link for link in links}
    if choice.interfaces:
        by_name = {link.name: link for link in links}
        yield from ((by_name[name], []) for name in choice.interfaces if name in by_name)
    elif choice.interface_regex:
        fits = re.compile(choice.interface_regex).fullmatch
        yield from ((link, []) for link in sorted(links, key=lambda link: link.index) if fits(link.name))
    elif choice.can_reach:
        found = [lead for lead in leads if lead.link in by_index]
        for lead in found:
            same = [each.source for each in found if each.link == lead.link and each.source is not None]
            yield by_index[lead.link], same
    else:
        for family in families:  # the primary one's address decides which link it is
            for each in held:
                ip = each.address.ip
                fits_cidr = family_of(ip) is family and any(ip in cidr for cidr in choice.prefixes)
                if fits_cidr and each.link in by_index:
                    yield by_index[each.link], []


def _underlay(link: Link, links: Iterable[Link], held: Sequence[InterfaceAddress], ours: Ours) -> Underlay:
    names = {each.index: each.name for each in links}
    here = tuple((each.address.ip, each.address.network) for each in held if each.link == link.index)
    theirs = (each for each in held if not ours(names[each.link]))
    return Underlay(link.name, link.mtu_bytes, here, _own(theirs))


def _own(held: Iterable[InterfaceAddress]) -> tuple[Address, ...]:
    """In an order of their own: a link that is made anew changes nothing."""
    found = {each.address.ip for each in held}
    usable = [ip for ip in found if not (ip.is_loopback or ip.is_link_local or ip.is_multicast)]
    return tuple(sorted(usable, key=lambda ip: (ip.version, int(ip))))


def _usable(held: InterfaceAddress) -> bool:
    return not (held.address.is_loopback or held.address.is_link_local)


def complaint(
    wanted: Sequence[Address],
    links: Iterable[Link],
    held: Iterable[InterfaceAddress],
    choice: UnderlayChoice | None = None,
    ours: Ours = lambda _: False,
) -> str:
    """Why find or choose returned None, for the status and the log."""
    names = {link.index: link.name for link in links}
    usable = [a for a in held if _usable(a) and not ours(names.get(a.link, ""))]
    there = ", ".join(f"{names.get(a.link, a.link)} {a.address.ip}" for a in usable) or "no address at all"
    if choice is not None and choice.key:
        return f"no link of this node fits {choice}; there is {there}. Correct {choice.key}, or leave it out"
    asked = " or ".join(map(str, wanted)) or "any InternalIP (the Node has none)"
    return f"no link of this node has {asked}; there is {there}. Set the kubelet's --node-ip to one of them"
