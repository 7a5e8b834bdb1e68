"""Connections with names: which node tells them, what they went through, who has how much."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest

from podlane.errors import ConfigError
from podlane.kernel.conntrack.codec import ASSURED, SEEN_REPLY, Counts, Entry, Tuple
from podlane.model.addresses import address
from podlane.model.config import NetworkConfig
from podlane.observe.flows import (
    AtSocket,
    Flow,
    Load,
    Wanted,
    flow_lines,
    flows,
    loads,
    size,
    through_sockets,
    watch,
)
from podlane.observe.service_text import report_lines
from podlane.observe.services import report
from tests.unit.observed_cluster import cluster

TCP, UDP = 6, 17


def entry(
    source: str, to: str, end: str = "", seen_as: str = "", *, protocol: int = TCP, **given: Any
) -> Entry:
    """Ends as ADDRESS|PORT. end: where it is sent on to, seen_as: from whom."""

    def parse(text: str) -> Any:
        where, _, port = text.partition("|")
        return address(where), int(port or 0)

    (client, client_port), (front, port) = parse(source), parse(to)
    (backend, backend_port), (seen, seen_port) = parse(end or to), parse(seen_as or source)
    state = {"tcp_state": 3} if protocol == TCP else {}
    found = Entry(
        Tuple(client, front, protocol, client_port, port),
        Tuple(backend, seen, protocol, backend_port, seen_port),
        0,
        1,
        status=SEEN_REPLY | ASSURED,
        sent=Counts(3, 300),
        answered=Counts(2, 2000),
        **state,
    )
    return found._replace(**given)


THROUGH = entry("10.244.1.2|40000", "10.96.0.80|80", "10.244.2.3|80")
ARRIVING = entry("10.244.1.2|40000", "10.244.2.3|80")
OUTSIDE = entry("198.51.100.10|5000", "172.30.1.11|30080", "10.244.2.3|80", "172.30.1.11|6000")
PLAIN = entry("fd00:10:244:1::2|7", "fd00:10:244:3::3|53", protocol=UDP)
FOUND = {"node-2": [ARRIVING], "node-1": [THROUGH, OUTSIDE, PLAIN], "node-3": [PLAIN]}


def told(**wanted: Any) -> list[Flow]:
    return flows(cluster(), FOUND, Wanted(**wanted)).items


def test_a_connection_is_told_once_by_the_node_that_translated_it() -> None:
    (flow,) = told(service=("default", "web"))
    assert (flow.node, flow.protocol, flow.state, flow.port_name) == ("node-1", "TCP", "ESTABLISHED", "http")
    assert (flow.source.name, flow.destination.name, flow.endpoint.name) == (
        "default/pod/client",
        "default/svc/web",
        "default/pod/web-1",
    )
    assert (flow.bytes_sent, flow.packets_answered, flow.seen_as) == (300, 2, None)


def test_a_connection_that_chose_at_its_socket_is_of_its_service() -> None:
    local, front, end = ("10.244.1.2", 40000), ("10.96.0.80", 80), ("10.244.2.3", 80)

    def at(text: str, port: int) -> Any:
        return address(text), port

    chosen = AtSocket(TCP, at(*local), at(*front), at(*end))
    other = AtSocket(UDP, at(*local), at(*front), at(*end))
    assert through_sockets([ARRIVING, PLAIN], [chosen]) == [THROUGH._replace(reply=ARRIVING.reply), PLAIN]
    assert through_sockets([ARRIVING], [other]) == [ARRIVING]
    (flow,) = flows(cluster(), {"node-2": [ARRIVING], "node-1": through_sockets([ARRIVING], [chosen])}).items
    assert (flow.node, flow.service, flow.endpoint.name) == ("node-1", "default/web", "default/pod/web-1")


def test_a_node_port_is_of_its_service_and_who_was_masqueraded_is_told() -> None:
    (flow,) = told(service=("default", "open"))
    assert flow.source.name == "outside"
    assert flow.seen_as is not None
    assert (flow.seen_as.name, flow.seen_as.port) == ("node/node-1", 6000)


def test_what_nobody_translated_is_told_by_its_senders_node() -> None:
    (flow,) = [each for each in told() if not each.service]
    assert (flow.node, flow.state, flow.family) == ("node-1", "ASSURED", "IPv6")
    assert [each.service for each in told()] == ["default/open", "default/web", ""]


def test_a_pod_is_wanted_at_either_end() -> None:
    assert len(told(pod=("default", "web-1"))) == 2
    assert len(told(pod=("default", "client"))) == 2
    assert len(told(pod=("default", "web-1"), service=("default", "open"))) == 1
    assert told(node="node-3") == []


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        (Wanted(service=("default", "wbe")), "did you mean 'web'"),
        (Wanted(pod=("default", "nobody")), "there is no pod 'nobody'"),
        (Wanted(node="node-9"), "there is no node 'node-9'"),
    ],
)
def test_names_that_nobody_has_are_refused(wanted: Wanted, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        wanted.check(cluster())


def test_json_and_lines() -> None:
    found = flows(cluster(), FOUND)
    document = json.loads(found.json())
    assert (document["kind"], document["apiVersion"]) == ("FlowList", "podlane.dev/v1alpha1")
    assert document["items"][1]["endpoint"] == {
        "address": "10.244.2.3",
        "port": 80,
        "name": "default/pod/web-1",
    }
    head, outside, web, plain = flow_lines(found)
    assert head.split()[:4] == ["NODE", "PROTOCOL", "STATE", "FROM"]
    assert "outside 198.51.100.10:5000 as 172.30.1.11:6000" in outside
    assert web.split()[5:9] == ["default/svc/web", "10.96.0.80:80", "default/pod/web-1", "10.244.2.3:80"]
    assert plain.count("default/pod/web-2 [fd00:10:244:3::3]:53") == 1


def test_an_endpoint_has_its_open_connections_and_all_the_bytes() -> None:
    over = entry("10.244.1.2|40001", "10.96.0.80|80", "10.244.2.3|80", tcp_state=7)
    found = loads(flows(cluster(), {"node-1": [THROUGH, over, PLAIN]}))
    assert found == {("default/web", "10.244.2.3", 80, "TCP"): Load(1, 600, 4000)}
    objects = cluster()
    service = report(objects, NetworkConfig(), objects.service("default", "web"), found)
    by_address = {each.address: each for each in service.endpoints}
    assert (by_address["10.244.2.3"].flows, by_address["10.244.3.3"].flows) == (1, 0)
    assert any("1 open, 600 B in, 3.9 KiB out" in line for line in report_lines(service))
    # Where no node was asked, nothing is said.
    assert report(objects, NetworkConfig(), objects.service("default", "web")).endpoints[0].flows is None


def test_what_comes_and_goes_is_watched() -> None:
    looks = [flows(cluster(), {"node-1": found}) for found in ([THROUGH], [THROUGH, OUTSIDE], [OUTSIDE])]

    pauses: list[float] = []
    events = watch(lambda: looks.pop(0), 2.0, pauses.append)
    seen = [(event.event, event.flow.service) for event in islice(events, 3)]
    assert seen == [("new", "default/web"), ("new", "default/open"), ("ended", "default/web")]
    assert pauses == [2.0, 2.0]


@pytest.mark.parametrize(
    ("octets", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_for_people(octets: int, text: str) -> None:
    assert size(octets) == text
