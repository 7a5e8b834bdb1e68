"""Which service addresses this node's BGP speaker announces to routers (bgp.advertise).

    ClusterIP        of every service that has one; each node announces it and the routers spread over them
    ExternalIP       spec.externalIPs
    LoadBalancerIP   status.loadBalancer.ingress, ipMode VIP

With externalTrafficPolicy Local an external or load-balancer address is announced only where an endpoint is,
and a ClusterIP with internalTrafficPolicy Local likewise, so that no router sends to a node that would drop.
Addresses that a node has itself are nobody's to announce.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from podlane.compile.endpoints import nodes_with_endpoints
from podlane.compile.engine import Capability
from podlane.compile.store import Compiled, UnitKey
from podlane.compile.tables import NOTHING, Rows, Table
from podlane.compile.view import CONFIG, Change, View, service_of, since
from podlane.errors import ConfigError
from podlane.model.addresses import Address, address, family_of, host_prefix
from podlane.model.backends import Advertised, BackendType
from podlane.model.pools import pool_addresses

NAME: Final = "advertise"


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if not _wanted(view):
        return
    if change.kind == "Service":
        yield UnitKey(NAME, "service", change.name, change.object.namespace)
    elif change.kind == "EndpointSlice":
        for piece in change.sides:
            namespace, name = service_of(piece)
            yield UnitKey(NAME, "service", name, namespace)
    elif change.kind == CONFIG:
        for namespace, name in view.services:
            yield UnitKey(NAME, "service", name, namespace)


def compile_unit(key: UnitKey, view: View) -> Rows | Compiled:
    service = view.services.get((key.namespace, key.name))
    if service is None or service.spec.type == "ExternalName":
        return NOTHING
    wanted = _wanted(view)
    found: list[Address] = []
    internal = service.spec.internal_traffic_policy == "Local"
    external = service.spec.external_traffic_policy == "Local"
    here = (internal or external) and view.me.name in nodes_with_endpoints(view.slices_of(*service.key))
    if Advertised.CLUSTER_IP in wanted and (here or not internal):
        found += _readable(service.spec.cluster_ips)
    if here or not external:
        if Advertised.EXTERNAL_IP in wanted:
            found += _readable(service.spec.external_ips)
        if Advertised.LOAD_BALANCER_IP in wanted:
            found += pool_addresses(service)
    families = view.config.ip_families
    rows = {
        host_prefix(where): host_prefix(where)
        for where in found
        if family_of(where) in families and not view.nodes_at(where)
    }
    return Compiled({Table.ORIGINATED: rows}, since(service)) if rows else NOTHING


def _wanted(view: View) -> frozenset[Advertised]:
    config = view.config
    return frozenset(config.bgp.advertise if config.backend.type is BackendType.BGP else ())


def _readable(texts: list[str]) -> Iterator[Address]:
    """What is no address (None, say) is told by compile/service_addresses.py."""
    for text in texts:
        try:
            yield address(text)
        except ConfigError:
            continue


CAPABILITY = Capability(NAME, units_of, compile_unit, reads=frozenset({"Service", "EndpointSlice"}))
