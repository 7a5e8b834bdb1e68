"""Services with real packets: what the compiler says, the simulation and the kernel must agree."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest

from podlane.compile.engine import compile_node
from podlane.compile.services_sim import Action, Flow, resolve
from podlane.compile.tables import Table
from podlane.delta import delta
from podlane.kernel import netns
from podlane.kernel.conntrack.codec import Filter
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.driver import Report
from podlane.kernel.nft.services import ServicesDriver
from podlane.model.addresses import Family, Protocol, address
from podlane.model.config import NetworkConfig, with_settings
from podlane.model.objects import (
    ClientIPConfig,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    Object,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
)
from tests.netns.service_lab import PLANS, PODS, PORT, Answer, Plan, Refused, ServiceLab, Silence, service_lab

CONFIG = NetworkConfig()
NODE_PORT = 30080
Tables = Mapping[Table, Mapping[Any, Any]]


@pytest.fixture(scope="module")
def built() -> Iterator[ServiceLab]:
    with service_lab() as lab:
        yield lab


class Net:
    """The lab's node-1 with a driver, seen from one family."""

    def __init__(self, lab: ServiceLab, family: Family) -> None:
        self.lab, self.family, self.plan = lab, family, PLANS[family]
        self.driver = ServicesDriver(CONFIG, lab.fds["node"])
        self.objects: list[Object] = []
        self.tables: Tables = compile_node([], node="node-1", config=CONFIG)

    def restart(self) -> Report:
        """As after kill -9: nothing of the old driver is left but what is in the kernel."""
        self.driver.close()
        self.driver = ServicesDriver(CONFIG, self.lab.fds["node"])
        return self.driver.resync(self.tables)

    def forget_flows(self) -> None:
        """UDP flows of earlier tests would be gone on with where a client's port repeats."""
        flows = Flows(self.lab.fds["node"])
        flows.delete(flows.list(Filter(self.family, Protocol.UDP.number)))
        flows.close()

    def set(self, *objects: Object, swept: bool = True) -> Report:
        """One generation that leads to exactly these services and slices. swept: wait until flows that
        are stale by it are gone, which those of endpoints take a second for."""
        nodes = [node("node-1", "node", 1), node("node-2", "peer", 2)]
        old, self.tables = self.tables, compile_node([*nodes, *objects], node="node-1", config=CONFIG)
        changes = {t: delta(self.tables[t], old.get(t, {})) for t in self.driver.tables}
        report = self.driver.apply({t: d for t, d in changes.items() if d})
        assert report.failures == ()
        assert not swept or self.driver.sweeper.wait()
        return report


def node(name: str, field: str, number: int) -> Node:
    return Node(
        metadata=ObjectMeta(name=name),
        spec=NodeSpec(pod_cidrs=[f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"]),
        status=NodeStatus(
            addresses=[NodeAddress("InternalIP", getattr(plan, field)) for plan in PLANS.values()]
        ),
    )


@pytest.fixture(params=list(Family))
def net(built: ServiceLab, request: pytest.FixtureRequest) -> Iterator[Net]:
    net = Net(built, request.param)
    net.driver.remove()
    net.forget_flows()
    net.driver.resync(net.tables)
    yield net
    net.driver.remove()
    net.driver.close()


def service(plan: Plan, family: Family, name: str = "web", number: int = 10, **spec: Any) -> Service:
    where = plan.services.format(number)
    ingress = spec.pop("ingress", [])
    ports = [
        ServicePort(80, "tcp", "TCP", PORT, NODE_PORT if number == 10 else 0),
        ServicePort(80, "udp", "UDP", PORT, NODE_PORT if number == 10 else 0),
    ]
    whole = {"cluster_ip": where, "cluster_ips": [where], "ip_families": [family], "ports": ports, **spec}
    return Service(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=ServiceSpec(**whole),
        status=ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress)),
    )


def piece(plan: Plan, family: Family, *names: str, owner: str = "web") -> EndpointSlice:
    def end(name: str) -> Endpoint:
        if name == "remote":
            return Endpoint(addresses=[plan.remote], node_name="node-2")
        return Endpoint(addresses=[plan.pod(PODS[name])], node_name="node-1")

    return EndpointSlice(
        metadata=ObjectMeta(name=owner, namespace="default", labels={"kubernetes.io/service-name": owner}),
        address_type=family,
        endpoints=[end(name) for name in names],
        ports=[EndpointPort("tcp", "TCP", PORT), EndpointPort("udp", "UDP", PORT)],
    )


VIPS = {Family.IPV4: "203.0.113.10", Family.IPV6: "2001:db8:200::10"}


def expected(net: Net, who: str, where: str, port: int, protocol: Protocol) -> Any:
    """What the simulation says: an Action, or {server: whether the client is masqueraded}."""
    source = {"client": net.plan.pod(77), "node": net.plan.router, "outside": net.plan.outside}
    source |= {"local-1": net.plan.pod(5)}
    flow = Flow(address(source[who]), address(where), protocol, port, from_node=who == "node")
    verdict = resolve(net.tables, flow)
    if verdict.action is not Action.TRANSLATE:
        return verdict.action
    names = {net.plan.remote: "remote", **{net.plan.pod(n): name for name, n in PODS.items()}}
    return {names[str(b.address)]: verdict.masquerades(b) for b in verdict.backends}


def observed(net: Net, who: str, where: str, port: int, protocol: Protocol) -> Any:
    """The same, from real flows."""
    own = {net.plan.node, net.plan.router}
    silent = expected(net, who, where, port, protocol) is Action.DROP
    try:
        if silent:
            net.lab.ask(who, where, port, protocol, timeout_s=0.25)
        found = net.lab.answers(who, where, port, protocol)
    except Refused:
        return Action.REFUSED
    except Silence:
        return Action.DROP
    if who == "node":  # it is masqueraded to what it was already
        assert {answer.client for answer in found} <= own
        return {answer.server: True for answer in found}
    return {answer.server: answer.client in own for answer in found}


@pytest.mark.parametrize("affinity", ["None", "ClientIP"])
def test_no_new_flow_is_lost_while_endpoints_come_and_go(net: Net, affinity: str) -> None:
    """One endpoint stays, two others come and go with every generation: each flow meets a whole list."""
    web = service(net.plan, net.family, session_affinity=affinity)
    net.set(web, piece(net.plan, net.family, "local-1"))
    where, done, failed = net.plan.services.format(10), threading.Event(), []

    def connect() -> None:
        while not done.is_set():
            try:
                net.lab.ask("client", where, 80)
            except (Refused, Silence) as error:
                failed.append(error)

    client = threading.Thread(target=connect)
    client.start()
    try:
        for have in 60 * [("local-2", "remote", "local-1"), ("local-1",), ("remote", "local-1")]:
            net.set(web, piece(net.plan, net.family, *have), swept=False)
    finally:
        done.set()
        client.join()
    assert failed == []


def test_two_thousand_endpoints_in_twenty_slices(net: Net) -> None:
    """Every flow is answered, by ever other endpoints."""
    plan, family, anyhow = net.plan, net.family, "0.0.0.0" if net.family is Family.IPV4 else "::"
    form, wide = (
        ("10.249.{}.{}", "10.249.0.0/16") if family is Family.IPV4 else ("fd00:249::{}:{}", "fd00:249::/64")
    )
    every = [form.format(n // 250 + 1, n % 250 + 1) for n in range(2000)]
    net.lab.ip("peer", f"route replace local {wide} dev lo")
    net.lab.ip("node", f"route replace {wide} via {plan.peer}")
    net.lab.listen("peer", anyhow, "", port=8090 + family.af)
    ports = [EndpointPort("tcp", "TCP", 8090 + family.af)]
    slices = [
        EndpointSlice(
            metadata=ObjectMeta(
                name=f"web-{start:04}", namespace="default", labels={"kubernetes.io/service-name": "web"}
            ),
            address_type=family,
            endpoints=[Endpoint(addresses=[a], node_name="node-2") for a in every[start : start + 100]],
            ports=ports,
        )
        for start in range(0, 2000, 100)
    ]
    net.set(service(plan, family), *slices)
    assert net.restart() == Report()
    found = net.lab.answers("client", plan.services.format(10), flows=300)
    assert {answer.server for answer in found} <= {str(address(each)) for each in every}
    assert len(found) > 200  # of 2000 drawn 300 times, some 279 are met
    net.set(service(plan, family))
    with pytest.raises(Refused):
        net.lab.ask("client", plan.services.format(10))


def test_hairpin(net: Net) -> None:
    """A pod that is drawn as its own backend sees the node as its client; others see the pod."""
    net.set(service(net.plan, net.family), piece(net.plan, net.family, "local-1", "local-2"))
    where = net.plan.services.format(10)
    found = observed(net, "local-1", where, 80, Protocol.TCP)
    assert found == expected(net, "local-1", where, 80, Protocol.TCP) == {"local-1": True, "local-2": False}


def test_addresses_and_ports_that_no_service_has(net: Net) -> None:
    net.set(service(net.plan, net.family), piece(net.plan, net.family, "local-1"))
    for who in ("client", "node", "outside"):
        with pytest.raises(Refused):
            net.lab.ask(who, net.plan.services.format(10), 81)
        with pytest.raises(Silence):
            net.lab.ask(who, net.plan.services.format(99), 80, timeout_s=0.25)


def test_node_ports_of_localhost_where_the_configuration_says_so(built: ServiceLab) -> None:
    """From the node itself, under its address; what a neighbour sends to 127.0.0.1 is dropped as ever."""
    plan, family, node_fd = PLANS[Family.IPV4], Family.IPV4, built.fds["node"]
    config = with_settings(CONFIG, ["services.localhostNodePorts=true"])
    nodes = [node("node-1", "node", 1), node("node-2", "peer", 2)]
    web = [service(plan, family, type="NodePort", external_traffic_policy="Local")]
    netns.write_sysctl(node_fd, "net/ipv4/conf/all/route_localnet", 1)
    driver = ServicesDriver(config, node_fd)
    try:
        for have in (("local-1", "local-2", "remote"), ()):
            there = [*nodes, *web, piece(plan, family, *have)]
            assert driver.resync(compile_node(there, node="node-1", config=config)).failures == ()
            for protocol in (Protocol.TCP, Protocol.UDP):
                if have:
                    found = built.answers("node", "127.0.0.1", NODE_PORT, protocol)
                    assert {a.server for a in found} == set(have)
                    assert {a.client for a in found} == {plan.node}
                else:
                    with pytest.raises(Refused):
                        built.ask("node", "127.0.0.1", NODE_PORT, protocol)
        built.listen("node", "127.0.0.1", "secret", port=9100)
        built.ip("peer", f"route add 127.0.0.1/32 via {plan.node} table 7")
        built.ip("peer", "rule add pref 1 dport 9100 lookup 7")
        built.ip("peer", "rule add pref 2 lookup local")
        built.ip("peer", "rule del pref 0")
        netns.write_sysctl(built.fds["peer"], "net/ipv4/conf/all/route_localnet", 1)
        with pytest.raises(Silence):
            built.ask("peer", "127.0.0.1", 9100, timeout_s=0.3)
        built.run("node", "nft", "flush", "chain", "ip", "podlane", "no-loopback-from-outside")
        assert built.ask("peer", "127.0.0.1", 9100).server == "secret"
    finally:
        netns.write_sysctl(node_fd, "net/ipv4/conf/all/route_localnet", 0)
        driver.remove()
        driver.close()


@pytest.fixture
def limited(net: Net) -> Iterator[None]:
    """ICMP errors as rare as the kernel makes them by itself."""
    node = net.lab.fds["node"]
    usual = {"net/ipv4/icmp_ratemask": 6168, "net/ipv6/icmp/ratelimit": 1000}
    for setting, value in usual.items():
        netns.write_sysctl(node, setting, value)
    yield
    for setting in usual:
        netns.write_sysctl(node, setting, 0)


@pytest.mark.usefixtures("limited")
def test_many_refused_connections_are_all_refused(net: Net) -> None:
    """ICMP errors are rate-limited by the kernel, TCP resets are not: without them a client is refused
    only when it has sent its SYN again, after one second."""
    net.set(service(net.plan, net.family))
    for _ in range(20):
        with pytest.raises(Refused):
            net.lab.ask("client", net.plan.services.format(10), 80, timeout_s=0.9)


def test_a_pod_leaves_the_cluster_as_its_node(net: Net) -> None:
    net.set()
    net.lab.listen("outside", net.plan.outside, "outside", port=9000 + net.family.af)
    found = net.lab.ask("client", net.plan.outside, 9000 + net.family.af)
    assert found == Answer("outside", net.plan.router)
    assert net.lab.ask("client", net.plan.remote, PORT).client == net.plan.pod(77)


def test_affinity_keeps_a_client_until_its_endpoint_goes(net: Net) -> None:
    sticky = service(
        net.plan,
        net.family,
        session_affinity="ClientIP",
        session_affinity_config=SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=100)),
    )
    names = ["local-1", "local-2", "remote"]
    net.set(sticky, piece(net.plan, net.family, *names))
    where = net.plan.services.format(10)
    for who in ("client", "node", "outside"):
        ((first, _),) = net.lab.answers(who, where).items()
        net.set(sticky, piece(net.plan, net.family, *(n for n in names if n != first.server)))
        ((second, _),) = net.lab.answers(who, where).items()
        assert second.server != first.server
        # The endpoint's return means nothing to a client that has another one by now.
        net.set(sticky, piece(net.plan, net.family, *names))
        assert set(net.lab.answers(who, where)) == {second}
    assert net.restart().operations == 0


def test_affinity_is_forgotten_in_time(net: Net) -> None:
    sticky = service(
        net.plan,
        net.family,
        session_affinity="ClientIP",
        session_affinity_config=SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=1)),
    )
    net.set(sticky, piece(net.plan, net.family, "local-1", "local-2", "remote"))
    found = set()
    for _ in range(12):
        found.add(net.lab.ask("client", net.plan.services.format(10)).server)
        select.select([], [], [], 1.3)
        if len(found) > 1:
            break
    assert len(found) > 1


def test_a_driver_started_again_changes_nothing_and_connections_go_on(net: Net) -> None:
    net.set(
        service(net.plan, net.family, external_traffic_policy="Local", type="NodePort"),
        service(net.plan, net.family, "sticky", 11, session_affinity="ClientIP"),
        piece(net.plan, net.family, "local-1", "local-2", "remote"),
        piece(net.plan, net.family, "local-1", "remote", owner="sticky"),
    )
    stream, _ = net.lab.connect("client", net.plan.services.format(10))
    with stream:
        echo(stream)
        assert net.restart() == Report()
        echo(stream)
        assert net.driver.resync(net.tables) == Report()
        echo(stream)


def test_another_version_of_the_ruleset_is_replaced_and_connections_go_on(net: Net) -> None:
    net.set(
        service(net.plan, net.family, type="NodePort", external_traffic_policy="Local"),
        service(net.plan, net.family, "sticky", 11, session_affinity="ClientIP"),
        piece(net.plan, net.family, "local-1", "local-2", "remote"),
        piece(net.plan, net.family, "local-1", "remote", owner="sticky"),
    )
    stream, _ = net.lab.connect("client", net.plan.services.format(10))
    with stream:
        echo(stream)
        before = elements(net)
        net.lab.run("node", "nft", "rename", "chain", net.family.nft, "podlane", version(net), "version-old")
        net.driver.close()
        net.driver = ServicesDriver(CONFIG, net.lab.fds["node"])
        assert net.driver.resync(net.tables).operations == 1
        assert elements(net) == before
        assert net.restart().operations == 0
        echo(stream)
        assert len(net.lab.answers("client", net.plan.services.format(10))) == 3


def version(net: Net) -> str:
    shown = net.lab.run("node", "nft", "list", "table", net.family.nft, "podlane")
    return next(word for word in shown.split() if word.startswith("version-"))


def elements(net: Net) -> dict[str, str]:
    """What nft shows of each map, line for line in some order."""
    names = ("frontends", "node-ports", "endpoints", "short-circuits", "picks", "slots", "counts")
    shown = {n: net.lab.run("node", "nft", "list", "map", net.family.nft, "podlane", n) for n in names}
    return {name: " ".join(sorted(text.replace(",", " ").split())) for name, text in shown.items()}


def echo(stream: socket.socket, timeout_s: float = 3.0) -> None:
    stream.settimeout(timeout_s)
    stream.sendall(b"still here")
    assert stream.recv(64) == b"still here"


def test_what_others_changed_is_repaired(net: Net) -> None:
    net.set(service(net.plan, net.family), piece(net.plan, net.family, "local-1", "local-2"))
    table = (net.family.nft, "podlane")
    net.lab.run("node", "nft", "flush", "map", *table, "endpoints")
    net.lab.run(
        "node", "nft", "add", "element", *table, "cluster-ips", f"{{ {net.plan.services.format(50)} }}"
    )
    assert net.driver.resync(net.tables).operations == 5  # two lists of two endpoints, one stray address
    assert net.restart().operations == 0
    # A generation that meets what it does not expect repairs and goes on.
    net.lab.run("node", "nft", "delete", "table", *table)
    net.set(service(net.plan, net.family), piece(net.plan, net.family, "local-1"))
    assert {a.server for a in net.lab.answers("client", net.plan.services.format(10))} == {"local-1"}
    assert net.restart().operations == 0


def test_one_endpoint_more_or_less_is_a_few_elements(net: Net) -> None:
    web = service(net.plan, net.family)
    net.set(web, piece(net.plan, net.family, "local-1", "remote"))
    # For TCP and for UDP: the endpoint; ClusterIP and node port with their new count, old and new.
    added = 2 * (1 + 2 * 2) + 1  # and a local endpoint
    assert net.set(web, piece(net.plan, net.family, "local-1", "local-2", "remote")).operations == added


class Talk:
    """One UDP flow: a client that keeps its port."""

    def __init__(self, net: Net, who: str, where: str, port: int) -> None:
        self._socket = net.lab.socket(who, where, socket.SOCK_DGRAM)
        self._socket.settimeout(0.5)
        self._where = where, port

    def say(self) -> Any:
        """The server's name, or what came instead."""
        try:
            self._socket.sendto(b"?", self._where)
            return json.loads(self._socket.recv(4096))[0]
        except (TimeoutError, ConnectionRefusedError) as error:
            return type(error)

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def test_a_udp_flow_leaves_an_endpoint_that_went(net: Net) -> None:
    web, names = service(net.plan, net.family), ["local-1", "local-2", "remote"]
    net.set(web, piece(net.plan, net.family, *names))
    for who, where in (
        ("client", (net.plan.services.format(10), 80)),
        ("outside", (net.plan.node, NODE_PORT)),
    ):
        with Talk(net, who, *where) as talk, Talk(net, who, *where) as other:
            first, bystander = talk.say(), other.say()
            assert talk.say() == first
            net.set(web, piece(net.plan, net.family, *(n for n in names if n != first)))
            assert talk.say() in set(names) - {first}
            if bystander != first:
                assert other.say() == bystander
            net.set(web)
            assert not isinstance(talk.say(), str)
            net.set(web, piece(net.plan, net.family, *names))
            assert talk.say() in names


def test_a_udp_flow_stays_with_an_endpoint_that_still_serves(net: Net) -> None:
    web, names = service(net.plan, net.family), ["local-1", "local-2", "remote"]
    net.set(web, piece(net.plan, net.family, *names))
    with Talk(net, "client", net.plan.services.format(10), 80) as talk:
        first = talk.say()
        going = piece(net.plan, net.family, *names)
        for end, name in zip(going.endpoints or (), names, strict=True):
            if name == first:
                draining = EndpointConditions(ready=False, serving=True, terminating=True)
                going.endpoints[names.index(name)] = msgspec.structs.replace(end, conditions=draining)  # type: ignore[index]
        net.set(web, going)
        assert first not in {a.server for a in net.lab.answers("client", net.plan.services.format(10))}
        assert talk.say() == first
        net.set(web, piece(net.plan, net.family, *(n for n in names if n != first)))
        assert talk.say() in set(names) - {first}


def test_a_udp_flow_older_than_the_service_is_turned_to_it(net: Net) -> None:
    where = net.plan.outside
    with Talk(net, "client", where, 53) as talk:
        talk.say()
        talk.say()
        net.set(
            service(net.plan, net.family, external_ips=[where], ports=[ServicePort(53, "udp", "UDP", PORT)]),
            piece(net.plan, net.family, "remote"),
        )
        assert talk.say() == "remote"
        net.set()
        assert not isinstance(talk.say(), str)


@pytest.mark.parametrize("still_there", [True, False])
def test_udp_flows_of_what_went_while_the_driver_was_away(net: Net, still_there: bool) -> None:
    web = service(net.plan, net.family)
    net.set(web, piece(net.plan, net.family, "local-1"))
    with Talk(net, "client", net.plan.services.format(10), 80) as talk:
        assert talk.say() == "local-1"
        net.driver.close()
        nodes = [node("node-1", "node", 1), node("node-2", "peer", 2)]
        now = [web, piece(net.plan, net.family, "remote")] if still_there else []
        net.tables = compile_node([*nodes, *now], node="node-1", config=CONFIG)
        net.restart()
        assert net.driver.sweeper.wait()
        answer = talk.say()
        assert answer == "remote" if still_there else not isinstance(answer, str)
