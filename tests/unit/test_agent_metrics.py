"""What the agent counts, and what it makes of what it reads: the pure parts of /metrics."""

from __future__ import annotations

import asyncio
import struct
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from podlane.agent import http
from podlane.agent.metrics import AgentMetrics, driver_name
from podlane.agent.metrics_page import MetricsPage, unreachable
from podlane.agent.on_demand import OnDemand
from podlane.agent.reconciler import EVERY_ROW, Observation
from podlane.agent.standalone import metrics_of
from podlane.compile.engine import Compiler
from podlane.compile.tables import BackendList, Frontend, FrontendClass, FrontendKey, ListKey, Table
from podlane.compile.view import ATTACHMENT, UNDERLAY, Change
from podlane.errors import KernelError
from podlane.kernel.conntrack import statistics
from podlane.kernel.conntrack.codec import Counts, Entry, Tuple
from podlane.kernel.driver import Failure, Report
from podlane.kernel.netlink import Message, attribute, be32, nested, text
from podlane.kernel.nft import expressions as nft
from podlane.kernel.nft import ruleset
from podlane.kernel.nft.counters import Counted
from podlane.kernel.rtnl import traffic
from podlane.model import config
from podlane.model.addresses import Family, Protocol
from podlane.model.local import Attachment
from podlane.model.objects import EndpointSlice, Node, NodeAddress, NodeSpec, NodeStatus, ObjectMeta
from podlane.observe.demand import policy_metrics, service_metrics
from podlane.observe.exposition import exposition
from podlane.watch.http import asked_for
from podlane.watch.reflector import Reflector, Source
from tests.monitoring import lint, parse

REFUSED = KernelError.of(16, "add it")


class RtnlDriver:
    tables = (Table.ROUTES,)


def values(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    return {
        name: {tuple(s.labels.values()): s.value for s in family.samples if not s.name.endswith("_bucket")}
        for name, family in parse(text).items()
    }


def observed(
    *failures: Failure, full: bool = False, operations: int = 0, seconds: float = 0.01
) -> Observation:
    driver: Any = RtnlDriver()
    return Observation(driver, seconds, full, Report(operations, failures))


def test_the_time_from_news_to_the_kernel_is_counted_by_kind() -> None:
    counted = AgentMetrics()
    counted.told("Pod", 1, 10.0)
    counted.told("Service", 2, 10.5)
    counted.told("Pod", 3, 11.0)
    counted.applied(2, 12.0)
    found = values(exposition("", counted.metrics()))["programming_duration_seconds"]
    assert found == {("Pod",): 1, ("Service",): 1}  # the sums are told before the counts
    assert 'programming_duration_seconds_sum{kind="Pod"} 2\n' in exposition("", counted.metrics())
    counted.applied(3, 12.0)
    assert 'programming_duration_seconds_sum{kind="Pod"} 3\n' in exposition("", counted.metrics())


def test_repairs_are_what_comparisons_change_after_the_first() -> None:
    counted = AgentMetrics()
    whole = Failure(Table.ROUTES, EVERY_ROW, REFUSED)
    counted.observed(observed(whole, full=True))  # the first that succeeds is the first
    counted.observed(observed(full=True, operations=40))
    counted.observed(observed(operations=7))
    assert counted.repairs == {("rtnl",): 0}
    counted.observed(observed(full=True, operations=3))
    assert counted.repairs == {("rtnl",): 3}
    counted.observed(observed(Failure(Table.ROUTES, "x", REFUSED), full=True, operations=1))
    assert counted.repairs == {("rtnl",): 3}
    assert counted.errors == {("rtnl", "routes", "EBUSY"): 2}


def test_a_driver_that_is_made_on_demand_has_its_own_name() -> None:
    made: Any = RtnlDriver()
    driver = OnDemand((Table.ROUTES,), lambda table, row: True, lambda: made, lambda: None)
    assert driver_name(driver) == ""
    driver.driver = made
    assert driver_name(driver) == "rtnl"


def test_everything_that_is_counted_has_a_name_of_the_field() -> None:
    counted = AgentMetrics()
    counted.told("Pod", 1, 0.0)
    counted.applied(1, 0.5)
    counted.observed(observed(Failure(Table.ROUTES, "x", REFUSED), full=True))
    counted.answered("ADD", 0, 0.01)
    reflector: Reflector[Any] = Reflector(Source("EndpointSlice"), EndpointSlice)
    counted.heard(reflector, 1e9)
    lint(exposition("podlane_agent_", counted.metrics()))
    assert counted.cni_answers == {("ADD", "0"): 1}


def test_a_standalone_agent_tells_of_cni_and_of_itself() -> None:
    counted = AgentMetrics()
    counted.answered("DEL", 11, 0.01)
    body = metrics_of(counted).body.decode()
    lint(body)
    found = values(body)
    assert found["podlane_agent_cni_requests_total"] == {("DEL", "11"): 1}
    assert "process_resident_memory_bytes" in found


@pytest.mark.parametrize(
    ("method", "path", "query", "told"),
    [
        ("GET", "/api/v1/nodes", {}, ("list", "nodes")),
        ("GET", "/api/v1/pods", {"watch": "1"}, ("watch", "pods")),
        ("GET", "/api/v1/nodes/a", {}, ("get", "nodes")),
        ("GET", "/api/v1/namespaces", {}, ("list", "namespaces")),
        ("GET", "/api/v1/namespaces/a", {}, ("get", "namespaces")),
        ("GET", "/api/v1/namespaces/a/pods", {}, ("list", "pods")),
        ("PATCH", "/api/v1/nodes/a/status", {}, ("patch", "nodes/status")),
        ("POST", "/api/v1/namespaces/a/events", {}, ("create", "events")),
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/a/leases/b", {}, ("update", "leases")),
        ("DELETE", "/apis/podlane.dev/v1alpha1/loadbalancerpools/a", {}, ("delete", "loadbalancerpools")),
        ("GET", "/apis/discovery.k8s.io/v1/endpointslices", {}, ("list", "endpointslices")),
    ],
)
def test_requests_have_the_words_of_rbac(
    method: str, path: str, query: dict[str, str], told: tuple[str, str]
) -> None:
    assert asked_for(method, path, query) == told


# --- of a node ------------------------------------------------------------------------------------


def node(number: int) -> Node:
    return Node(
        metadata=ObjectMeta(name=f"node-{number}"),
        spec=NodeSpec(pod_cidrs=[f"10.244.{number}.0/24"]),
        status=NodeStatus(addresses=[NodeAddress("InternalIP", f"172.30.1.{number}")]),
    )


def compiler() -> Compiler:
    from podlane.model.addresses import prefix
    from podlane.model.local import Underlay

    made = Compiler(
        "node-1",
        config.parse(
            {"ipFamilies": ["IPv4"], "podCIDRs": ["10.244.0.0/16"], "serviceCIDRs": ["10.96.0.0/16"]}, "test"
        ),
    )
    where = ip_address("172.30.1.1")
    made.apply(
        [
            *(Change("Node", None, node(number)) for number in (1, 2, 3)),
            Change(UNDERLAY, None, Underlay("eth0", 1500, ((where, prefix("172.30.1.0/24")),))),
            Change(
                ATTACHMENT,
                None,
                Attachment(
                    "c", "eth0", "plc", "02:00:00:00:00:01", (ip_address("10.244.1.2"),), "default", "web"
                ),
            ),
        ]
    )
    return made


def test_nodes_that_rows_lead_to_are_down_when_these_are_refused() -> None:
    made = compiler()
    assert unreachable(made, []) == set()
    (to_two,) = [k for k in made.tables[Table.ROUTES] if str(k) == "10.244.2.0/24"]
    (own,) = [k for k in made.tables[Table.ROUTES] if str(k) == "10.244.1.2/32"]
    failures = [Failure(Table.ROUTES, key, REFUSED) for key in (to_two, own)]
    assert unreachable(made, failures) == {"node-2"}
    strange = Node(metadata=ObjectMeta(name="node-4"), spec=NodeSpec(pod_cidrs=["nonsense"]))
    made.apply([Change("Node", None, strange)])
    assert unreachable(made, []) == {"node-4"}


def test_a_pod_that_the_api_does_not_show_is_told() -> None:
    made = compiler()
    page = MetricsPage(
        made,
        AgentMetrics(),
        state=lambda: None,  # type: ignore[arg-type,return-value]
        use=dict,
        requests={("get", "nodes", "200"): 2},
        proxy=None,
        sockets=None,
    )

    state: Any = SimpleNamespace(failures=[])
    found = values(exposition("", page._node(state)))
    assert found["pods_fail_closed"] == {(): 1}
    assert found["peers"] == {("vxlan", "down"): 0, ("vxlan", "up"): 2}
    assert found["api_requests_total"] == {("get", "nodes", "200"): 2}


def test_a_question_with_a_misspelt_name_is_refused() -> None:
    page = http.Server({}, asked={"/x": lambda query: http.text(str(sorted(query.items())))})

    def ask(line: str) -> tuple[int, str]:
        _, answer = asyncio.run(page._answer(f"GET {line} HTTP/1.1\r\n\r\n".encode()))
        return answer.status, answer.body.decode()

    assert ask("/x?namespace=a%2Fb&empty=") == (200, "[('empty', ''), ('namespace', 'a/b')]\n")
    assert ask("/x") == (200, "[]\n")
    assert ask("/y") == (404, "there is /x\n")


# --- of the kernel's words ------------------------------------------------------------------------


def test_conntrack_statistics_are_summed_over_processors() -> None:
    head = struct.pack("!BBH", 0, 0, 0)
    told = [Message(0, 0, 0, head + attribute(1, be32(7)) + attribute(2, be32(100)))]
    each = [Message(0, 0, 0, head + attribute(9, be32(n)) + attribute(10, be32(1))) for n in (3, 4)]
    found = statistics.unpack(told, each)
    assert (found.entries, found.limit) == (7, 100)
    assert (found.events["insert_failed"], found.events["drop"], found.events["early_drop"]) == (7, 2, 0)
    assert statistics.unpack([], []).entries == 0


def test_traffic_is_read_by_device() -> None:
    lines = [
        "Inter-|   Receive                                                |  Transmit",
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop",
        "plvxlan:  1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0",
        "  eth0: 11 12 13 14 0 0 0 0 15 16 17 18 0 0 0 0",
        "nonsense",
    ]
    found = traffic.parse("\n".join(lines))
    assert found["plvxlan"] == (1, 2, 3, 4, 5, 6, 7, 8)
    assert found["eth0"].transmit_bytes == 15
    assert set(found) == {"plvxlan", "eth0"}


def test_a_rules_counter_is_found_among_its_expressions() -> None:
    def message(*expressions: bytes) -> Message:
        return Message(0, 0, 0, bytes(4) + nested(4, *expressions))

    counts = nested(2, attribute(1, struct.pack("!Q", 640)), attribute(2, struct.pack("!Q", 10)))
    counter = nested(1, attribute(1, text("counter")), counts)
    assert ruleset.unpack_counter(message(nft.iifname(), counter)) == (10, 640)
    assert ruleset.unpack_counter(message(nft.iifname())) is None
    assert ruleset.unpack_counter(Message(0, 0, 0, bytes(4))) is None


# --- on demand ------------------------------------------------------------------------------------

LIST = ListKey("shop", "web", "http", Protocol.TCP, Family.IPV4, "cluster")
VIP, CLIENT = ip_address("10.96.0.10"), ip_address("10.244.1.2")
TABLES: dict[Table, dict[Any, Any]] = {
    **{table: {} for table in Table},
    Table.BACKENDS: {LIST: BackendList(()), LIST._replace(namespace="idle"): BackendList(())},
    Table.FRONTENDS: {FrontendKey(VIP, Protocol.TCP, 80): Frontend(FrontendClass.INTERNAL, LIST)},
}


def flow(destination: Any, mark: int = 1, tcp_state: int = 3, port: int = 80) -> Entry:
    way = Tuple(CLIENT, destination, 6, 4000, port)
    return Entry(way, way, mark, 0, tcp_state=tcp_state, sent=Counts(2, 120), answered=Counts(1, 40))


def test_services_have_what_is_tracked_of_them() -> None:
    entries = [flow(VIP), flow(VIP, tcp_state=7), flow(VIP, mark=0), flow(CLIENT), flow(VIP, port=81)]
    text = exposition("podlane_service_", service_metrics(entries, TABLES))
    lint(text)
    found = values(text)
    shop = ("shop", "web", "http", "TCP", "IPv4")
    assert found["podlane_service_connections"] == {("idle", *shop[1:]): 0, shop: 1}
    assert found["podlane_service_connections_sent_bytes"][shop] == 240
    assert found["podlane_service_connections_answered_packets"][shop] == 2
    narrow = values(exposition("", service_metrics(entries, TABLES, "idle")))
    assert list(narrow["connections"]) == [("idle", *shop[1:])]


def test_policies_have_what_their_rules_let_pass() -> None:
    counted = [
        Counted("ip", "ingress/shop/web", "shop/web ingress[0]", 2, 120),
        Counted("ip6", "ingress/shop/web", "shop/web ingress[0]", 1, 80),
        Counted("ip", "egress/other/all", "other/all egress[3]", 5, 300),
        Counted("ip", "isolate-ingress-0123", "20 kinds of peers", 4, 200),
        Counted("ip", "isolate-ingress-0123", "no policy allows it", 9, 540),
    ]
    text = exposition("podlane_policy_", policy_metrics(counted))
    lint(text)
    found = values(text)
    assert found["podlane_policy_allowed_packets_total"] == {
        ("", "several", "ingress", ""): 4,
        ("other", "all", "egress", "3"): 5,
        ("shop", "web", "ingress", "0"): 3,
    }
    assert found["podlane_policy_dropped_bytes_total"] == {("no policy allows it",): 540}
    narrow = values(exposition("", policy_metrics(counted, "shop")))
    assert narrow["allowed_packets_total"] == {("shop", "web", "ingress", "0"): 3}
    assert "dropped_packets_total" not in narrow
