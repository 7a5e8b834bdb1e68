"""What every way to another node's pods has in common: the facts it starts from, the functions it gives.

A **way** is what `backend.type` names: a tunnel, plain routes. It compiles rows and judges nothing else;
which nodes there are, which families both speak and what overlaps is decided before (compile/peers.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from podlane.compile import facts
from podlane.compile.tables import Rows, Table
from podlane.model.addresses import Address, Family, Prefix
from podlane.model.config import NetworkConfig
from podlane.model.local import Underlay
from podlane.model.objects import Node


class Here(NamedTuple):
    """This node. pods: its own CIDRs, primary first. outer: of tunnels. mtu_bytes: of the way's device.

    addresses: where others send what is for this node. sources: what it sends to pods from itself.
    """

    config: NetworkConfig
    node: Node
    underlay: Underlay
    outer: Family
    pods: Mapping[Family, Prefix]
    mtu_bytes: int
    addresses: Mapping[Family, Address | None]
    sources: Mapping[Family, Address | None]

    def address(self, family: Family) -> Address | None:
        return self.addresses[family]

    def source(self, family: Family) -> Address | None:
        return self.sources[family]

    def reaches(self, address: Address) -> bool:
        """Whether it is on a subnet of the uplink: no router stands between."""
        return any(address in subnet for _, subnet in self.underlay.addresses)


class Peer(NamedTuple):
    """Another node. pods: its CIDRs of the families that this node's pods speak too. addresses: where it is
    sent to, if not where its Node says."""

    node: Node
    pods: Mapping[Family, Prefix]
    addresses: Mapping[Family, Address] | None = None

    def address(self, family: Family) -> Address | None:
        """Where it is sent to."""
        if self.addresses is not None:
            return self.addresses.get(family)
        return facts.underlay_address(self.node, family)


class Way(Protocol):
    """device and peer raise ConfigError with the reason when there is no such way to that node."""

    @property
    def tunnel(self) -> str:
        """The name of its own device; "" where packets leave by the uplink as they are."""
        ...

    def overhead_bytes(self, outer: Family) -> int:
        """What it adds to a packet, outer Ethernet header not counted."""
        ...

    @property
    def place(self) -> tuple[Table, str] | None:
        """The row without which nothing is received by it; None where it needs none."""
        ...

    def device(self, here: Here) -> Rows:
        """What this node needs once, whoever the others are."""
        ...

    def peer(self, peer: Peer, here: Here) -> Rows:
        """What leads to the pods of one other node."""
        ...
