"""What there is to check in a cluster: who can send, who listens where, what services should answer. Pure.

Only what should work is listed: pods that run, ports that are served, services with ready endpoints. A port
counts as served when a responder has it, or when the container's own program listens on it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from podlane.compile import facts
from podlane.compile.endpoints import PROTOCOLS, Known, endpoints
from podlane.compile.services import ours
from podlane.compile.view import pod_addresses
from podlane.model.addresses import Address, Family, Protocol, address, family_of
from podlane.model.objects import Pod, Service, ServicePort
from podlane.observe.cluster import Cluster
from podlane.observe.listening import Listening, listened

RESPONDER: Final = "responder"
LOOPBACK: Final = {Family.IPV4: ipaddress.ip_address("127.0.0.1"), Family.IPV6: ipaddress.ip_address("::1")}


class Running(Struct, frozen=True):
    """What the machine says of a pod. containers: name -> "responder" or "command", those that run;
    sockets: what its network namespace listens on."""

    containers: Mapping[str, str] = {}
    sockets: Sequence[Listening] = ()


class Port(Struct, frozen=True):
    """A port of a pod that is served in one family. json: the responder answers there, with who asked.

    loopback: it answers on the pod's own loopback address too.
    """

    container: str
    number: int
    protocol: Protocol
    family: Family
    json: bool
    loopback: bool = True


class Member(Struct, frozen=True):
    """A pod of its own address that runs. name: as a target."""

    name: str
    node: str
    addresses: tuple[Address, ...]
    containers: tuple[str, ...]
    ports: tuple[Port, ...]

    def address(self, family: Family) -> Address | None:
        return next((a for a in self.addresses if family_of(a) is family), None)

    def port(self, family: Family) -> Port | None:
        """The port to ask: one that says who asked, if there is one; TCP before UDP."""
        fitting = [p for p in self.ports if p.family is family]
        return min(fitting, key=lambda p: (not p.json, p.protocol is not Protocol.TCP), default=None)


class Ready(Struct, frozen=True):
    """A ready endpoint. pod: (namespace, name), None for what is no pod. json: a responder answers."""

    node: str
    pod: tuple[str, str] | None
    json: bool
    served: bool


class Served(Struct, frozen=True):
    """One port of one service in one family, with its ready endpoints."""

    name: str
    address: Address
    port: int
    protocol: Protocol
    node_port: int
    public: tuple[Address, ...]
    endpoints: tuple[Ready, ...]
    internal_local: bool = False
    external_local: bool = False

    def answering(self, node: str, *, external: bool) -> tuple[Ready, ...]:
        """The endpoints that may answer what enters the service on `node`."""
        if self.external_local if external else self.internal_local:
            return tuple(e for e in self.endpoints if e.node == node)
        return self.endpoints


class Ground(Struct, frozen=True):
    """nodes: their InternalIPs, in the order of names. outside: addresses of the host beyond."""

    nodes: Mapping[str, tuple[Address, ...]]
    members: tuple[Member, ...]
    services: tuple[Served, ...]
    outside: tuple[Address, ...] = ()


def survey(cluster: Cluster, running: Mapping[str, Running]) -> Ground:
    """running: by the pods' uids; a pod that is not in it is not there (yet, or any more)."""
    names = sorted(cluster.nodes, key=lambda n: (len(n), n))
    nodes = {name: tuple(facts.internal_addresses(cluster.nodes[name])) for name in names}
    wanted = _slice_ports(cluster)
    members = []
    for _, pod in sorted(cluster.pods.items()):
        found = running.get(pod.metadata.uid)
        alive = pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None
        if found is not None and alive and not pod.spec.host_network and pod.spec.node_name in nodes:
            members.append(_member(pod, found, wanted.get(pod.key, ())))
    served = [
        each
        for _, service in sorted(cluster.services.items())
        if ours(service)
        for each in _served(cluster, service, running)
    ]
    return Ground(nodes, tuple(members), tuple(served), cluster.outside)


def _slice_ports(cluster: Cluster) -> dict[tuple[str, str], set[tuple[int, Protocol]]]:
    """The ports that services send to, by pod: a responder listens on these as well."""
    found: dict[tuple[str, str], set[tuple[int, Protocol]]] = {}
    for service in cluster.services.values():
        for piece in cluster.slices_of(service):
            ports = {
                (p.port, PROTOCOLS[p.protocol])
                for p in piece.ports or ()
                if p.port and p.protocol in PROTOCOLS
            }
            for endpoint in piece.endpoints or ():
                if endpoint.target_ref is not None and endpoint.target_ref.kind == "Pod":
                    found.setdefault((piece.namespace, endpoint.target_ref.name), set()).update(ports)
    return found


def _member(pod: Pod, running: Running, wanted: Iterable[tuple[int, Protocol]]) -> Member:
    declared: dict[tuple[int, Protocol], str] = {}
    for container in pod.spec.containers:
        if container.name in running.containers:
            for each in container.ports:
                if each.protocol in PROTOCOLS:
                    declared.setdefault((each.container_port, PROTOCOLS[each.protocol]), container.name)
    responder = next((n for n, ran in running.containers.items() if ran == RESPONDER), None)
    for number, protocol in sorted(wanted):
        declared.setdefault((number, protocol), responder or "")
    ports = []
    addresses = tuple(pod_addresses(pod))
    for where in addresses:
        for (number, protocol), name in declared.items():
            port = _port(running, name, number, protocol, where)
            if port is not None:
                ports.append(port)
    return Member(
        f"{pod.namespace}/pod/{pod.name}",
        pod.spec.node_name,
        addresses,
        tuple(c.name for c in pod.spec.containers if c.name in running.containers),
        tuple(ports),
    )


def _port(running: Running, container: str, number: int, protocol: Protocol, where: Address) -> Port | None:
    family = family_of(where)
    if running.containers.get(container) == RESPONDER:
        return None if protocol is Protocol.SCTP else Port(container, number, protocol, family, json=True)
    # A program's own UDP protocol is not known here; a TCP connection proves enough.
    if protocol is Protocol.TCP and listened(running.sockets, protocol, where, number):
        loopback = listened(running.sockets, protocol, LOOPBACK[family], number)
        return Port(container, number, protocol, family, json=False, loopback=loopback)
    return None


def _served(cluster: Cluster, service: Service, running: Mapping[str, Running]) -> Iterable[Served]:
    spec = service.spec
    known = endpoints(cluster.slices_of(service))
    public = [
        *(i.ip for i in service.status.load_balancer.ingress if i.ip and i.ip_mode in (None, "", "VIP"))
    ]
    for where in map(address, spec.cluster_ips or [spec.cluster_ip]):
        family = family_of(where)
        for port in spec.ports:
            if port.protocol not in ("TCP", "UDP"):
                continue
            key = port.name, Protocol(port.protocol), family
            ready = [_ready(cluster, e, port, running) for e in known.get(key, {}).values() if e.ready]
            if ready and all(e.served for e in ready):
                yield Served(
                    f"{service.namespace}/svc/{service.name}",
                    where,
                    port.port,
                    Protocol(port.protocol),
                    port.node_port,
                    tuple(a for a in map(address, public) if family_of(a) is family)
                    if not spec.load_balancer_source_ranges
                    else (),
                    tuple(ready),
                    spec.internal_traffic_policy == "Local",
                    spec.external_traffic_policy == "Local",
                )


def _ready(cluster: Cluster, each: Known, port: ServicePort, running: Mapping[str, Running]) -> Ready:
    """An endpoint that is no pod here is taken at its word."""
    pod = cluster.pod_at(each.address)
    if pod is None:
        return Ready(each.node, None, json=False, served=port.protocol == "TCP")
    found = running.get(pod.metadata.uid)
    protocol = Protocol(port.protocol)
    member = _member(pod, found, [(each.port, protocol)]) if found is not None else None
    at = [
        p
        for p in (member.ports if member else ())
        if (p.number, p.protocol, p.family) == (each.port, protocol, family_of(each.address))
    ]
    return Ready(each.node, pod.key, json=bool(at) and at[0].json, served=bool(at))
