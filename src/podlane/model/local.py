"""What a node knows of itself that is no API object: its uplink, and the pods attached to it."""

from __future__ import annotations

from msgspec import Struct

from podlane.model.addresses import Address, Prefix


class Underlay(Struct, frozen=True):
    """The link that carries this node's InternalIP.

    addresses: interface addresses with their on-link prefixes, as "172.30.1.11/24" gives
    (172.30.1.11, 172.30.1.0/24). node_addresses: what this node has on any link, but for loopback and
    link-local addresses; empty when nobody looked.
    """

    device: str
    mtu_bytes: int
    addresses: tuple[tuple[Address, Prefix], ...] = ()
    node_addresses: tuple[Address, ...] = ()


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
