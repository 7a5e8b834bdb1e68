"""What `podlane services` says, from the same code as the tables."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from podlane.compile.endpoints import Known, Place, select
from podlane.compile.services import CLUSTER, LOCAL
from podlane.compile.tables import Backend
from podlane.errors import ConfigError
from podlane.model.addresses import address
from podlane.model.config import NetworkConfig, with_settings
from podlane.model.objects import LoadBalancerIngress, LoadBalancerStatus, ServiceStatus
from podlane.observe.cluster import Cluster
from podlane.observe.service_text import list_lines, report_lines
from podlane.observe.services import ServiceReport, reason, report, services
from tests.unit.observed_cluster import WEB1, WEB2, cluster, objects, service, slices

CONFIG = NetworkConfig()
HERE = Place("here", "zone-a")


def of(name: str) -> ServiceReport:
    found = cluster()
    return report(found, CONFIG, found.service("default", name))


def test_every_endpoint_with_its_state_and_every_node_with_its_choice() -> None:
    told = of("web")
    four = [(e.address, e.state, e.node, e.target) for e in told.endpoints if ":" not in e.address]
    assert four == [
        ("10.244.1.9", "not ready", "node-1", "default/pod/web-3"),
        ("10.244.2.3", "ready", "node-2", "default/pod/web-1"),
        ("10.244.3.3", "ready", "node-3", "default/pod/web-2"),
    ]
    choice, other = told.choices
    assert (choice.nodes, choice.chosen) == (
        ["node-1", "node-2", "node-3"],
        ["10.244.2.3:80", "10.244.3.3:80"],
    )
    assert (choice.verdict, choice.why) == ("translate", "2 ready, 1 not ready")
    assert (choice.family, other.family) == ("IPv4", "IPv6")


def test_nodes_that_choose_differently_stand_apart() -> None:
    four = [c for c in of("local").choices if c.family == "IPv4"]
    assert [(c.nodes, c.verdict, c.why) for c in four] == [
        (["node-1", "node-3"], "drop", "0 of 1 ready on this node"),
        (["node-2"], "translate", "1 of 1 ready on this node"),
    ]


def test_ways_in_and_who_may_use_them() -> None:
    vip = LoadBalancerIngress(ip="172.30.1.11")
    shop = service(
        "shop",
        90,
        8000,
        node_port=30090,
        type="LoadBalancer",
        external_ips=["203.0.113.9"],
        external_traffic_policy="Local",
        load_balancer_source_ranges=["198.51.100.0/24"],
        health_check_node_port=31000,
    )
    shop = replace(shop, status=ServiceStatus(load_balancer=LoadBalancerStatus(ingress=[vip])))
    lab = Cluster([*objects(), shop, *slices("shop", 80, WEB1, WEB2)])
    told = report(lab, CONFIG, shop)
    assert [(e.kind, e.address, e.port, e.sources) for e in told.entries if ":" not in e.address] == [
        ("ClusterIP", "10.96.0.90", 8000, None),
        ("external IP", "203.0.113.9", 8000, None),
        ("load balancer", "172.30.1.11", 8000, ["198.51.100.0/24"]),
        ("node port", "", 30090, None),
        ("health check", "", 31000, None),
    ]
    four = [(c.used_by, c.scope, c.nodes) for c in told.choices if c.family == "IPv4"]
    assert four == [
        (["internal", "short circuit"], "cluster", ["node-1", "node-2", "node-3"]),
        (["external"], "local", ["node-1"]),
        (["external"], "local", ["node-2"]),
        (["external"], "local", ["node-3"]),
    ]
    lines = "\n".join(report_lines(told))
    assert "172.30.1.11:8000/TCP, only from 198.51.100.0/24" in lines
    assert "*:30090/TCP" in lines


def test_in_mode_socket_each_choice_says_where_it_is_made() -> None:
    config = with_settings(NetworkConfig(), ["services.mode=socket"])
    found = cluster()

    def said(name: str) -> list[tuple[list[str], str]]:
        told = report(found, config, found.service("default", name))
        lines = list(report_lines(told))
        assert all(f"  {c.at_socket}" in lines for c in told.choices)
        return [(c.nodes, c.at_socket) for c in told.choices if c.family == "IPv4"]

    chosen = "chosen at the socket by pods and nodes"
    assert said("web") == [(["node-1", "node-2", "node-3"], chosen)]
    local = said("local")
    assert local[1] == (["node-2"], chosen)
    assert local[0] == (
        ["node-1", "node-3"],
        "nftables, not the socket: refusing and dropping is nftables' part",
    )
    assert all(not c.at_socket for c in of("web").choices)


def test_what_is_not_served_says_why() -> None:
    found = cluster()
    for piece in found.slices_of(found.service("default", "headless")):
        piece.metadata.labels["service.kubernetes.io/headless"] = ""  # as the controller has them
    told = report(found, CONFIG, found.service("default", "headless"))
    assert "headless" in told.note
    assert [e.address for e in told.endpoints] == ["10.244.2.3", "fd00:10:244:2::3"]
    assert told.choices == []
    assert of("empty").choices[0].verdict == "refuse"
    assert of("empty").choices[0].why == "there are no endpoints"


def test_the_list_has_a_line_for_each_and_json_names_its_kind() -> None:
    found = cluster()
    told = services(found, CONFIG, found.services.values())
    lines = list(list_lines(told))
    assert len(lines) == 1 + len(found.services)
    assert lines[-1].split()[:3] == ["default/selfish", "ClusterIP", "2/2"]
    document = json.loads(told.json())
    assert (document["apiVersion"], document["kind"]) == ("podlane.dev/v1alpha1", "ServiceList")
    assert {item["name"] for item in document["items"]} == {name for _, name in found.services}


def test_a_service_that_is_not_there_is_named_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="did you mean 'web'"):
        cluster().service("default", "wev")


class Case(NamedTuple):
    """ends: node, state (r, t or n), zones hinted."""

    ends: list[str]
    scope: str
    why: str
    here: Place = HERE


CASES = [
    Case(["x r", "x r", "x r", "x t"], CLUSTER, "3 ready, 1 terminating unused"),
    Case(
        ["x r zone-a", "x r zone-b", "x r", "x t"],
        CLUSTER,
        "3 ready, 1 terminating unused, hints ignored: one endpoint has none",
    ),
    Case(["x r zone-a", "x r", "x r"], CLUSTER, "3 ready, hints ignored: 2 endpoints have none"),
    Case(["x r zone-a", "x r zone-b"], CLUSTER, "2 ready, hints give zone zone-a 1 of them"),
    Case(["x r zone-c", "x r zone-b"], CLUSTER, "2 ready, hints ignored: none is for zone zone-a"),
    Case(
        ["x r zone-a", "x r zone-b"],
        CLUSTER,
        "2 ready, hints ignored: the node has no zone",
        Place("here"),
    ),
    Case(["x t", "x n"], CLUSTER, "none ready, 1 terminating used for want of better, 1 not ready"),
    Case(["x n"], CLUSTER, "none ready, 1 not ready"),
    Case([], CLUSTER, "there are no endpoints"),
    Case(["here r", "x r", "here t"], LOCAL, "1 of 2 ready on this node, 1 terminating unused"),
    Case(
        ["x r", "here t", "x t"],
        LOCAL,
        "0 of 1 ready on this node, 1 terminating used for want of better, 1 terminating unused",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_why_of_all_endpoints_these(case: Case) -> None:
    known = {}
    for number, text in enumerate(case.ends, 1):
        node, state, *zones = text.split()
        where = Backend(address(f"10.0.0.{number}"), 80)
        each = Known(where, node, state == "r", state != "n", state == "t", frozenset(zones))
        known[each.backend] = each
    chosen = select(known, case.here, uses_cluster=True, uses_local=True)
    members = (chosen.local if case.scope == LOCAL else chosen.cluster) or ()
    assert reason(known.values(), frozenset(e.backend for e in members), case.here, case.scope) == case.why
