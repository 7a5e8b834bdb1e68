"""What answers for a Service on this node: virtual addresses, node ports, and the lists behind them.

One Service with its EndpointSlices is one unit. For each family and port of the Service:

    ClusterIP                                      Frontend INTERNAL
    node port, externalIPs, load-balancer address  Frontend EXTERNAL, or EXTERNAL_LOCAL when
                                                   externalTrafficPolicy is Local
    no usable endpoint on any node                 REJECT for all of them
    traffic policy Local, none on this node        DROP where internal; where external, pods and the
                                                   node itself still reach the cluster's list
    loadBalancerSourceRanges                       load-balancer addresses, and they alone, are guarded:
                                                   other sources get no answer, not even a refusal

A ClusterIP is also a member of `cluster-ips` (a port that is not served is refused there), and an
endpoint of this node one of `local-endpoints` (what it sends to its own service comes back to it).

Two Services that claim one external address and port: the store lets the older have it.
Behaviour: kube-proxy v1.36, pkg/proxy/{serviceport,topology}.go and the nftables proxier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec import structs

from podlane.compile import facts
from podlane.compile.balancing import PodsAt, Sharing, backs, weighed
from podlane.compile.endpoints import (
    PROTOCOLS,
    Known,
    Place,
    Selection,
    endpoints,
    select,
)
from podlane.compile.engine import Capability
from podlane.compile.health_checks import health_checks
from podlane.compile.service_addresses import Addresses
from podlane.compile.store import Compiled, UnitKey
from podlane.compile.tables import (
    NOTHING,
    Backend,
    BackendList,
    Frontend,
    FrontendClass,
    FrontendKey,
    HealthCheck,
    HealthCheckKey,
    ListKey,
    NodePortKey,
    Rows,
    SetMember,
    SetName,
    Table,
)
from podlane.compile.view import CONFIG, SHARES, ZONE_LABEL, Change, View, service_of, since
from podlane.model.addresses import Address, Family, Protocol, host_prefix
from podlane.model.config import Services
from podlane.model.local import Shares
from podlane.model.objects import EndpointSlice, Node, Service, ServicePort

NAME: Final = "services"
OTHER_PROXY_LABEL: Final = "service.kubernetes.io/service-proxy-name"
CLUSTER: Final = "cluster"
LOCAL: Final = "local"

DEFAULT_AFFINITY_S: Final = 10800
_DEFAULT: Final = Services()


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if change.kind == "Service":
        yield _unit(*change.object.key)
    elif change.kind == "EndpointSlice":
        for piece in change.sides:
            namespace, name = service_of(piece)
            if name:
                yield _unit(namespace, name)
    elif change.kind == CONFIG or (change.kind == "Node" and _moved(change, view)):
        # The families, or this node's zone or addresses: every service may look different.
        for key in view.services:
            yield _unit(*key)
    elif change.kind == SHARES:
        yield _unit(*change.object.key)
    elif change.kind == "Pod":
        for service in view.weighed(change.object.namespace):
            if any(backs(service, side) for side in change.sides):
                yield _unit(*service.key)


def compile_unit(key: UnitKey, view: View) -> Rows | Compiled:
    key_of_unit = key.namespace, key.name
    service = view.services.get(key_of_unit)
    if service is None or not ours(service):
        return NOTHING
    slices = view.slices_of(key.namespace, key.name)
    compiled = compile_service(
        service,
        slices,
        here=view.of_me(_place),
        families=view.config.ip_families,
        config=view.config.services,
        shares=view.shares.get(key_of_unit),
        pods_at=view.pods_at,
    )
    odd = _of_another_family(slices, view.config.ip_families)
    return compiled if odd is None else compiled._replace(refused=(*compiled.refused, odd))


def _of_another_family(slices: Iterable[EndpointSlice], families: Sequence[Family]) -> str | None:
    """That all endpoints a service has are of families that are not in use here. Where some are of one that
    is, those of another are nobody's trouble: a cluster of both families has them of every service."""
    having = [piece for piece in slices if piece.endpoints and piece.address_type in tuple(Family)]
    odd = [piece for piece in having if piece.address_type not in families]
    if not odd or len(odd) < len(having):
        return None
    first, known = odd[0], ", ".join(families)
    return (
        f"service {first.namespace}/{service_of(first)[1]}: its endpoints are {first.address_type} alone "
        f"(endpointslice {first.name}), and ipFamilies is {known}"
    )


CAPABILITY = Capability(NAME, units_of, compile_unit, reads=frozenset({"Node", "Service", "EndpointSlice"}))


def _unit(namespace: str, name: str) -> UnitKey:
    return UnitKey(NAME, "service", name, namespace)


def _moved(change: Change, view: View) -> bool:
    name = change.name
    return name == view.me.name and place_of(name, change.old) != place_of(name, change.new)


def place_of(name: str, node: Node | None) -> Place:
    """node: None as long as the API does not have it."""
    if node is None:
        return Place(name)
    return Place(name, node.metadata.labels.get(ZONE_LABEL, ""), tuple(facts.internal_addresses(node)))


def _place(view: View) -> Place:
    return place_of(view.me.name, view.me.node)


def ours(service: Service) -> bool:
    """False for what another proxy serves, and for what has no virtual address at all."""
    spec = service.spec
    return (
        OTHER_PROXY_LABEL not in service.metadata.labels
        and spec.type != "ExternalName"
        and spec.cluster_ip not in ("", "None")
    )


def compile_service(
    service: Service,
    slices: Iterable[EndpointSlice],
    *,
    here: Place,
    families: Iterable[Family],
    config: Services = _DEFAULT,
    shares: Shares | None = None,
    pods_at: PodsAt = lambda where: (),
) -> Compiled:
    """The rows of one Service, which `ours` let through. pods_at: for the weights that pods have."""
    rows = _Rows()
    sharing = Sharing.of(service, config, shares, rows.refused)
    known = weighed(sharing.wish, service, endpoints(slices), pods_at)
    for family in families:
        where = Addresses.of(service, family, here, rows.refused)
        if where is None:
            continue
        rows.member(SetName.CLUSTER_IPS, where.cluster)
        rows.health_checks |= health_checks(service, known, here, [family])
        for port in service.spec.ports:
            if port.protocol in PROTOCOLS:
                there = known.get((port.name, PROTOCOLS[port.protocol], family), {})
                chosen = select_for(service, port, where, there, here)
                _port(_Port.of(service, port, where, config), chosen, there, here, sharing, rows)
            else:
                rows.refused.append(
                    f"service {service.namespace}/{service.name}: port {port.port}: "
                    f"protocol {port.protocol!r}; use TCP, UDP or SCTP"
                )
    return Compiled(rows.tables(), since(service), tuple(dict.fromkeys(rows.refused)))


def _internal_local(service: Service) -> bool:
    return service.spec.internal_traffic_policy == "Local"


def _external_local(service: Service) -> bool:
    spec = service.spec
    reachable = spec.type in ("NodePort", "LoadBalancer") or bool(spec.external_ips)
    return reachable and spec.external_traffic_policy == "Local"


def select_for(
    service: Service, port: ServicePort, where: Addresses, known: Mapping[Backend, Known], here: Place
) -> Selection:
    """The lists this port needs: the cluster's, this node's, or both."""
    from_outside = bool(port.node_port or where.external)
    internal_local = _internal_local(service)
    return select(
        known,
        here,
        uses_cluster=not internal_local or from_outside,
        uses_local=internal_local or (from_outside and _external_local(service)),
    )


class _Port(NamedTuple):
    """One port of one service in one family, and how it is to be served."""

    where: Addresses
    number: int
    node_port: int
    protocol: Protocol
    lists: ListKey  # of the cluster; that of this node differs in its scope
    internal_local: bool
    external_local: bool
    affinity_timeout_s: int
    masquerade_all: bool = False

    @classmethod
    def of(cls, service: Service, port: ServicePort, where: Addresses, config: Services) -> _Port:
        protocol = Protocol(port.protocol)
        lists = ListKey(service.namespace, service.name, port.name, protocol, where.family, CLUSTER)
        return cls(
            where,
            port.port,
            port.node_port,
            protocol,
            lists,
            _internal_local(service),
            _external_local(service),
            _affinity_s(service),
            config.masquerade_all,
        )


def _affinity_s(service: Service) -> int:
    spec = service.spec
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    given = config.client_ip.timeout_seconds if config and config.client_ip else None
    return given or DEFAULT_AFFINITY_S


def _port(
    port: _Port,
    chosen: Selection,
    known: Mapping[Backend, Known],
    here: Place,
    sharing: Sharing,
    rows: _Rows,
) -> None:
    internal, external = _frontends(port, chosen)
    rows.frontend(FrontendKey(port.where.cluster, port.protocol, port.number), internal)
    behind_guard = _guarded(port, external)
    for where in port.where.external:
        row = behind_guard if where in port.where.guarded else external
        rows.frontend(FrontendKey(where, port.protocol, port.number), row)
    if port.node_port:
        rows.node_ports[NodePortKey(port.where.family, port.protocol, port.node_port)] = external
    from_outside = bool(port.where.external or port.node_port)
    named = [internal.backends, *((external.backends, external.short_circuit) if from_outside else ())]
    guarded_list = behind_guard.backends if port.where.guarded else None
    named = list(dict.fromkeys([*named, guarded_list]))
    lists = {CLUSTER: chosen.cluster, LOCAL: chosen.local}
    for key in named:
        if key is not None:
            members = lists[key.scope] or ()
            near = known if key.scope == CLUSTER else {b: e for b, e in known.items() if e.node == here.node}
            laid = sharing.row(members, near, port.protocol, port.affinity_timeout_s)
            if key == guarded_list:
                laid = structs.replace(laid, sources=port.where.sources)
            rows.lists[key] = laid
            rows.local_endpoints(members, here)


def _frontends(port: _Port, chosen: Selection) -> tuple[Frontend, Frontend]:
    """How the ClusterIP is served, and how everything that faces outward is.

    With services.masqueradeAll a ClusterIP is served as an external address is: masqueraded always.
    """
    if not chosen.any:
        return _REJECT, _REJECT
    cluster = port.lists
    local = ListKey(*cluster[:-1], LOCAL) if port.internal_local or port.external_local else cluster
    kind = FrontendClass.EXTERNAL if port.masquerade_all else FrontendClass.INTERNAL
    internal = Frontend(kind, local if port.internal_local else cluster)
    if port.internal_local and not chosen.local:
        internal = _DROP
    external = Frontend(FrontendClass.EXTERNAL, cluster)
    if port.external_local:
        external = Frontend(FrontendClass.EXTERNAL_LOCAL, local, short_circuit=cluster)
    return internal, external


def _guarded(port: _Port, external: Frontend) -> Frontend:
    """The external frontend for some sources only. Refusing is for them as well: without endpoints it is
    the empty list that refuses."""
    if external.backends is None:
        external = Frontend(FrontendClass.EXTERNAL, port.lists)
    return structs.replace(external, guarded=True)


_REJECT: Final = Frontend(FrontendClass.REJECT, None)
_DROP: Final = Frontend(FrontendClass.DROP, None)


class _Rows:
    """What one service has compiled to so far. The ClusterIP is written first and is not overwritten by
    an external address that repeats it."""

    def __init__(self) -> None:
        self.sets: dict[SetMember, SetMember] = {}
        self.lists: dict[ListKey, BackendList] = {}
        self.frontends: dict[FrontendKey, Frontend] = {}
        self.node_ports: dict[NodePortKey, Frontend] = {}
        self.health_checks: dict[HealthCheckKey, HealthCheck] = {}
        self.refused: list[str] = []

    def member(self, name: SetName, where: Address) -> None:
        member = SetMember(name, host_prefix(where))
        self.sets[member] = member

    def frontend(self, key: FrontendKey, row: Frontend) -> None:
        self.frontends.setdefault(key, row)

    def local_endpoints(self, members: Iterable[Known], here: Place) -> None:
        for each in members:
            if each.node == here.node:
                self.member(SetName.LOCAL_ENDPOINTS, each.address)

    def tables(self) -> Rows:
        found: dict[Table, dict[Any, Any]] = {
            Table.SETS: self.sets,
            Table.BACKENDS: self.lists,
            Table.FRONTENDS: self.frontends,
            Table.NODE_PORTS: self.node_ports,
            Table.HEALTH_CHECKS: self.health_checks,
        }
        return {table: rows for table, rows in found.items() if rows}
