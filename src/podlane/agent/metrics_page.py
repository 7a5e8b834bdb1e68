"""/metrics: what the agent knows, what it counted, and what it reads of its node when it is asked.

/metrics/services and /metrics/policies (?namespace=NS) walk connections or rules: they are pages of their
own, so that nobody pays for them who does not ask. Reading is done on another thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from podlane.agent import http, report
from podlane.agent.metrics import AgentMetrics
from podlane.agent.proxy import Proxy
from podlane.agent.sockets import SocketPages
from podlane.compile.engine import Compiler
from podlane.compile.peers import NAME as PEERS
from podlane.compile.peers import TUNNEL_DEVICES
from podlane.compile.tables import Table
from podlane.engines.bird.driver import BirdDriver
from podlane.engines.udp import counters as udp
from podlane.engines.udp.driver import UdpDriver
from podlane.errors import KernelError
from podlane.kernel.conntrack import statistics
from podlane.kernel.conntrack.codec import Filter
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.driver import Failure
from podlane.kernel.nft import counters, policy_chains
from podlane.kernel.nft.codec import BRIDGE
from podlane.kernel.rtnl import traffic
from podlane.model.addresses import Family, Prefix
from podlane.observe import process
from podlane.observe.exposition import CONTENT_TYPE, Metric, exposition, gauge, labelled

log = logging.getLogger(__name__)

Use = Mapping[Prefix, tuple[int, int]]


class MetricsPage:
    """state: what the status tells. use: of each range of pods' addresses: given out, and how many there are.
    requests: of the API, by (verb, resource, code).
    """

    def __init__(
        self,
        compiler: Compiler,
        counted: AgentMetrics,
        *,
        state: Callable[[], report.State],
        use: Callable[[], Use],
        requests: Mapping[tuple[str, ...], int],
        proxy: Proxy | None,
        sockets: SocketPages | None,
    ) -> None:
        self._compiler, self._counted = compiler, counted
        self.bird: BirdDriver | None = None  # while there is one
        self.udp: UdpDriver | None = None
        self._state, self._use, self._requests = state, use, requests
        self._proxy, self._sockets = proxy, sockets
        self.asked: dict[str, http.AskedPage] = {
            "/metrics/services": self._services,
            "/metrics/policies": self._policies,
        }

    async def page(self) -> http.Answer:
        state = self._state()
        known = [*self._counted.metrics(), *self._node(state)]
        text = report.metrics(state) + report.exposition(*known)
        devices = self._devices()
        text += report.exposition(*await asyncio.to_thread(lambda: list(self._readings(devices))))
        text += self._proxy.text() if self._proxy else ""
        text += await self._sockets.metrics() if self._sockets else ""
        return _answer(text + process.text("agent"))

    # --- of what is known ---

    def _node(self, state: report.State) -> Iterator[Metric]:
        api = labelled(("verb", "resource", "code"), dict(self._requests))
        yield Metric("api_requests_total", "counter", "Requests of the API, by the answer's status.", api)
        use = {str(pool): each for pool, each in self._use().items()}
        given = [({"range": pool}, used) for pool, (used, _) in use.items()]
        free = [({"range": pool}, there - used) for pool, (used, there) in use.items()]
        yield Metric("pod_addresses_in_use", "gauge", "Addresses that pods hold, by range.", given)
        yield Metric("pod_addresses_free", "gauge", "Addresses left for pods, by range.", free)
        down = unreachable(self._compiler, state.failures)
        peers = self._peers(down)
        yield Metric(
            "peers",
            "gauge",
            "Other nodes, by whether their pods can be reached.",
            labelled(("backend", "state"), peers),
        )
        guards = self._compiler.tables[Table.GUARDS].values()
        closed = sum(1 for each in guards if each.pod.name and not each.known)
        yield gauge(
            "pods_fail_closed", "Pods that nothing passes of, since the API does not show them yet.", closed
        )

    def _peers(self, down: Collection[str]) -> dict[tuple[str, ...], float]:
        """By the backend they are sent to by; those that nothing leads to count under this node's own."""
        own, ways = str(self._compiler.view.config.backend.type), self._compiler.tables[Table.PEER_WAYS]
        peers: dict[tuple[str, ...], float] = {(own, "up"): 0, (own, "down"): 0}
        for name in self._compiler.view.nodes:
            if name != self._compiler.view.me.name:
                way = str(ways[name].ways[0][1]) if name in ways else own
                key = way, "down" if name in down or name not in ways else "up"
                peers[key] = peers.get(key, 0) + 1
        return peers

    # --- of what is read ---

    def _devices(self) -> set[str]:
        """Tunnels, bridges and the uplink."""
        found = {*TUNNEL_DEVICES, *self._compiler.tables[Table.BRIDGES]}
        underlay = self._compiler.view.me.underlay
        return {*found, underlay.device} if underlay is not None else found

    def _readings(self, devices: set[str]) -> Iterator[Metric]:
        try:
            tracked = statistics.read()
        except KernelError as error:
            log.debug("conntrack statistics: %s", error)
        else:
            yield gauge("conntrack_entries", "Connections tracked in this namespace.", tracked.entries)
            yield gauge("conntrack_entries_limit", "How many the machine tracks at most.", tracked.limit)
            events = labelled(("event",), {(name,): n for name, n in tracked.events.items()})
            yield Metric(
                "conntrack_events_total", "counter", "What went wrong in connection tracking.", events
            )
        yield from _traffic(devices)
        if self.bird is not None:
            yield from self._sessions(self.bird)
        if self.udp is not None:
            yield from _datagrams(self.udp)

    def _sessions(self, bird: BirdDriver) -> Iterator[Metric]:
        try:
            sessions = bird.sessions()
        except KernelError as error:
            log.debug("BGP sessions: %s", error)
            return
        counts: Counter[tuple[str, ...]] = Counter()
        for is_node, up in sessions.values():
            counts["node" if is_node else "router", "up" if up else "down"] += 1
        samples = labelled(("peers", "state"), counts)
        yield Metric("bgp_sessions", "gauge", "BGP sessions, with nodes and with routers.", samples)
        routers: dict[tuple[str, ...], float] = {
            (name, str(family)): float(up) for (name, family), (node, up) in sessions.items() if not node
        }
        help_ = "Whether the session with a router is established."
        yield Metric("bgp_session_up", "gauge", help_, labelled(("peer", "ip_family"), routers))

    # --- when somebody asks ---

    async def _services(self, query: http.Query) -> http.Answer:
        if refusal := _refused(query):
            return refusal

        # Copied here: on the other thread they might change while they are gone through.
        tables = {**self._compiler.tables, Table.BACKENDS: dict(self._compiler.tables[Table.BACKENDS])}

        def read() -> str:
            from podlane.observe.demand import service_metrics

            flows = Flows()
            try:
                entries = [entry for family in Family for entry in flows.list(Filter(family))]
            finally:
                flows.close()
            namespace = query.get("namespace", "")
            return exposition("podlane_service_", service_metrics(entries, tables, namespace))

        return await _read(read)

    async def _policies(self, query: http.Query) -> http.Answer:
        if refusal := _refused(query):
            return refusal

        def read() -> str:
            from podlane.observe.demand import policy_metrics

            counted = counters.read(policy_chains.TABLE, (*Family, BRIDGE))
            return exposition("podlane_policy_", policy_metrics(counted, query.get("namespace", "")))

        return await _read(read)


QUERY: Final = ("namespace",)


def _datagrams(driver: UdpDriver) -> Iterator[Metric]:
    """Of backend udp: what its proxy counted since it began."""
    try:
        counted = driver.counters()
    except KernelError as error:
        log.debug("the UDP proxy: %s", error)
        return
    for name, help_ in udp.MOVED.items():
        yield Metric(f"udp_{name}_total", "counter", help_, [({}, float(counted.get(name, 0)))])
    drops = labelled(("reason",), {(reason,): counted.get(reason, 0) for reason in udp.DROPS})
    yield Metric("udp_drops_total", "counter", "Packets that the UDP proxy dropped, by reason.", drops)


def _refused(query: http.Query) -> http.Answer | None:
    unknown = sorted(set(query) - set(QUERY))
    return http.text(f"there is ?namespace=NS, and no {', '.join(unknown)}", 400) if unknown else None


async def _read(read: Callable[[], str]) -> http.Answer:
    try:
        return _answer(await asyncio.to_thread(read))
    except KernelError as error:
        return http.text(str(error), 500)


def _answer(text: str) -> http.Answer:
    return http.Answer(200, text.encode(), CONTENT_TYPE)


def _traffic(devices: set[str]) -> Iterator[Metric]:
    found = {name: each for name, each in traffic.read().items() if name in devices}
    for field in traffic.Traffic._fields:
        samples = [({"device": name}, float(getattr(each, field))) for name, each in sorted(found.items())]
        help_ = f"{field.replace('_', ' ').capitalize()} of tunnels, bridges and the uplink."
        yield Metric(f"network_{field}_total", "counter", help_, samples)


def unreachable(compiler: Compiler, failures: Sequence[Failure]) -> set[str]:
    """Names of the nodes that rows which lead to them were refused of, or that no way was found to."""
    units = [unit for failure in failures if (unit := compiler.owner(failure.table, failure.key))]
    units += compiler.refused
    return {unit.name for unit in units if unit.capability == PEERS and unit.what == "node"}
