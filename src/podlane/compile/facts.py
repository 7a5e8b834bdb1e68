"""What a Node object says of addresses and prefixes, parsed."""

from __future__ import annotations

from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Prefix, address, family_of, prefix
from podlane.model.objects import Node


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


def pod_prefixes(node: Node) -> dict[Family, Prefix]:
    """spec.podCIDRs by family, primary first (KEP-563: at most one a family).

    Raises ConfigError for what is no prefix.
    """
    texts = node.spec.pod_cidrs or ([node.spec.pod_cidr] if node.spec.pod_cidr else [])
    found: dict[Family, Prefix] = {}
    for parsed in map(prefix, texts):
        found.setdefault(family_of(parsed), parsed)
    return found
