"""Objects as no API server should let them through: the rest is programmed, and the object is told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from podlane.agent.complaints import HEALTH_CHECK_FAILED, NOT_PROGRAMMED, TAKEN, Complaint, complaints
from podlane.compile.engine import Compiler
from podlane.compile.services_sim import Action, resolve
from podlane.compile.tables import FrontendKey, HealthCheckKey, ListKey, Table
from podlane.compile.view import Change
from podlane.errors import KernelError
from podlane.kernel.driver import Failure
from podlane.model.addresses import Family, Protocol, address
from podlane.model.config import NetworkConfig
from podlane.model.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    Node,
    NodeStatus,
    Object,
    ServicePort,
)
from tests.unit.test_compile_services import CLUSTER_IP, LOCAL, ME, NODES, REMOTE, VIP, flow, piece, service

POD = "10.244.1.77"


def compiled(*objects: Object, nodes: list[Object] = NODES) -> Compiler:
    compiler = Compiler(ME, NetworkConfig())
    compiler.apply(Change(type(each).__name__, None, each) for each in (*nodes, *objects))
    return compiler


def told(compiler: Compiler, *failures: Failure) -> list[Complaint]:
    return sorted(complaints(compiler, failures))


def answers(compiler: Compiler, where: str = CLUSTER_IP, port: int = 80, source: str = POD) -> Any:
    """Endpoints by address, or what becomes of the flow."""
    verdict = resolve(compiler.tables, flow(source, where, port))
    if verdict.action is not Action.TRANSLATE:
        return verdict.action
    return sorted(str(each.address) for each in verdict.backends)


def several(number: int) -> list[Object]:
    """One service's slices of a hundred endpoints each."""
    every = [f"10.244.{2 + n // 250}.{1 + n % 250}" for n in range(number)]
    found: list[Object] = []
    for start in range(0, number, 100):
        made = piece(*(), name=f"web-{start}")
        ends = [Endpoint(addresses=[each], node_name="node-2") for each in every[start : start + 100]]
        found.append(msgspec.structs.replace(made, endpoints=ends))
    return found


def test_no_endpoints_and_two_thousand() -> None:
    compiler = compiled(service())
    assert answers(compiler) is Action.REFUSED
    compiler.apply(Change("EndpointSlice", None, each) for each in several(2000))
    assert len(answers(compiler)) == 2000
    compiler.apply(Change("EndpointSlice", each, None) for each in several(2000))
    assert answers(compiler) is Action.REFUSED
    assert told(compiler) == []


def test_one_address_in_several_slices_is_one_endpoint() -> None:
    compiler = compiled(service(), piece(LOCAL, REMOTE, name="a"), piece(REMOTE, LOCAL, name="b"))
    (row,) = compiler.tables[Table.BACKENDS].values()
    assert sorted(str(each.address) for each in row.backends) == [LOCAL, REMOTE]


def test_endpoints_with_leading_zeros() -> None:
    compiler = compiled(service(cluster_ip="010.096.000.010", cluster_ips=["010.096.000.010"]))
    made = piece(LOCAL)
    ends = [Endpoint(addresses=["010.244.001.005"]), Endpoint(addresses=["10.244.1.5"])]
    compiler.apply([Change("EndpointSlice", None, msgspec.structs.replace(made, endpoints=ends))])
    assert answers(compiler) == [LOCAL]
    assert told(compiler) == []


def test_slices_of_names_bring_nothing_and_take_nothing() -> None:
    names = EndpointSlice(
        metadata=piece(LOCAL, name="names").metadata,
        address_type="FQDN",
        endpoints=[Endpoint(addresses=["db.example.org"])],
        ports=[EndpointPort("http", "TCP", 8080)],
    )
    assert answers(compiled(service(), piece(LOCAL), names)) == [LOCAL]


@pytest.mark.parametrize(
    "bad",
    [
        EndpointPort(None, "TCP", 8080),
        EndpointPort("http", "TCP", None),
        EndpointPort("http", "TCP", 0),
        EndpointPort("http", "QUIC", 8080),
        EndpointPort("other", "TCP", 8080),
    ],
)
def test_ports_without_a_name_or_a_number_bring_nothing(bad: EndpointPort) -> None:
    assert answers(compiled(service(), piece(REMOTE, name="bad", ports=[bad]))) is Action.REFUSED
    both = compiled(service(), piece(LOCAL), piece(REMOTE, name="bad", ports=[bad]))
    assert answers(both) == [LOCAL]


@pytest.mark.parametrize("bad", [[], ["not-an-address"], ["fd00::1"], ["10.244.2.5/32"], [""]])
def test_endpoints_that_have_no_address(bad: list[str]) -> None:
    made = piece(LOCAL)
    ends = [Endpoint(addresses=bad), *(made.endpoints or ())]
    assert answers(compiled(service(), msgspec.structs.replace(made, endpoints=ends))) == [LOCAL]


def test_two_services_fight_for_an_external_address() -> None:
    old = service("old", external_ips=[VIP])
    young = service(
        "young",
        external_ips=[VIP],
        cluster_ip="10.96.0.11",
        cluster_ips=["10.96.0.11"],
        created="2026-01-02T00:00:00Z",
    )
    compiler = compiled(young, piece(REMOTE, owner="young"), old, piece(LOCAL, owner="old"))
    assert answers(compiler, VIP) == [LOCAL]
    assert answers(compiler, "10.96.0.11") == [REMOTE]
    (complaint,) = told(compiler)
    assert complaint[:4] == ("Service", "default", "young", TAKEN)
    assert "belongs to Service default/old" in complaint.message
    compiler.apply([Change("Service", old, None)])
    assert answers(compiler, VIP) == [REMOTE]
    assert told(compiler) == []


def test_source_ranges_of_the_other_family_guard_nothing() -> None:
    spec = {"type": "LoadBalancer", "ingress": [LoadBalancerIngress(ip=VIP)]}
    six = compiled(service(**spec, load_balancer_source_ranges=["2001:db8::/32"]), piece(LOCAL))
    assert answers(six, VIP, source="198.51.100.10") == [LOCAL]
    assert told(six) == []


def test_a_source_range_that_is_none_lets_nobody_in_and_is_told() -> None:
    spec = {"type": "LoadBalancer", "ingress": [LoadBalancerIngress(ip=VIP)]}
    ranges = ["10.0.0.0/33", "198.51.100.0/24"]
    compiler = compiled(service(**spec, load_balancer_source_ranges=ranges), piece(LOCAL))
    assert answers(compiler, VIP, source="198.51.100.10") == [LOCAL]
    assert answers(compiler, VIP, source="10.1.1.1") is Action.DROP
    (complaint,) = told(compiler)
    assert complaint.reason == NOT_PROGRAMMED
    assert "spec.loadBalancerSourceRanges: '10.0.0.0/33'" in complaint.message


@pytest.mark.parametrize("gone", ["status", "node"])
def test_a_node_without_addresses_serves_what_needs_none(gone: str) -> None:
    nodes: list[Object] = []
    for each in NODES:
        assert isinstance(each, Node)
        if each.name != ME:
            nodes.append(each)
        elif gone == "status":
            nodes.append(msgspec.structs.replace(each, status=NodeStatus()))
    spec = {"type": "LoadBalancer", "ingress": [LoadBalancerIngress(ip=VIP)]}
    ports = [ServicePort(80, "http", "TCP", 8080, 30080)]
    local = {"external_traffic_policy": "Local", "health_check_node_port": 31000}
    compiler = compiled(service(**spec, **local, ports=ports), piece(LOCAL, REMOTE), nodes=nodes)
    assert answers(compiler) == [LOCAL, REMOTE]
    assert answers(compiler, VIP, source="198.51.100.10") == [LOCAL]
    assert answers(compiler, "172.30.1.1", 30080) is Action.PASS
    assert told(compiler) == []
    assert set(compiler.tables[Table.HEALTH_CHECKS]) == {HealthCheckKey(Family.IPV4, 31000)}


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"cluster_ips": ["10.96.0.300"], "cluster_ip": "10.96.0.300"}, "spec.clusterIPs: '10.96.0.300'"),
        ({"external_ips": ["example.org"]}, "spec.externalIPs: 'example.org'"),
        ({"ingress": [LoadBalancerIngress(ip="1.2.3")]}, "status.loadBalancer.ingress: '1.2.3'"),
        ({"ports": [ServicePort(80, "http", "QUIC", 8080)]}, "protocol 'QUIC'; use TCP, UDP or SCTP"),
    ],
)
def test_a_field_that_cannot_be_used_is_told_and_others_are_served(spec: dict[str, Any], why: str) -> None:
    other = service("other", cluster_ip="10.96.0.12", cluster_ips=["10.96.0.12"])
    compiler = compiled(service(**spec), piece(LOCAL), other, piece(REMOTE, owner="other"))
    assert answers(compiler, "10.96.0.12") == [REMOTE]
    if "cluster_ip" not in spec and "ports" not in spec:
        assert answers(compiler) == [LOCAL]
    (complaint,) = told(compiler)
    assert complaint[:4] == ("Service", "default", "web", NOT_PROGRAMMED)
    assert why in complaint.message
    assert not complaint.node, "every node says the same: one Event"


def test_what_the_kernel_refuses_is_told_at_the_service_whose_row_it_is() -> None:
    compiler = compiled(service(external_ips=[VIP]), piece(LOCAL))
    error = KernelError.of(12, "add element", "out of memory")
    list_key = ListKey("default", "web", "http", Protocol.TCP, Family.IPV4, "cluster")
    for table, key in (
        (Table.FRONTENDS, FrontendKey(address(VIP), Protocol.TCP, 80)),
        (Table.BACKENDS, list_key),
    ):
        (complaint,) = told(compiler, Failure(table, key, error))
        assert complaint[:4] == ("Service", "default", "web", NOT_PROGRAMMED)
        assert complaint.message.startswith(f"node {ME}: {table} ")
        assert "out of memory" in complaint.message
        assert complaint.node == ME, "another node's refusal is another Event"


def test_a_health_check_port_that_is_taken_is_told_as_the_reference_does() -> None:
    spec = {"type": "LoadBalancer", "external_traffic_policy": "Local", "health_check_node_port": 31000}
    compiler = compiled(service(**spec), piece(LOCAL))
    busy = KernelError.of(98, "health check on 172.30.1.1 port 31000", "Address already in use")
    (complaint,) = told(compiler, Failure(Table.HEALTH_CHECKS, HealthCheckKey(Family.IPV4, 31000), busy))
    assert complaint.reason == HEALTH_CHECK_FAILED
    assert complaint.message == (
        'node node-1 failed to start healthcheck "default/web" on port 31000: Address already in use'
    )
