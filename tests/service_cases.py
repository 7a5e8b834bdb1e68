"""Cases of Services as data (tests/cases/services/*.yaml): objects, flows, and what comes of each flow.

A case says what kube-proxy's own tests say of its rules, in words: who asks which of a Service's addresses,
and which endpoints may answer, whether they see the client or the node, or that it is refused or hears
nothing. One reading of it runs in the simulation (tests/unit) and one with real packets (tests/netns), for
each family.

    - case: a title
      services: {web: {type: LoadBalancer, vip: true, endpoints: [local-1, remote terminating]}}
      flows: ["pod node -> cluster node-port/udp: local-1 remote masqueraded"]
      then: [further steps: services by name, null for one that goes, and flows]

services   keys as in spec; beside them vip (true, or an ipMode), external (true, or a name that several
           share), ports {name: number}, protocols, labels, sliceLabels, endpoints or slices (lists of them),
           age, sloppy (addresses with leading zeros)
endpoints  local-1, local-2 (on this node), remote; with: terminating, gone, unready, published, zone=, node=
sources    pod, local-1 (another pod, an endpoint), node, outside, peer (the other node)
places     cluster, node-port, second-port, localhost-port, vip, external, free (a service address that nobody
           has), more.free (one of another ServiceCIDR); NAME. before it where there are several services;
           :port and /protocol after it
outcomes   endpoints, with `masqueraded` after them if they see the node, and `or` between groups; `one of`
           for session affinity; refused; silence; passes (it is none of a service's)

Every case has addresses and ports of its own, so that all cases of one configuration can stand side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from podlane.compile.engine import compile_node
from podlane.compile.services_sim import Flow
from podlane.compile.tables import Table
from podlane.model.addresses import Family, Protocol, address, host_prefix
from podlane.model.config import NetworkConfig, with_settings
from podlane.model.local import Underlay
from podlane.model.objects import (
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    ForZone,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    Object,
    ObjectMeta,
    Service,
    ServiceCIDR,
    ServiceCIDRSpec,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from tests.netns.service_lab import PLANS, PODS, PORT

DIRECTORY = Path(__file__).parent / "cases" / "services"
ME, OTHER = "node-1", "node-2"
FIRST_NODE_PORT = 30000

VIPS = {Family.IPV4: "203.0.113.{}", Family.IPV6: "2001:db8:200::{}"}
EXTERNALS = {Family.IPV4: "192.0.2.{}", Family.IPV6: "2001:db8:300::{}"}
FREE = {Family.IPV4: "10.96.9.9", Family.IPV6: "fd00:10:96::999"}
MORE = {Family.IPV4: "10.97.0.0/16", Family.IPV6: "fd00:10:97::/112"}
MORE_FREE = {Family.IPV4: "10.97.9.9", Family.IPV6: "fd00:10:97::999"}
LOCALHOST = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}

STATES = {
    "": EndpointConditions(ready=True, serving=True, terminating=False),
    "terminating": EndpointConditions(ready=False, serving=True, terminating=True),
    "gone": EndpointConditions(ready=False, serving=False, terminating=True),
    "unready": EndpointConditions(ready=False, serving=False, terminating=False),
    "published": EndpointConditions(ready=True, serving=True, terminating=True),
}


class Outcome(NamedTuple):
    """endpoints: server -> whether it sees the node instead of the client. word: refused, silence, passes, or
    "" where endpoints answer. one: a client meets the same one again."""

    word: str
    endpoints: Mapping[str, bool]
    one: bool = False


class Ask(NamedTuple):
    """One flow: who asks where, and what shall come of it. line: as the case has it, for the reader."""

    source: str
    where: str
    port: int
    protocol: Protocol
    outcome: Outcome
    line: str


class Step(NamedTuple):
    services: Mapping[str, Mapping[str, Any] | None]
    flows: tuple[str, ...]
    more_addresses: bool


class Case(NamedTuple):
    """number: makes its addresses and ports its own."""

    title: str
    number: int
    only: str
    config: tuple[str, ...]
    zone: str
    steps: tuple[Step, ...]

    @property
    def world(self) -> tuple[tuple[str, ...], str]:
        """Cases of one world may stand side by side."""
        return self.config, self.zone

    def there(self, step: int) -> dict[str, Mapping[str, Any]]:
        """The services of a step by name; a case that has fewer steps stays as it was."""
        found: dict[str, Mapping[str, Any] | None] = {}
        for each in self.steps[: step + 1]:
            found |= each.services
        return {name: spec for name, spec in found.items() if spec is not None}


@cache
def cases() -> tuple[Case, ...]:
    found: list[Case] = []
    for path in sorted(DIRECTORY.glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text()):
            steps = [entry, *entry.get("then", ())]
            more = False
            parsed = []
            for step in steps:
                more = bool(step.get("serviceCIDRs")) if "serviceCIDRs" in step else more
                parsed.append(Step(step["services"], tuple(step["flows"]), more))
            config = tuple(entry.get("config", ()))
            title = f"{path.stem}: {entry['case']}"
            number = 10 * len(found)  # up to ten services each
            found.append(
                Case(title, number, entry.get("only", ""), config, entry.get("zone", "a"), tuple(parsed))
            )
    return tuple(found)


def titles() -> list[str]:
    return [case.title for case in cases()]


# --- objects --------------------------------------------------------------------------------------


def node(name: str, zone: str) -> Node:
    number = name[-1]
    field = "node" if name == ME else "peer"
    return Node(
        metadata=ObjectMeta(name=name, labels={"topology.kubernetes.io/zone": zone} if zone else {}),
        spec=NodeSpec(pod_cidrs=[f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"]),
        status=NodeStatus(
            addresses=[NodeAddress("InternalIP", getattr(plan, field)) for plan in PLANS.values()]
        ),
    )


class World:
    """Cases side by side in one family: their objects, and where their flows go."""

    def __init__(self, family: Family, config: tuple[str, ...], zone: str) -> None:
        self.family, self.plan, self.zone = family, PLANS[family], zone
        self.config = with_settings(NetworkConfig(), list(config))
        self.cases = [
            case for case in cases() if case.world == (config, zone) and case.only in ("", str(family))
        ]
        self.steps = max(len(case.steps) for case in self.cases)

    def tables(self, step: int) -> dict[Table, dict[Any, Any]]:
        plans = PLANS.values()
        held = tuple(address(text) for plan in plans for text in (plan.node, plan.router))
        uplink = tuple((address(plan.node), host_prefix(address(plan.node))) for plan in plans)
        here = Underlay("eth0", 1500, uplink, held)
        return compile_node(self.objects(step), node=ME, config=self.config, underlay=here)

    def objects(self, step: int) -> list[Object]:
        found: list[Object] = [node(ME, self.zone), node(OTHER, "b")]
        if any(case.steps[min(step, len(case.steps) - 1)].more_addresses for case in self.cases):
            spec = ServiceCIDRSpec(cidrs=[MORE[self.family]])
            found.append(ServiceCIDR(metadata=ObjectMeta(name="more"), spec=spec))
        for case in self.cases:
            names = self._names(case)
            for name, spec in case.there(step).items():
                found += self._service(case, names.index(name), name, spec)
        return found

    def _names(self, case: Case) -> list[str]:
        return list(dict.fromkeys(name for step in case.steps for name in step.services))

    def _service(self, case: Case, index: int, name: str, given: Mapping[str, Any]) -> Iterator[Object]:
        number = case.number + index
        spec = {**given}
        full = f"{name}-{number}"
        labels = spec.pop("labels", {})
        slice_labels = spec.pop("sliceLabels", {})
        slices = spec.pop("slices", None) or [spec.pop("endpoints", [])]
        vip, external = spec.pop("vip", None), spec.pop("external", None)
        sloppy = _sloppy if spec.pop("sloppy", False) else str
        age = spec.pop("age", 0)
        protocols, numbers = spec.pop("protocols", ["TCP", "UDP"]), spec.pop("ports", {"http": 80})
        exposed = given.get("type") in ("NodePort", "LoadBalancer")
        exposed = exposed and spec.pop("allocateLoadBalancerNodePorts", True)
        cluster_ip = spec.pop("clusterIP", sloppy(self.cluster_ip(number)))
        families = [] if cluster_ip == "None" else [self.family]
        if spec.get("type") == "ExternalName":
            cluster_ip, families = "", []
        ports = [
            ServicePort(
                port,
                f"{port_name}-{protocol.lower()}",
                protocol,
                PORT,
                self.node_port(number) if exposed and port == 80 else 0,
            )
            for port_name, port in numbers.items()
            for protocol in protocols
        ]
        if "loadBalancerSourceRanges" in spec:
            spec["loadBalancerSourceRanges"] = [
                text for each in spec["loadBalancerSourceRanges"] for text in self._ranges(each, sloppy)
            ]
        ingress = []
        if vip:
            mode = vip if isinstance(vip, str) else None
            ingress = [LoadBalancerIngress(ip=sloppy(self.vip(number)), ip_mode=mode)]
        external_ips = [sloppy(self.external(case, number, external))] if external else []
        yield Service(
            metadata=ObjectMeta(
                name=full,
                namespace="default",
                labels=labels,
                creation_timestamp=f"2026-01-01T00:00:0{age}Z",
            ),
            spec=ServiceSpec(
                cluster_ip=cluster_ip,
                cluster_ips=[cluster_ip] if cluster_ip else [],
                ip_families=families,
                ports=ports,
                external_ips=external_ips,
                **{_snake(key): value for key, value in spec.items()},
            ),
            status=ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress)),
        )
        for place, members in enumerate(slices):
            yield EndpointSlice(
                metadata=ObjectMeta(
                    name=f"{full}-{place}",
                    namespace="default",
                    labels={"kubernetes.io/service-name": full, **slice_labels},
                ),
                address_type=self.family,
                endpoints=[self._endpoint(text) for text in members],
                ports=[EndpointPort(port.name, port.protocol, PORT) for port in ports],
            )

    def _endpoint(self, text: str) -> Endpoint:
        name, *words = text.split()
        zones = [word.removeprefix("zone=") for word in words if word.startswith("zone=")]
        nodes = [word.removeprefix("node=") for word in words if word.startswith("node=")]
        state = next((word for word in words if word in STATES), "")
        hints = EndpointHints(for_zones=list(map(ForZone, zones)), for_nodes=list(map(ForZone, nodes)))
        return Endpoint(
            addresses=[self.endpoint_address(name)],
            conditions=STATES[state],
            node_name=OTHER if name == "remote" else ME,
            hints=hints if zones or nodes else None,
        )

    def _ranges(self, text: str, sloppy: Any) -> list[str]:
        plan, bits = self.plan, self.family.bits
        other = Family.IPV6 if self.family is Family.IPV4 else Family.IPV4
        found = {
            "$outside": [f"{sloppy(plan.outside)}/{bits}"],
            "$pod": [f" {plan.pod(PODS['client'])}/{bits - 2} "],
            "$node": [f"{plan.node}/{bits}"],
            "$others": [{Family.IPV4: "198.18.0.0/15", Family.IPV6: "2001:db8:ff::/64"}[self.family]],
            "$everyone": ["0.0.0.0/0", "::/0"],
            "$other-family": [{Family.IPV4: "198.18.0.0/15", Family.IPV6: "2001:db8:ff::/64"}[other]],
        }
        return found[text]

    # --- addresses ---

    def cluster_ip(self, number: int) -> str:
        if self.family is Family.IPV6:
            return f"fd00:10:96::{0x1000 + number:x}"
        return f"10.96.{1 + number // 200}.{1 + number % 200}"

    def vip(self, number: int) -> str:
        return _numbered(VIPS[self.family], number)

    def external(self, case: Case, number: int, name: Any) -> str:
        """A name other than true is shared by the case's services."""
        return _numbered(EXTERNALS[self.family], case.number if isinstance(name, str) else number)

    def node_port(self, number: int) -> int:
        return FIRST_NODE_PORT + number

    def endpoint_address(self, name: str) -> str:
        return self.plan.remote if name == "remote" else self.plan.pod(PODS[name])

    def name_of(self, where: Any) -> str:
        return next(n for n in ("local-1", "local-2", "remote") if self.endpoint_address(n) == str(where))

    def source(self, name: str) -> str:
        plan = self.plan
        fixed = {
            "pod": plan.pod(PODS["client"]),
            "node": plan.node,
            "outside": plan.outside,
            "peer": plan.peer,
        }
        return fixed.get(name) or plan.pod(PODS[name])

    # --- flows ---

    def asks(self, case: Case, step: int) -> Iterator[Ask]:
        for line in case.steps[step].flows:
            match = re.fullmatch(r"(.+?) -> (.+?): (.+)", line)
            assert match, line
            sources, places, outcome = match.groups()
            for source in sources.split():
                for place in places.split():
                    where, _, protocol = place.partition("/")
                    for each in [protocol.upper()] if protocol else ["TCP", "UDP"]:
                        yield Ask(
                            source,
                            *self._where(case, where),
                            Protocol(each),
                            _outcome(outcome),
                            f"{source} -> {where}/{each.lower()}: {outcome}",
                        )

    def _where(self, case: Case, place: str) -> tuple[str, int]:
        place, _, port = place.partition(":")
        name, _, what = place.rpartition(".")
        if what == "free":
            return (MORE_FREE if name else FREE)[self.family], 80
        names = self._names(case)
        assert name or len(names) == 1, f"{case.title}: of which service is {place}?"
        number = case.number + (names.index(name) if name else 0)
        given = {n: s for step in case.steps for n, s in step.services.items() if s is not None}
        shared = given[name or names[0]].get("external")
        node_port = self.node_port(number)
        return {
            "cluster": (self.cluster_ip(number), int(port or 80)),
            "vip": (self.vip(number), int(port or 80)),
            "external": (self.external(case, number, shared), int(port or 80)),
            "node-port": (self.plan.node, node_port),
            "second-port": (self.plan.router, node_port),
            "localhost-port": (LOCALHOST[self.family], node_port),
        }[what]

    def flow(self, ask: Ask) -> Flow:
        """As the simulation takes it."""
        source = address(self.source(ask.source))
        return Flow(source, address(ask.where), ask.protocol, ask.port, from_node=ask.source == "node")


def worlds(family: Family) -> list[World]:
    keys = dict.fromkeys(case.world for case in cases() if case.only in ("", str(family)))
    return [World(family, *key) for key in keys]


def _outcome(text: str) -> Outcome:
    if text in ("refused", "silence", "passes"):
        return Outcome(text, {})
    one = text.startswith("one of ")
    endpoints: dict[str, bool] = {}
    for group in text.removeprefix("one of ").split(" or "):
        names = group.split()
        masqueraded = names[-1] == "masqueraded"
        endpoints |= dict.fromkeys(names[: -1 if masqueraded else None], masqueraded)
    return Outcome("", endpoints, one)


def _numbered(form: str, number: int) -> str:
    """IPv4 prefixes of documentation have 254 addresses; the next ones follow on them."""
    if ":" in form:
        return form.format(f"{number + 1:x}")
    first, second, third, _ = form.split(".")
    return f"{first}.{second}.{int(third) + number // 250}.{1 + number % 250}"


def _sloppy(text: str) -> str:
    """With leading zeros, which are decimal all the same."""
    return ".".join(part.zfill(3) for part in text.split("."))


def _snake(key: str) -> str:
    return re.sub(r"([A-Z]+)", lambda match: "_" + match[1].lower(), key)
