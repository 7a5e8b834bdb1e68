"""What services are to each node: addresses, endpoints, which of them are chosen, and why. Pure.

Compiled from the same objects by the same code as the agents' tables; nothing here asks a kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from podlane.compile import socket_lb
from podlane.compile.endpoints import HEADLESS_LABEL, Known, Place, PortKey, endpoints
from podlane.compile.services import CLUSTER, LOCAL, OTHER_PROXY_LABEL, compile_service, ours, place_of
from podlane.compile.store import Compiled
from podlane.compile.tables import (
    Backend,
    BackendList,
    Frontend,
    FrontendClass,
    ListKey,
    Table,
)
from podlane.compile.view import ZONE_LABEL
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Protocol, address, family_of
from podlane.model.config import NetworkConfig, ServiceMode
from podlane.model.objects import EndpointSlice, Service, ServicePort
from podlane.model.pools import ALLOCATED_FROM, Way, announced, announcing_node, ways_of
from podlane.observe.cluster import Cluster
from podlane.observe.explanation import API_VERSION, end
from podlane.observe.flows import EndpointKey, Load
from podlane.observe.service_stage import balancing_words

CLUSTER_IP: Final = "ClusterIP"
NODE_PORT: Final = "node port"
HEALTH_CHECK: Final = "health check"
LOAD_BALANCER: Final = "load balancer"
EXTERNAL_IP: Final = "external IP"


class Entry(Struct, frozen=True, rename="camel"):
    """A way in. address: "" for a node port, and for the port that says whether a node has ready endpoints
    (healthCheckNodePort). sources: who alone may use it; None: everyone. pool: the
    LoadBalancerPool that the address is from; announced_by: the node that answers ARP or NDP for it;
    told_by: the nodes that tell routers of it, by BGP."""

    kind: str
    address: str
    port: int
    protocol: str
    sources: list[str] | None = None
    pool: str = ""
    announced_by: str = ""
    told_by: list[str] = []


class End(Struct, frozen=True, rename="camel"):
    """state: ready, terminating (and serving still) or not ready. target: what has the address. flows: that
    are not over; bytes_in, bytes_out: of these, to the endpoint and from it. None where no node was asked."""

    address: str
    port: int
    port_name: str
    protocol: str
    node: str
    zone: str
    state: str
    target: str
    flows: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None


class Choice(Struct, frozen=True, rename="camel"):
    """What new flows may be sent to by one port in one family on these nodes.

    used_by: "internal" (to the ClusterIP), "external", "short circuit" (pods and the node itself to external
    addresses where externalTrafficPolicy is Local). verdict: translate, refuse or drop. balancing: how one of
    the chosen is taken, in words. at_socket: in services.mode socket, where it is taken for pods and nodes.
    """

    port_name: str
    protocol: str
    family: Family
    used_by: list[str]
    scope: str
    verdict: str
    chosen: list[str]
    why: str
    nodes: list[str]
    balancing: str = ""
    weights: list[int] = []  # of the chosen ones, where they differ
    at_socket: str = ""


class ServiceReport(Struct, frozen=True, rename="camel"):
    """note: why nothing is served, or how; "" when there is nothing to say. problems: what was refused."""

    namespace: str
    name: str
    type: str
    note: str
    entries: list[Entry] = []
    endpoints: list[End] = []
    choices: list[Choice] = []
    problems: list[str] = []


class ServiceList(Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    items: list[ServiceReport]

    def json(self) -> bytes:
        return msgspec.json.encode(self, enc_hook=str)


Loads: TypeAlias = Mapping[EndpointKey, Load]


def services(
    cluster: Cluster, config: NetworkConfig, wanted: Iterable[Service], loads: Loads | None = None
) -> ServiceList:
    """loads: what the nodes' connection tracking says of endpoints (observe/flows.py)."""
    return ServiceList(API_VERSION, "ServiceList", [report(cluster, config, each, loads) for each in wanted])


def report(
    cluster: Cluster, config: NetworkConfig, service: Service, loads: Loads | None = None
) -> ServiceReport:
    known = endpoints(_unlabelled(piece) for piece in cluster.slices_of(service))
    places = [place_of(n, cluster.nodes[n]) for n in sorted(cluster.nodes, key=lambda n: (len(n), n))]
    ends = list(_ends(cluster, known))
    if loads is not None:
        ends = [_loaded(service, each, loads) for each in ends]
    if not ours(service):
        return ServiceReport(
            service.namespace, service.name, service.spec.type, _left_alone(service), endpoints=ends
        )
    compiled = [
        (
            here,
            compile_service(
                service,
                cluster.slices_of(service),
                here=here,
                families=config.ip_families,
                config=config.services,
                pods_at=cluster.pods_at,
            ),
        )
        for here in places or [Place("")]
    ]
    choices: dict[bytes, Choice] = {}
    for here, each in compiled if places else ():
        for choice in _choices(service, each, known, here, config.services.mode):
            key = msgspec.json.encode(msgspec.structs.replace(choice, nodes=[]))
            choices.setdefault(key, msgspec.structs.replace(choice, nodes=[])).nodes.append(here.node)
    return ServiceReport(
        service.namespace,
        service.name,
        service.spec.type,
        _policies(service),
        list(_entries(service, compiled[0][1], cluster, config)),
        ends,
        list(choices.values()),
        list(dict.fromkeys(text for _, each in compiled for text in each.refused)),
    )


def _unlabelled(piece: EndpointSlice) -> EndpointSlice:
    """A proxy passes over the slices of headless services; here they are shown."""
    labels = {k: v for k, v in piece.metadata.labels.items() if k != HEADLESS_LABEL}
    metadata = msgspec.structs.replace(piece.metadata, labels=labels)
    return msgspec.structs.replace(piece, metadata=metadata)


def _left_alone(service: Service) -> str:
    if OTHER_PROXY_LABEL in service.metadata.labels:
        return f"another proxy serves it (label {OTHER_PROXY_LABEL})"
    if service.spec.type == "ExternalName":
        return "a name in DNS; no packet is sent to it"
    return "headless: it has no address of its own, names lead to the endpoints"


def _policies(service: Service) -> str:
    spec = service.spec
    parts = []
    if spec.internal_traffic_policy == "Local":
        parts.append("internalTrafficPolicy Local")
    if spec.type != "ClusterIP" and spec.external_traffic_policy == "Local":
        parts.append("externalTrafficPolicy Local")
    if spec.session_affinity == "ClientIP":
        parts.append("sessionAffinity ClientIP")
    return ", ".join(parts)


def _entries(
    service: Service, compiled: Compiled, cluster: Cluster, config: NetworkConfig
) -> Iterator[Entry]:
    rows = compiled.rows
    vips = {i.ip for i in service.status.load_balancer.ingress}
    own = _cluster_ips(service)
    lists: Mapping[ListKey, BackendList] = rows.get(Table.BACKENDS, {})
    for key, row in rows.get(Table.FRONTENDS, {}).items():
        text = str(key.address)
        kind = CLUSTER_IP if key.address in own else LOAD_BALANCER if text in vips else EXTERNAL_IP
        sources = [str(s) for s in lists[row.backends].sources] if row.guarded else None
        if kind == LOAD_BALANCER and announced(service):
            pool, ways = service.metadata.annotations[ALLOCATED_FROM], ways_of(service, config)
            node = announcing_node(service, key.address) if Way.L2 in ways else ""
            telling = cluster.telling_by_bgp(service) if Way.BGP in ways else []
            yield Entry(kind, text, key.port, key.protocol, sources, pool, node, telling)
        else:
            yield Entry(kind, text, key.port, key.protocol, sources)
    for port in dict.fromkeys((key.port, key.protocol) for key in rows.get(Table.NODE_PORTS, {})):
        yield Entry(NODE_PORT, "", *port)
    for number in dict.fromkeys(key.port for key in rows.get(Table.HEALTH_CHECKS, {})):
        yield Entry(HEALTH_CHECK, "", number, Protocol.TCP)


def _ends(cluster: Cluster, known: Mapping[PortKey, Mapping[Backend, Known]]) -> Iterator[End]:
    for (name, protocol, _), there in known.items():
        for each in sorted(there.values(), key=lambda k: (int(k.address), k.port)):
            node = cluster.nodes.get(each.node)
            yield End(
                str(each.address),
                each.port,
                name,
                protocol,
                each.node,
                node.metadata.labels.get(ZONE_LABEL, "") if node else "",
                state_of(each),
                cluster.name_of(each.address),
            )


def _loaded(service: Service, each: End, loads: Loads) -> End:
    key = f"{service.namespace}/{service.name}", each.address, each.port, each.protocol
    load = loads.get(key, Load())
    return msgspec.structs.replace(each, flows=load.flows, bytes_in=load.bytes_in, bytes_out=load.bytes_out)


def state_of(each: Known) -> str:
    return "ready" if each.ready else "terminating" if each.draining else "not ready"


def _choices(
    service: Service,
    compiled: Compiled,
    known: Mapping[PortKey, Mapping[Backend, Known]],
    here: Place,
    mode: ServiceMode,
) -> Iterator[Choice]:
    """Every port in every family that the service has, with the lists its traffic uses."""
    lists: Mapping[ListKey, BackendList] = compiled.rows.get(Table.BACKENDS, {})
    for port in service.spec.ports:
        for family in Family:
            uses: dict[tuple[str, str, BackendList, str], list[str]] = {}
            for use, row, key in _uses(service, compiled, port, family):
                found = lists[key] if key is not None else _NONE
                scope = key.scope if key is not None else LOCAL if row.kind is FrontendClass.DROP else CLUSTER
                verdict = "translate" if found.backends else "drop" if scope == LOCAL else "refuse"
                # Who may come in, and whose flows may go on, is no part of the choice.
                found = msgspec.structs.replace(found, sources=(), still_serving=())
                at = (
                    _at_socket(use, Protocol(port.protocol), row, lists) if mode is ServiceMode.SOCKET else ""
                )
                uses.setdefault((scope, verdict, found, at), []).append(use)
            for (scope, verdict, found, at), used_by in uses.items():
                there = known.get((port.name, Protocol(port.protocol), family), {})
                counts = Counter(found.backends)
                yield Choice(
                    port.name,
                    port.protocol,
                    family,
                    used_by,
                    scope,
                    verdict,
                    [end(b.address, b.port) for b in counts],
                    reason(there.values(), frozenset(counts), here, scope),
                    [here.node],
                    balancing_words(found) if found.backends else "",
                    list(counts.values()) if len(set(counts.values())) > 1 else [],
                    at,
                )


def _at_socket(use: str, protocol: Protocol, row: Frontend, lists: Mapping[ListKey, BackendList]) -> str:
    """Whether pods and nodes meet nftables; "" for what only others use."""
    if use == "external" and row.kind is FrontendClass.EXTERNAL_LOCAL:
        return ""
    at = socket_lb.at_socket(protocol, row, lists)
    return f"nftables, not the socket: {at.why}" if at.why else "chosen at the socket by pods and nodes"


def _uses(
    service: Service, compiled: Compiled, port: ServicePort, family: Family
) -> Iterator[tuple[str, Frontend, ListKey | None]]:
    """(use, the row that decides, the list it leads to)"""
    own = _cluster_ips(service)
    external = None
    for key, row in compiled.rows.get(Table.FRONTENDS, {}).items():
        if (key.protocol, key.port) == (port.protocol, port.port) and family_of(key.address) is family:
            if key.address in own:
                yield "internal", row, row.backends
            else:
                external = row
    for key, row in compiled.rows.get(Table.NODE_PORTS, {}).items():
        if (key.family, key.protocol, key.port) == (family, port.protocol, port.node_port):
            external = row
    if external is not None:
        yield "external", external, external.backends
        if external.short_circuit is not None:
            yield "short circuit", external, external.short_circuit


def _cluster_ips(service: Service) -> frozenset[Address]:
    found = set()
    for text in service.spec.cluster_ips or [service.spec.cluster_ip]:
        with suppress(ConfigError):  # the compiler refuses it, with words
            found.add(address(text))
    return frozenset(found)


def reason(known: Iterable[Known], chosen: frozenset[Backend], here: Place, scope: str) -> str:
    """Why of all endpoints of a port these are chosen on this node."""
    ends = list(known)
    if not ends:
        return "there are no endpoints"
    ready = [e for e in ends if e.ready]
    draining = [e for e in ends if not e.ready and e.draining]
    parts = []
    if scope == LOCAL:
        mine = [e for e in ends if e.node == here.node]
        parts.append(f"{_count(e.ready for e in mine)} of {len(ready)} ready on this node")
        last = [e for e in mine if e in draining]
        fallback = bool(last) and not any(e.ready for e in mine)
    else:
        last, fallback = draining, not ready
        parts.append(f"{len(ready)} ready" if ready else "none ready")
    if draining:
        unused = len(draining) - (len(last) if fallback else 0)
        parts += [f"{len(last)} terminating used for want of better"] if fallback else []
        parts += [f"{unused} terminating unused"] if unused else []
    if idle := len(ends) - len(ready) - len(draining):
        parts.append(f"{idle} not ready")
    if scope != LOCAL and ready and (text := _hints(ready, chosen, here)):
        parts.append(text)
    return ", ".join(parts)


def _count(flags: Iterable[bool]) -> int:
    return sum(1 for each in flags if each)


def _hints(ready: list[Known], chosen: frozenset[Backend], here: Place) -> str:
    """What topology hints did; "" when there are none."""
    by_node = all(e.node_hints for e in ready) and any(here.node in e.node_hints for e in ready)
    kept = [e for e in ready if e.backend in chosen]
    if not any(e.zone_hints or e.node_hints for e in ready):
        return ""
    if by_node:
        return f"hints give node {here.node} {len(kept)} of them"
    if bare := _count(not e.zone_hints for e in ready):
        return "hints ignored: " + ("one endpoint has none" if bare == 1 else f"{bare} endpoints have none")
    if not here.zone:
        return "hints ignored: the node has no zone"
    if not any(here.zone in e.zone_hints for e in ready):
        return f"hints ignored: none is for zone {here.zone}"
    return f"hints give zone {here.zone} {len(kept)} of them"


_NONE: Final = BackendList(())
