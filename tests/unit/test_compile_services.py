"""Services on one node: verdicts by the simulation, rows by the compiler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from podlane.compile.engine import Compiler, compile_node
from podlane.compile.services_sim import Action, Flow, Verdict, resolve
from podlane.compile.tables import (
    Backend,
    BackendList,
    Frontend,
    FrontendClass,
    FrontendKey,
    ListKey,
    NodePortKey,
    SetMember,
    SetName,
    Table,
)
from podlane.compile.view import Change
from podlane.model.addresses import Family, Protocol, address, host_prefix
from podlane.model.config import NetworkConfig
from podlane.model.objects import (
    ClientIPConfig,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
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

ME, OTHER = "node-1", "node-2"
Tables = Mapping[Table, Mapping[Any, Any]]


def node(name: str, last: int) -> Node:
    return Node(
        metadata=ObjectMeta(name=name, labels={"topology.kubernetes.io/zone": f"zone-{last}"}),
        spec=NodeSpec(pod_cidrs=[f"10.244.{last}.0/24", f"fd00:10:244:{last}::/64"]),
        status=NodeStatus(
            addresses=[
                NodeAddress("InternalIP", f"172.30.1.{last}"),
                NodeAddress("InternalIP", f"fd00:172:30::{last}"),
            ]
        ),
    )


NODES: list[Object] = [node(ME, 1), node(OTHER, 2)]
LOCAL, REMOTE = "10.244.1.5", "10.244.2.5"
CLUSTER_IP, EXTERNAL_IP, VIP = "10.96.0.10", "203.0.113.9", "203.0.113.10"


def service(name: str = "web", **spec: Any) -> Service:
    ingress = spec.pop("ingress", [])
    labels = spec.pop("labels", {})
    created = spec.pop("created", "2026-01-01T00:00:00Z")
    whole = {
        "cluster_ip": CLUSTER_IP,
        "cluster_ips": [CLUSTER_IP],
        "ip_families": ["IPv4"],
        "ports": [ServicePort(80, "http", "TCP", 8080)],
        **spec,
    }
    return Service(
        metadata=ObjectMeta(name=name, namespace="default", labels=labels, creation_timestamp=created),
        spec=ServiceSpec(**whole),
        status=ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress)),
    )


def piece(
    *where: str, owner: str = "web", family: str = "IPv4", ports: Any = None, name: str = ""
) -> EndpointSlice:
    nodes = {"1": ME, "2": OTHER}

    def which(text: str) -> str | None:
        return nodes.get(text.split(".")[2] if "." in text else text.split(":")[3])

    return EndpointSlice(
        metadata=ObjectMeta(
            name=name or f"{owner}-{family}",
            namespace="default",
            labels={"kubernetes.io/service-name": owner},
        ),
        address_type=family,
        endpoints=[Endpoint(addresses=[text], node_name=which(text)) for text in where],
        ports=ports or [EndpointPort("http", "TCP", 8080)],
    )


def tables(*objects: Object, **config: Any) -> Tables:
    return compile_node([*NODES, *objects], node=ME, config=NetworkConfig(**config))


def flow(source: str, destination: str, port: int = 80, protocol: Protocol = Protocol.TCP) -> Flow:
    src = address(source)
    return Flow(src, address(destination), protocol, port, from_node=str(src) == "172.30.1.1")


def shown(verdict: Verdict) -> str:
    """`LR+m`: local and remote endpoint, masqueraded."""
    if verdict.action is not Action.TRANSLATE:
        return verdict.action.value
    letters = {LOCAL: "L", REMOTE: "R"}
    found = "".join(sorted(letters[str(b.address)] for b in verdict.backends))
    return found + ("+m" if verdict.masquerade else "")


# --- the verdict matrix ---------------------------------------------------------------------------
# Internal and external traffic policy, endpoints; then for pod, node and outside as sources what
# comes of ClusterIP | node port | load-balancer address.

SOURCES = {"pod": "10.244.1.77", "node": "172.30.1.1", "outside": "198.51.100.10"}
MATRIX = """
internal external endpoints | pod               | node                | outside
Cluster  Cluster  L R       | LR   LR+m LR+m    | LR+m LR+m LR+m      | LR+m LR+m LR+m
Cluster  Cluster  R         | R    R+m  R+m     | R+m  R+m  R+m       | R+m  R+m  R+m
Cluster  Cluster  L         | L    L+m  L+m     | L+m  L+m  L+m       | L+m  L+m  L+m
Cluster  Local    L R       | LR   LR   LR      | LR+m LR+m LR+m      | LR+m L    L
Cluster  Local    R         | R    R    R       | R+m  R+m  R+m       | R+m  drop drop
Local    Cluster  L R       | L    LR+m LR+m    | L+m  LR+m LR+m      | L+m  LR+m LR+m
Local    Cluster  R         | drop R+m  R+m     | drop R+m  R+m       | drop R+m  R+m
Local    Local    L R       | L    LR   LR      | L+m  LR+m LR+m      | L+m  L    L
Local    Local    R         | drop R    R       | drop R+m  R+m       | drop drop drop
Cluster  Cluster  -         | refused refused refused | refused refused refused | refused refused refused
Cluster  Local    -         | refused refused refused | refused refused refused | refused refused refused
Local    Cluster  -         | refused refused refused | refused refused refused | refused refused refused
Local    Local    -         | refused refused refused | refused refused refused | refused refused refused
"""


@pytest.mark.parametrize("row", MATRIX.strip().splitlines()[1:])
def test_verdict_and_masquerade(row: str) -> None:
    head, *cells = row.split("|")
    internal, external, *have = head.split()
    there = {"L": LOCAL, "R": REMOTE}
    compiled = tables(
        service(
            type="LoadBalancer",
            internal_traffic_policy=internal,
            external_traffic_policy=external,
            ports=[ServicePort(80, "http", "TCP", 8080, 30080)],
            ingress=[LoadBalancerIngress(ip=VIP)],
        ),
        piece(*(there[each] for each in have if each != "-")),
    )
    found = {
        who: [
            shown(resolve(compiled, flow(source, *where)))
            for where in ((CLUSTER_IP, 80), ("172.30.1.1", 30080), (VIP, 80))
        ]
        for who, source in SOURCES.items()
    }
    assert found == {who: cell.split() for who, cell in zip(SOURCES, cells, strict=True)}


ADDRESSES = {
    "a port that is not served": ("10.96.0.10", 81, Action.REFUSED),
    "another protocol on a served port": ("10.96.0.10", 80, Action.REFUSED),
    "a service address nobody holds": ("10.96.0.99", 80, Action.DROP),
    "an external address on another port": (EXTERNAL_IP, 81, Action.PASS),
    "a node port of another protocol": ("172.30.1.1", 30080, Action.PASS),
    "another node's address": ("172.30.1.2", 30080, Action.PASS),
    "a pod": (REMOTE, 8080, Action.PASS),
}


@pytest.mark.parametrize("what", ADDRESSES)
def test_addresses_beside_the_service(what: str) -> None:
    where, port, action = ADDRESSES[what]
    compiled = tables(
        service(external_ips=[EXTERNAL_IP], ports=[ServicePort(80, "http", "TCP", 8080, 30080)]), piece(LOCAL)
    )
    protocol = Protocol.UDP if "protocol" in what else Protocol.TCP
    assert resolve(compiled, flow("10.244.1.77", where, port, protocol)).action is action


OUTWARD = {
    "pod to the world": ("10.244.1.77", "198.51.100.10", True),
    "pod to pod": ("10.244.1.77", REMOTE, False),
    "pod to a node": ("10.244.1.77", "172.30.1.2", False),
    "node to the world": ("172.30.1.1", "198.51.100.10", False),
    "the world to a pod": ("198.51.100.10", LOCAL, False),
    "pod to the world, IPv6": ("fd00:10:244:1::7", "2001:db8:100::10", True),
    "pod to a node, IPv6": ("fd00:10:244:1::7", "fd00:172:30::2", False),
}


@pytest.mark.parametrize("what", OUTWARD)
def test_a_pod_leaves_the_cluster_under_the_nodes_address(what: str) -> None:
    source, destination, masquerade = OUTWARD[what]
    verdict = resolve(tables(), flow(source, destination))
    assert (verdict.action, verdict.masquerade) == (Action.PASS, masquerade)


def test_a_pod_that_may_reach_itself_is_masqueraded_then() -> None:
    verdict = resolve(tables(service(), piece(LOCAL, REMOTE)), flow(LOCAL, CLUSTER_IP))
    assert not verdict.masquerade
    assert verdict.masquerades(Backend(address(LOCAL), 8080))
    assert not verdict.masquerades(Backend(address(REMOTE), 8080))


# --- rows -----------------------------------------------------------------------------------------


def list_key(scope: str = "cluster", family: Family = Family.IPV4, **kw: Any) -> ListKey:
    return ListKey("default", kw.get("service", "web"), kw.get("port", "http"), Protocol.TCP, family, scope)


def front(where: str, port: int = 80) -> FrontendKey:
    return FrontendKey(address(where), Protocol.TCP, port)


def test_all_rows_of_one_service() -> None:
    compiled = tables(
        service(
            ports=[ServicePort(80, "http", "TCP", 8080, 30080)],
            external_ips=[EXTERNAL_IP],
            external_traffic_policy="Local",
            type="NodePort",
        ),
        piece(LOCAL, REMOTE),
    )
    outward = Frontend(FrontendClass.EXTERNAL_LOCAL, list_key("local"), list_key())
    local, remote = Backend(address(LOCAL), 8080), Backend(address(REMOTE), 8080)
    assert compiled[Table.FRONTENDS] == {
        front(CLUSTER_IP): Frontend(FrontendClass.INTERNAL, list_key()),
        front(EXTERNAL_IP): outward,
    }
    assert compiled[Table.NODE_PORTS] == {NodePortKey(Family.IPV4, Protocol.TCP, 30080): outward}
    assert compiled[Table.BACKENDS] == {
        list_key(): BackendList((local, remote)),
        list_key("local"): BackendList((local,)),
    }
    for name, where in ((SetName.CLUSTER_IPS, CLUSTER_IP), (SetName.LOCAL_ENDPOINTS, LOCAL)):
        found = {row.value for row in compiled[Table.SETS] if row.set is name}
        assert found == {host_prefix(address(where))}


def test_dual_stack_is_two_families_side_by_side() -> None:
    six = "fd00:10:96::a"
    compiled = tables(
        service(cluster_ips=[CLUSTER_IP, six], ip_families=["IPv4", "IPv6"]),
        piece(LOCAL),
        piece("fd00:10:244:1::5", family="IPv6"),
    )
    assert set(compiled[Table.FRONTENDS]) == {front(CLUSTER_IP), front(six)}
    assert compiled[Table.BACKENDS][list_key(family=Family.IPV6)].backends == (
        Backend(address("fd00:10:244:1::5"), 8080),
    )


def test_a_family_that_the_cluster_does_not_have_is_left_out() -> None:
    six = "fd00:10:96::a"
    objects = (service(cluster_ips=[CLUSTER_IP, six], ip_families=["IPv4", "IPv6"]), piece(LOCAL))
    assert set(tables(*objects, ip_families=[Family.IPV6])[Table.FRONTENDS]) == {front(six)}


def test_an_endpointless_family_is_refused_while_the_other_works() -> None:
    six = "fd00:10:96::a"
    compiled = tables(service(cluster_ips=[CLUSTER_IP, six], ip_families=["IPv4", "IPv6"]), piece(LOCAL))
    assert compiled[Table.FRONTENDS][front(six)].kind is FrontendClass.REJECT
    assert compiled[Table.FRONTENDS][front(CLUSTER_IP)].kind is FrontendClass.INTERNAL


IGNORED = {
    "another proxy's": service(labels={"service.kubernetes.io/service-proxy-name": ""}),
    "headless": service(cluster_ip="None", cluster_ips=["None"]),
    "ExternalName with an old ClusterIP": service(type="ExternalName"),
    "without ClusterIP yet": service(cluster_ip="", cluster_ips=[]),
}


@pytest.mark.parametrize("what", IGNORED)
def test_services_that_are_not_ours(what: str) -> None:
    compiled = tables(IGNORED[what], piece(LOCAL))
    assert not compiled[Table.FRONTENDS]
    assert not compiled[Table.BACKENDS]
    assert not [row for row in compiled[Table.SETS] if row.set is SetName.CLUSTER_IPS]


def test_objects_from_before_dual_stack_have_one_address() -> None:
    old = service(cluster_ips=[], ip_families=[])
    assert set(tables(old, piece(LOCAL))[Table.FRONTENDS]) == {front(CLUSTER_IP)}


@pytest.mark.parametrize(
    ("ingress", "expected"),
    [
        (LoadBalancerIngress(ip=VIP), True),
        (LoadBalancerIngress(ip=VIP, ip_mode="VIP"), True),
        (LoadBalancerIngress(ip=VIP, ip_mode="Proxy"), False),
        (LoadBalancerIngress(hostname="lb.example.com"), False),
        (LoadBalancerIngress(ip="2001:db8::9"), False),
    ],
    ids=["no ipMode", "VIP", "Proxy", "hostname", "other family"],
)
def test_load_balancer_ingress(ingress: LoadBalancerIngress, expected: bool) -> None:
    compiled = tables(service(type="LoadBalancer", ingress=[ingress]), piece(LOCAL))
    assert (len(compiled[Table.FRONTENDS]) == 2) is expected


@pytest.mark.parametrize(
    ("ranges", "sources"),
    [
        ([], None),
        (["198.51.100.0/24"], ["198.51.100.0/24"]),
        ([" 198.51.100.0/24 ", "198.51.100.0/24"], ["198.51.100.0/24"]),
        (["198.51.100.0/24", "0.0.0.0/0"], None),
        (["198.51.100.0/24", "203.0.113.7/0"], None),
        (["2001:db8::/32"], None),
        (["::/0"], None),
        (["2001:db8::/32", "198.51.100.0/24"], ["198.51.100.0/24"]),
        (["203.0.113.000/025"], ["203.0.113.0/25"]),
        (["198.51.100.77/24"], ["198.51.100.0/24"]),
        # The node may come in, so it may from the virtual address as well.
        (["172.30.1.0/24"], ["172.30.1.0/24", f"{VIP}/32"]),
        (["172.30.2.0/24"], ["172.30.2.0/24"]),
    ],
)
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_source_ranges_guard_the_load_balancers_addresses_alone(
    ranges: list[str], sources: list[str] | None, policy: str
) -> None:
    guarded = service(
        type="LoadBalancer",
        ingress=[LoadBalancerIngress(ip=VIP)],
        external_ips=[EXTERNAL_IP],
        external_traffic_policy=policy,
        load_balancer_source_ranges=ranges,
    )
    compiled = tables(guarded, piece(LOCAL))
    rows = compiled[Table.FRONTENDS]
    assert {key.address for key, row in rows.items() if row.guarded} == (
        set() if sources is None else {address(VIP)}
    )
    assert not any(row.guarded for row in compiled.get(Table.NODE_PORTS, {}).values())
    found = compiled[Table.BACKENDS][rows[front(VIP)].backends].sources
    assert [str(each) for each in found] == (sources or [])


@pytest.mark.parametrize(
    ("source", "has", "expected"),
    [
        ("198.51.100.10", [LOCAL], Action.TRANSLATE),
        ("192.0.2.1", [LOCAL], Action.DROP),
        ("10.244.1.77", [LOCAL], Action.DROP),  # a pod counts by its own address
        ("198.51.100.10", [], Action.REFUSED),
        ("192.0.2.1", [], Action.DROP),
    ],
)
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_who_is_not_let_in_gets_no_answer(
    source: str, has: list[Endpoint], expected: Action, policy: str
) -> None:
    guarded = service(
        type="LoadBalancer",
        ingress=[LoadBalancerIngress(ip=VIP)],
        external_ips=[EXTERNAL_IP],
        external_traffic_policy=policy,
        load_balancer_source_ranges=["198.51.100.0/24"],
    )
    compiled = tables(guarded, piece(*has))
    verdict = resolve(compiled, flow(source, VIP))
    assert verdict.action is expected
    assert ("198.51.100.0/24" in verdict.why) is (expected is Action.DROP)
    elsewhere = Action.TRANSLATE if has else Action.REFUSED
    assert resolve(compiled, flow(source, EXTERNAL_IP)).action is elsewhere


def test_a_source_range_that_is_none_lets_nobody_in() -> None:
    guarded = service(
        type="LoadBalancer",
        ingress=[LoadBalancerIngress(ip=VIP)],
        load_balancer_source_ranges=["198.51.100.0"],
    )
    compiler = Compiler(ME, NetworkConfig())
    compiler.apply([Change("Service", None, guarded), Change("EndpointSlice", None, piece(LOCAL))])
    assert resolve(compiler.tables, flow("198.51.100.0", VIP)).action is Action.DROP
    (sentences,) = compiler.refused.values()
    assert sentences == (
        "service default/web: spec.loadBalancerSourceRanges: '198.51.100.0' is not a network prefix",
    )


def test_source_ranges_follow_the_nodes_address() -> None:
    guarded = service(
        type="LoadBalancer",
        ingress=[LoadBalancerIngress(ip=VIP)],
        load_balancer_source_ranges=["192.0.2.0/24"],
    )
    moved = Node(
        metadata=ObjectMeta(name=ME),
        status=NodeStatus(addresses=[NodeAddress("InternalIP", "192.0.2.7")]),
    )
    compiler = Compiler(ME, NetworkConfig())
    compiler.apply([Change("Service", None, guarded), Change("EndpointSlice", None, piece(LOCAL))])
    before = compiler.tables[Table.BACKENDS][list_key()].sources
    compiler.apply([Change("Node", None, moved)])
    after = compiler.tables[Table.BACKENDS][list_key()].sources
    assert [str(each) for each in before] == ["192.0.2.0/24"]
    assert [str(each) for each in after] == ["192.0.2.0/24", f"{VIP}/32"]


def test_addresses_with_leading_zeros() -> None:
    odd = service(
        cluster_ip="010.096.000.010", cluster_ips=["010.096.000.010"], external_ips=["203.0.113.009"]
    )
    assert set(tables(odd, piece(LOCAL))[Table.FRONTENDS]) == {front(CLUSTER_IP), front(EXTERNAL_IP)}


def test_what_is_no_address_is_refused_by_name_and_the_rest_stands() -> None:
    compiler = Compiler(ME, NetworkConfig())
    odd = service(
        external_ips=["203.0.113", EXTERNAL_IP],
        ports=[ServicePort(80, "http", "TCP", 8080), ServicePort(81, "x", "DCCP")],
    )
    compiler.apply([Change("Service", None, odd), Change("EndpointSlice", None, piece(LOCAL))])
    assert set(compiler.tables[Table.FRONTENDS]) == {front(CLUSTER_IP), front(EXTERNAL_IP)}
    (sentences,) = compiler.refused.values()
    assert sentences == (
        "service default/web: spec.externalIPs: '203.0.113' is not an IP address",
        "service default/web: port 81: protocol 'DCCP'; use TCP, UDP or SCTP",
    )


def test_tcp_udp_and_sctp_on_one_port_are_three() -> None:
    ports = [ServicePort(53, name, name.upper(), 53) for name in ("tcp", "udp", "sctp")]
    slices = piece(LOCAL, ports=[EndpointPort("udp", "UDP", 5353), EndpointPort("tcp", "TCP", 5354)])
    compiled = tables(service(ports=ports), slices)
    kinds = {key.protocol: row.kind for key, row in compiled[Table.FRONTENDS].items()}
    assert kinds == {
        Protocol.TCP: FrontendClass.INTERNAL,
        Protocol.UDP: FrontendClass.INTERNAL,
        Protocol.SCTP: FrontendClass.REJECT,
    }


@pytest.mark.parametrize(
    ("config", "timeout_s"),
    [
        (None, 10800),
        (SessionAffinityConfig(), 10800),
        (SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=60)), 60),
    ],
)
def test_session_affinity(config: SessionAffinityConfig | None, timeout_s: int) -> None:
    sticky = service(session_affinity="ClientIP", session_affinity_config=config)
    compiled = tables(sticky, piece(LOCAL))
    assert compiled[Table.BACKENDS][list_key()].affinity_timeout_s == timeout_s
    assert resolve(compiled, flow("10.244.1.77", CLUSTER_IP)).affinity_timeout_s == timeout_s


def test_policy_local_means_nothing_to_a_service_without_a_way_in() -> None:
    compiled = tables(service(external_traffic_policy="Local"), piece(REMOTE))
    assert set(compiled[Table.BACKENDS]) == {list_key()}


def test_of_two_services_with_one_external_address_the_older_has_it() -> None:
    older = service("older", cluster_ip="10.96.0.20", cluster_ips=["10.96.0.20"], external_ips=[EXTERNAL_IP])
    newer = service(
        "a-newer",
        cluster_ip="10.96.0.21",
        cluster_ips=["10.96.0.21"],
        external_ips=[EXTERNAL_IP],
        created="2026-02-01T00:00:00Z",
    )
    ends: Iterable[Object] = (piece(LOCAL, owner="older"), piece(REMOTE, owner="a-newer"))
    compiler = Compiler(ME, NetworkConfig())
    compiler.apply(Change(type(each).__name__, None, each) for each in (newer, older, *ends))
    holder = compiler.tables[Table.FRONTENDS][front(EXTERNAL_IP)].backends
    assert holder == list_key(service="older")
    assert "a-newer must do without" in str(compiler.contradictions[0])
    compiler.apply([Change("Service", older, None)])
    holder = compiler.tables[Table.FRONTENDS][front(EXTERNAL_IP)].backends
    assert holder == list_key(service="a-newer")


def test_a_cluster_ip_wins_over_an_external_ip_that_repeats_it() -> None:
    compiled = tables(service(external_ips=[CLUSTER_IP], external_traffic_policy="Local"), piece(LOCAL))
    assert compiled[Table.FRONTENDS][front(CLUSTER_IP)].kind is FrontendClass.INTERNAL


def test_this_nodes_zone_decides_about_every_service() -> None:
    compiler = Compiler(ME, NetworkConfig())
    compiler.apply(Change(type(each).__name__, None, each) for each in (*NODES, service(), piece(LOCAL)))
    units = compiler.units_compiled
    moved = node(ME, 1)
    moved.metadata.labels["topology.kubernetes.io/zone"] = "elsewhere"
    compiler.apply([Change("Node", NODES[0], moved)])
    assert compiler.units_compiled - units >= 2  # the node's own unit, and the service's


def test_a_slice_that_changes_its_service_touches_both() -> None:
    compiler = Compiler(ME, NetworkConfig())
    first, second = service(), service("api", cluster_ip="10.96.0.11", cluster_ips=["10.96.0.11"])
    here, there = piece(LOCAL, name="s"), piece(LOCAL, owner="api", name="s")
    compiler.apply([Change("Service", None, first), Change("Service", None, second)])
    compiler.apply([Change("EndpointSlice", None, here)])

    def kinds() -> list[str]:
        rows = compiler.tables[Table.FRONTENDS]
        return [rows[front(ip)].kind.value for ip in (CLUSTER_IP, "10.96.0.11")]

    assert kinds() == ["internal", "reject"]
    compiler.apply([Change("EndpointSlice", here, there)])
    assert kinds() == ["reject", "internal"]
    assert SetMember(SetName.LOCAL_ENDPOINTS, host_prefix(address(LOCAL))) in compiler.tables[Table.SETS]
