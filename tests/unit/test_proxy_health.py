"""What a node says of its services' health, and how it counts: pure parts of the agent."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from podlane.agent.health_checks import answer
from podlane.agent.proxy_health import TIMEOUT_S, ProxyHealth
from podlane.agent.proxy_metrics import TRIGGER_TIME, ProxyMetrics, without_local_endpoints
from podlane.compile.tables import HealthCheck
from podlane.model.addresses import Family
from podlane.model.objects import EndpointSlice, LoadBalancerIngress, Node, NodeSpec, ObjectMeta, Taint
from podlane.observe.exposition import Histogram, Metric, exposition
from tests.unit.test_compile_services import LOCAL, REMOTE, VIP, piece, service, tables

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def health(waiting_s: float = 0.0, node: Node | None = None) -> ProxyHealth:
    return ProxyHealth([Family.IPV4, Family.IPV6], lambda: waiting_s, lambda: node, lambda: NOW)


def node(deleted: str | None = None, *taints: str) -> Node:
    return Node(
        metadata=ObjectMeta(name="node-1", deletion_timestamp=deleted),
        spec=NodeSpec(taints=[Taint(key) for key in taints]),
    )


@pytest.mark.parametrize(
    ("waiting_s", "me", "gone", "healthz", "livez"),
    [
        (0.0, node(), False, 200, 200),
        (0.0, None, False, 200, 200),  # not seen yet
        (TIMEOUT_S, node(), False, 200, 200),
        (TIMEOUT_S + 1, node(), False, 503, 503),
        (0.0, node("2026-01-01T00:00:00Z"), False, 503, 200),
        (0.0, node(None, "ToBeDeletedByClusterAutoscaler"), False, 503, 200),
        (0.0, node(None, "node.kubernetes.io/unschedulable"), False, 200, 200),
        (0.0, node(), True, 503, 200),
        (TIMEOUT_S + 1, node(None, "ToBeDeletedByClusterAutoscaler"), False, 503, 503),
    ],
)
def test_health_of_the_proxy_and_of_the_node(
    waiting_s: float, me: Node | None, gone: bool, healthz: int, livez: int
) -> None:
    found = health(waiting_s, me)
    found.node_gone = gone
    assert (found.healthz().status, found.livez().status) == (healthz, livez)
    assert found.healthz_codes == {healthz: 1}
    assert found.livez_codes == {livez: 1}
    body = json.loads(found.livez().body)
    assert body["currentTime"] == "2026-01-01T12:00:00+00:00"
    assert body["status"]["IPv6"]["healthy"] == (livez == 200)


@pytest.mark.parametrize(
    ("endpoints", "healthy", "status"), [(2, True, 200), (0, True, 503), (2, False, 503)]
)
def test_a_health_check_needs_endpoints_and_a_proxy_that_keeps_up(
    endpoints: int, healthy: bool, status: int
) -> None:
    found = answer(HealthCheck("default", "web", endpoints), healthy)
    assert found.status == status
    assert json.loads(found.body)["serviceProxyHealthy"] is healthy
    assert dict(found.headers)["X-Load-Balancing-Endpoint-Weight"] == str(endpoints)


def test_a_histogram_counts_up() -> None:
    found = Histogram((0.1, 1))
    for value in (0.05, 0.1, 0.5, 7):
        found.observe(value)
    text = exposition("", [Metric("x", "histogram", "Of x.", [({"a": "b"}, found)])])
    assert text.splitlines()[2:] == [
        'x_bucket{a="b",le="0.1"} 2',
        'x_bucket{a="b",le="1"} 3',
        'x_bucket{a="b",le="+Inf"} 4',
        'x_sum{a="b"} 7.65',
        'x_count{a="b"} 4',
    ]


def test_the_time_from_a_change_to_its_rules_is_told_by_the_slice() -> None:
    metrics = ProxyMetrics([Family.IPV4])
    for text in ("2026-01-01T12:00:00Z", "2026-01-01T12:00:00.5Z", "yesterday", ""):
        annotations = {"endpoints.kubernetes.io/last-change-trigger-time": text} if text else {}
        metrics.changed(EndpointSlice(metadata=ObjectMeta(name="x", annotations=annotations)), 7)
    metrics.changed(EndpointSlice(metadata=ObjectMeta(name="x", annotations={TRIGGER_TIME: "2026-01-01"})), 8)
    now_s = NOW.timestamp()
    metrics.synced(0.01, full=False, failed=True, now_s=now_s + 1)
    metrics.applied(7, now_s + 1)
    assert metrics.sync_failures == 1
    metrics.synced(0.01, full=False, failed=False, now_s=now_s + 2)
    metrics.applied(7, now_s + 2)  # what was submitted later waits
    found = [value for _, _, value in metrics.programming.samples()]
    assert found[-2:] == [3.5, 2]


def lonely(internal: str, external: str, *where: str) -> tuple[int, int]:
    """Ports without a local endpoint: under the internal policy, under the external one."""
    spec: dict[str, Any] = {"type": "LoadBalancer", "ingress": [LoadBalancerIngress(ip=VIP)]}
    policies = {"internal_traffic_policy": internal, "external_traffic_policy": external}
    found = without_local_endpoints(tables(service(**spec, **policies), piece(*where)))
    assert found["internal", Family.IPV6] == found["external", Family.IPV6] == 0
    return found["internal", Family.IPV4], found["external", Family.IPV4]


@pytest.mark.parametrize(
    ("policies", "where", "counted"),
    [
        (("Cluster", "Cluster"), (REMOTE,), (0, 0)),
        (("Local", "Cluster"), (REMOTE,), (1, 0)),
        (("Cluster", "Local"), (REMOTE,), (0, 1)),
        (("Local", "Local"), (REMOTE,), (1, 1)),
        (("Local", "Local"), (LOCAL, REMOTE), (0, 0)),
        (("Local", "Local"), (LOCAL,), (0, 0)),
        (("Local", "Local"), (), (0, 0)),  # none anywhere is no matter of the policy
    ],
)
def test_ports_without_a_local_endpoint_are_counted(
    policies: tuple[str, str], where: tuple[str, ...], counted: tuple[int, int]
) -> None:
    assert lonely(*policies, *where) == counted
