"""Nodes, Pods and slices that cannot be as they are: the object is told, and everything else goes on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.agent.complaints import NOT_PROGRAMMED, Complaint, complaints
from podlane.compile.engine import Compiler
from podlane.compile.tables import Table
from podlane.compile.view import UNDERLAY, Change
from podlane.model.config import NetworkConfig, parse
from podlane.model.local import Underlay
from podlane.model.objects import (
    KINDS,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    Object,
    ObjectMeta,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
)
from tests.unit.test_compile_services import LOCAL, REMOTE, piece, service

IPV4 = {"ipFamilies": ["IPv4"]}


def node(number: int, *addresses: str, cidrs: list[str] | None = None, since: str = "") -> Node:
    found = addresses if addresses else (f"172.30.1.{number}", f"fd00:172:30::{number}")
    own = cidrs if cidrs is not None else [f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"]
    return Node(
        metadata=ObjectMeta(name=f"node-{number}", uid=f"uid-{number}", creation_timestamp=since or None),
        spec=NodeSpec(pod_cidrs=own),
        status=NodeStatus([NodeAddress("InternalIP", each) for each in found if each]),
    )


def compiled(*objects: Object, config: dict[str, Any] | None = None) -> Compiler:
    compiler = Compiler("node-1", parse(config) if config else NetworkConfig())
    compiler.apply(Change(type(each).__name__, None, each) for each in objects)
    compiler.apply([Change(UNDERLAY, None, Underlay("eth0", 1500))])
    return compiler


def told(compiler: Compiler, uplink: str = "") -> list[Complaint]:
    return sorted(complaints(compiler, [], uplink))


def destinations(compiler: Compiler) -> set[str]:
    return {str(each) for each in compiler.tables[Table.ROUTES]}


# --- nodes ----------------------------------------------------------------------------------------


def test_a_node_without_addresses_is_left_out_and_the_others_are_reached() -> None:
    compiler = compiled(node(1), node(2, ""), node(3))
    assert destinations(compiler) == {"10.244.3.0/24", "fd00:10:244:3::/64"}
    assert any("node node-2" in " ".join(each) for each in compiler.refused.values())
    compiler.apply([Change("Node", node(2, ""), node(2))])
    assert len(destinations(compiler)) == 4
    assert not compiler.refused


def test_of_this_node_it_is_told_what_it_lacks() -> None:
    compiler = compiled(node(1, ""), node(2))
    (complaint,) = told(compiler)
    assert complaint[:4] == ("Node", "", "node-1", NOT_PROGRAMMED)
    assert "no InternalIP of any family" in complaint.message
    assert complaint.node == "node-1"
    compiler.apply([Change("Node", node(1, ""), node(1))])
    assert told(compiler) == []
    (complaint,) = told(compiler, "no link of this node has 172.30.1.1")
    assert complaint[:4] == ("Node", "", "node-1", NOT_PROGRAMMED)


def test_two_nodes_of_one_address_are_both_in_the_tables_and_others_untouched() -> None:
    twin = node(3, "172.30.1.2", "fd00:172:30::2")
    alone, both = compiled(node(1), node(2), node(4)), compiled(node(1), node(2), node(4), twin)
    assert both.contradictions == []
    assert destinations(both) - destinations(alone) == {"10.244.3.0/24", "fd00:10:244:3::/64"}
    both.apply([Change("Node", twin, None)])
    assert both.tables == alone.tables


def test_of_two_nodes_of_one_prefix_the_older_has_it_until_it_goes() -> None:
    old, young = node(2, since="2026-01-01T00:00:00Z"), node(3, since="2026-01-02T00:00:00Z")
    young = msgspec.structs.replace(young, spec=NodeSpec(pod_cidrs=[*old.spec.pod_cidrs]))
    compiler = compiled(node(1), young, old, node(4))
    alone = compiled(node(1), old, node(4))
    assert dict(compiler.tables[Table.ROUTES]) == dict(alone.tables[Table.ROUTES])
    assert {c.winner.name for c in compiler.contradictions} == {"node-2"}
    compiler.apply([Change("Node", old, None)])
    assert compiler.contradictions == []
    assert destinations(compiler) == destinations(alone)


# --- pods -----------------------------------------------------------------------------------------


def pod(*addresses: str, **spec: Any) -> Pod:
    phase = spec.pop("phase", "Running")
    return Pod(
        metadata=ObjectMeta(name="web", namespace="shop", uid="u"),
        spec=PodSpec(node_name=spec.pop("node_name", "node-1"), **spec),
        status=PodStatus(phase=phase, pod_ips=[PodIP(each) for each in addresses]),
    )


def test_a_pod_with_an_address_of_another_node_is_told() -> None:
    compiler = compiled(node(1), node(2), pod("10.244.2.9", "fd00:10:244:1::9"))
    (complaint,) = told(compiler)
    assert complaint[:4] == ("Pod", "shop", "web", NOT_PROGRAMMED)
    assert (
        "10.244.2.9 is not of node node-1's podCIDRs 10.244.1.0/24, fd00:10:244:1::/64" in complaint.message
    )
    compiler.apply([Change("Pod", None, pod("10.244.1.9"))])
    assert told(compiler) == []
    # The node is registered anew with other prefixes.
    compiler.apply([Change("Node", None, node(1, cidrs=["10.244.7.0/24"]))])
    assert "10.244.1.9 is not of node node-1's podCIDRs 10.244.7.0/24" in told(compiler)[0].message
    compiler.apply([Change("Pod", None, pod("10.244.1.9", phase="Succeeded"))])
    assert told(compiler) == []


@pytest.mark.parametrize(
    "fine",
    [
        pod("172.30.1.1", host_network=True),
        pod("10.244.9.9", node_name="node-2"),
        pod("10.244.9.9", phase="Failed"),
        pod(""),
        pod(),
    ],
)
def test_pods_of_which_nothing_is_to_be_said(fine: Pod) -> None:
    assert told(compiled(node(1), node(2), fine)) == []


# --- slices ---------------------------------------------------------------------------------------


def test_a_service_whose_endpoints_are_all_of_a_family_that_is_not_in_use_is_told() -> None:
    six = msgspec.structs.replace(piece(LOCAL, name="web-6"), address_type="IPv6")
    ends = [msgspec.structs.replace(e, addresses=["fd00:10:244:1::5"]) for e in six.endpoints or ()]
    six = msgspec.structs.replace(six, endpoints=ends)
    only = compiled(node(1), service(), six, config=IPV4)
    (complaint,) = told(only)
    assert complaint[:4] == ("Service", "default", "web", NOT_PROGRAMMED)
    assert "its endpoints are IPv6 alone (endpointslice web-6), and ipFamilies is IPv4" in complaint.message
    # Where there are endpoints of a family that is in use, those of another are nobody's trouble.
    only.apply([Change("EndpointSlice", None, piece(REMOTE))])
    assert told(only) == []
    assert len(only.tables[Table.BACKENDS]) == 1
    assert told(compiled(node(1), service(), six)) == [], "both families are in use"


@given(st.sampled_from(["", "IPv7", "FQDN", "ipv4"]))
def test_a_slice_of_a_kind_of_address_that_nobody_knows_yet_brings_nothing(kind: str) -> None:
    new = msgspec.structs.replace(piece(LOCAL, name="new"), address_type=kind)
    compiler = compiled(node(1), service(), new, piece(REMOTE))
    (row,) = compiler.tables[Table.BACKENDS].values()
    assert [str(each.address) for each in row.backends] == [REMOTE]
    assert told(compiler) == []


# --- what a newer Kubernetes may say --------------------------------------------------------------

DOCUMENTS: dict[str, dict[str, Any]] = {
    "Node": {
        "spec": {"podCIDRs": ["10.244.1.0/24"], "taints": [{"key": "a", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.30.1.1"}]},
    },
    "Namespace": {},
    "Pod": {
        "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.5"}]},
    },
    "Service": {
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.1"],
            "ports": [{"port": 80, "name": "http"}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}},
    },
    "EndpointSlice": {
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [
            {"addresses": ["10.244.1.5"], "conditions": {"ready": True}, "hints": {"forZones": []}}
        ],
    },
    "ServiceCIDR": {"spec": {"cidrs": ["10.96.0.0/16"]}},
    "NetworkPolicy": {
        "spec": {
            "podSelector": {},
            "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 80}]}],
        }
    },
}
NEWS: list[Any] = [None, True, 7, "text", ["a"], {"deep": {"er": [1]}}]


def newer(value: Any, news: Any) -> Any:
    """value with a field that nobody knows in every object of it."""
    if isinstance(value, dict):
        return {"aNewField": news, **{k: newer(v, news) for k, v in value.items()}, "zNewField": news}
    return [newer(each, news) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", KINDS)
def test_fields_of_a_newer_kubernetes_are_passed_over(kind: str) -> None:
    document = {"metadata": {"name": "x", "namespace": "default", "uid": "u"}, **DOCUMENTS[kind]}
    plain = msgspec.json.decode(msgspec.json.encode(document), type=KINDS[kind])
    for news in NEWS:
        assert msgspec.json.decode(msgspec.json.encode(newer(document, news)), type=KINDS[kind]) == plain
