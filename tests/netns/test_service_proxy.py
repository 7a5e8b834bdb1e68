"""What an agent tells others as a service proxy: load balancers, Prometheus, and the objects themselves."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from podlane.kernel import netns
from tests.netns.agent_nodes import FAMILIES, TestNode, two_nodes, wait_until
from tests.netns.fake_api import FakeApi

PORT = 31555
CLUSTER_IPS = {"IPv4": "10.96.0.{}", "IPv6": "fd00:10:96::{}"}
POD_IPS = {"IPv4": "10.244.{}.9", "IPv6": "fd00:10:244:{}::9"}


class Cluster:
    def __init__(self, api: FakeApi, one: TestNode, two: TestNode) -> None:
        self.api, self.one, self.two = api, one, two

    def service(self, name: str, number: int, created: str = "2026-01-01T00:00:00Z", **spec: Any) -> None:
        families = FAMILIES["both"]
        where = [CLUSTER_IPS[f].format(number) for f in families]
        whole = {"clusterIP": where[0], "clusterIPs": where, "ipFamilies": families}
        metadata = {"namespace": "default", "uid": f"uid-{name}", "creationTimestamp": created}
        ports = [{"port": 80, "protocol": "TCP", "nodePort": 30000 + number}]
        self.api.put("Service", name, metadata=metadata, spec={**whole, "ports": ports, **spec})

    def local(self, name: str = "web", number: int = 7, port: int = PORT) -> None:
        policy = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port}
        self.service(name, number, **policy)

    def endpoint(self, node: int, name: str = "web", **conditions: Any) -> None:
        """One endpoint in each family, on the node of that number."""
        for family in FAMILIES["both"]:
            metadata = {"namespace": "default", "labels": {"kubernetes.io/service-name": name}}
            metadata["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": TRIGGER}
            ends = [
                {
                    "addresses": [POD_IPS[family].format(node)],
                    "nodeName": f"node-{node}",
                    "conditions": conditions,
                }
            ]
            ports = [{"name": "", "protocol": "TCP", "port": 8080}]
            where = f"{name}-{family.lower()}"
            self.api.put(
                "EndpointSlice", where, metadata=metadata, addressType=family, endpoints=ends, ports=ports
            )

    def events(self, reason: str) -> list[dict[str, Any]]:
        return [each for each in list(self.api.events.values()) if each["reason"] == reason]


TRIGGER = "2026-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The second node has no agent: it is who asks."""
    with two_nodes(tmp_path_factory.mktemp("proxy"), FAMILIES["both"]) as (api, one, two):
        one.start("--metrics-address", "0.0.0.0:10256")
        one.wait_ready()
        yield Cluster(api, one, two)
        one.stop()


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def connection(node: TestNode, address: str, port: int) -> Iterator[http.client.HTTPConnection]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = http.client.HTTPConnection(address, port)
    found.sock = netns.socket_in(node.fd, family, socket.SOCK_STREAM)
    try:
        found.sock.settimeout(5)
        found.sock.connect((address, port))
        yield found
    finally:
        found.close()


def ask(cluster: Cluster, address: str, port: int = PORT, path: str = "/any/path") -> Answer | None:
    """What node-1 answers the other node; None if nobody listens."""
    try:
        with connection(cluster.two, address, port) as found:
            found.request("GET", path)
            return Answer(found.getresponse())
    except ConnectionRefusedError:
        return None


@pytest.mark.parametrize("which", [0, 1], ids=FAMILIES["both"])
def test_a_health_check_says_whether_a_ready_endpoint_is_here(cluster: Cluster, which: int) -> None:
    where = cluster.one.addresses[which]

    def says(status: int | None) -> Answer | None:
        def asked() -> Any:
            found = ask(cluster, where)
            return (found or "closed") if (found.status if found else None) == status else None

        return wait_until(asked, f"the health check answers {status}")

    assert ask(cluster, where) is None
    cluster.local()
    cluster.endpoint(2)
    none = says(503)
    assert none.headers["X-Load-Balancing-Endpoint-Weight"] == "0"
    cluster.endpoint(1)
    here = says(200)
    assert here.json == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": 1,
        "serviceProxyHealthy": True,
    }
    assert here.headers["X-Load-Balancing-Endpoint-Weight"] == "1"
    assert here.headers["Content-Type"] == "application/json"
    assert here.headers["X-Content-Type-Options"] == "nosniff"
    cluster.endpoint(1, ready=False, serving=True, terminating=True)
    says(503)
    cluster.endpoint(1)
    says(200)
    cluster.service("web", 7, type="LoadBalancer", externalTrafficPolicy="Cluster")
    says(None)
    cluster.api.delete("Service", "web")


def test_a_health_check_port_that_is_busy_is_told_and_opened_when_it_is_free(cluster: Cluster) -> None:
    where = cluster.one.addresses[0]
    with netns.socket_in(cluster.one.fd, socket.AF_INET, socket.SOCK_STREAM) as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        busy.bind((where, PORT))
        busy.listen()
        cluster.local("busy")
        cluster.endpoint(1, "busy")
        wait_until(lambda: cluster.events("FailedToStartServiceHealthcheck"), "the event is written")
        (event,) = cluster.events("FailedToStartServiceHealthcheck")
        assert event["involvedObject"] == {
            "apiVersion": "v1",
            "kind": "Service",
            "namespace": "default",
            "name": "busy",
            "uid": "uid-busy",
        }
        assert event["message"] == (
            f'node node-1 failed to start healthcheck "default/busy" on port {PORT}: Address already in use'
        )
        # The other family's is open.
        assert ask(cluster, cluster.one.addresses[1]).status == 200
    wait_until(lambda: (found := ask(cluster, where)) and found.status == 200, "the port is taken")
    cluster.api.delete("Service", "busy")
    cluster.one.wait_ready()


def test_health_of_the_proxy_and_of_the_node(cluster: Cluster) -> None:
    where, node = cluster.one.addresses[0], cluster.one.object

    def both() -> tuple[int, int]:
        healthz, livez = (ask(cluster, where, 10256, path) for path in ("/healthz", "/livez"))
        assert set(healthz.json) == {"lastUpdated", "currentTime", "nodeEligible", "status"}
        assert healthz.json["status"]["IPv4"]["healthy"]
        return healthz.status, livez.status

    assert both() == (200, 200)
    going = {**node["spec"], "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}
    cluster.api.put("Node", "node-1", **{**node, "spec": going})
    wait_until(lambda: both() == (503, 200), "the node is on its way out")
    cluster.api.put("Node", "node-1", **node)
    wait_until(lambda: both() == (200, 200), "the node stays")
    cluster.api.delete("Node", "node-1")
    wait_until(lambda: both() == (503, 200), "the node is gone")
    cluster.api.put("Node", "node-1", **node)
    wait_until(lambda: both() == (200, 200), "the node is back")


def test_metrics_have_the_names_dashboards_know(cluster: Cluster) -> None:
    cluster.local("counted", 8)
    cluster.endpoint(2, "counted")
    where = cluster.one.addresses[0]

    def metrics() -> dict[str, float]:
        lines = ask(cluster, where, 10256, "/metrics").body.decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    lonely = 'kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external",ip_family="IPv6"}'
    wait_until(lambda: metrics()[lonely] == 1, "the port without a local endpoint is counted")
    found = metrics()
    for name in (
        "sync_proxy_rules_duration_seconds_count",
        "sync_full_proxy_rules_duration_seconds_count",
        "sync_partial_proxy_rules_duration_seconds_count",
        "sync_proxy_rules_last_timestamp_seconds",
        "sync_proxy_rules_last_queued_timestamp_seconds",
        "sync_proxy_rules_endpoint_changes_total",
        "sync_proxy_rules_service_changes_total",
        "network_programming_duration_seconds_count",
    ):
        assert found[f'kubeproxy_{name}{{ip_family="IPv4"}}'] > 0, name
    for name in (
        "sync_proxy_rules_nftables_sync_failures_total",
        "sync_proxy_rules_nftables_cleanup_failures_total",
        "conntrack_reconciler_deleted_entries_total",
        "conntrack_reconciler_sync_duration_seconds_count",
        "sync_proxy_rules_endpoint_changes_pending",
        "sync_proxy_rules_service_changes_pending",
    ):
        assert f'kubeproxy_{name}{{ip_family="IPv4"}}' in found, name
    assert found['kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="+Inf"}'] >= 1
    assert found['kubeproxy_proxy_healthz_total{code="503"}'] >= 1
    assert found['kubeproxy_proxy_livez_total{code="200"}'] >= 1
    cluster.endpoint(1, "counted")
    wait_until(lambda: metrics()[lonely] == 0, "it has one")
    cluster.api.delete("Service", "counted")


def test_what_cannot_be_programmed_is_told_at_the_object(cluster: Cluster) -> None:
    """Once for all nodes, and the rest of the service works."""
    external = ["198.51.100.77", "no-address"]
    cluster.service("first", 20, "2026-01-01T00:00:00Z", externalIPs=external)
    cluster.service("second", 21, "2026-01-02T00:00:00Z", externalIPs=external[:1])
    for name in ("first", "second"):
        cluster.endpoint(1, name)
    wait_until(lambda: len(cluster.events("NotProgrammed")) == 1, "the bad address is told")
    wait_until(lambda: len(cluster.events("AddressTaken")) == 1, "the address of another is told")
    (bad,), (taken,) = cluster.events("NotProgrammed"), cluster.events("AddressTaken")
    assert bad["involvedObject"]["name"] == "first"
    assert bad["message"].startswith("service default/first: spec.externalIPs: 'no-address'")
    assert taken["involvedObject"]["name"] == "second"
    assert taken["message"] == (
        "198.51.100.77:80/TCP belongs to Service default/first, which is older; this one does without it"
    )
    frontends = json.loads(cluster.one.get("/tables")[1])["tables"]["frontends"]
    addresses = {row["key"]["address"] for row in frontends}
    assert {"10.96.0.20", "10.96.0.21", "198.51.100.77"} <= addresses
    for name in ("first", "second"):
        cluster.api.delete("Service", name)


def test_an_element_that_stands_in_the_way_is_replaced_by_a_full_comparison(cluster: Cluster) -> None:
    """Somebody wrote into our maps: the generation that meets it is refused, read back, and repaired."""
    node, element = cluster.one, "10.96.0.30 . tcp . 80"

    def nft(*words: str) -> str:
        done = netns.inside(node.fd, lambda: subprocess.run(["nft", *words], capture_output=True, text=True))
        return done.stdout if done.returncode == 0 else ""

    nft("add", "element", "ip", "podlane", "frontends", f"{{ {element} : 0xf0000000 }}")
    cluster.service("strayed", 30)
    cluster.endpoint(1, "strayed")

    def right() -> bool:
        found = nft("get", "element", "ip", "podlane", "frontends", f"{{ {element} }}")
        return bool(found) and "0xf0000000" not in found

    wait_until(right, "the element is as it should be")
    node.wait_ready()
    assert cluster.events("NotProgrammed") == [] or all(
        each["involvedObject"]["name"] != "strayed" for each in cluster.events("NotProgrammed")
    )
    cluster.api.delete("Service", "strayed")


def test_a_row_with_no_place_in_the_kernel_is_told_and_the_rest_works(cluster: Cluster) -> None:
    """Session affinity has slots for 1024 endpoints: the service works without it, and says so."""
    cluster.service("large", 31, sessionAffinity="ClientIP")
    for part in range(2):
        metadata = {"namespace": "default", "labels": {"kubernetes.io/service-name": "large"}}
        ends = [{"addresses": [f"10.244.{2 + part}.{1 + n % 250}"], "nodeName": "node-2"} for n in range(250)]
        ends += [{"addresses": [f"10.245.{n // 250 + 2 * part}.{1 + n % 250}"]} for n in range(300)]
        ports = [{"name": "", "protocol": "TCP", "port": 8080}]
        cluster.api.put(
            "EndpointSlice",
            f"large-{part}",
            metadata=metadata,
            addressType="IPv4",
            endpoints=ends,
            ports=ports,
        )

    def found() -> list[dict[str, Any]]:
        every = cluster.events("NotProgrammed")
        return [each for each in every if each["involvedObject"]["name"] == "large"]

    wait_until(found, "the event is written")
    assert "node node-1" in found()[0]["message"]
    assert "no session affinity: 1024 is the most" in found()[0]["message"]
    failures = cluster.one.status()["failures"]
    assert {each["table"] for each in failures} == {"backends"}
    cluster.api.delete("Service", "large")
    cluster.one.wait_ready()
