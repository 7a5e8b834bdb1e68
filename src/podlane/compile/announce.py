"""Which load-balancer addresses this node may answer for on its own network (ARP, NDP).

    Service with addresses of a LoadBalancerPool ──> for each address the nodes that may announce it, in order

A node may if the pool's nodeSelector matches it, it is not labelled
node.kubernetes.io/exclude-from-external-load-balancers and, with externalTrafficPolicy Local, it has a ready
endpoint. And it must be on the one layer-2 network where the address is sought: of an address in some nodes'
subnet those nodes, of any other, which needs a route to there, the nodes that share a subnet with the
first one by name that the selector matches (agents tell their subnets, compile/facts.py).

Their order follows from the address and their names alone (rendezvous hashing), so that all agents find the
same one without asking anybody, addresses spread over the nodes, and a node that goes moves only its own. The
first 16 count. Which of them live is known only on the wire: kernel/announce/ takes the first that does.

The controller says by annotation that an address is a pool's, which nodes the pool means, and whether it is
announced this way at all, or by BGP alone (compile/advertise.py); other
load balancers' addresses are none of ours, and neither are nodes' own. A port of such an address that nobody
serves is refused, like one of a ClusterIP: the address is the announcing node's own for the time being, and
what listens there is not meant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Set
from functools import lru_cache
from heapq import nsmallest
from typing import Any, Final, NamedTuple

from podlane.compile import facts
from podlane.compile.endpoints import nodes_with_endpoints
from podlane.compile.engine import Capability
from podlane.compile.store import Compiled, UnitKey
from podlane.compile.tables import NOTHING, Announcement, Candidate, Rows, SetMember, SetName, Table
from podlane.compile.view import CONFIG, UNDERLAY, Change, View, service_of, since
from podlane.errors import ConfigError
from podlane.model import selectors
from podlane.model.addresses import Address, Prefix, family_of, host_prefix
from podlane.model.objects import Node, Service
from podlane.model.pools import (
    ANNOUNCING_NODES,
    Way,
    announced,
    announcing_nodes,
    may_announce,
    pool_addresses,
    ways_of,
)
from podlane.model.selectors import Selector

NAME: Final = "announce"
MOST_CANDIDATES: Final = 16


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if change.kind == "Service":
        if any(announced(side) for side in change.sides):
            yield _unit(change.object)
    elif change.kind == "EndpointSlice":
        for piece in change.sides:
            service = view.services.get(service_of(piece))
            if service is not None and announced(service) and _local(service):
                yield _unit(service)
    elif change.kind in (CONFIG, UNDERLAY, "Node") and (balanced := view.balanced):
        # Another node, or its labels: each address may have another order.
        for namespace, name in balanced if change.kind != "Node" or _differs(change) else ():
            yield UnitKey(NAME, "service", name, namespace)


def _unit(service: Service) -> UnitKey:
    return UnitKey(NAME, "service", service.name, service.namespace)


class _Place(NamedTuple):
    identity: str
    labels: dict[str, str]
    addresses: tuple[Address, ...]
    subnets: tuple[Prefix, ...]


def _place(node: Node | None) -> _Place | None:
    if node is None:
        return None
    own = tuple(facts.internal_addresses(node))
    return _Place(node.metadata.uid, node.metadata.labels, own, _subnets(node))


def _differs(change: Change) -> bool:
    return _place(change.old) != _place(change.new)


def compile_unit(key: UnitKey, view: View) -> Rows | Compiled:
    service = view.services.get((key.namespace, key.name))
    if service is None or not announced(service):
        return NOTHING
    given = [where for where in pool_addresses(service) if family_of(where) in view.config.ip_families]
    given = [where for where in given if not view.nodes_at(where)]
    members = [SetMember(SetName.CLUSTER_IPS, host_prefix(where)) for where in given]
    rows: dict[Table, dict[Any, Any]] = {Table.SETS: {row: row for row in members}}
    refused: tuple[str, ...] = ()
    try:
        selector = announcing_nodes(service)
    except ConfigError as error:
        selector = selectors.NOTHING
        refused = (f"service {key.namespace}/{key.name}: annotation {ANNOUNCING_NODES}: {error}",)
    if view.me.underlay is not None and Way.L2 in ways_of(service, view.config):
        device = view.me.underlay.device
        having = nodes_with_endpoints(view.slices_of(key.namespace, key.name)) if _local(service) else None
        found = {
            where: in_order(where, nodes_that_may(where, view.nodes.values(), selector, having))
            for where in given
        }
        rows[Table.ANNOUNCEMENTS] = {
            where: Announcement(where, device, me, tuple(order))
            for where, order in found.items()
            for me in order
            if me.node == view.me.name
        }
    return Compiled({table: each for table, each in rows.items() if each}, since(service), refused)


def nodes_that_may(
    where: Address, nodes: Collection[Node], selector: Selector, having: Set[str] | None
) -> list[Candidate]:
    """Every node that may announce an address. having: names of those with endpoints, None if it is no
    matter."""
    chosen = [node for node in nodes if may_announce(node, selector)]
    if any(where in subnet for node in nodes for subnet in _subnets(node)):
        near = [n for n in chosen if not _subnets(n) or any(where in subnet for subnet in _subnets(n))]
    else:
        near = _in_one_network(chosen)
    return [
        Candidate(node.name, node.metadata.uid or node.name)
        for node in near
        if having is None or node.name in having
    ]


def _in_one_network(nodes: list[Node]) -> list[Node]:
    """Those that share a subnet with the first by name, and those that have not told theirs."""
    telling = [node for node in nodes if _subnets(node)]
    if not telling:
        return nodes
    first = min(telling, key=lambda node: (len(node.name), node.name))
    there = set(_subnets(first))
    return [n for n in nodes if not _subnets(n) or not there.isdisjoint(_subnets(n))]


def _subnets(node: Node) -> tuple[Prefix, ...]:
    """Those of its uplink; none where its agent has not told them."""
    return _told_subnets(node.metadata.annotations.get(facts.UNDERLAY_ANNOTATION, ""))


@lru_cache(maxsize=8192)
def _told_subnets(text: str) -> tuple[Prefix, ...]:
    underlay = facts.told_underlay(text)
    return tuple(prefix for _, prefix in underlay.addresses) if underlay is not None else ()


def in_order(where: Address, may: list[Candidate]) -> list[Candidate]:
    """The one that shall answer comes first. Rendezvous hashing (Thaler and Ravishankar, 1998)."""

    def weight(each: Candidate) -> bytes:
        return hashlib.sha256(f"{each.node}#{where}".encode()).digest()

    return nsmallest(MOST_CANDIDATES, may, key=weight)


def _local(service: Service) -> bool:
    return service.spec.external_traffic_policy == "Local"


CAPABILITY = Capability(NAME, units_of, compile_unit, reads=frozenset({"Node", "Service", "EndpointSlice"}))
