"""What a node knows of itself that is no API object: its uplink, the pods attached to it, and what it found
out of services' endpoints."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from podlane.model.addresses import Address, Prefix


class Underlay(Struct, frozen=True):
    """The link by which this node meets the others: what carries its InternalIP, or what `underlay` chose.

    addresses: interface addresses with their on-link prefixes, as "172.30.1.11/24" gives
    (172.30.1.11, 172.30.1.0/24). node_addresses: what this node has on any link, but for loopback and
    link-local addresses; empty when nobody looked. chosen: where other nodes are to send, at most one
    address a family; a family without one has the InternalIP.
    """

    device: str
    mtu_bytes: int
    addresses: tuple[tuple[Address, Prefix], ...] = ()
    node_addresses: tuple[Address, ...] = ()
    chosen: tuple[Address, ...] = ()


class Attachment(Struct, frozen=True):
    """One pod interface made by CNI ADD; it exists before the pod's status.podIP does.

    device: the host's end of the veth; mac: of the pod's end; addresses: at most one a family.
    bridge: the bridge that device is a port of; "" for a link that is routed.
    """

    container_id: str
    ifname: str
    device: str
    mac: str
    addresses: tuple[Address, ...]
    pod_namespace: str = ""
    pod_name: str = ""
    bridge: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.container_id, self.ifname


class Standing(Struct, frozen=True):
    """A way to a node that has answered: WireGuard's handshake, the routes that BGP is to bring."""

    way: str
    node: str

    @property
    def key(self) -> tuple[str, str]:
        return self.way, self.node


WHOLE_SHARE: Final = 16


class Shares(Struct, frozen=True):
    """What of its weight each endpoint of a service gets at present, in sixteenths (1 to WHOLE_SHARE).

    endpoints: (address, port, share); those not named get the whole.
    """

    namespace: str
    name: str
    endpoints: tuple[tuple[Address, int, int], ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name
