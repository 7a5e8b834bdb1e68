"""Which load-balancer addresses this node may answer for on its own network (ARP, NDP).

    Service with addresses of a LoadBalancerPool ──> for each address the nodes that may announce it, in order

A node may if the pool's nodeSelector matches it, it is not labelled
node.kubernetes.io/exclude-from-external-load-balancers and, with externalTrafficPolicy Local, it has a ready
endpoint. Their order follows from the address and their names alone (rendezvous hashing), so that all
agents find the same one without asking anybody, addresses spread over the nodes, and a node that goes moves
only its own. The first 16 count. Which of them live is known only on the wire: kernel/announce/ takes the
first that does.

The controller says by annotation that an address is a pool's and which nodes the pool means; other
load balancers' addresses are none of ours, and neither are nodes' own. A port of such an address that nobody
serves is refused, like one of a ClusterIP: the address is the announcing node's own for the time being, and
what listens there is not meant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from heapq import nsmallest
from typing import Any, Final, NamedTuple

from podlane.compile import facts
from podlane.compile.endpoints import endpoints
from podlane.compile.engine import Capability
from podlane.compile.store import Compiled, UnitKey
from podlane.compile.tables import NOTHING, Announcement, Candidate, Rows, SetMember, SetName, Table
from podlane.compile.view import CONFIG, UNDERLAY, Change, View, service_of, since
from podlane.errors import ConfigError
from podlane.model import selectors
from podlane.model.addresses import Address, family_of, host_prefix
from podlane.model.objects import EndpointSlice, Node, Service
from podlane.model.pools import ANNOUNCING_NODES, EXCLUDE_LABEL, announced, pool_addresses
from podlane.model.selectors import EVERYTHING, Selector

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
    elif change.kind in (CONFIG, UNDERLAY) or (change.kind == "Node" and _differs(change)):
        # Another node, or its labels: each address may have another order.
        for namespace, name in view.balanced:
            yield UnitKey(NAME, "service", name, namespace)


def _unit(service: Service) -> UnitKey:
    return UnitKey(NAME, "service", service.name, service.namespace)


class _Place(NamedTuple):
    identity: str
    labels: dict[str, str]
    addresses: tuple[Address, ...]


def _place(node: Node | None) -> _Place | None:
    if node is None:
        return None
    return _Place(node.metadata.uid, node.metadata.labels, tuple(facts.internal_addresses(node)))


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
        may = nodes_that_may(service, view.nodes.values(), view.slices_of(key.namespace, key.name))
    except ConfigError as error:
        may, refused = [], (f"service {key.namespace}/{key.name}: annotation {ANNOUNCING_NODES}: {error}",)
    if view.me.underlay is not None:
        device = view.me.underlay.device
        found = {where: in_order(where, may) for where in given}
        rows[Table.ANNOUNCEMENTS] = {
            where: Announcement(where, device, me, tuple(order))
            for where, order in found.items()
            for me in order
            if me.node == view.me.name
        }
    return Compiled({table: each for table, each in rows.items() if each}, since(service), refused)


def nodes_that_may(service: Service, nodes: Any, slices: list[EndpointSlice]) -> list[Candidate]:
    """Every node that may announce a service's addresses. Raises ConfigError for a selector that is none."""
    selector = _selector(service)
    having = _with_endpoints(slices) if _local(service) else None
    return [
        Candidate(node.name, node.metadata.uid or node.name)
        for node in nodes
        if EXCLUDE_LABEL not in node.metadata.labels
        and selector.matches(node.metadata.labels)
        and (having is None or node.name in having)
    ]


def in_order(where: Address, may: list[Candidate]) -> list[Candidate]:
    """The one that shall answer comes first. Rendezvous hashing (Thaler and Ravishankar, 1998)."""

    def weight(each: Candidate) -> bytes:
        return hashlib.sha256(f"{each.node}#{where}".encode()).digest()

    return nsmallest(MOST_CANDIDATES, may, key=weight)


def _selector(service: Service) -> Selector:
    text = service.metadata.annotations.get(ANNOUNCING_NODES, "")
    return selectors.parse(text) if text else EVERYTHING


def _local(service: Service) -> bool:
    return service.spec.external_traffic_policy == "Local"


def _with_endpoints(slices: list[EndpointSlice]) -> set[str]:
    """Nodes with a ready endpoint or, if there is none anywhere, with one that still serves."""
    known = [each for ends in endpoints(slices).values() for each in ends.values()]
    ready = {each.node for each in known if each.ready}
    return ready or {each.node for each in known if each.draining}


CAPABILITY = Capability(NAME, units_of, compile_unit, reads=frozenset({"Node", "Service", "EndpointSlice"}))
