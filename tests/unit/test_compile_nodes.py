"""The rules of vxlan, pods and node, each as a sentence."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from podlane.compile.engine import Compiler, compile_node
from podlane.compile.tables import (
    FdbEntry,
    Neighbour,
    Route,
    SetName,
    Table,
    VxlanLink,
)
from podlane.compile.view import ATTACHMENT, UNDERLAY, Change
from podlane.compile.vxlan import vtep_address, vtep_mac
from podlane.model.addresses import Family, address
from podlane.model.backends import Backend
from podlane.model.config import NetworkConfig, with_settings
from podlane.model.local import Attachment, Underlay
from podlane.model.objects import (
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    ServiceCIDR,
    ServiceCIDRSpec,
)

DUAL = ["10.244.{}.0/24", "fd00:10:244:{}::/64"]
MAC2 = vtep_mac("node-2")


def node(
    number: int,
    cidrs: list[str] | None = None,
    addresses: list[str] | None = None,
    created: str = "2026-01-01T00:00:00Z",
) -> Node:
    if cidrs is None:
        cidrs = [text.format(number) for text in DUAL]
    if addresses is None:
        addresses = [f"172.30.1.{number}", f"fd00:172:30::{number}"]
    return Node(
        metadata=ObjectMeta(name=f"node-{number}", creation_timestamp=created),
        spec=NodeSpec(pod_cidrs=cidrs),
        status=NodeStatus(
            addresses=[
                NodeAddress("Hostname", f"node-{number}"),
                *(NodeAddress("InternalIP", a) for a in addresses),
            ]
        ),
    )


def compiled(*nodes: Node, config: NetworkConfig | None = None, mtu: int = 1500, **kw: Any) -> Compiler:
    compiler = Compiler("node-1", config or NetworkConfig(), **kw)
    compiler.apply(Change("Node", None, each) for each in nodes)
    compiler.apply([Change(UNDERLAY, None, Underlay("eth0", mtu))])
    return compiler


def reasons(compiler: Compiler) -> str:
    return " ".join(sentence for each in compiler.refused.values() for sentence in each)


def test_the_device_has_the_nodes_own_addresses_and_leaves_room_for_the_outer_header() -> None:
    links = compiled(node(1)).tables[Table.LINKS]
    assert links == {
        "plvxlan": VxlanLink(
            name="plvxlan",
            vni=85,
            port=8472,
            underlay="eth0",
            local=ip_address("172.30.1.1"),
            mac=vtep_mac("node-1"),
            mtu_bytes=1450,
            addresses=(ip_network("10.244.1.0/32"), ip_network("fd00:10:244:1::1/128")),
        )
    }


@pytest.mark.parametrize(
    ("families", "local", "mtu"),
    [
        ([Family.IPV6], "fd00:172:30::1", 1430),
        ([Family.IPV6, Family.IPV4], "fd00:172:30::1", 1430),
        ([Family.IPV4], "172.30.1.1", 1450),
    ],
)
def test_the_primary_family_carries_the_tunnel(families: list[Family], local: str, mtu: int) -> None:
    link = compiled(node(1), config=NetworkConfig(ip_families=families)).tables[Table.LINKS]["plvxlan"]
    assert (str(link.local), link.mtu_bytes) == (local, mtu)


def test_a_configured_mtu_is_taken_as_it_is() -> None:
    config = NetworkConfig(backend=Backend(mtu_bytes=1300))
    assert compiled(node(1), config=config).tables[Table.LINKS]["plvxlan"].mtu_bytes == 1300


def test_without_an_uplink_there_is_no_device() -> None:
    compiler = Compiler("node-1", NetworkConfig())
    compiler.apply([Change("Node", None, node(1))])
    assert compiler.tables[Table.LINKS] == {}


def test_a_peer_is_a_neighbour_a_forwarding_entry_and_a_route_a_family() -> None:
    tables = compiled(node(1), node(2)).tables
    four, six = ip_address("10.244.2.0"), ip_address("fe80::9e:73ff:fee7:36d7")
    assert tables[Table.NEIGHBOURS] == {
        ("plvxlan", four): Neighbour("plvxlan", four, MAC2),
        ("plvxlan", six): Neighbour("plvxlan", six, MAC2),
    }
    assert tables[Table.FDB] == {("plvxlan", MAC2): FdbEntry("plvxlan", MAC2, ip_address("172.30.1.2"))}
    assert list(tables[Table.ROUTES].values()) == [
        Route(ip_network("10.244.2.0/24"), four, "plvxlan", ip_address("172.30.1.1"), onlink=True),
        Route(ip_network("fd00:10:244:2::/64"), six, "plvxlan", ip_address("fd00:172:30::1")),
    ]


def test_a_node_without_an_address_of_a_family_leaves_the_source_to_the_kernel() -> None:
    tables = compiled(node(1, addresses=["172.30.1.1"]), node(2)).tables
    assert tables[Table.ROUTES][ip_network("fd00:10:244:2::/64")].source is None


def test_a_family_this_node_has_no_pods_of_is_not_routed() -> None:
    tables = compiled(node(1, cidrs=["10.244.1.0/24"]), node(2)).tables
    assert list(tables[Table.ROUTES]) == [ip_network("10.244.2.0/24")]


def test_the_old_single_pod_cidr_counts() -> None:
    old = Node(
        metadata=ObjectMeta(name="node-2"), spec=NodeSpec(pod_cidr="10.244.2.0/24"), status=node(2).status
    )
    assert ip_network("10.244.2.0/24") in compiled(node(1), old).tables[Table.ROUTES]


@pytest.mark.parametrize(
    ("peer", "why"),
    [
        (node(2, cidrs=[]), "node node-2: no podCIDR yet, so its pods cannot be reached"),
        (
            node(2, addresses=["fd00:172:30::2"]),
            "node node-2: no InternalIP of IPv4, the family of the tunnels",
        ),
        (
            node(2, cidrs=["10.244.2.1/24"]),
            "node node-2: spec.podCIDRs: '10.244.2.1/24' is not a network prefix",
        ),
        (
            node(2, cidrs=["10.244.1.128/25"]),
            "node node-2: podCIDR 10.244.1.128/25 overlaps this node's own 10.244.1.0/24",
        ),
    ],
)
def test_a_peer_that_cannot_be_reached_is_refused_by_name(peer: Node, why: str) -> None:
    compiler = compiled(node(1), peer)
    assert why in reasons(compiler)
    assert compiler.tables[Table.ROUTES] == {}
    assert compiler.tables[Table.FDB] == {}


def test_of_a_dual_stack_peer_only_the_overlapping_family_is_refused() -> None:
    compiler = compiled(node(1), node(2, cidrs=["10.244.1.0/24", "fd00:10:244:2::/64"]))
    assert list(compiler.tables[Table.ROUTES]) == [ip_network("fd00:10:244:2::/64")]
    assert "10.244.1.0/24 overlaps" in reasons(compiler)


def test_of_two_peers_that_claim_one_prefix_the_older_has_it() -> None:
    young = node(3, cidrs=["10.244.2.0/24"], created="2026-06-01T00:00:00Z")
    compiler = compiled(node(1), young, node(2))
    end = ("plvxlan", ip_address("10.244.2.0"))
    assert compiler.tables[Table.NEIGHBOURS][end].mac == MAC2
    assert "peers node node-3 must do without" in str(compiler.contradictions[0])
    compiler.apply([Change("Node", node(2), None)])
    assert compiler.tables[Table.NEIGHBOURS][end].mac == vtep_mac("node-3")


def test_this_node_without_an_address_says_so() -> None:
    assert "node node-1: no InternalIP of any family of ipFamilies" in reasons(
        compiled(node(1, addresses=[]))
    )


def test_tunnel_ends() -> None:
    assert str(vtep_address(ip_network("10.244.7.0/24"))) == "10.244.7.0"
    assert str(vtep_address(ip_network("fd00:10:244:7::/64"))) == "fd00:10:244:7::1"
    assert vtep_mac("a") != vtep_mac("b")
    # RFC 7042: unicast and locally administered.
    assert int(vtep_mac("a")[:2], 16) & 0b11 == 0b10


POD = Attachment(
    "c1",
    "eth0",
    "pl0123456789",
    "02:aa:00:00:00:01",
    (ip_address("10.244.1.5"), ip_address("fd00:10:244:1::5")),
)


def test_an_attached_pod_is_a_route_and_a_permanent_neighbour_a_family() -> None:
    compiler = compiled(node(1))
    compiler.apply([Change(ATTACHMENT, None, POD)])
    tables = compiler.tables
    assert list(tables[Table.ROUTES].values()) == [
        Route(ip_network("10.244.1.5/32"), None, POD.device, ip_address("172.30.1.1")),
        Route(ip_network("fd00:10:244:1::5/128"), None, POD.device, ip_address("fd00:172:30::1")),
    ]
    assert list(tables[Table.NEIGHBOURS].values()) == [
        Neighbour(POD.device, a, POD.mac) for a in POD.addresses
    ]
    compiler.apply([Change(ATTACHMENT, POD, None)])
    assert not tables[Table.ROUTES]
    assert not tables[Table.NEIGHBOURS]


def sets(compiler: Compiler) -> dict[SetName, set[str]]:
    found: dict[SetName, set[str]] = {}
    for row in compiler.tables[Table.SETS]:
        found.setdefault(row.set, set()).add(str(row.value))
    return found


def test_the_sets_of_a_cluster() -> None:
    found = sets(compiled(node(1), node(2)))
    pods, services = {"10.244.0.0/16", "fd00:10:244::/56"}, {"10.96.0.0/16", "fd00:10:96::/112"}
    mine = {"172.30.1.1/32", "fd00:172:30::1/128"}
    assert found[SetName.POD_CIDRS] == pods
    assert found[SetName.SERVICE_CIDRS] == services
    assert found[SetName.CLUSTER_CIDRS] == pods | services
    assert found[SetName.NODE_PORT_IPS] == mine
    assert found[SetName.NODE_IPS] == mine | {"172.30.1.2/32", "fd00:172:30::2/128"}


def test_an_ipv6_only_cluster_has_no_ipv4_in_its_sets() -> None:
    found = sets(compiled(node(1), node(2), config=NetworkConfig(ip_families=[Family.IPV6])))
    assert {text for values in found.values() for text in values if ":" not in text} == set()
    assert found[SetName.NODE_PORT_IPS] == {"fd00:172:30::1/128"}


@pytest.mark.parametrize(
    ("settings", "held", "found"),
    [
        (["primary"], ["172.30.1.1", "192.0.2.7"], {"172.30.1.1/32", "fd00:172:30::1/128"}),
        (["192.0.2.0/24"], ["172.30.1.1", "192.0.2.7", "192.0.3.7"], {"192.0.2.7/32"}),
        (["0.0.0.0/0"], ["172.30.1.1", "192.0.2.7", "2001:db8::7"], {"172.30.1.1/32", "192.0.2.7/32"}),
        (["172.30.0.0/16", "::/0"], [], {"172.30.1.1/32", "fd00:172:30::1/128"}),  # nobody looked yet
        (["198.51.100.0/24"], ["172.30.1.1"], set()),
    ],
)
def test_addresses_that_answer_node_ports(settings: list[str], held: list[str], found: set[str]) -> None:
    config = with_settings(NetworkConfig(), [f"services.nodePortAddresses={','.join(settings)}"])
    compiler = compiled(node(1), node(2), config=config)
    here = Underlay("eth0", 1500, node_addresses=tuple(map(address, held)))
    compiler.apply([Change(UNDERLAY, None, here)])
    assert sets(compiler).get(SetName.NODE_PORT_IPS, set()) == found


def test_localhost_answers_node_ports_where_the_configuration_says_so() -> None:
    config = with_settings(NetworkConfig(), ["services.localhostNodePorts=true"])
    found = sets(compiled(node(1), node(2), config=config))
    assert found[SetName.NODE_PORT_IPS] == {"172.30.1.1/32", "fd00:172:30::1/128", "127.0.0.1/32"}


def test_prefixes_of_service_cidrs_come_and_go_beside_the_configured_ones() -> None:
    def cidr(*texts: str) -> ServiceCIDR:
        return ServiceCIDR(metadata=ObjectMeta(name="more"), spec=ServiceCIDRSpec(cidrs=list(texts)))

    compiler = compiled(node(1))
    before = sets(compiler)
    more = cidr("10.97.0.0/16", "fd00:10:97::/112", "10.98.0.1/16")
    compiler.apply([Change("ServiceCIDR", None, more)])
    for name in (SetName.SERVICE_CIDRS, SetName.CLUSTER_CIDRS):
        assert sets(compiler)[name] == before[name] | {"10.97.0.0/16", "fd00:10:97::/112"}
    assert "servicecidr more: spec.cidrs: '10.98.0.1/16'" in reasons(compiler)
    compiler.apply([Change("ServiceCIDR", more, None)])
    assert sets(compiler) == before


def test_pods_of_a_node_outside_of_the_configured_range_are_pods_too() -> None:
    found = sets(compiled(node(1), node(2, cidrs=["10.200.2.0/24"])))
    assert "10.200.2.0/24" in found[SetName.POD_CIDRS] & found[SetName.CLUSTER_CIDRS]


def test_a_fresh_compile_derives_uplink_and_attachments_from_the_api() -> None:
    pod = Pod(
        metadata=ObjectMeta(name="p", namespace="default", uid="u1"),
        spec=PodSpec(node_name="node-1"),
        status=PodStatus(phase="Running", pod_ips=[PodIP("10.244.1.5")]),
    )
    shared = Pod(
        metadata=ObjectMeta(name="host", namespace="default"),
        spec=PodSpec(node_name="node-1", host_network=True),
        status=PodStatus(pod_ips=[PodIP("172.30.1.1")]),
    )
    tables = compile_node([node(1), node(2), pod, shared], node="node-1", config=NetworkConfig())
    assert tables[Table.LINKS]["plvxlan"].underlay == "eth0"
    assert tables[Table.ROUTES][ip_network("10.244.1.5/32")].device.startswith("pl")
    assert ip_network("172.30.1.1/32") not in tables[Table.ROUTES]
