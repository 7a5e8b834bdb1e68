"""Cluster addresses and node ports of Services, in a real store."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from podlane.errors import InvalidError
from podlane.lab.api import allocation_fields, defaults
from podlane.lab.api.allocation import ADDRESSES, CIDRS, SERVICES, ServiceAllocator
from podlane.lab.api.sqlite_store import SqliteStore
from podlane.model.config import DEFAULT, NetworkConfig, with_settings


class Lab:
    """Services written as the registry writes them."""

    def __init__(self, config: NetworkConfig = DEFAULT) -> None:
        self.store = SqliteStore(":memory:")
        self.config = config
        self.allocator = ServiceAllocator(self.store, config, random.Random(1))

    def create(self, name: str, **spec: Any) -> dict[str, Any]:
        obj: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80}], **spec},
        }
        defaults.apply(obj)
        allocation_fields.prepare_create(obj)
        with self.store.transaction() as transaction:
            self.allocator.create(transaction, obj)
            stored: dict[str, Any] = transaction.put(SERVICES, obj).obj["spec"]
            return stored

    def update(self, name: str, **spec: Any) -> dict[str, Any]:
        record = self.store.get(SERVICES, "default", name)
        assert record is not None
        old = record.obj
        merged = {k: v for k, v in {**old["spec"], **spec}.items() if v is not None}
        new: dict[str, Any] = {**old, "metadata": dict(old["metadata"]), "spec": merged}
        merged["ports"] = [dict(p) for p in merged.get("ports", [])]
        defaults.apply(new)
        allocation_fields.prepare_update(new, old)
        with self.store.transaction() as transaction:
            self.allocator.update(transaction, new, old)
            stored: dict[str, Any] = transaction.put(SERVICES, new).obj["spec"]
            return stored

    def delete(self, name: str) -> None:
        with self.store.transaction() as transaction:
            record = transaction.get(SERVICES, "default", name)
            assert record is not None
            self.allocator.delete(transaction, record.obj)
            transaction.delete(SERVICES, "default", name)

    @property
    def addresses(self) -> set[str]:
        return {r.name for r in self.store.records(ADDRESSES)}


@pytest.fixture
def lab() -> Iterator[Lab]:
    found = Lab()
    yield found
    found.store.close()


def test_address_comes_from_the_upper_part_of_the_primary_family(lab: Lab) -> None:
    spec = lab.create("web")
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    third, fourth = map(int, spec["clusterIP"].removeprefix("10.96.").split("."))
    assert third * 256 + fourth > 256
    record = lab.store.get(ADDRESSES, "", spec["clusterIP"])
    assert record is not None
    assert record.obj["spec"] == {
        "parentRef": {"group": "", "resource": "services", "namespace": "default", "name": "web"}
    }
    assert record.obj["metadata"]["labels"] == {
        "ipaddress.kubernetes.io/ip-family": "IPv4",
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
    }


@pytest.mark.parametrize(
    ("spec", "families", "policy"),
    [
        ({"ipFamilyPolicy": "PreferDualStack"}, ["IPv4", "IPv6"], "PreferDualStack"),
        ({"ipFamilyPolicy": "RequireDualStack"}, ["IPv4", "IPv6"], "RequireDualStack"),
        ({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}, ["IPv6", "IPv4"], "PreferDualStack"),
        ({"ipFamilies": ["IPv6"]}, ["IPv6"], "SingleStack"),
        ({"clusterIP": "fd00:10:96::9"}, ["IPv6"], "SingleStack"),
        ({"clusterIP": "None"}, ["IPv4"], "SingleStack"),
        ({"clusterIP": "None", "selector": None}, ["IPv4", "IPv6"], "RequireDualStack"),
        ({"clusterIP": "None", "selector": None, "ipFamilyPolicy": "SingleStack"}, ["IPv4"], "SingleStack"),
    ],
)
def test_families(lab: Lab, spec: dict[str, Any], families: list[str], policy: str) -> None:
    found = lab.create("web", **spec)
    assert (found["ipFamilies"], found["ipFamilyPolicy"]) == (families, policy)
    if spec.get("clusterIP") == "None":
        assert found["clusterIPs"] == ["None"]
        assert lab.addresses == set()
    else:
        assert [":" in ip for ip in found["clusterIPs"]] == [f == "IPv6" for f in families]
        assert lab.addresses == set(found["clusterIPs"])


def test_ipv6_only_cluster() -> None:
    lab = Lab(with_settings(DEFAULT, ["ipFamilies=IPv6"]))
    assert lab.create("web")["clusterIP"].startswith("fd00:10:96::")
    with pytest.raises(InvalidError, match=r"spec.ipFamilies\[0\]: Invalid value: \"IPv4\": not configured"):
        lab.create("other", ipFamilies=["IPv4"])
    with pytest.raises(InvalidError, match="this cluster is not configured for dual-stack services"):
        lab.create("other", ipFamilyPolicy="RequireDualStack")
    assert lab.create("both", ipFamilyPolicy="PreferDualStack")["ipFamilies"] == ["IPv6"]


def test_static_address(lab: Lab) -> None:
    assert lab.create("web", clusterIP="10.96.0.10")["clusterIPs"] == ["10.96.0.10"]
    with pytest.raises(InvalidError) as taken:
        lab.create("other", clusterIP="10.96.0.10")
    assert str(taken.value) == (
        'Service "other" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.10"]: '
        "failed to allocate IP 10.96.0.10: provided IP is already allocated"
    )
    with pytest.raises(InvalidError) as outside:
        lab.create("other", clusterIP="10.97.0.1")
    assert str(outside.value) == (
        'Service "other" is invalid: spec.clusterIPs: Invalid value: ["10.97.0.1"]: '
        "failed to allocate IP 10.97.0.1: the provided network does not match the current range"
    )
    for edge in ("10.96.0.0", "10.96.255.255"):
        with pytest.raises(InvalidError, match="does not match the current range"):
            lab.create("other", clusterIP=edge)
    assert lab.addresses == {"10.96.0.10"}


def test_a_refused_second_address_gives_the_first_back(lab: Lab) -> None:
    lab.create("web", clusterIP="fd00:10:96::5")
    with pytest.raises(InvalidError, match="already allocated"):
        lab.create("b", ipFamilyPolicy="RequireDualStack", clusterIPs=["10.96.0.7", "fd00:10:96::5"])
    assert lab.addresses == {"fd00:10:96::5"}
    assert lab.create("c", clusterIP="10.96.0.7")["clusterIP"] == "10.96.0.7"


def test_deleting_gives_the_address_and_the_port_back(lab: Lab) -> None:
    lab.create("web", clusterIP="10.96.0.10", type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    lab.delete("web")
    assert lab.addresses == set()
    again = lab.create("x", clusterIP="10.96.0.10", type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    assert (again["clusterIP"], again["ports"][0]["nodePort"]) == ("10.96.0.10", 30080)


def test_node_ports(lab: Lab) -> None:
    port = lab.create("web", type="NodePort")["ports"][0]["nodePort"]
    assert 30000 + 86 <= port <= 32767
    with pytest.raises(InvalidError) as taken:
        lab.create("b", type="NodePort", ports=[{"port": 80, "nodePort": port}])
    assert str(taken.value) == (
        f'Service "b" is invalid: spec.ports[0].nodePort: Invalid value: {port}: '
        "provided port is already allocated"
    )
    with pytest.raises(InvalidError) as outside:
        lab.create("b", type="NodePort", ports=[{"port": 80, "nodePort": 80}])
    assert str(outside.value) == (
        'Service "b" is invalid: spec.ports[0].nodePort: Invalid value: 80: '
        "provided port is not in the valid range. The range of valid ports is 30000-32767"
    )


def test_tcp_and_udp_of_one_port_share_the_node_port(lab: Lab) -> None:
    both = [
        {"name": "t", "port": 53},
        {"name": "u", "port": 53, "protocol": "UDP"},
        {"name": "x", "port": 80},
    ]
    first, second, third = (p["nodePort"] for p in lab.create("dns", type="NodePort", ports=both)["ports"])
    assert first == second != third
    asked = [{"name": "t", "port": 53, "nodePort": 30053}, {"name": "u", "port": 53, "protocol": "UDP"}]
    ports = lab.create("b", type="NodePort", ports=asked)["ports"]
    assert [p["nodePort"] for p in ports[:2]] == [30053, 30053]


def test_load_balancer(lab: Lab) -> None:
    spec = lab.create("a", type="LoadBalancer", externalTrafficPolicy="Local")
    assert spec["healthCheckNodePort"] != spec["ports"][0]["nodePort"]
    spec = lab.create("b", type="LoadBalancer", allocateLoadBalancerNodePorts=False)
    assert "nodePort" not in spec["ports"][0]
    with pytest.raises(
        InvalidError, match=r"spec\.healthCheckNodePort: Invalid value: 80: provided port is not in"
    ):
        lab.create("c", type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=80)


def test_update_keeps_what_it_does_not_say(lab: Lab) -> None:
    before = lab.create("web", type="NodePort")
    ports = [{"port": 8080}]
    after = lab.update(
        "web", clusterIP=None, clusterIPs=None, ipFamilies=None, ipFamilyPolicy=None, ports=ports
    )
    assert after["clusterIPs"] == before["clusterIPs"]
    assert after["ports"][0]["nodePort"] == before["ports"][0]["nodePort"]


def test_update_to_external_name_and_back(lab: Lab) -> None:
    lab.create("web", type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    spec = lab.update("web", type="ExternalName", externalName="a.example")
    gone = {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "externalTrafficPolicy"}
    assert not gone & spec.keys()
    assert "nodePort" not in spec["ports"][0]
    assert lab.addresses == set()
    spec = lab.update("web", type="ClusterIP")
    assert "externalName" not in spec
    assert lab.addresses == {spec["clusterIP"]}


def test_update_from_one_family_to_two_and_back(lab: Lab) -> None:
    first = lab.create("web")["clusterIP"]
    spec = lab.update("web", ipFamilyPolicy="PreferDualStack")
    assert spec["clusterIPs"][0] == first
    assert len(spec["clusterIPs"]) == 2
    spec = lab.update("web", ipFamilyPolicy="SingleStack")
    assert (spec["clusterIPs"], spec["ipFamilies"]) == ([first], ["IPv4"])
    assert lab.addresses == {first}


def test_the_index_of_ports_is_rebuilt_at_start(lab: Lab) -> None:
    port = lab.create("web", type="NodePort")["ports"][0]["nodePort"]
    restarted = ServiceAllocator(lab.store, lab.config)
    lab.allocator = restarted
    with pytest.raises(InvalidError, match="provided port is already allocated"):
        lab.create("b", type="NodePort", ports=[{"port": 80, "nodePort": port}])


def test_dry_run_takes_nothing(lab: Lab) -> None:
    service = {
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}], "clusterIPs": ["10.96.0.9"]},
    }
    with lab.store.transaction(dry_run=True) as transaction:
        lab.allocator.create(transaction, service)
        transaction.put(SERVICES, service)
    assert lab.addresses == set()
    lab.create("b", type="NodePort", clusterIP="10.96.0.9", ports=[{"port": 80, "nodePort": 30080}])


def test_two_services_in_one_transaction_do_not_share(lab: Lab) -> None:
    with lab.store.transaction() as transaction:
        for name in ("a", "b"):
            service = {
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"type": "NodePort", "ports": [{"port": 80}]},
            }
            lab.allocator.create(transaction, service)
            transaction.put(SERVICES, service)
    a, b = (r.obj["spec"] for r in lab.store.records(SERVICES))
    assert a["clusterIP"] != b["clusterIP"]
    assert a["ports"][0]["nodePort"] != b["ports"][0]["nodePort"]


def test_another_service_cidr_widens_the_range(lab: Lab) -> None:
    cidr = {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24"]}}
    with lab.store.transaction() as transaction:
        lab.allocator.ensure_default(transaction)
        transaction.put(CIDRS, cidr)
    assert lab.create("web", clusterIP="10.200.0.5")["clusterIP"] == "10.200.0.5"
    default = lab.store.get(CIDRS, "", "kubernetes")
    assert default is not None
    assert default.obj["spec"]["cidrs"] == ["10.96.0.0/16", "fd00:10:96::/112"]
