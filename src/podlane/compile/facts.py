"""What a Node object says of addresses and prefixes, parsed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

import msgspec

from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Prefix, address, family_of, prefix
from podlane.model.local import Underlay
from podlane.model.objects import Node

UNDERLAY_ANNOTATION: Final = "podlane.dev/underlay"
"""What an agent says of its node's uplink, in JSON: {"device", "mtu", "addresses": ["172.30.1.11/24", …]}."""


def internal_addresses(node: Node) -> list[Address]:
    """status.addresses of type InternalIP, in their order; what is no address is left out."""
    found: list[Address] = []
    for each in node.status.addresses:
        if each.type == "InternalIP":
            try:
                found.append(address(each.address))
            except ConfigError:
                continue  # the API does not validate node addresses; hostnames have been seen here
    return found


def internal_address(node: Node, family: Family) -> Address | None:
    """The first InternalIP of a family."""
    return next((a for a in internal_addresses(node) if family_of(a) is family), None)


def outer_family(node: Node, families: Iterable[Family]) -> Family | None:
    """The family that carries tunnels: the first of `families` that the node has an InternalIP of."""
    return next((f for f in families if internal_address(node, f)), None)


class _Announcement(msgspec.Struct):
    device: str
    mtu: int
    addresses: list[str]


def announcement(underlay: Underlay) -> str:
    """The value of UNDERLAY_ANNOTATION. Link-local addresses are nobody else's business."""
    addresses = [f"{a}/{p.prefixlen}" for a, p in underlay.addresses if not a.is_link_local]
    return msgspec.json.encode(_Announcement(underlay.device, underlay.mtu_bytes, addresses)).decode()


def announced_underlay(node: Node) -> Underlay | None:
    """What the node's agent has said of its uplink; None where it has not, or not so that it can be read."""
    return told_underlay(node.metadata.annotations.get(UNDERLAY_ANNOTATION, ""))


def told_underlay(text: str) -> Underlay | None:
    """What `announcement` wrote; None for anything else."""
    try:
        said = msgspec.json.decode(text, type=_Announcement)
        interfaces = [ipaddress.ip_interface(text) for text in said.addresses]
    except (msgspec.DecodeError, ValueError):
        return None
    return Underlay(said.device, said.mtu, tuple((i.ip, i.network) for i in interfaces))


def pod_prefixes(node: Node) -> dict[Family, Prefix]:
    """spec.podCIDRs by family, primary first (KEP-563: at most one a family).

    Raises ConfigError for what is no prefix.
    """
    texts = node.spec.pod_cidrs or ([node.spec.pod_cidr] if node.spec.pod_cidr else [])
    found: dict[Family, Prefix] = {}
    for parsed in map(prefix, texts):
        found.setdefault(family_of(parsed), parsed)
    return found
