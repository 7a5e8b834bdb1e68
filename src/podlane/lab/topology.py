"""The lab's underlay as a plan: which host sits in which rack with which addresses. Pure.

    outside 198.51.100.10 ── router ── core 172.30.0.0/24 ── control 172.30.0.2 (API)
                               ├────── rack 1 172.30.1.0/24 ── node-1 172.30.1.11, node-3 ...
                               └────── rack 2 172.30.2.0/24 ── node-2 172.30.2.12, ...

Racks are subnets number 1.. of nodeCIDRs, the core is number 0; a gateway is host 1 of its subnet,
node I is host 10+I of its rack. `outside` lives in documentation prefixes (RFC 5737, RFC 3849): an
address no node has and no pod may be mistaken for.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Interface, IPv6Interface
from typing import TypeAlias

from msgspec import Struct

from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Prefix
from podlane.model.config import NetworkConfig

Interface: TypeAlias = IPv4Interface | IPv6Interface

OUTSIDE: dict[Family, Prefix] = {
    Family.IPV4: ipaddress.ip_network("198.51.100.0/24"),
    Family.IPV6: ipaddress.ip_network("2001:db8:100::/64"),
}
_RACK_BITS = {Family.IPV4: 24, Family.IPV6: 112}
_FIRST_NODE_HOST = 10
MAX_NODES = 240


class Host(Struct, frozen=True):
    """One host's uplink. bridge: the segment it is on; gateways: in the order of addresses."""

    name: str
    bridge: str
    addresses: tuple[Interface, ...]
    gateways: tuple[Address, ...]

    @property
    def plain_addresses(self) -> list[str]:
        return [str(a.ip) for a in self.addresses]


class Segment(Struct, frozen=True):
    """A bridge of the fabric and the router's own addresses on it."""

    bridge: str
    addresses: tuple[Interface, ...]


class Topology(Struct, frozen=True):
    """nodes: with their rack, 1-based."""

    segments: tuple[Segment, ...]
    control: Host
    outside: Host
    nodes: tuple[tuple[Host, int], ...]


def plan(config: NetworkConfig, nodes: int) -> Topology:
    """Raises ConfigError when nodeCIDRs cannot hold that many racks or nodes."""
    if not 1 <= nodes <= MAX_NODES:
        raise ConfigError(f"--nodes {nodes}: a lab has 1 to {MAX_NODES} nodes")
    racks = config.fabric.racks
    subnets = {family: _subnets(prefix, family, racks, nodes) for family, prefix in config.nodes.items()}
    outside = {family: OUTSIDE[family] for family in config.ip_families}

    def of(rack: int) -> dict[Family, Prefix]:
        return {family: numbered[rack] for family, numbered in subnets.items()}

    def host(name: str, bridge: str, networks: dict[Family, Prefix], number: int) -> Host:
        return Host(
            name,
            bridge,
            tuple(_interface(n, number) for n in networks.values()),
            tuple(_interface(n, 1).ip for n in networks.values()),
        )

    def segment(bridge: str, networks: dict[Family, Prefix]) -> Segment:
        return Segment(bridge, tuple(_interface(n, 1) for n in networks.values()))

    placed = [(i, (i - 1) % racks + 1) for i in range(1, nodes + 1)]
    return Topology(
        segments=(
            segment("core", of(0)),
            segment("edge", outside),
            *(segment(f"rack{r}", of(r)) for r in range(1, racks + 1)),
        ),
        control=host("control", "core", of(0), 2),
        outside=host("outside", "edge", outside, 10),
        nodes=tuple(
            (host(f"node-{i}", f"rack{rack}", of(rack), _FIRST_NODE_HOST + i), rack) for i, rack in placed
        ),
    )


def _interface(network: Prefix, number: int) -> Interface:
    return ipaddress.ip_interface(f"{network[number]}/{network.prefixlen}")


def _subnets(prefix: Prefix, family: Family, racks: int, nodes: int) -> dict[int, Prefix]:
    bits = max(_RACK_BITS[family], prefix.prefixlen + racks.bit_length())
    hosts = 2 ** max(0, family.bits - bits)
    if hosts < _FIRST_NODE_HOST + nodes + 2:
        raise ConfigError(
            f"nodeCIDRs: {prefix} is too small for {racks} racks and {nodes} nodes; "
            f"use a prefix of /{_RACK_BITS[family] - racks.bit_length()} or shorter"
        )
    step = 2 ** (family.bits - bits)
    base = int(prefix.network_address)
    kind = ipaddress.IPv4Network if family is Family.IPV4 else ipaddress.IPv6Network
    return {number: kind((base + number * step, bits)) for number in range(racks + 1)}
