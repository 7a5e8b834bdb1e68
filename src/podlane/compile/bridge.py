"""Link mode `bridge`: this node's pods are ports of one bridge, whose address is their gateway.

    cni0        10.244.1.1/24, fd00:10:244:1::1/64
    route       10.244.1.0/24 dev cni0 src 172.30.1.11     (and a row for each pod: compile/pods.py)
    in a pod    eth0 10.244.1.5/24, default via 10.244.1.1

A packet for another pod of the node crosses the bridge, where br_netfilter shows it to the same chains as
a routed one (bridge-nf-call-iptables: without it, a service's answer would come back under the pod's own
address, and policy would not see it). All else goes to the bridge's address and is routed.

The node does not use the gateway's address for what it sends: pods see the node by its InternalIP, as in
mode `routed`. The MAC address follows from the node's name, so that pods' neighbour entries stay true when
ports come and go.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator
from typing import Any, Final

from podlane.compile import facts
from podlane.compile.engine import Capability
from podlane.compile.peers import decides, link_mtu_bytes
from podlane.compile.store import UnitKey
from podlane.compile.tables import NOTHING, BridgeLink, Route, Rows, Table
from podlane.compile.view import Change, View
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Interface, Prefix
from podlane.model.config import LinkMode

NAME: Final = "bridge"
DEVICE: Final = UnitKey(NAME, "device")


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if view.config.link.mode is not LinkMode.BRIDGE:
        return
    if decides(change, view) or (change.kind == "Node" and change.name == view.me.name):
        yield DEVICE


def compile_unit(key: UnitKey, view: View) -> Rows:
    me, link = view.me, view.config.link
    mtu_bytes = link_mtu_bytes(view)
    if me.node is None or not mtu_bytes:
        return NOTHING
    try:
        own = facts.pod_prefixes(me.node)
    except ConfigError:
        return NOTHING  # the tunnel's unit says so
    routes: dict[Any, Any] = {
        pods: Route(pods, None, link.bridge, facts.source_address(me.node, me.underlay, family))
        for family, pods in own.items()
    }
    bridge = BridgeLink(
        name=link.bridge,
        mac=bridge_mac(me.name),
        mtu_bytes=mtu_bytes,
        addresses=tuple(map(gateway_interface, own.values())),
    )
    return {Table.BRIDGES: {bridge.name: bridge}, Table.ROUTES: routes} if own else NOTHING


CAPABILITY = Capability(NAME, units_of, compile_unit)


def bridge_mac(node_name: str) -> str:
    """A locally administered unicast address that follows from the node's name."""
    return (b"\x02" + hashlib.sha256(b"podlane-bridge" + node_name.encode()).digest()[:5]).hex(":")


def gateway(pods: Prefix) -> Address:
    """What pods of a node CIDR send to: its second address, which no pod gets."""
    return pods.network_address + 1


def gateway_interface(pods: Prefix) -> Interface:
    return ipaddress.ip_interface(f"{gateway(pods)}/{pods.prefixlen}")
