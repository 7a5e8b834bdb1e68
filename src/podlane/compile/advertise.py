"""Which service addresses this node's BGP speaker announces to routers: what bgp.advertise says, and pools.

    ClusterIP        of every service that has one; each node announces it and the routers spread over them
    ExternalIP       spec.externalIPs
    LoadBalancerIP   status.loadBalancer.ingress, ipMode VIP

Of an address that is a LoadBalancerPool's the pool's `announce` decides where it says something, and only
nodes announce it that the pool means (as for ARP and NDP, compile/announce.py).

With externalTrafficPolicy Local an external or load-balancer address is announced only where an endpoint is,
and a ClusterIP with internalTrafficPolicy Local likewise, so that no router sends to a node that would drop.
Addresses that a node has itself are nobody's to announce.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from podlane.compile import facts
from podlane.compile.endpoints import nodes_with_endpoints
from podlane.compile.engine import Capability
from podlane.compile.store import Compiled, UnitKey
from podlane.compile.tables import NOTHING, Rows, Table
from podlane.compile.view import CONFIG, Change, View, service_of, since
from podlane.errors import ConfigError
from podlane.model.addresses import Address, address, family_of, host_prefix
from podlane.model.bgp import Advertised
from podlane.model.objects import Node, Service
from podlane.model.pools import Way, announced, announcing_nodes, may_announce, pool_addresses, ways_of

NAME: Final = "advertise"


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if not view.config.speaks_bgp:
        return
    if change.kind == "Service":
        yield UnitKey(NAME, "service", change.name, change.object.namespace)
    elif change.kind == "EndpointSlice":
        for piece in change.sides:
            namespace, name = service_of(piece)
            yield UnitKey(NAME, "service", name, namespace)
    elif change.kind == "Node" and _addresses(change.old) != _addresses(change.new):
        # An address that a node has itself is no service's to announce.
        for namespace, name in view.services:
            yield UnitKey(NAME, "service", name, namespace)
    elif change.kind == "Node" and change.name == view.me.name and _labels(change.old) != _labels(change.new):
        for namespace, name in view.balanced:
            yield UnitKey(NAME, "service", name, namespace)
    elif change.kind == CONFIG:
        for namespace, name in view.services:
            yield UnitKey(NAME, "service", name, namespace)


def compile_unit(key: UnitKey, view: View) -> Rows | Compiled:
    service = view.services.get((key.namespace, key.name))
    if service is None or service.spec.type == "ExternalName" or not view.config.speaks_bgp:
        return NOTHING
    wanted = view.config.bgp.advertise
    found: list[Address] = []
    internal = service.spec.internal_traffic_policy == "Local"
    external = service.spec.external_traffic_policy == "Local"
    here = (internal or external) and view.me.name in nodes_with_endpoints(view.slices_of(*service.key))
    if Advertised.CLUSTER_IP in wanted and (here or not internal):
        found += _readable(service.spec.cluster_ips)
    if here or not external:
        if Advertised.EXTERNAL_IP in wanted:
            found += _readable(service.spec.external_ips)
        if _by_pool(service, view) if announced(service) else Advertised.LOAD_BALANCER_IP in wanted:
            found += pool_addresses(service)
    families = view.config.ip_families
    rows = {
        host_prefix(where): host_prefix(where)
        for where in found
        if family_of(where) in families and not view.nodes_at(where)
    }
    return Compiled({Table.ORIGINATED: rows}, since(service)) if rows else NOTHING


def _by_pool(service: Service, view: View) -> bool:
    node = view.me.node
    if node is None or Way.BGP not in ways_of(service, view.config):
        return False
    try:
        return may_announce(node, announcing_nodes(service))
    except ConfigError:
        return False  # compile/announce.py says so


def _addresses(node: Node | None) -> list[Address]:
    return facts.internal_addresses(node) if node is not None else []


def _labels(node: Node | None) -> dict[str, str]:
    return node.metadata.labels if node is not None else {}


def _readable(texts: list[str]) -> Iterator[Address]:
    """What is no address (None, say) is told by compile/service_addresses.py."""
    for text in texts:
        try:
            yield address(text)
        except ConfigError:
            continue


CAPABILITY = Capability(NAME, units_of, compile_unit, reads=frozenset({"Node", "Service", "EndpointSlice"}))
