"""Small clusters for hypothesis: few names and addresses, so that contradictions happen often."""

from __future__ import annotations

from hypothesis import strategies as st

from podlane.compile.facts import UNDERLAY_ANNOTATION
from podlane.compile.facts import announcement as announce
from podlane.compile.spoken import BACKEND_ANNOTATION, announcement
from podlane.compile.view import ATTACHMENT, SHARES, STANDING, UNDERLAY, ZONE_LABEL, Change
from podlane.compile.wireguard import KEY_ANNOTATION
from podlane.model.addresses import Family, address, prefix
from podlane.model.backends import Backend, BackendType
from podlane.model.bgp import Advertised, Bgp
from podlane.model.config import NetworkConfig, Services
from podlane.model.local import Attachment, Shares, Standing, Underlay
from podlane.model.objects import (
    Container,
    ContainerPort,
    EgressRule,
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    ForZone,
    IngressRule,
    LabelSelector,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Namespace,
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicySpec,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    Service,
    ServiceCIDR,
    ServiceCIDRSpec,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    TargetRef,
)
from podlane.model.pools import ALLOCATED_FROM, ANNOUNCING_NODES

ME = "n1"
NODES = [ME, "n2", "n3", "n4"]
ZONES = ["a", "b"]
CONFIGS = [
    NetworkConfig(),
    NetworkConfig(ip_families=[Family.IPV6]),
    NetworkConfig(ip_families=[Family.IPV6, Family.IPV4]),
    NetworkConfig(
        services=Services(node_port_addresses=["0.0.0.0/0"], localhost_node_ports=True, masquerade_all=True)
    ),
    NetworkConfig(backend=Backend(type=BackendType.HOST_GW)),
    NetworkConfig(backend=Backend(direct_routing=True)),
    NetworkConfig(backend=Backend(type=BackendType.BGP), bgp=Bgp(advertise=list(Advertised))),
]
CONTAINERS = [
    [Container(name="c")],
    [Container(name="c", ports=[ContainerPort(80, "http")])],
    [Container(name="c", ports=[ContainerPort(8080, "http")])],
]
AGES = ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", None]


def some(values: list[str], **kw: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), unique=True, **kw)


VXLAN, KEY = {"vni": 85, "port": 8472}, "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
SAID: list[dict[str, str]] = [
    {},
    {BACKEND_ANNOTATION: announcement(BackendType.VXLAN, {"vxlan": VXLAN}, ["vxlan"])},
    {BACKEND_ANNOTATION: announcement(BackendType.VXLAN, {"vxlan": VXLAN, "host-gw": {}}, ["host-gw"])},
    {BACKEND_ANNOTATION: announcement(BackendType.HOST_GW, {"host-gw": {}, "vxlan": VXLAN}, ["vxlan"])},
    {BACKEND_ANNOTATION: announcement(BackendType.BGP, {"bgp": {}}, ["bgp"])},
    {
        BACKEND_ANNOTATION: announcement(BackendType.WIREGUARD, {"wireguard": {"port": 1}, "bgp": {}}, []),
        KEY_ANNOTATION: KEY,
    },
    {BACKEND_ANNOTATION: announcement(BackendType.VXLAN, {"vxlan": VXLAN | {"vni": 9}}, [])},
    {BACKEND_ANNOTATION: "{"},
]
USES = {UNDERLAY_ANNOTATION: announce(Underlay("eth9", 1500, (), (), (address("172.30.9.9"),)))}


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Node:
    digits = st.sampled_from("1234")
    labels = draw(st.sampled_from([{}, *({"topology.kubernetes.io/zone": z} for z in ZONES)]))
    cidrs = [f"10.244.{draw(digits)}.0/24", f"fd00:10:244:{draw(digits)}::/64", "nonsense"]
    where = [f"172.30.1.{draw(digits)}", f"fd00:172:30::{draw(digits)}", "a-host-name"]
    annotations = draw(st.sampled_from(SAID)) | draw(st.sampled_from([{}, {}, USES]))
    age = draw(st.sampled_from(AGES))
    return Node(
        metadata=ObjectMeta(name=name, labels=labels, annotations=annotations, creation_timestamp=age),
        spec=NodeSpec(pod_cidrs=draw(some(cidrs[: draw(st.sampled_from([2, 2, 2, 3]))]))),
        status=NodeStatus(addresses=[NodeAddress("InternalIP", a) for a in draw(some(where))]),
    )


BALANCING: list[dict[str, str]] = [
    {},
    {"podlane.dev/balancing": "maglev", "podlane.dev/hash-by": "address-port"},
    {"podlane.dev/balancing": "source-hash", "podlane.dev/weights": "10.244.1.2=3, *=2"},
    {"podlane.dev/balancing": "nonsense"},
    {"podlane.dev/weights": "pods"},
]


@st.composite
def services(draw: st.DrawFn, namespace: str, name: str) -> Service:
    digits = st.sampled_from("123")
    ips = draw(some([f"10.96.0.{draw(digits)}", f"fd00:10:96::{draw(digits)}"]))
    policy = st.sampled_from(["Cluster", "Local"])
    modes = st.sampled_from([None, "VIP", "Proxy"])
    balanced = [
        LoadBalancerIngress(ip, "", draw(modes))
        for ip in draw(some(["203.0.113.1", "2001:db8::2", "172.30.1.1"]))
    ]
    pools = [{}, {ALLOCATED_FROM: "p"}, {ALLOCATED_FROM: "p", ANNOUNCING_NODES: f"{ZONE_LABEL}=a"}]
    return Service(
        metadata=ObjectMeta(
            name=name,
            namespace=namespace,
            creation_timestamp=draw(st.sampled_from(AGES)),
            uid=name,
            annotations=draw(st.sampled_from(pools)) | draw(st.sampled_from(BALANCING)),
        ),
        status=ServiceStatus(LoadBalancerStatus(balanced)),
        spec=ServiceSpec(
            type=draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])),
            cluster_ip=ips[0] if ips else "None",
            cluster_ips=ips or ["None"],
            ip_families=["IPv4" if "." in ip else "IPv6" for ip in ips],
            ports=[
                ServicePort(80, "http", "TCP", 8080, draw(st.sampled_from([0, 30001, 30002]))),
                ServicePort(53, "dns", "UDP", 53, 0),
            ][: draw(st.integers(1, 2))],
            external_ips=draw(some(["198.51.100.1", "2001:db8::1"])),
            external_traffic_policy=draw(policy),
            internal_traffic_policy=draw(policy),
            session_affinity=draw(st.sampled_from(["None", "ClientIP"])),
            load_balancer_source_ranges=draw(some(["198.51.100.0/24", "2001:db8::/32", "nonsense"])),
            health_check_node_port=draw(st.sampled_from([0, 0, 31000, 31001])),
        ),
    )


@st.composite
def endpoints(draw: st.DrawFn, family: str) -> Endpoint:
    digit = draw(st.sampled_from("2345"))
    tri = st.sampled_from([None, True, False])
    by_zone = [EndpointHints(for_zones=[ForZone(z)]) for z in ZONES]
    hints = st.sampled_from([None, *by_zone, EndpointHints(for_nodes=[ForZone(ME)])])
    return Endpoint(
        addresses=[f"10.244.1.{digit}" if family == "IPv4" else f"fd00:10:244:1::{digit}"],
        conditions=EndpointConditions(draw(tri), draw(tri), draw(tri)),
        node_name=draw(st.sampled_from([None, *NODES])),
        zone=draw(st.sampled_from([None, *ZONES])),
        hints=draw(hints),
        target_ref=draw(st.sampled_from([None, TargetRef("Pod", "default", "p1")])),
    )


@st.composite
def slices(draw: st.DrawFn, namespace: str, name: str) -> EndpointSlice:
    family = draw(st.sampled_from(["IPv4", "IPv6"]))
    labels = draw(st.sampled_from([{}, *({"kubernetes.io/service-name": s} for s in ("s1", "s2"))]))
    ports = [
        EndpointPort("http", "TCP", 8080),
        EndpointPort("dns", "UDP", 53),
        EndpointPort(None, "TCP", None),
    ]
    return EndpointSlice(
        metadata=ObjectMeta(
            name=name,
            namespace=namespace,
            labels=labels,
            annotations=draw(st.sampled_from([{}, {"podlane.dev/weight": "2"}])),
        ),
        address_type=family,
        endpoints=draw(st.none() | st.lists(endpoints(family), max_size=3)),
        ports=draw(st.none() | st.lists(st.sampled_from(ports), max_size=2, unique_by=id)),
    )


@st.composite
def pods(draw: st.DrawFn, namespace: str, name: str) -> Pod:
    return Pod(
        metadata=ObjectMeta(
            name=name,
            namespace=namespace,
            uid=f"{namespace}-{name}",
            labels=draw(st.sampled_from([{}, {"app": "a"}, {"app": "b"}, {"app": "a", "tier": "1"}])),
            annotations=draw(st.sampled_from([{}, {}, {"podlane.dev/weight": "3"}])),
        ),
        spec=PodSpec(
            node_name=draw(st.sampled_from(["", *NODES])),
            host_network=draw(st.booleans()),
            containers=draw(st.sampled_from(CONTAINERS)),
        ),
        status=PodStatus(
            phase=draw(st.sampled_from(["", "Running", "Running", "Succeeded"])),
            pod_ips=[PodIP(a) for a in draw(some(["10.244.1.2", "fd00:10:244:1::2"]))],
        ),
    )


SELECTORS = [None, {}, {"app": "a"}, {"app": "b"}, {"app": "a", "tier": "1"}]


@st.composite
def policies(draw: st.DrawFn, namespace: str, name: str) -> NetworkPolicy:
    """Peers of their own namespace, of all, and of those with a label; ports by number and by name."""

    def selector(labels: list[dict[str, str] | None]) -> LabelSelector | None:
        found = draw(st.sampled_from(labels))
        return LabelSelector(found) if found is not None else None

    def peers() -> list[NetworkPolicyPeer] | None:
        made = [
            NetworkPolicyPeer(selector(SELECTORS), selector([None, {}, {"a": "b"}]))
            for _ in range(draw(st.integers(0, 2)))
        ]
        return [each for each in made if each.pod_selector or each.namespace_selector] or None

    port = st.sampled_from([NetworkPolicyPort(port=80), NetworkPolicyPort(port="http")])
    spec = NetworkPolicySpec(
        pod_selector=selector(SELECTORS[1:]),
        ingress=[IngressRule(peers(), draw(st.none() | st.lists(port, max_size=2, unique_by=id)))],
        egress=draw(st.none() | st.just([EgressRule(peers(), [NetworkPolicyPort(port="http")])])),
    )
    age = draw(st.sampled_from(AGES))
    return NetworkPolicy(
        metadata=ObjectMeta(name=name, namespace=namespace, creation_timestamp=age), spec=spec
    )


@st.composite
def shares(draw: st.DrawFn, namespace: str, name: str) -> Shares:
    ends = [(address("10.244.1.2"), 8080), (address("fd00:10:244:1::2"), 8080)]
    return Shares(namespace, name, tuple((*end, draw(st.integers(1, 16))) for end in ends))


@st.composite
def attachments(draw: st.DrawFn, container: str) -> Attachment:
    where = [f"10.244.1.{draw(st.sampled_from('23'))}", f"fd00:10:244:1::{draw(st.sampled_from('23'))}"]
    mac = draw(st.sampled_from(["02:00:00:00:00:01", "02:00:00:00:00:02"]))
    addresses = tuple(map(address, draw(some(where))))
    pod = draw(st.sampled_from([("", ""), ("default", "p1"), ("other", "p2")]))
    return Attachment(container, "eth0", f"pl{container}", mac, addresses, *pod)


def underlays() -> st.SearchStrategy[Underlay]:
    here = ((address("172.30.1.1"), prefix("172.30.1.0/24")),)
    return st.builds(
        Underlay,
        st.sampled_from(["eth0", "eth1"]),
        st.sampled_from([1500, 9000]),
        st.just(here),
        st.sampled_from([(), (address("172.30.1.1"), address("192.0.2.1"))]),
    )


KINDS = [*3 * ["Node", "Pod", "Service", "EndpointSlice"], "Namespace", "ServiceCIDR", ATTACHMENT, UNDERLAY]


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """One object made, changed or removed. `old` is what the engine must know itself."""
    kind = draw(
        st.sampled_from(
            [
                "Node",
                "Node",
                "Namespace",
                "ServiceCIDR",
                "Pod",
                "Pod",
                "NetworkPolicy",
                "NetworkPolicy",
                "Service",
                "EndpointSlice",
                ATTACHMENT,
                SHARES,
                STANDING,
                UNDERLAY,
            ]
        )
    )
    namespace = draw(st.sampled_from(["default", "other"]))
    if kind == "Node":
        value = draw(nodes(draw(st.sampled_from(NODES))))
    elif kind == "Namespace":
        value = Namespace(metadata=ObjectMeta(name=namespace, labels=draw(st.sampled_from([{}, {"a": "b"}]))))
    elif kind == "ServiceCIDR":
        cidrs = draw(some(["10.97.0.0/16", "10.96.0.0/16", "fd00:10:97::/112", "nonsense"]))
        name = draw(st.sampled_from(["more", "kubernetes"]))
        value = ServiceCIDR(metadata=ObjectMeta(name=name), spec=ServiceCIDRSpec(cidrs=cidrs))
    elif kind == "Pod":
        value = draw(pods(namespace, draw(st.sampled_from(["p1", "p2"]))))
    elif kind == "NetworkPolicy":
        value = draw(policies(namespace, draw(st.sampled_from(["np1", "np2"]))))
    elif kind == "Service":
        value = draw(services(namespace, draw(st.sampled_from(["s1", "s2"]))))
    elif kind == "EndpointSlice":
        value = draw(slices(namespace, draw(st.sampled_from(["e1", "e2", "e3"]))))
    elif kind == SHARES:
        value = draw(shares(namespace, draw(st.sampled_from(["s1", "s2"]))))
    elif kind == STANDING:
        value = Standing(draw(st.sampled_from(["bgp", "wireguard"])), draw(st.sampled_from(NODES[1:])))
    elif kind == ATTACHMENT:
        value = draw(attachments(draw(st.sampled_from(["c1", "c2"]))))
    else:
        value = draw(underlays())
    return Change(kind, None, value) if draw(st.integers(0, 3)) else Change(kind, value, None)
