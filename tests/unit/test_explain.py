"""Every stage of a packet's way, and every way it can end, from objects alone."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from podlane.model.addresses import Family
from podlane.model.config import DEFAULT, NetworkConfig, with_settings
from podlane.model.objects import Object, Pod, PodIP, PodStatus
from podlane.observe.cluster import Cluster
from podlane.observe.explain import explain
from podlane.observe.explanation import Explanation, Outcome, Stage
from podlane.observe.targets import parse_destination, parse_source
from podlane.observe.text import explanation_lines
from tests.unit.observed_cluster import CLIENT, OUTSIDE, WEB1, WEB2, objects, pod, service, slices


def told(
    source: str,
    destination: str,
    made: Iterable[Object] = (),
    family: Family | None = None,
    config: NetworkConfig = DEFAULT,
) -> Explanation:
    known = Cluster([*objects(), *made], OUTSIDE)
    return explain(
        known,
        known.party(parse_source(source)),
        known.party(parse_destination(destination)),
        config,
        family=family,
    )


def addressed(name: str, on: int, *addresses: str) -> Pod:
    """A pod with addresses that are not its node's to give."""
    ips = [PodIP(ip=each) for each in addresses]
    return replace(pod(name, on, 3, 80), status=PodStatus(phase="Running", pod_ips=ips))


def stage(explanation: Explanation, name: str) -> Stage:
    return next(s for s in explanation.stages if s.stage == name)


def names(explanation: Explanation) -> list[str]:
    return [s.stage for s in explanation.stages]


@pytest.mark.parametrize("family", list(Family))
def test_pod_to_service_across_nodes_passes_every_stage(family: Family) -> None:
    way = told("pod/client", "svc/web:80", family=family)
    assert way.verdict is Outcome.DELIVERED
    assert names(way) == [
        "source",
        "egress",
        "service",
        "route",
        "encapsulation",
        "underlay",
        "arrival",
        "delivery",
        "reply",
    ]
    assert [s.node for s in way.stages] == [*["node-1"] * 5, "", *["node-2"] * 3]
    assert "VXLAN 85 in UDP 8472, 172.30.1.11 -> 172.30.1.12; MTU 1450" in stage(way, "encapsulation").detail
    assert {row.table for row in stage(way, "encapsulation").rows} == {"links", "neighbours", "fdb"}
    assert "default/pod/web-1" in way.why


@pytest.mark.parametrize(
    ("mode", "family", "says"),
    [
        ("routed", Family.IPV4, "default route via 169.254.1.1; in by pl"),
        ("routed", Family.IPV6, "default route via fe80::1; in by pl"),
        ("bridge", Family.IPV4, "a port of cni0, default route via 10.244.1.1, the bridge's address"),
        ("bridge", Family.IPV6, "a port of cni0, default route via fd00:10:244:1::1, the bridge's address"),
    ],
)
def test_a_pod_sends_to_the_gateway_of_its_link_mode(mode: str, family: Family, says: str) -> None:
    config = with_settings(DEFAULT, [f"link.mode={mode}"])
    assert says in stage(told("pod/client", "svc/web:80", family=family, config=config), "egress").detail


def test_every_endpoint_is_told_with_its_state_and_why() -> None:
    rows = [r.row for r in stage(told("pod/client", "svc/web"), "service").rows if r.table == "endpoints"]
    assert [(r["target"], r["state"], r["chosen"]) for r in rows] == [
        ("default/pod/web-3", "not ready", False),
        ("default/pod/web-1", "ready", True),
        ("default/pod/web-2", "ready", True),
    ]


@pytest.mark.parametrize(
    ("family", "says"), [(Family.IPV4, "IP in IP (protocol 4)"), (Family.IPV6, "IPv6 in IP (protocol 41)")]
)
def test_a_tunnel_whose_peers_are_prefixes_has_the_same_stages(family: Family, says: str) -> None:
    config = with_settings(DEFAULT, ["backend.type=ipip"])
    way, vxlan = (told("pod/client", "svc/web:80", family=family, config=c) for c in (config, DEFAULT))
    assert (names(way), way.verdict) == (names(vxlan), Outcome.DELIVERED)
    assert [s.node for s in way.stages] == [s.node for s in vxlan.stages]
    wrapped = stage(way, "encapsulation")
    assert wrapped.detail == f"{says}, 172.30.1.11 -> 172.30.1.12; MTU 1480 (20 bytes more on the wire)"
    assert [row.table for row in wrapped.rows] == ["tunnels", "tunnel-peers"]
    assert stage(way, "arrival").detail == "plipip takes the outer packet off"


def test_pods_of_one_node_need_no_tunnel() -> None:
    way = told("pod/web-3", "pod/client")
    assert names(way) == ["source", "egress", "service", "route", "delivery", "reply"]
    assert way.verdict is Outcome.DELIVERED


def test_a_pod_is_asked_under_its_own_address_and_a_service_by_a_node_is_masqueraded() -> None:
    assert "from 10.244.1.2" in told("pod/client", "svc/web").why
    by_node = told("node/node-1", "svc/web")
    assert "source masqueraded" in stage(by_node, "service").detail
    assert "from 10.244.1.0" in by_node.why  # the tunnel end's address, which leads back to node-1


def test_outside_to_a_node_port_enters_by_a_node() -> None:
    way = told("outside", "svc/open")
    assert (way.address, way.port) == ("172.30.1.11", 30080)
    assert "node port" in stage(way, "service").detail
    assert stage(way, "service").node == "node-1"
    assert way.verdict is Outcome.DELIVERED
    six = told("outside", "svc/open", family=Family.IPV6)
    assert six.address == "fd00:172:30::1:1"


@pytest.mark.parametrize("to", ["pod/web-1", "svc/web", "192.0.2.9:80"])
def test_outside_has_no_route_into_the_cluster(to: str) -> None:
    way = told("outside", to)
    assert way.verdict is Outcome.NO_ROUTE
    assert names(way) == ["source", "underlay"]


@pytest.mark.parametrize(
    ("to", "verdict", "words"),
    [
        ("svc/empty", Outcome.REFUSED, "no endpoint on any node"),
        ("svc/web:81", Outcome.REFUSED, "no service serves this port"),
        ("svc/web:80/udp", Outcome.REFUSED, "no service serves this port"),
        ("svc/local", Outcome.DROPPED, "traffic policy is Local"),
        ("10.96.0.99:80", Outcome.DROPPED, "no service holds"),
        ("10.244.2.77", Outcome.NO_ROUTE, "node-2 has no pod with the address"),
        ("10.244.1.77", Outcome.NO_ROUTE, "node-1 has no pod with the address"),
        ("10.244.200.1", Outcome.NO_ROUTE, "no node has 10.244.200.1 in its podCIDR"),
        ("pod/done", Outcome.NO_ROUTE, "has ended (Succeeded)"),
    ],
)
def test_what_does_not_arrive_is_told_with_the_reason(to: str, verdict: Outcome, words: str) -> None:
    way = told("pod/client", to)
    assert (way.verdict, words in way.why) == (verdict, True), way.why


def test_a_pod_without_an_address_sends_nothing() -> None:
    way = told("pod/pending", "svc/web", [addressed("pending", 1)])
    assert (way.verdict, way.stages) == (Outcome.NO_ROUTE, [])
    assert "no IPv4 address yet" in way.why


def test_a_pod_that_asks_itself_by_its_service_is_masqueraded() -> None:
    way = told("pod/client", "svc/selfish")
    assert "it is the sender" in stage(way, "service").rows[1].text
    assert stage(way, "reply").detail == "to this node, which undoes its NAT"


def test_a_service_of_host_network_pods_is_delivered_to_their_node() -> None:
    way = told("pod/client", "svc/hosted")
    assert names(way)[-4:] == ["route", "underlay", "delivery", "reply"]
    assert "node-3 gets it from 10.244.1.2" in way.why


def test_a_pod_leaves_the_cluster_under_its_nodes_address() -> None:
    way = told("pod/client", "outside")
    assert "becomes 172.30.1.11 (masquerade)" in stage(way, "route").detail
    assert way.verdict is Outcome.DELIVERED


def test_one_endpoint_that_cannot_be_reached_is_the_verdict() -> None:
    stray = addressed("stray", 2, "10.244.77.3", "fd00:10:244:77::3")
    way = told("pod/client", "svc/torn", [stray, service("torn", 90), *slices("torn", 80, WEB1, stray)])
    assert way.verdict is Outcome.NO_ROUTE
    assert way.why == "endpoint 10.244.77.3:80: no node has 10.244.77.3 in its podCIDR"


def test_a_node_that_does_not_know_the_way_back_is_the_verdict() -> None:
    way = told("pod/foreign", "pod/web-1", [addressed("foreign", 1, "10.244.66.2", "fd00:10:244:66::2")])
    assert way.verdict is Outcome.DROPPED
    assert way.why == "it arrives, but node-2 has no route back to 10.244.66.2"
    assert names(way)[-2:] == ["delivery", "reply"]


def test_text_shows_the_first_of_many_endpoints_and_json_all() -> None:
    members = [pod(f"many-{i}", 2, 20 + i, 80) for i in range(40)]
    way = told("pod/client", "svc/many", [*members, service("many", 99), *slices("many", 80, *members)])
    lines = [line.strip() for line in explanation_lines(way)]
    assert sum("may be chosen" in line for line in lines) == 10
    assert "and 30 other endpoints (all of them with -o json)" in lines
    assert sum(r.table == "endpoints" for r in stage(way, "service").rows) == 40


def test_rows_in_json_have_names() -> None:
    document = json.loads(told("pod/client", "svc/web:80").json())
    rows = {r["table"]: r["row"] for s in document["stages"] for r in s["rows"]}
    assert rows["frontends"]["key"] == {"address": "10.96.0.80", "protocol": "TCP", "port": 80}
    assert rows["frontends"]["backends"]["scope"] == "cluster"
    assert rows["routes"]["destination"] == "10.244.1.0/24"
    assert (rows["links"]["vni"], rows["fdb"]["remote"]) == (85, "172.30.1.12")


def test_the_answer_is_json_with_its_kind_and_text_with_the_verdict_last() -> None:
    way = told("pod/client", "svc/web:80")
    document = json.loads(way.json())
    assert (document["apiVersion"], document["kind"]) == ("podlane.dev/v1alpha1", "Explanation")
    assert document["verdict"] == "delivered"
    assert set(document["stages"][0]) == {"stage", "node", "detail", "rows"}
    lines = list(explanation_lines(way))
    assert lines[0] == "default/pod/client -> default/svc/web (10.96.0.80:80/TCP), IPv4"
    assert lines[-1].startswith("delivered: ")


AT_SOCKET = with_settings(DEFAULT, ["services.mode=socket"])


def test_in_mode_socket_the_choice_comes_before_the_packet() -> None:
    way = told("pod/client", "svc/web", config=AT_SOCKET)
    assert names(way)[:3] == ["source", "service", "egress"]
    assert "chosen at the socket" in stage(way, "service").detail
    assert "connected to one of" in stage(way, "service").detail
    assert "NAT" not in stage(way, "reply").detail
    by_node = told("node/node-1", "svc/web", config=AT_SOCKET)
    assert "source kept" in stage(by_node, "service").detail
    selfish = told("pod/client", "svc/selfish", config=AT_SOCKET)
    assert "it is the sender" not in stage(selfish, "service").rows[1].text


@pytest.mark.parametrize("source", ["outside", "pod/client"])
def test_in_mode_socket_what_is_not_held_is_told_with_the_reason(source: str) -> None:
    way = told(source, "svc/empty" if source == "pod/client" else "svc/open", config=AT_SOCKET)
    detail = stage(way, "service").detail
    if source == "outside":  # no process of a node: the socket has no part in it
        assert "socket" not in detail
    else:
        assert way.verdict is Outcome.REFUSED
        assert "nftables, not the socket: refusing and dropping is nftables' part" in detail


def annotated(name: str, **notes: str) -> Object:
    found = service(name, 95)
    annotations = {f"podlane.dev/{key}": text for key, text in notes.items()}
    return replace(found, metadata=replace(found.metadata, annotations=annotations))


@pytest.mark.parametrize("family", list(Family))
def test_the_endpoint_that_a_clients_hash_gives_is_named(family: Family) -> None:
    hashed = [annotated("hashed", balancing="maglev"), *slices("hashed", 80, WEB1, WEB2)]
    found = stage(told("pod/client", "svc/hashed", hashed, family), "service")
    assert "one of 2 endpoints by maglev of its client's address" in found.detail
    texts = [row.text for row in found.rows if row.table == "endpoints"]
    assert sum("the hash of the client's address falls here" in text for text in texts) == 1
    assert sum("for other clients" in text for text in texts) == 1


def test_weights_are_told_and_who_has_none() -> None:
    weighed = [
        annotated("weighed", weights="web-1=3, web-2=1, *=0"),
        *slices("weighed", 80, WEB1, WEB2, CLIENT),
    ]
    found = stage(told("pod/client", "svc/weighed", weighed), "service")
    texts = [row.text for row in found.rows if row.table == "endpoints"]
    assert [text.rpartition(": ")[2] for text in texts] == [
        "its weight is 0",
        "may be chosen, weight 3 of 4",
        "may be chosen, weight 1 of 4",
    ]
    assert "by chance" in found.detail
