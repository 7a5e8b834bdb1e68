"""What a Node object says of addresses and prefixes, parsed."""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable
from typing import Final

import msgspec

from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Prefix, address, family_of, prefix
from podlane.model.local import Underlay
from podlane.model.objects import Node

UNDERLAY_ANNOTATION: Final = "podlane.dev/underlay"
"""What an agent says of its node's uplink, in JSON: {"device", "mtu", "addresses": ["172.30.1.11/24", …]},
and "use": ["172.31.0.11", …] where others are to send to another address than the InternalIP."""


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


def underlay_address(node: Node, family: Family) -> Address | None:
    """Where others send what is for this node: what its agent says it has chosen, or its InternalIP."""
    return _of_family(chosen_addresses(node), family) or internal_address(node, family)


def chosen_addresses(node: Node) -> tuple[Address, ...]:
    """Those of `underlay_address` that are no InternalIPs."""
    if _CHOSEN not in node.metadata.annotations.get(UNDERLAY_ANNOTATION, ""):
        return ()
    said = announced_underlay(node)
    return said.chosen if said is not None else ()


def own_address(node: Node, underlay: Underlay, family: Family) -> Address | None:
    """Where this node is sent to, by what it knows of itself."""
    return _of_family(underlay.chosen, family) or internal_address(node, family)


def source_address(node: Node, underlay: Underlay | None, family: Family) -> Address | None:
    """What the node sends from: its InternalIP, unless no link has that (a NAT stands before the node)."""
    internal = internal_address(node, family)
    if underlay is None or not underlay.chosen or internal in (underlay.node_addresses or [internal]):
        return internal
    return _of_family(underlay.chosen, family)


def sending_addresses(node: Node, remote: Address, families: Container[Family]) -> list[Address]:
    """What a node itself sends to others' pods from: its InternalIPs, and where it is sent to."""
    found = [a for a in internal_addresses(node) if family_of(a) in families]
    return found if remote in found or family_of(remote) not in families else [*found, remote]


def outer_family(node: Node, underlay: Underlay | None, families: Iterable[Family]) -> Family | None:
    """The family that carries tunnels: the first of `families` that the node can be sent to in."""
    chosen = underlay.chosen if underlay is not None else ()
    return next((f for f in families if _of_family(chosen, f) or internal_address(node, f)), None)


def _of_family(addresses: Iterable[Address], family: Family) -> Address | None:
    return next((a for a in addresses if family_of(a) is family), None)


_CHOSEN: Final = '"use"'


class _Announcement(msgspec.Struct, omit_defaults=True):
    device: str
    mtu: int
    addresses: list[str]
    use: list[str] = []


def announcement(underlay: Underlay) -> str:
    """The value of UNDERLAY_ANNOTATION. Link-local addresses are nobody else's business."""
    addresses = [f"{a}/{p.prefixlen}" for a, p in underlay.addresses if not a.is_link_local]
    said = _Announcement(underlay.device, underlay.mtu_bytes, addresses, list(map(str, underlay.chosen)))
    return msgspec.json.encode(said).decode()


def announced_underlay(node: Node) -> Underlay | None:
    """What the node's agent has said of its uplink; None where it has not, or not so that it can be read."""
    return told_underlay(node.metadata.annotations.get(UNDERLAY_ANNOTATION, ""))


def told_underlay(text: str) -> Underlay | None:
    """What `announcement` wrote; None for anything else."""
    try:
        said = msgspec.json.decode(text, type=_Announcement)
        interfaces = [ipaddress.ip_interface(text) for text in said.addresses]
        chosen = tuple(map(ipaddress.ip_address, said.use))
    except (msgspec.DecodeError, ValueError):
        return None
    return Underlay(said.device, said.mtu, tuple((i.ip, i.network) for i in interfaces), chosen=chosen)


def pod_prefixes(node: Node) -> dict[Family, Prefix]:
    """spec.podCIDRs by family, primary first (KEP-563: at most one a family).

    Raises ConfigError for what is no prefix.
    """
    texts = node.spec.pod_cidrs or ([node.spec.pod_cidr] if node.spec.pod_cidr else [])
    found: dict[Family, Prefix] = {}
    for parsed in map(prefix, texts):
        found.setdefault(family_of(parsed), parsed)
    return found
