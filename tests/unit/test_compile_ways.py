"""The ways to other nodes' pods beside the tunnel: plain routes, and a tunnel for the far nodes alone."""

from __future__ import annotations

import base64
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from msgspec.structs import replace

from podlane.compile import facts
from podlane.compile.engine import Compiler, compile_node
from podlane.compile.peers import WAYS, link_mtu_bytes
from podlane.compile.tables import Route, Table
from podlane.compile.view import UNDERLAY, Change
from podlane.compile.wireguard import KEY_ANNOTATION
from podlane.errors import ConfigError
from podlane.kernel.nft.policy_chains import TUNNELS, Contents, bridge_sets, skeleton_sets
from podlane.model import config as configs
from podlane.model.addresses import Family
from podlane.model.backends import AVAILABLE_BACKENDS, Backend, BackendType
from podlane.model.bgp import Advertised, Bgp, BgpPeerConfig
from podlane.model.config import NetworkConfig
from podlane.model.local import Underlay
from podlane.model.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    Service,
    ServiceSpec,
    ServiceStatus,
)

HOST_GW = NetworkConfig(backend=Backend(type=BackendType.HOST_GW))
DIRECT = NetworkConfig(backend=Backend(direct_routing=True))
UPLINK = Underlay(
    "eth0",
    1500,
    (
        (ip_address("172.30.1.1"), ip_network("172.30.1.0/24")),
        (ip_address("fd00:172:30:1::1"), ip_network("fd00:172:30:1::/64")),
    ),
)
NEAR, NEAR_SIX = ip_network("10.244.2.0/24"), ip_network("fd00:10:244:2::/64")


def node(number: int, rack: int = 1, *, six: int | None = None) -> Node:
    addresses = [f"172.30.{rack}.{number}", f"fd00:172:30:{six or rack}::{number}"]
    return Node(
        metadata=ObjectMeta(name=f"node-{number}", creation_timestamp="2026-01-01T00:00:00Z"),
        spec=NodeSpec(pod_cidrs=[f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"]),
        status=NodeStatus(addresses=[NodeAddress("InternalIP", a) for a in addresses]),
    )


def compiled(config: NetworkConfig, *nodes: Node, uplink: Underlay = UPLINK) -> Compiler:
    compiler = Compiler("node-1", config)
    compiler.apply(Change("Node", None, each) for each in nodes)
    compiler.apply([Change(UNDERLAY, None, uplink)])
    return compiler


def reasons(compiler: Compiler) -> str:
    return " ".join(sentence for each in compiler.refused.values() for sentence in each)


def test_host_gw_is_a_route_a_family_and_nothing_else() -> None:
    tables = compiled(HOST_GW, node(1), node(2)).tables
    assert tables[Table.ROUTES] == {
        NEAR: Route(NEAR, ip_address("172.30.1.2"), "eth0", ip_address("172.30.1.1")),
        NEAR_SIX: Route(NEAR_SIX, ip_address("fd00:172:30:1::2"), "eth0", ip_address("fd00:172:30:1::1")),
    }
    assert not tables[Table.LINKS]
    assert not tables[Table.NEIGHBOURS]
    assert not tables[Table.FDB]


def test_host_gw_refuses_a_node_behind_a_router_by_name_and_says_what_would_work() -> None:
    compiler = compiled(HOST_GW, node(1), node(2), node(3, rack=2))
    assert set(compiler.tables[Table.ROUTES]) == {NEAR, NEAR_SIX}
    said = reasons(compiler)
    assert "node node-3: 172.30.2.3 is not on eth0's subnet (172.30.1.0/24)" in said
    assert "backend.type=vxlan" in said
    assert "backend.directRouting=true" in said


def test_direct_routing_leaves_the_tunnel_to_far_nodes() -> None:
    tables = compiled(DIRECT, node(1), node(2), node(3, rack=2)).tables
    devices = {str(route.destination): route.device for route in tables[Table.ROUTES].values()}
    assert devices == {
        "10.244.2.0/24": "eth0",
        "fd00:10:244:2::/64": "eth0",
        "10.244.3.0/24": "plvxlan",
        "fd00:10:244:3::/64": "plvxlan",
    }
    assert {str(entry.remote) for entry in tables[Table.FDB].values()} == {"172.30.2.3"}


def test_direct_routing_is_judged_family_by_family() -> None:
    tables = compiled(DIRECT, node(1), node(2, six=9)).tables
    assert {str(r.destination): r.device for r in tables[Table.ROUTES].values()} == {
        "10.244.2.0/24": "eth0",
        "fd00:10:244:2::/64": "plvxlan",
    }


def test_another_subnet_of_the_uplink_brings_the_peers_along() -> None:
    compiler = compiled(HOST_GW, node(1), node(2), node(3, rack=2))
    wide = Underlay(
        "eth0",
        1500,
        tuple((a, p.supernet(new_prefix=16 if p.version == 4 else 40)) for a, p in UPLINK.addresses),
    )
    compiler.apply([Change(UNDERLAY, UPLINK, wide)])
    assert len(compiler.tables[Table.ROUTES]) == 4
    assert not compiler.refused
    assert compiler.tables == compiled(HOST_GW, node(1), node(2), node(3, rack=2), uplink=wide).tables


def test_what_an_agent_announces_of_its_uplink_is_read_back() -> None:
    me = node(1)
    meta = ObjectMeta(name=me.name, annotations={facts.UNDERLAY_ANNOTATION: facts.announcement(UPLINK)})
    said = Node(metadata=meta, spec=me.spec, status=me.status)
    assert facts.announced_underlay(said) == UPLINK
    tables = compile_node([said, node(2)], node="node-1", config=HOST_GW)
    assert set(tables[Table.ROUTES]) == {NEAR, NEAR_SIX}


def test_an_announcement_that_cannot_be_read_is_none() -> None:
    for text in ("", "{", "[]", '{"device": "eth0"}', '{"device": "e", "mtu": 1, "addresses": ["x"]}'):
        said = Node(metadata=ObjectMeta(annotations={facts.UNDERLAY_ANNOTATION: text}))
        assert facts.announced_underlay(said) is None


def test_pods_links_have_the_underlays_whole_mtu_without_a_tunnel() -> None:
    assert link_mtu_bytes(compiled(HOST_GW, node(1)).view) == 1500
    assert link_mtu_bytes(compiled(DIRECT, node(1)).view) == 1450


BGP = NetworkConfig(backend=Backend(type=BackendType.BGP), bgp=Bgp(password="secret"))


def test_bgp_is_a_speaker_and_a_session_with_every_node_and_family() -> None:
    tables = compiled(BGP, node(1), node(2), node(3, rack=2)).tables
    speaker = tables[Table.SPEAKER]["bgp"]
    assert (speaker.router_id, speaker.as_number) == ("172.30.1.1", 64512)
    assert set(tables[Table.ORIGINATED]) == {ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64")}
    peers = tables[Table.BGP_PEERS]
    assert {name for name, _ in peers} == {"node-2", "node-3"}
    assert len(peers) == 4
    near, far = peers["node-2", Family.IPV4], peers["node-3", Family.IPV4]
    assert (near.on_link, far.on_link, near.password) == (True, False, "secret")
    assert tables[Table.LEARNT][NEAR].via == ip_address("172.30.1.2")
    assert not tables[Table.ROUTES]


def test_a_router_is_a_peer_of_the_nodes_its_labels_choose() -> None:
    peer = BgpPeerConfig(address="172.30.1.254", as_number=64600, nodes={"rack": "a"})
    config = NetworkConfig(backend=Backend(type=BackendType.BGP), bgp=Bgp(peers=[peer], node_mesh=False))
    assert not compiled(config, node(1), node(2)).tables[Table.BGP_PEERS]
    me = replace(node(1), metadata=ObjectMeta(name="node-1", labels={"rack": "a", "other": "b"}))
    compiler = compiled(config, node(1), node(2))
    compiler.apply([Change("Node", None, me)])
    (row,) = compiler.tables[Table.BGP_PEERS].values()
    assert (row.address, row.as_number, row.node) == (ip_address("172.30.1.254"), 64600, False)
    assert compiler.tables == compiled(config, me, node(2)).tables


def test_with_reflectors_nodes_have_sessions_with_those_alone() -> None:
    bgp = Bgp(route_reflectors={"reflects": "yes"})
    config = NetworkConfig(backend=Backend(type=BackendType.BGP), bgp=bgp)

    def reflecting(plain: Node) -> Node:
        return replace(plain, metadata=ObjectMeta(name=plain.metadata.name, labels={"reflects": "yes"}))

    client = compiled(config, node(1), reflecting(node(2)), node(3))
    assert set(client.tables[Table.BGP_PEERS]) == {("node-2", family) for family in Family}
    assert not any(row.client for row in client.tables[Table.BGP_PEERS].values())
    assert len(client.tables[Table.LEARNT]) == 4  # what node-3 announces comes by way of node-2
    assert client.tables[Table.SPEAKER]["bgp"].cluster_id == ""

    # Labels move: the node reflects itself, then another one does as well.
    client.apply([Change("Node", node(1), reflecting(node(1)))])
    peers = client.tables[Table.BGP_PEERS]
    assert client.tables[Table.SPEAKER]["bgp"].cluster_id == "172.30.1.1"
    assert {name: row.client for (name, _), row in peers.items()} == {"node-2": False, "node-3": True}
    client.apply([Change("Node", node(3), reflecting(node(3)))])
    assert not any(row.client for row in client.tables[Table.BGP_PEERS].values())
    assert client.tables == compiled(config, *(reflecting(node(i)) for i in (1, 2, 3))).tables


def test_a_node_of_another_as_is_no_client_of_a_reflector() -> None:
    config = NetworkConfig(
        backend=Backend(type=BackendType.BGP),
        bgp=Bgp(route_reflectors={"reflects": "yes"}, cluster_id="10.0.0.1"),
    )
    me = replace(node(1), metadata=ObjectMeta(name="node-1", labels={"reflects": "yes"}))
    annotations = {"podlane.dev/bgp-as-number": "65001"}
    other = replace(node(2), metadata=ObjectMeta(name="node-2", annotations=annotations))
    tables = compiled(config, me, other, node(3)).tables
    assert tables[Table.SPEAKER]["bgp"].cluster_id == "10.0.0.1"
    assert {name: row.client for (name, _), row in tables[Table.BGP_PEERS].items()} == {
        "node-2": False,
        "node-3": True,
    }


def test_a_peer_without_an_address_is_one_session_for_both_families() -> None:
    peers = [BgpPeerConfig(interface="eth1", as_number=64600)]
    config = NetworkConfig(backend=Backend(type=BackendType.BGP), bgp=Bgp(peers=peers, node_mesh=False))
    ((key, row),) = compiled(config, node(1), node(2)).tables[Table.BGP_PEERS].items()
    assert key == ("eth1", Family.IPV6)
    assert (row.address, row.interface, row.on_link, row.node) == (None, "eth1", True, False)


def test_a_node_may_have_an_as_of_its_own() -> None:
    def with_as(number: str) -> Node:
        annotations = {"podlane.dev/bgp-as-number": number}
        return replace(node(2), metadata=ObjectMeta(name="node-2", annotations=annotations))

    compiler = compiled(BGP, node(1), with_as("65001"))
    assert compiler.tables[Table.BGP_PEERS]["node-2", Family.IPV4].as_number == 65001
    compiler.apply([Change("Node", None, with_as("many"))])
    assert "node node-2: annotation podlane.dev/bgp-as-number is 'many'" in reasons(compiler)
    assert not compiler.tables[Table.BGP_PEERS]


def advertising(*what: Advertised) -> NetworkConfig:
    return NetworkConfig(backend=Backend(type=BackendType.BGP), bgp=Bgp(advertise=list(what)))


SERVICE = Service(
    metadata=ObjectMeta(name="web", namespace="default"),
    spec=ServiceSpec(
        type="LoadBalancer",
        cluster_ip="10.96.0.9",
        cluster_ips=["10.96.0.9", "fd00:10:96::9"],
        external_ips=["203.0.113.9", "172.30.1.2", "nonsense"],
    ),
)


def originated(compiler: Compiler) -> set[str]:
    return {str(p) for p in compiler.tables[Table.ORIGINATED]} - {"10.244.1.0/24", "fd00:10:244:1::/64"}


def endpoint_on(node_name: str) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(name="web-1", namespace="default", labels={"kubernetes.io/service-name": "web"}),
        address_type="IPv4",
        endpoints=[Endpoint(addresses=["10.244.2.5"], node_name=node_name)],
        ports=[EndpointPort("", "TCP", 80)],
    )


def test_services_are_announced_as_the_configuration_says() -> None:
    services = [Change("Service", None, SERVICE)]
    compiler = compiled(advertising(), node(1), node(2))
    compiler.apply(services)
    assert originated(compiler) == set()
    compiler = compiled(advertising(Advertised.CLUSTER_IP, Advertised.EXTERNAL_IP), node(1), node(2))
    compiler.apply(services)
    # 172.30.1.2 is node-2's own.
    assert originated(compiler) == {"10.96.0.9/32", "fd00:10:96::9/128", "203.0.113.9/32"}
    compiler.apply([Change("Service", SERVICE, None)])
    assert originated(compiler) == set()


def test_with_policy_local_only_the_nodes_with_an_endpoint_announce() -> None:
    local = replace(SERVICE, spec=replace(SERVICE.spec, external_traffic_policy="Local"))
    compiler = compiled(advertising(*Advertised), node(1), node(2))
    compiler.apply([Change("Service", None, local), Change("EndpointSlice", None, endpoint_on("node-2"))])
    assert originated(compiler) == {"10.96.0.9/32", "fd00:10:96::9/128"}
    compiler.apply([Change("EndpointSlice", endpoint_on("node-2"), endpoint_on("node-1"))])
    assert originated(compiler) == {"10.96.0.9/32", "fd00:10:96::9/128", "203.0.113.9/32"}


ROUTER = BgpPeerConfig(address="172.30.1.254", as_number=64600)


def pooled(ways: str = "", nodes: str = "", **spec: Any) -> Service:
    """A service with an address of a pool, as the controller leaves it."""
    marks = {"podlane.dev/allocated-from-pool": "p", "podlane.dev/announcing-nodes": nodes}
    meta = ObjectMeta(name="web", namespace="default", annotations=marks | {"podlane.dev/announced-by": ways})
    found = [LoadBalancerIngress(ip=each, ip_mode="VIP") for each in ("192.0.2.7", "2001:db8::7")]
    return Service(
        metadata=meta,
        spec=ServiceSpec(type="LoadBalancer", cluster_ip="10.96.0.9", cluster_ips=["10.96.0.9"], **spec),
        status=ServiceStatus(LoadBalancerStatus(found)),
    )


BY_BGP = {"192.0.2.7/32", "2001:db8::7/128"}


@pytest.mark.parametrize(
    ("backend", "advertise", "ways", "routes", "answers"),
    [
        (BackendType.VXLAN, [], "", False, True),
        (BackendType.VXLAN, [], "bgp", True, False),
        (BackendType.VXLAN, [], "l2,bgp", True, True),
        (BackendType.VXLAN, [Advertised.LOAD_BALANCER_IP], "", True, True),
        (BackendType.BGP, [Advertised.LOAD_BALANCER_IP], "l2", False, True),
        (BackendType.BGP, [], "bgp", True, False),
    ],
)
def test_a_pools_addresses_are_announced_as_the_pool_says(
    backend: BackendType, advertise: list[Advertised], ways: str, routes: bool, answers: bool
) -> None:
    config = NetworkConfig(backend=Backend(type=backend), bgp=Bgp(advertise=advertise, peers=[ROUTER]))
    compiler = compiled(config, node(1), node(2))
    compiler.apply([Change("Service", None, pooled(ways))])
    assert originated(compiler) == (BY_BGP if routes else set())
    assert bool(compiler.tables[Table.ANNOUNCEMENTS]) is answers
    (peer,) = [row for row in compiler.tables[Table.BGP_PEERS].values() if not row.node]
    assert str(peer.address) == ROUTER.address
    # With another backend the speaker tells routers and learns of nobody.
    speaker = compiler.tables[Table.SPEAKER]["bgp"]
    assert bool(speaker.own) is bool(speaker.accepted) is (backend is BackendType.BGP)
    compiler.apply([Change("Service", pooled(ways), None)])
    assert originated(compiler) == set()


def test_only_nodes_that_the_pool_means_tell_routers() -> None:
    def labelled(**labels: str) -> Node:
        return replace(node(1), metadata=ObjectMeta(name="node-1", labels=labels))

    compiler = compiled(NetworkConfig(bgp=Bgp(peers=[ROUTER])), node(1), node(2))
    compiler.apply([Change("Service", None, pooled("bgp", "edge=yes"))])
    assert originated(compiler) == set()
    compiler.apply([Change("Node", None, labelled(edge="yes"))])
    assert originated(compiler) == BY_BGP
    without = {"node.kubernetes.io/exclude-from-external-load-balancers": ""}
    compiler.apply([Change("Node", None, labelled(edge="yes", **without))])
    assert originated(compiler) == set()
    compiler.apply([Change("Node", None, labelled(edge="yes"))])
    local = pooled("bgp", "edge=yes", external_traffic_policy="Local")
    compiler.apply([Change("Service", None, local), Change("EndpointSlice", None, endpoint_on("node-2"))])
    assert originated(compiler) == set()
    compiler.apply([Change("EndpointSlice", None, endpoint_on("node-1"))])
    assert originated(compiler) == BY_BGP


def test_without_peers_there_is_no_speaker() -> None:
    compiler = compiled(NetworkConfig(), node(1), node(2))
    compiler.apply([Change("Service", None, pooled("bgp"))])
    assert originated(compiler) == set()
    assert not compiler.tables[Table.SPEAKER]
    assert not compiler.tables[Table.ANNOUNCEMENTS]


def test_what_cannot_be_advertised_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"bgp\.advertise\[0\]: 'Pods' is none of ClusterIP"):
        configs.parse({"backend": {"type": "bgp"}, "bgp": {"advertise": ["Pods"]}})


WIREGUARD = NetworkConfig(backend=Backend(type=BackendType.WIREGUARD))
KEYS = [base64.b64encode(bytes([n]) * 32).decode() for n in range(4)]


def keyed(number: int, rack: int = 1, key: str | None = None) -> Node:
    plain = node(number, rack)
    annotations = {KEY_ANNOTATION: KEYS[number] if key is None else key}
    return replace(plain, metadata=replace(plain.metadata, annotations=annotations))


def test_wireguard_is_a_peer_by_its_key_and_a_route_a_family() -> None:
    tables = compiled(WIREGUARD, keyed(1), keyed(2)).tables
    assert tables[Table.TUNNELS]["plwg"].mtu_bytes == 1440
    (row,) = tables[Table.TUNNEL_PEERS].values()
    assert set(tables[Table.TUNNEL_PEERS]) == {KEYS[2]}
    assert (row.node, row.remote, row.port) == ("node-2", ip_address("172.30.1.2"), 51820)
    assert set(row.pods) == {NEAR, NEAR_SIX}
    assert set(row.sources) == {ip_network("172.30.1.2/32"), ip_network("fd00:172:30:1::2/128")}
    assert {r.device for r in tables[Table.ROUTES].values()} == {"plwg"}
    assert set(tables[Table.ROUTES]) == {NEAR, NEAR_SIX}


@pytest.mark.parametrize(
    ("key", "why"), [("", "has published no key yet"), ("c2hvcnQ=", "is no WireGuard key: not 32 bytes")]
)
def test_a_node_without_a_usable_key_is_refused_by_name(key: str, why: str) -> None:
    compiler = compiled(WIREGUARD, keyed(1), keyed(2, key=key), keyed(3))
    assert "node node-2: " in reasons(compiler)
    assert why in reasons(compiler)
    assert {row.node for row in compiler.tables[Table.TUNNEL_PEERS].values()} == {"node-3"}
    compiler.apply([Change("Node", None, keyed(2))])
    assert not compiler.refused
    assert compiler.tables == compiled(WIREGUARD, keyed(1), keyed(2), keyed(3)).tables


def test_one_key_of_two_nodes_is_a_contradiction_and_another_key_takes_the_olds_place() -> None:
    compiler = compiled(WIREGUARD, keyed(1), keyed(2), keyed(3, key=KEYS[2]))
    assert len(compiler.contradictions) == 1
    compiler.apply([Change("Node", None, keyed(3))])
    assert not compiler.contradictions
    assert set(compiler.tables[Table.TUNNEL_PEERS]) == {KEYS[2], KEYS[3]}


def test_wireguard_with_direct_routing_is_for_far_nodes_only() -> None:
    config = replace(WIREGUARD, backend=replace(WIREGUARD.backend, direct_routing=True))
    tables = compiled(config, keyed(1), node(2), keyed(3, rack=2)).tables
    assert set(tables[Table.TUNNEL_PEERS]) == {KEYS[3]}
    devices = {str(route.destination): route.device for route in tables[Table.ROUTES].values()}
    assert (devices["10.244.2.0/24"], devices["10.244.3.0/24"]) == ("eth0", "plwg")


IPIP = NetworkConfig(backend=Backend(type=BackendType.IPIP))


def test_ipip_is_a_peer_by_its_name_and_a_route_a_family() -> None:
    tables = compiled(IPIP, node(1), node(2)).tables
    assert (tables[Table.TUNNELS]["plipip"].mtu_bytes, tables[Table.TUNNELS]["plipip"].underlay) == (
        1480,
        "eth0",
    )
    row = tables[Table.TUNNEL_PEERS]["node-2"]
    assert (row.remote, set(row.pods)) == (ip_address("172.30.1.2"), {NEAR, NEAR_SIX})
    assert {(r.destination, r.device) for r in tables[Table.ROUTES].values()} == {
        (NEAR, "plipip"),
        (NEAR_SIX, "plipip"),
    }


def test_ipip_refuses_nodes_without_ipv4_by_name() -> None:
    def six_only(number: int) -> Node:
        addresses = [NodeAddress("InternalIP", f"fd00:172:30:1::{number}")]
        return replace(node(number), status=NodeStatus(addresses=addresses))

    why = "no InternalIP of IPv4, which ipip's outer header is of"
    compiler = compiled(IPIP, node(1), six_only(2), node(3))
    assert f"node node-2: {why}" in reasons(compiler)
    assert set(compiler.tables[Table.TUNNEL_PEERS]) == {"node-3"}
    assert f"node node-1: {why}; use backend.type=vxlan" in reasons(compiled(IPIP, six_only(1), node(2)))


@pytest.mark.parametrize("way", AVAILABLE_BACKENDS)
@pytest.mark.parametrize("sets", [*(skeleton_sets(family, "") for family in Family), bridge_sets()])
def test_no_ways_device_is_a_pods_link_to_policy(way: BackendType, sets: dict[str, Contents]) -> None:
    tables = compiled(NetworkConfig(backend=Backend(type=way)), keyed(1), keyed(2)).tables
    devices = {*tables[Table.LINKS], *tables[Table.TUNNELS]}
    devices |= {route.device for route in tables[Table.ROUTES].values()} - {UPLINK.device}
    assert devices == {WAYS[way].tunnel} - {""}
    known = {element.key.rstrip(b"\0").decode() for element in sets[TUNNELS].elements}
    assert devices <= known
