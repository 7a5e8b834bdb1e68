"""Connections, as the nodes' connection tracking has them, with names. Pure.

A connection between pods of two nodes is known to both. It is told once: by the node that translated it,
else by the one that its sender is on. What two entries have in common is the answer's way: the reply goes
from the endpoint to whom the endpoint saw, on either node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from podlane.compile import facts
from podlane.errors import ConfigError
from podlane.kernel.conntrack.codec import Entry, Tuple
from podlane.model.addresses import Address, Family, Protocol, address, family_of
from podlane.model.objects import Service
from podlane.observe.cluster import Cluster
from podlane.observe.explanation import API_VERSION, end
from podlane.observe.targets import Target, TargetKind

_PROTOCOLS: Final = {protocol.number: protocol.value for protocol in Protocol} | {1: "ICMP", 58: "ICMPv6"}


class FlowEnd(Struct, frozen=True):
    """name: what has the address, in the words of targets; "" when nobody known here has it."""

    address: str
    port: int
    name: str = ""


class Flow(Struct, frozen=True, rename="camel"):
    """source, destination: before translation, endpoint: after. seen_as: the sender as the endpoint sees it,
    where that is another. service: NS/NAME, port_name: its port's. bytes and packets are 0 while a node
    counts none (services.flowAccounting)."""

    node: str
    family: Family
    protocol: str
    state: str
    timeout_seconds: int
    source: FlowEnd
    destination: FlowEnd
    endpoint: FlowEnd
    seen_as: FlowEnd | None
    service: str
    port_name: str
    packets_sent: int
    bytes_sent: int
    packets_answered: int
    bytes_answered: int

    @property
    def key(self) -> tuple[object, ...]:
        """What stays the same while a connection lasts."""
        return self.node, self.protocol, self.source, self.destination, self.endpoint, self.seen_as


class FlowList(Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    items: list[Flow]

    def json(self) -> bytes:
        return msgspec.json.encode(self)


class Wanted(NamedTuple):
    """Which connections: all that is given must fit. pod: at either end."""

    service: tuple[str, str] | None = None
    pod: tuple[str, str] | None = None
    node: str = ""

    def check(self, cluster: Cluster) -> None:
        """Raises ConfigError for a name nobody has."""
        if self.service is not None:
            cluster.service(*self.service)
        for kind, key in ((TargetKind.POD, self.pod), (TargetKind.NODE, ("", self.node))):
            if key is not None and key[1]:
                cluster.party(Target(kind, key[1], key[0]))

    def fits(self, flow: Flow) -> bool:
        if self.node and flow.node != self.node:
            return False
        if self.service is not None and flow.service != "/".join(self.service):
            return False
        name = f"{self.pod[0]}/pod/{self.pod[1]}" if self.pod else ""
        return not name or name in (flow.source.name, flow.endpoint.name)


Found = Mapping[str, Iterable[Entry]]
"""Node name -> its connection tracking entries."""


class AtSocket(NamedTuple):
    """A socket that was given its endpoint when it connected (services.mode socket): addresses with ports."""

    protocol: int
    local: tuple[Address, int]
    service: tuple[Address, int]
    endpoint: tuple[Address, int]


def through_sockets(entries: Iterable[Entry], sockets: Iterable[AtSocket]) -> list[Entry]:
    """Of one node. To connection tracking these go straight to their endpoints: told is what was connected
    to, as if it had been translated on the way."""
    known = {(each.protocol, *each.local, *each.endpoint): each.service for each in sockets}
    told = []
    for entry in entries:
        way = entry.original
        ends = way.source, way.source_port, way.destination, way.destination_port
        service = known.get((way.protocol, *ends))
        if service is not None:
            way = way._replace(destination=service[0], destination_port=service[1])
        told.append(entry._replace(original=way))
    return told


def flows(cluster: Cluster, found: Found, wanted: Wanted | None = None) -> FlowList:
    """In order of service, source and destination."""
    names = _Names(cluster)
    chosen: dict[tuple[object, ...], tuple[str, Entry]] = {}
    for node, entries in found.items():
        for entry in entries:
            known = chosen.get(_answer_of(entry))
            if known is None or _rank(cluster, node, entry) > _rank(cluster, *known):
                chosen[_answer_of(entry)] = node, entry
    told = [names.flow(node, entry) for node, entry in chosen.values()]
    items = sorted((each for each in told if wanted is None or wanted.fits(each)), key=_order)
    return FlowList(API_VERSION, "FlowList", items)


def _answer_of(entry: Entry) -> tuple[object, ...]:
    return tuple(entry.reply)


def _rank(cluster: Cluster, node: str, entry: Entry) -> tuple[bool, bool]:
    translated = (entry.original.destination, entry.original.destination_port) != (
        entry.reply.source,
        entry.reply.source_port,
    )
    pod, there = cluster.pod_at(entry.original.source), cluster.node_at(entry.original.source)
    return translated, node in (pod.spec.node_name if pod else "", there.name if there else "")


def _order(flow: Flow) -> tuple[object, ...]:
    ends = flow.source, flow.destination
    return flow.service or "~", *((int(address(e.address)), e.port) for e in ends), flow.node


class _Names:
    """What addresses and ports belong to."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._fronts: dict[tuple[Address, int, str], tuple[Service, str]] = {}
        self._node_ports: dict[tuple[int, str], tuple[Service, str]] = {}
        self._own = {a for node in cluster.nodes.values() for a in facts.internal_addresses(node)}
        for service in cluster.services.values():
            where = list(_addresses(service))
            for port in service.spec.ports:
                for each in where:
                    self._fronts[each, port.port, port.protocol] = service, port.name
                if port.node_port:
                    self._node_ports[port.node_port, port.protocol] = service, port.name

    def service(self, where: Address, port: int, protocol: str) -> tuple[str, str]:
        """(NS/NAME, name of its port), empty for none."""
        found = self._fronts.get((where, port, protocol))
        if found is None and where in self._own:
            found = self._node_ports.get((port, protocol))
        return (f"{found[0].namespace}/{found[0].name}", found[1]) if found else ("", "")

    def flow(self, node: str, entry: Entry) -> Flow:
        original, reply = entry.original, entry.reply
        protocol = _PROTOCOLS.get(original.protocol, str(original.protocol))
        service, port = self.service(original.destination, original.destination_port, protocol)
        destination = self._end(original.destination, original.destination_port)
        if service:
            destination = msgspec.structs.replace(destination, name=service.replace("/", "/svc/"))
        return Flow(
            node,
            family_of(original.source),
            protocol,
            entry.state,
            entry.timeout_s,
            self._end(original.source, original.source_port),
            destination,
            self._end(reply.source, reply.source_port),
            self._seen_as(original, reply),
            service,
            port,
            entry.sent.packets,
            entry.sent.octets,
            entry.answered.packets,
            entry.answered.octets,
        )

    def _seen_as(self, original: Tuple, reply: Tuple) -> FlowEnd | None:
        same = (original.source, original.source_port) == (reply.destination, reply.destination_port)
        return None if same else self._end(reply.destination, reply.destination_port)

    def _end(self, where: Address, port: int) -> FlowEnd:
        return FlowEnd(str(where), port, self._cluster.name_of(where))


def _addresses(service: Service) -> Iterator[Address]:
    spec = service.spec
    vips = [ingress.ip for ingress in service.status.load_balancer.ingress]
    for text in (*(spec.cluster_ips or [spec.cluster_ip]), *spec.external_ips, *vips):
        if text not in ("", "None"):
            with suppress(ConfigError):  # the compiler refuses it, with words
                yield address(text)


# --- how much an endpoint has ---------------------------------------------------------------------


class Load(NamedTuple):
    """What a service's endpoint is doing: connections that are not over, bytes to it and from it."""

    flows: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


ENDED: Final = ("TIME_WAIT", "CLOSE", "LAST_ACK")

EndpointKey = tuple[str, str, int, str]  # service NS/NAME, address, port, protocol


def loads(told: FlowList) -> dict[EndpointKey, Load]:
    """By endpoint, of connections that came through a service."""
    found: dict[EndpointKey, Load] = {}
    for flow in told.items:
        if flow.service:
            key = flow.service, flow.endpoint.address, flow.endpoint.port, flow.protocol
            load = found.get(key, Load())
            found[key] = Load(
                load.flows + (flow.state not in ENDED),
                load.bytes_in + flow.bytes_sent,
                load.bytes_out + flow.bytes_answered,
            )
    return found


# --- for people -----------------------------------------------------------------------------------

_HEAD: Final = ("NODE", "PROTOCOL", "STATE", "FROM", "TO", "ENDPOINT", "SENT", "ANSWERED")


def flow_lines(told: FlowList) -> Iterator[str]:
    """A line a connection, columns aligned."""
    rows = [_HEAD, *map(_cells, told.items)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def flow_line(flow: Flow) -> str:
    return "  ".join(filter(None, _cells(flow)))


def _cells(flow: Flow) -> tuple[str, ...]:
    source = _words(flow.source)
    if flow.seen_as is not None:
        source += f" as {_words(flow.seen_as, names=False)}"
    there = flow.destination.address, flow.destination.port
    translated = (flow.endpoint.address, flow.endpoint.port) != there
    return (
        flow.node,
        flow.protocol,
        flow.state,
        source,
        _words(flow.destination),
        _words(flow.endpoint) if translated else "",
        size(flow.bytes_sent),
        size(flow.bytes_answered),
    )


def _words(each: FlowEnd, *, names: bool = True) -> str:
    where = end(address(each.address), each.port)
    return f"{each.name} {where}" if names and each.name else where


def size(octets: int) -> str:
    """Bytes for people, in binary units."""
    amount = float(octets)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


# --- over time ------------------------------------------------------------------------------------


class Event(Struct, frozen=True):
    """event: "new" or "ended"."""

    event: str
    flow: Flow

    def json(self) -> bytes:
        return msgspec.json.encode(self)

    def line(self) -> str:
        return f"{'+' if self.event == 'new' else '-'} {flow_line(self.flow)}"


def watch(
    look: Callable[[], FlowList], pause_s: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Event]:
    """Without end: what comes and goes. Connections that are there at first are new. One that begins and is
    forgotten within a pause is not seen."""
    known: dict[tuple[object, ...], Flow] = {}
    while True:
        there = {flow.key: flow for flow in look().items}
        yield from (Event("ended", known[key]) for key in known.keys() - there.keys())
        yield from (Event("new", flow) for key, flow in there.items() if key not in known)
        known = there
        sleep(pause_s)
