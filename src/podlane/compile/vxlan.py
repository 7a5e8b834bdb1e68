"""Pods of other nodes are reached through a VXLAN tunnel (RFC 7348) without any learning.

A packet for 10.244.2.7 leaves node-1 like this; every step is a row written before the route is:

    route       10.244.2.0/24 via 10.244.2.0 dev plvxlan onlink src 172.30.1.11
    neighbour   10.244.2.0 is at 02:… (node-2's tunnel end)
    fdb         02:… is behind 172.30.2.12
    outer       172.30.1.11 -> 172.30.2.12, UDP 8472, VNI 85

and node-2 finds the pod's own route behind its tunnel device. The tunnel end's address is the first
of the node's CIDR, which no pod gets: the network address, or ::1 in IPv6, where ::0 is the
subnet-router anycast address (RFC 4291, 2.6.1) and cannot be a source.

MAC addresses follow from node names, so that nothing has to be exchanged, and the device has its own
from creation, so that no udev rule finds something to change. The preferred source is the node's own
InternalIP: pods see the node by the address the API shows.

The outer family is the primary one (the first of ipFamilies that this node has an InternalIP of); one
tunnel carries both families.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from podlane.compile import facts
from podlane.compile.engine import Capability
from podlane.compile.store import Compiled, UnitKey
from podlane.compile.tables import NOTHING, FdbEntry, Neighbour, Route, Rows, Table, VxlanLink
from podlane.compile.view import CONFIG, UNDERLAY, Change, View, since
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Prefix, family_of, host_prefix
from podlane.model.local import Underlay
from podlane.model.objects import Node

NAME: Final = "vxlan"
DEVICE: Final = "plvxlan"
OWN: Final = UnitKey(NAME, "device")

# Outer Ethernet is not counted in the underlay's MTU: IP + UDP 8 + VXLAN 8 + inner Ethernet 14.
OVERHEAD_BYTES: Final = {Family.IPV4: 20 + 8 + 8 + 14, Family.IPV6: 40 + 8 + 8 + 14}


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if change.kind in (CONFIG, UNDERLAY):
        yield OWN
    elif change.kind == "Node":
        if change.name != view.me.name:
            yield UnitKey(NAME, "peer", change.name)
        elif change.old is None or change.new is None or _addresses(change.old) != _addresses(change.new):
            # What this node is decides the rows of every peer: a change as large as the cluster.
            yield OWN
            for name in view.nodes:
                if name != view.me.name:
                    yield UnitKey(NAME, "peer", name)


def compile_unit(key: UnitKey, view: View) -> Rows | Compiled:
    return _device(view) if key == OWN else _peer(key.name, view)


def _device(view: View) -> Rows | Compiled:
    me = view.me
    if me.node is None or me.underlay is None:
        return NOTHING
    outer = outer_family(view)
    if outer is None:
        return _refused(me.node, "no InternalIP of any family of ipFamilies; set one (kubelet --node-ip)")
    try:
        own = facts.pod_prefixes(me.node)
    except ConfigError as error:
        return _refused(me.node, f"spec.podCIDRs: {error}")
    if not own:
        return _refused(me.node, "no podCIDR yet; the controller gives one, or the cluster's own IPAM")
    local = facts.internal_address(me.node, outer)
    assert local is not None
    backend = view.config.backend
    link = VxlanLink(
        name=DEVICE,
        vni=backend.vni,
        port=backend.port,
        underlay=me.underlay.device,
        local=local,
        mac=vtep_mac(me.name),
        mtu_bytes=link_mtu_bytes(view),
        addresses=tuple(host_prefix(vtep_address(pods)) for pods in own.values()),
    )
    return {Table.LINKS: {DEVICE: link}}


def _peer(name: str, view: View) -> Rows | Compiled:
    peer, me = view.nodes.get(name), view.me.node
    outer = outer_family(view)
    if peer is None or me is None or outer is None:
        return NOTHING
    try:
        theirs, own = facts.pod_prefixes(peer), _own_prefixes(me)
    except ConfigError as error:
        return _refused(peer, f"spec.podCIDRs: {error}")
    if not theirs:
        return _refused(peer, "no podCIDR yet, so its pods cannot be reached")
    remote = facts.internal_address(peer, outer)
    if remote is None:
        return _refused(peer, f"no InternalIP of {outer}, the family of the tunnels")
    mac = vtep_mac(peer.name)
    neighbours: dict[Any, Any] = {}
    routes: dict[Any, Any] = {}
    refused: list[str] = []
    for family, pods in theirs.items():
        if family not in own:
            continue  # no pod here speaks it
        if pods.overlaps(own[family]):
            refused.append(f"node {name}: podCIDR {pods} overlaps this node's own {own[family]}")
            continue
        end = vtep_address(pods)
        neighbours[DEVICE, end] = Neighbour(DEVICE, end, mac)
        source = facts.internal_address(me, family)
        routes[pods] = Route(pods, via=end, device=DEVICE, source=source, onlink=True)
    if not routes:
        return Compiled(NOTHING, since(peer), tuple(refused))
    fdb = {(DEVICE, mac): FdbEntry(DEVICE, mac, remote)}
    rows = {Table.NEIGHBOURS: neighbours, Table.FDB: fdb, Table.ROUTES: routes}
    return Compiled(rows, since(peer), tuple(refused))


CAPABILITY = Capability(NAME, units_of, compile_unit)


def outer_family(view: View) -> Family | None:
    """The family that carries the tunnels: the first of ipFamilies this node has an InternalIP of."""
    node = view.me.node
    if node is None:
        return None
    return next((f for f in view.config.ip_families if facts.internal_address(node, f)), None)


def link_mtu_bytes(view: View) -> int:
    """Of the tunnel and of pods' links; 0 while the uplink is not known."""
    outer, underlay = outer_family(view), view.me.underlay
    if outer is None or underlay is None:
        return 0
    return view.config.backend.mtu_bytes or underlay.mtu_bytes - OVERHEAD_BYTES[outer]


def vtep_mac(node_name: str) -> str:
    """A locally administered unicast address that follows from the node's name."""
    tail = hashlib.sha256(b"podlane-vtep" + node_name.encode()).digest()[:5]
    return ":".join(f"{octet:02x}" for octet in b"\x02" + tail)


def vtep_address(pods: Prefix) -> Address:
    """The tunnel end's own address within its node's CIDR."""
    first = pods.network_address
    return first if family_of(first) is Family.IPV4 else first + 1


def underlay_from_node(view: View) -> Underlay | None:
    """What the underlay must look like, judged by the Node object alone."""
    node = view.me.node
    if node is None or outer_family(view) is None:
        return None
    addresses = tuple((a, host_prefix(a)) for a in facts.internal_addresses(node))
    return Underlay("eth0", view.config.fabric.mtu, addresses)


def _addresses(node: Node) -> object:
    return node.spec, node.status.addresses


def _own_prefixes(me: Node) -> dict[Family, Prefix]:
    try:
        return facts.pod_prefixes(me)
    except ConfigError:
        return {}  # the device's unit says so


def _refused(node: Node, why: str) -> Compiled:
    return Compiled(NOTHING, since(node), (f"node {node.name}: {why}",))
