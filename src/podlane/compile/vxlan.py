"""Pods of other nodes are reached through a VXLAN tunnel (RFC 7348) without any learning.

A packet for 10.244.2.7 leaves node-1 like this; every step is a row written before the route is:

    route       10.244.2.0/24 via 10.244.2.0 dev plvxlan onlink src 172.30.1.11
    neighbour   10.244.2.0 is at 02:… (node-2's tunnel end)
    fdb         02:… is behind 172.30.2.12
    outer       172.30.1.11 -> 172.30.2.12, UDP 8472, VNI 85

and node-2 finds the pod's own route behind its tunnel device. The next hop is the first address of the node's
CIDR, which no pod gets; for IPv6 pods a link-local address that follows from the MAC address.

MAC addresses follow from node names, so that nothing has to be exchanged, and the device has its own
from creation, so that no udev rule finds something to change. The preferred source is the node's own
InternalIP: pods see the node by the address the API shows.

The outer family is the primary one (the first of ipFamilies that this node has an InternalIP of); one
tunnel carries both families.
"""

from __future__ import annotations

import hashlib
from ipaddress import ip_address
from typing import Any, Final

from podlane.compile.tables import FdbEntry, Neighbour, Route, Rows, Table, VxlanLink
from podlane.compile.ways import Here, Peer
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Prefix, family_of, host_prefix

DEVICE: Final = "plvxlan"

# Outer Ethernet is not counted in the underlay's MTU: IP + UDP 8 + VXLAN 8 + inner Ethernet 14.
OVERHEAD_BYTES: Final = {Family.IPV4: 20 + 8 + 8 + 14, Family.IPV6: 40 + 8 + 8 + 14}


class Vxlan:
    """The Way of backend.type vxlan."""

    tunnel: Final = DEVICE
    place: Final = (Table.LINKS, DEVICE)

    def overhead_bytes(self, outer: Family) -> int:
        return OVERHEAD_BYTES[outer]

    def device(self, here: Here) -> Rows:
        backend = here.config.backend
        local = here.address(here.outer)
        assert local is not None
        link = VxlanLink(
            name=DEVICE,
            vni=backend.vni,
            port=backend.port,
            underlay=here.underlay.device,
            local=local,
            mac=vtep_mac(here.node.name),
            mtu_bytes=here.mtu_bytes,
            addresses=tuple(host_prefix(vtep_address(pods)) for pods in here.pods.values()),
            gbp=backend.gbp,
        )
        return {Table.LINKS: {DEVICE: link}}

    def peer(self, peer: Peer, here: Here) -> Rows:
        remote = peer.address(here.outer)
        if remote is None:
            raise ConfigError(f"no InternalIP of {here.outer}, the family of the tunnels")
        mac = vtep_mac(peer.node.name)
        neighbours: dict[Any, Any] = {}
        routes: dict[Any, Any] = {}
        for family, pods in peer.pods.items():
            via = next_hop(pods, mac)
            neighbours[DEVICE, via] = Neighbour(DEVICE, via, mac)
            source = here.source(family)
            routes[pods] = Route(pods, via, DEVICE, source, onlink=family is Family.IPV4)
        fdb = {(DEVICE, mac): FdbEntry(DEVICE, mac, remote)}
        return {Table.NEIGHBOURS: neighbours, Table.FDB: fdb, Table.ROUTES: routes}


def vtep_mac(node_name: str) -> str:
    """A locally administered unicast address that follows from the node's name."""
    tail = hashlib.sha256(b"podlane-vtep" + node_name.encode()).digest()[:5]
    return ":".join(f"{octet:02x}" for octet in b"\x02" + tail)


def next_hop(pods: Prefix, mac: str) -> Address:
    """What the route to a node's pods leads to. In IPv6 a link-local address made of the MAC (RFC 4291,
    appendix A): an address of the node's own CIDR is refused while another device has a route there."""
    if family_of(pods) is Family.IPV4:
        return vtep_address(pods)
    octets = bytes.fromhex(mac.replace(":", ""))
    return ip_address(
        b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    )


def vtep_address(pods: Prefix) -> Address:
    """The tunnel end's own address within its node's CIDR."""
    first = pods.network_address
    return first if family_of(first) is Family.IPV4 else first + 1
