"""Which endpoints answer for a service port on this node (kube-proxy v1.36, pkg/proxy/topology.go).

An EndpointSlice brings endpoints with conditions, a node and hints. `endpoints` merges the slices of a
service into what each of its ports has; `select` picks from that the two lists a port may need:

    cluster   ready endpoints that the topology hints leave to this node; if there is none anywhere,
              those that still serve while terminating (hints then mean nothing)
    local     the ready endpoints of this node; if there is none, its serving and terminating ones.
              Hints never apply: the traffic policy already says "here".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

from podlane.compile.tables import Backend
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Protocol, packed
from podlane.model.objects import Endpoint, EndpointSlice, weight_of

PROTOCOLS: Final = {protocol.value: protocol for protocol in Protocol}
_NO_HINTS: Final[frozenset[str]] = frozenset()
HEADLESS_LABEL: Final = "service.kubernetes.io/headless"


class Known(NamedTuple):
    """One endpoint of one port, with its conditions resolved (absent: ready and serving, not terminating).

    weight: its slice's, or its pod's; None when nothing is said. pod: the name of its pod, filled in where
    the service's weights ask for it (compile/balancing.py).
    """

    backend: Backend
    node: str = ""
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zone_hints: frozenset[str] = _NO_HINTS
    node_hints: frozenset[str] = _NO_HINTS
    pod: str = ""
    weight: int | None = None

    @property
    def address(self) -> Address:
        return self.backend.address

    @property
    def port(self) -> int:
        return self.backend.port

    @property
    def draining(self) -> bool:
        """Last resort: it is going, but still answers."""
        return self.serving and self.terminating


PortKey: TypeAlias = tuple[str, Protocol, Family]
"""A slice's port belongs to the service's port of the same name and protocol."""


def endpoints(slices: Iterable[EndpointSlice]) -> dict[PortKey, dict[Backend, Known]]:
    """The endpoints of one service by port. slices: in a fixed order (of name).

    Of two with one address and port the later counts, unless it is terminating: a pod that moves from
    slice to slice is seen twice for a moment, and the terminating sight is the older.
    """
    found: dict[PortKey, dict[Backend, Known]] = {}
    for piece in slices:
        if HEADLESS_LABEL in piece.metadata.labels:
            continue
        weight = weight_of(piece)
        for port_key, number in _ports(piece):
            known = found.setdefault(port_key, {})
            octets, bits = number.to_bytes(2, "big"), port_key[2].bits
            for endpoint in piece.endpoints or ():
                each = _known(endpoint, octets, bits, weight)
                if each is not None and not (each.terminating and each.backend in known):
                    known[each.backend] = each
    return found


def _ports(piece: EndpointSlice) -> Iterator[tuple[PortKey, int]]:
    """The usable ports: a slice of names (FQDN), a port without number or with a null name is none."""
    if piece.address_type not in (Family.IPV4, Family.IPV6):
        return
    for port in piece.ports or ():
        protocol = PROTOCOLS.get(port.protocol)
        number = port.port or 0
        if port.name is not None and 0 < number <= 0xFFFF and protocol is not None:
            yield (port.name, protocol, Family(piece.address_type)), number


def _known(endpoint: Endpoint, port: bytes, bits: int, weight: int | None) -> Known | None:
    """port: its octets. bits: of an address of the slice's family."""
    if not endpoint.addresses:
        return None
    try:
        where = packed(endpoint.addresses[0])  # further addresses have no meaning (API reference)
    except ConfigError:
        return None  # the API validates slices; one bad address must not take the others down
    if 8 * len(where) != bits:
        return None
    conditions, hints = endpoint.conditions, endpoint.hints
    return Known(
        Backend.packed(where + port),
        endpoint.node_name or "",
        conditions.ready is not False,
        conditions.serving is not False,
        conditions.terminating is True,
        frozenset(h.name for h in hints.for_zones) if hints else _NO_HINTS,
        frozenset(h.name for h in hints.for_nodes) if hints else _NO_HINTS,
        weight=weight,
    )


class Place(NamedTuple):
    """Where this node is. zone: "" when it has no zone label. addresses: its InternalIPs."""

    node: str
    zone: str = ""
    addresses: tuple[Address, ...] = ()


class Selection(NamedTuple):
    """cluster, local: None for a list the port does not use. any: an endpoint is usable on some node."""

    cluster: tuple[Known, ...] | None
    local: tuple[Known, ...] | None
    any: bool


def select(known: Mapping[Backend, Known], here: Place, *, uses_cluster: bool, uses_local: bool) -> Selection:
    """The lists of one port, in order of address and port."""
    every = [known[backend] for backend in sorted(known)]
    ready = [e for e in every if e.ready]
    usable = ready or [e for e in every if e.draining]
    cluster = local = None
    if uses_cluster:
        cluster = tuple(_near(ready, here) or usable)
    if uses_local:
        mine = [e for e in every if e.node == here.node]
        local = tuple([e for e in mine if e.ready] or [e for e in mine if e.draining])
    return Selection(cluster, local, bool(usable or local))


def left_alone(
    known: Mapping[Backend, Known], chosen: Iterable[Backend], protocol: Protocol
) -> tuple[Backend, ...]:
    """Endpoints that were not chosen but keep the flows they have: draining, or left to other places.

    A UDP flow to one that does not answer is given up: it would be renewed without end. A connection
    ends by itself, and may go on as long as there is a pod.
    """
    left = known.keys() - set(chosen)
    return tuple(sorted(b for b in left if protocol is not Protocol.UDP or known[b].serving))


def _near(ready: list[Known], here: Place) -> list[Known]:
    """What the hints leave of the ready endpoints. One endpoint without a hint voids them all, as do
    hints none of which names this place (KEP-2433, KEP-3015). A node hint is preferred to a zone's."""
    for place, hints in (
        (here.node, [e.node_hints for e in ready]),
        (here.zone, [e.zone_hints for e in ready]),
    ):
        if place and all(hints) and any(place in names for names in hints):
            return [e for e, names in zip(ready, hints, strict=True) if place in names]
    return ready


def nodes_with_endpoints(slices: Iterable[EndpointSlice]) -> set[str]:
    """Nodes with a ready endpoint or, if there is none anywhere, with one that still serves."""
    known = [each for ends in endpoints(slices).values() for each in ends.values()]
    ready = {each.node for each in known if each.ready}
    return ready or {each.node for each in known if each.draining}
