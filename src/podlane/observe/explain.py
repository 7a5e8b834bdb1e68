"""A packet's way and verdict, told from the objects and the tables that each node compiles from them. Pure.

Nothing is asked of a kernel: this is what shall happen. `trace` shows what does. The stages follow the
first packet of a flow:

    source, egress         where it begins, and how it comes to its node
    service                on the node it meets first: frontend, endpoints, masquerade; in services.mode
                           socket what pods and nodes send comes here before it leaves its source
    egress, ingress policy on the source's node and on the target's: NetworkPolicy, if there is any
    route                  that node's row that matches, or the node's own route to the underlay
    encapsulation          the tunnel: inner next hop, outer addresses, MTU
    underlay               what carries it between the nodes
    arrival, delivery      the target node's row, and who has the address
    reply                  the target node's row for the way back
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from msgspec.structs import replace

from podlane.compile import facts, socket_lb
from podlane.compile.engine import compile_node
from podlane.compile.policy_sim import Judge, PolicyFlow
from podlane.compile.services_sim import Action, Flow, Verdict, holds, resolve
from podlane.compile.spoken import configured
from podlane.compile.tables import Backend, BridgeLink, Direction, SetName, Table
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Protocol, address, family_of
from podlane.model.config import NetworkConfig, ServiceMode
from podlane.model.local import Attachment
from podlane.model.objects import Node, Pod, Service
from podlane.model.pools import ALLOCATED_FROM, Way, announcing_node, ways_of
from podlane.observe import delivery, tunnels
from podlane.observe.cluster import ENDED, Cluster, Party, family_for, port_of
from podlane.observe.explanation import (
    API_VERSION,
    Explanation,
    Outcome,
    Stage,
    Tables,
    WayEnds,
    end,
    learnt,
    learnt_row,
    match,
    pod_route,
    route_row,
)
from podlane.observe.policy_stage import policy_stage
from podlane.observe.service_stage import service_stage
from podlane.observe.walk import TablesOf, Walk


def explain(
    cluster: Cluster,
    source: Party,
    destination: Party,
    config: NetworkConfig,
    *,
    family: Family | None = None,
    attachments: Mapping[str, Iterable[Attachment]] | None = None,
    tables: TablesOf | None = None,
) -> Explanation:
    """attachments: by node, for the true names of pod links; without them names follow from the pods' uids.
    tables: what was compiled before, for whoever asks more than once.

    Raises ConfigError for what cannot be asked (no common family, a service without an address).
    """
    port, protocol = port_of(destination, destination.target)
    sent_to, port = entrance(cluster, source, destination, port, family)
    chosen = family_for(source, sent_to, family)
    to = sent_to.address(chosen)
    assert to is not None  # family_for chose it
    denied = "no"
    way = _Way(cluster, config, tables or compiled(cluster, config, attachments), source, chosen)
    try:
        why, verdict = way.walk(sent_to, to, protocol, port), Outcome.DELIVERED
    except WayEnds as ended:
        why, verdict = ended.why, ended.verdict
        denied = ("partly" if ended.partly else "yes") if ended.denied else "no"
    return Explanation(
        API_VERSION,
        "Explanation",
        str(source),
        str(destination),
        str(to),
        port,
        protocol,
        chosen,
        verdict,
        why,
        way.stages,
        denied,
    )


def compiled(
    cluster: Cluster,
    config: NetworkConfig,
    attachments: Mapping[str, Iterable[Attachment]] | None = None,
) -> TablesOf:
    """Each node's tables, compiled when they are first asked for."""
    links = attachments or {}

    @cache
    def tables(node: str) -> Tables:
        own = configured(cluster.nodes[node], config) if node in cluster.nodes else config
        return compile_node(cluster.objects, node=node, config=own, attachments=links.get(node))

    return tables


def entrance(
    cluster: Cluster, source: Party, destination: Party, port: int, family: Family | None
) -> tuple[Party, int]:
    """What is really sent to, and its port. From beyond the cluster a service has other addresses: its load
    balancer's, its externalIPs, or a node's with its node port (of the first node that has one)."""
    service = destination.service
    if service is None or source.node or source.pod is not None:
        return destination, port
    public = [i.ip for i in service.status.load_balancer.ingress if i.ip] + service.spec.external_ips
    if public:
        return replace(destination, addresses=tuple(map(address, public))), port
    node_port = next((p.node_port for p in service.spec.ports if p.port == port), 0)
    for name in sorted(cluster.nodes, key=_natural) if node_port else ():
        own = facts.internal_addresses(cluster.nodes[name])
        fitting = tuple(
            a for a in own if family_of(a) in destination.families and family in (None, family_of(a))
        )
        if fitting:
            return replace(destination, addresses=fitting, node=name), node_port
    return destination, port


def _natural(name: str) -> tuple[int, str]:
    return len(name), name


class _Way(Walk):
    """From source to whoever gets it. Every method raises WayEnds where the packet ends."""

    def __init__(
        self,
        cluster: Cluster,
        config: NetworkConfig,
        tables: TablesOf,
        source: Party,
        family: Family,
    ) -> None:
        super().__init__(cluster, tables)
        self.config, self.source, self.family = config, source, family
        self._judges: dict[str, Judge] = {}

    def walk(self, sent_to: Party, to: Address, protocol: Protocol, port: int) -> str:
        """Returns who gets it, and how."""
        sender = self._source()
        if sent_to.pod is not None:
            _must_live(sent_to.pod)
        node = self._first_node(to, sent_to)
        pod = self.source.pod
        from_node = bool(self.source.node) and (pod is None or pod.spec.host_network)
        flow = Flow(sender, to, protocol, port, from_node)
        verdict = resolve(self.tables(node), flow)
        if self.config.services.mode is ServiceMode.SOCKET and self.source.node:
            verdict = socket_lb.resolve(self.tables(node), flow, verdict)
        stage = service_stage(self.cluster, node, self.tables(node), flow, verdict, sent_to.service)
        # What is chosen at the socket is chosen before anything leaves the source.
        self.stages.insert(1 if verdict.at_socket else len(self.stages), stage)
        match verdict.action:
            case Action.PASS:
                return self._carry(node, flow, Backend(to, port), verdict)
            case Action.REFUSED:
                raise WayEnds(Outcome.REFUSED, verdict.why)
            case Action.DROP:
                raise WayEnds(Outcome.DROPPED, verdict.why)
        self.translated = not verdict.at_socket
        backends = sorted(verdict.backends, key=lambda b: (int(b.address), b.port))
        return self._carry_each(node, flow, backends, verdict)

    def _source(self) -> Address:
        source, pod = self.source, self.source.pod
        if pod is not None:
            _must_live(pod)
        sender = source.address(self.family)
        if sender is None or (pod is not None and not source.node):
            raise WayEnds(Outcome.NO_ROUTE, f"{source} has no {self.family} address yet")
        if not source.node:
            self.add("source", "", f"{source}, {sender}, beyond the cluster")
        elif pod is None or pod.spec.host_network:
            shared = ", on its node's own network" if pod is not None else ""
            self.add("source", source.node, f"{source}, {sender}{shared}")
        else:
            self.add("source", source.node, f"{source}, {sender}")
            self._egress(source.node, sender)
        return sender

    def _egress(self, node: str, sender: Address) -> None:
        route = pod_route(self.tables(node), sender)
        if route is None:
            raise WayEnds(Outcome.NO_ROUTE, f"{node} has no link to {self.source}")
        bridge: BridgeLink | None = self.tables(node)[Table.BRIDGES].get(route.device)
        if bridge is None:
            gateway = "169.254.1.1" if self.family is Family.IPV4 else "fe80::1"
            way = f"default route via {gateway}; in by {route.device}"
        else:
            own = next((str(a.ip) for a in bridge.addresses if sender in a.network), "no address of it")
            way = f"a port of {route.device}, default route via {own}, the bridge's address"
        self.add("egress", node, f"out by the pod's eth0, {way}")

    def _first_node(self, to: Address, sent_to: Party) -> str:
        """The node whose tables the packet meets first."""
        if self.source.node:
            return self.source.node
        node = self.cluster.node_at(to)
        if node is not None:
            self.add("underlay", "", f"the nodes' own network carries it to {node.name}, which has {to}")
            return node.name
        if (balanced := self.cluster.balanced_at(to)) is not None:
            return self._announcing(to, balanced)
        inner = [*self.config.pods.values(), *self.config.cluster_services.values()]
        inside = next((p for p in inner if to in p), None)
        if inside is not None:
            why = f"{to} is an address inside the cluster ({inside}); the nodes' own network has no route"
        else:
            why = f"no node has the address {to}"
        self.add("underlay", "", why)
        hint = "; a service of type NodePort is reached on every node" if sent_to.service else ""
        raise WayEnds(Outcome.NO_ROUTE, why + hint)

    def _announcing(self, to: Address, service: Service) -> str:
        """The node that answers for a pool's address on the nodes' own network."""
        pool = service.metadata.annotations.get(ALLOCATED_FROM, "")
        ways = ways_of(service, self.config)
        node = announcing_node(service, to) if Way.L2 in ways else ""
        where = f"{to}, which {service.namespace}/svc/{service.name} has from pool {pool}"
        telling = self.cluster.telling_by_bgp(service) if Way.BGP in ways and not node else []
        if telling:
            names = ", ".join(telling[:3]) + (f" and {len(telling) - 3} more" if len(telling) > 3 else "")
            self.add(
                "underlay", "", f"routers are told by BGP from {names} of {where}; shown is {telling[0]}"
            )
            return telling[0]
        if node not in self.cluster.nodes:
            self.add("underlay", "", f"no node answers for {where}")
            raise WayEnds(Outcome.NO_ROUTE, f"no node answers for {to}")
        how = "ARP" if family_of(to) is Family.IPV4 else "NDP"
        self.add(
            "underlay", "", f"the nodes' own network carries it to {node}, which answers {how} for {where}"
        )
        return node

    def _carry_each(self, node: str, flow: Flow, backends: list[Backend], verdict: Verdict) -> str:
        """Every endpoint's way is walked. Shown is one that fails, else one that leaves the node."""
        before, best = self.stages, None
        failed: tuple[list[Stage], str, WayEnds] | None = None
        arriving = 0
        for backend in backends:
            self.stages = []
            try:
                why = self._carry(node, flow, backend, verdict)
            except WayEnds as ended:
                which = f"endpoint {end(backend.address, backend.port)}: " if len(backends) > 1 else ""
                failed = failed or (self.stages, which + ended.why, ended)
                continue
            arriving += 1
            far = any(stage.stage == "underlay" for stage in self.stages)
            if best is None or (far and not best[0]):
                best = far, self.stages, why
        if failed is not None:
            self.stages, reason, first = before + failed[0], failed[1], failed[2]
            raise WayEnds(first.verdict, reason, denied=first.denied, partly=arriving > 0)
        assert best is not None  # a list that translates is not empty
        self.stages = before + best[1]
        others = len(backends) - 1
        rest = ("", "; in its turn, the other endpoint too")[others] if others < 2 else ""
        return best[2] + (rest or (f"; in their turn, the {others} other endpoints too" if others else ""))

    def _carry(self, node: str, flow: Flow, backend: Backend, verdict: Verdict) -> str:
        """From `node` to an endpoint; the shown way when there are several."""
        to, here = backend.address, self.tables(node)
        masquerade = verdict.masquerades(backend) or _leaves(here, flow.source, to)
        target = self.cluster.node_at(to)
        if target is not None and target.name == node:
            self.add("route", node, f"{to} is this node's own address")
            return delivery.to_node(self, node, to, backend.port)
        if self.source.node == node and not flow.from_node:
            self._judge(node, flow.source, backend, flow.protocol, Direction.EGRESS)
        route = match(here, to)
        if route is None:
            row = learnt(here, to)
            if row is not None:
                self.add("route", node, f"to {to}, by BGP", learnt_row(row))
                return self._deliver_far(node, row.via, flow.source, backend, flow.protocol, masquerade)
            return self._by_underlay(node, flow.source, backend, masquerade)
        self.add("route", node, f"to {to}", route_row(route))
        tunnel = tunnels.device(here, route)
        if tunnel is not None:
            there = tunnels.through(self, node, tunnel, route.via, to)
            sender = tunnels.own_address(tunnel, self.family) if masquerade else flow.source
            self._judge(there, sender, backend, flow.protocol, Direction.INGRESS)
            return delivery.to_pod(self, there, sender, backend, flow.protocol, masquerade)
        if route.via is not None:
            return self._deliver_far(node, route.via, flow.source, backend, flow.protocol, masquerade)
        if not flow.from_node:  # what a node sends to its own pods always passes
            self._judge(node, flow.source, backend, flow.protocol, Direction.INGRESS)
        return delivery.to_pod(self, node, None if masquerade else flow.source, backend, flow.protocol)

    def _judge(
        self, node: str, sender: Address, backend: Backend, protocol: Protocol, direction: Direction
    ) -> None:
        """Policy by that node's tables: the endpoint's own address, and the sender's as it is there."""
        tables = self.tables(node)
        judge = self._judges.get(node) or Judge(tables)
        self._judges[node] = judge
        flow = PolicyFlow(sender, backend.address, protocol, backend.port)
        told = policy_stage(self.cluster, node, tables, judge, flow, direction)
        if told.stage is not None:
            self.stages.append(told.stage)
        if told.why:
            raise WayEnds(Outcome.DROPPED, told.why, denied=True)

    def _by_underlay(self, node: str, sender: Address, backend: Backend, masquerade: bool) -> str:
        """No row of podlane's: the node's own routes, which lead to the underlay."""
        to = backend.address
        if holds(self.tables(node).get(Table.SETS, {}), SetName.POD_CIDRS, to):
            owner = next((n.name for n in self.cluster.nodes.values() if _has_pod(n, to)), None)
            if owner == node:
                why = f"{node} has no pod with the address {to}"
            elif owner:
                why = f"{node} has no route to the pods of {owner}"
            else:
                why = f"no node has {to} in its podCIDR"
            self.add("route", node, why)
            raise WayEnds(Outcome.NO_ROUTE, why)
        text = f"to {to} by the node's own route: no row of podlane's"
        own = facts.internal_address(self.cluster.nodes[node], self.family)
        if masquerade:
            text += f"; the source becomes {own} (masquerade)"
        self.add("route", node, text)
        target = self.cluster.node_at(to)
        if target is None:
            who = self.cluster.name_of(to) or f"{to}, which is no node's and no pod's"
            return f"the network between the nodes gets it, for {who}"
        self.add("underlay", "", f"{node} -> {target.name} over the nodes' own network")
        return delivery.to_node(
            self, target.name, to, backend.port, own if masquerade else sender, masquerade
        )

    def _deliver_far(
        self, node: str, via: Address, sender: Address, backend: Backend, protocol: Protocol, masquerade: bool
    ) -> str:
        """By a plain route to the node that has `via`."""
        there = self._next_hop(node, via)
        own = facts.internal_address(self.cluster.nodes[node], self.family)
        seen = own if masquerade and own is not None else sender
        self._judge(there, seen, backend, protocol, Direction.INGRESS)
        return delivery.to_pod(self, there, seen, backend, protocol, masquerade)

    def _next_hop(self, node: str, via: Address) -> str:
        """The node a plain route leads to."""
        remote = self.cluster.node_at(via)
        if remote is None:
            raise WayEnds(Outcome.NO_ROUTE, f"no node has the address {via}, the next hop")
        self.add("underlay", "", f"{node} -> {remote.name} over the nodes' own network, not encapsulated")
        return remote.name


def _must_live(pod: Pod) -> None:
    if pod.status.phase in ENDED:
        why = f"{pod.namespace}/pod/{pod.name} has ended ({pod.status.phase}); its address is gone"
        raise WayEnds(Outcome.NO_ROUTE, why)


def _leaves(tables: Tables, sender: Address, to: Address) -> bool:
    """A pod's packet that leaves the cluster, where its address means nothing: masqueraded."""
    sets = tables.get(Table.SETS, {})
    return holds(sets, SetName.POD_CIDRS, sender) and not (
        holds(sets, SetName.CLUSTER_CIDRS, to) or holds(sets, SetName.NODE_IPS, to)
    )


def _has_pod(node: Node, where: Address) -> bool:
    try:
        return any(where in pods for pods in facts.pod_prefixes(node).values())
    except ConfigError:
        return False
