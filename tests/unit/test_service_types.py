"""Services that change their type: what is allocated, what is kept, what goes; and what may not change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from podlane.errors import ApiError, InvalidError
from podlane.lab.client import Obj
from tests.unit.controller_lab import Cluster, cluster, service

ADDRESSES = "ipaddresses.networking.k8s.io"


def run(story: Callable[[Cluster], Awaitable[None]]) -> None:
    async def main() -> None:
        async with cluster(nodes=1) as lab:
            await lab.manager.stop()  # the API alone
            await story(lab)

    asyncio.run(main())


def web(name: str = "web", ports: Any = None, **spec: Any) -> Obj:
    return service(name, {"app": name}, ports or [{"port": 80, "name": "http"}], **spec)


def node_ports(obj: Obj) -> list[int]:
    return [port.get("nodePort", 0) for port in obj["spec"]["ports"]]


EXTERNAL = {"type": "ExternalName", "externalName": "db.example.org"}
LOCAL = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
SHAPES: dict[str, dict[str, Any]] = {
    "ExternalName": EXTERNAL,
    "ClusterIP": {"type": "ClusterIP"},
    "NodePort": {"type": "NodePort"},
    "LoadBalancer": {"type": "LoadBalancer"},
    "LoadBalancer, Local": LOCAL,
    "LoadBalancer without node ports": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False},
}


def check(obj: Obj, kind: str) -> None:
    """It has what its type has, and nothing else."""
    spec = obj["spec"]
    virtual = kind != "ExternalName"
    balancer = kind.startswith("LoadBalancer")
    assert spec["type"] == kind.partition(",")[0].partition(" ")[0]
    for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"):
        assert (key in spec) == virtual, key
    assert ("externalName" in spec) == (not virtual)
    exposed = kind == "NodePort" or (balancer and kind != "LoadBalancer without node ports")
    assert all(30000 <= port <= 32767 for port in node_ports(obj)) if exposed else not any(node_ports(obj))
    assert ("externalTrafficPolicy" in spec) == (kind == "NodePort" or balancer)
    assert bool(spec.get("healthCheckNodePort")) == (kind == "LoadBalancer, Local")
    assert ("allocateLoadBalancerNodePorts" in spec) == balancer


@pytest.mark.parametrize("after", SHAPES)
@pytest.mark.parametrize("before", SHAPES)
def test_every_type_becomes_every_other(before: str, after: str) -> None:
    if before == after:
        return
    if "without" in after and before != "ClusterIP":
        return  # node ports that are there stay: see below

    async def story(lab: Cluster) -> None:
        made = await lab.create("services", web(**SHAPES[before]))
        check(made, before)
        # As an apply of the new manifest does: what the old one said and the new one does not is taken away.
        gone = {key: None for key in SHAPES[before] if key not in SHAPES[after]}
        patch = {"spec": {**gone, **SHAPES[after]}}
        if "without" in before and after.startswith("LoadBalancer"):
            patch["spec"]["allocateLoadBalancerNodePorts"] = True
        changed = await lab.edit("services", "web", patch)
        check(changed, after)
        if "ExternalName" not in (before, after):
            assert changed["spec"]["clusterIPs"] == made["spec"]["clusterIPs"]
            kept = [port for port in node_ports(made) if port]
            if kept and any(node_ports(changed)):
                assert node_ports(changed) == kept
        held = {record["metadata"]["name"] for record in lab.all(ADDRESSES, "")}
        mine = set(changed["spec"].get("clusterIPs", []))
        assert mine <= held
        assert not (set(made["spec"].get("clusterIPs", [])) - mine) & held

    run(story)


def test_the_status_of_a_balancer_goes_with_its_type() -> None:
    async def story(lab: Cluster) -> None:
        made = await lab.create("services", web(type="LoadBalancer"))
        status = {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}
        await lab.client.update("services", {**made, "status": status}, subresource="status")
        changed = await lab.edit("services", "web", {"spec": {"type": "NodePort"}})
        assert not changed["status"]["loadBalancer"]

    run(story)


def test_released_ports_and_addresses_may_be_had_by_others() -> None:
    async def story(lab: Cluster) -> None:
        made = await lab.create("services", web(**LOCAL))
        ports = [*node_ports(made), made["spec"]["healthCheckNodePort"]]
        for index, port in enumerate(ports):
            taken = web(f"other-{index}", [{"port": 80, "nodePort": port}], type="NodePort")
            with pytest.raises(InvalidError, match="provided port is already allocated"):
                await lab.create("services", taken)
        await lab.edit("services", "web", {"spec": {**EXTERNAL, "externalTrafficPolicy": None}})
        for index, port in enumerate(ports):
            await lab.create(
                "services", web(f"other-{index}", [{"port": 80, "nodePort": port}], type="NodePort")
            )
        await lab.create("services", web("same", clusterIP=made["spec"]["clusterIP"]))

    run(story)


def test_node_ports_of_a_balancer_stay_until_they_are_taken_away() -> None:
    """allocateLoadBalancerNodePorts says what is given, not what is kept (KEP-1864)."""

    async def story(lab: Cluster) -> None:
        made = await lab.create("services", web(type="LoadBalancer"))
        without = {"spec": {"allocateLoadBalancerNodePorts": False}}
        changed = await lab.edit("services", "web", without)
        assert node_ports(changed) == node_ports(made)
        bare = {"spec": {"ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}
        assert node_ports(await lab.edit("services", "web", bare)) == [0]

    run(story)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (SHAPES["ClusterIP"], {"clusterIP": "10.96.0.77", "clusterIPs": ["10.96.0.77"]}, "spec.clusterIPs[0]"),
    (SHAPES["ClusterIP"], {"clusterIP": "None", "clusterIPs": ["None"]}, "may not change once set"),
    (SHAPES["ClusterIP"], {"ipFamilies": ["IPv6"]}, "spec.ipFamilies[0]"),
    (
        LOCAL,
        {"healthCheckNodePort": 32001},
        "spec.healthCheckNodePort: Invalid value: 32001: field is immutable",
    ),
    (SHAPES["LoadBalancer"], {"loadBalancerClass": "example.org/x"}, "spec.loadBalancerClass"),
    (SHAPES["LoadBalancer"], {"healthCheckNodePort": 32001}, "may only be set when"),
    (
        SHAPES["ClusterIP"],
        {"externalTrafficPolicy": "Local"},
        "may only be set for externally-accessible services",
    ),
    (SHAPES["ClusterIP"], {"type": "Other"}, "spec.type: Unsupported value"),
    (SHAPES["ClusterIP"], {"ports": []}, "spec.ports: Required value"),
    (
        SHAPES["NodePort"],
        {"ports": [{"port": 80, "nodePort": 80}]},
        "The range of valid ports is 30000-32767",
    ),
    (SHAPES["ClusterIP"], {"type": "ExternalName"}, "spec.externalName: Required value"),
    (
        SHAPES["ClusterIP"],
        {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]},
        "may not change",
    ),
    (
        SHAPES["ClusterIP"],
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
        "must be greater than 0 and less than 86400",
    ),
]


@pytest.mark.parametrize(("before", "change", "why"), REFUSED)
def test_what_may_not_change(before: dict[str, Any], change: dict[str, Any], why: str) -> None:
    """A refused change changes nothing."""

    async def story(lab: Cluster) -> None:
        made = await lab.create("services", web(**before))
        held = {record["metadata"]["name"] for record in lab.all(ADDRESSES, "")}
        with pytest.raises(ApiError) as error:
            await lab.edit("services", "web", {"spec": change})
        assert why in str(error.value)
        assert lab.one("services", "web") == made
        assert {record["metadata"]["name"] for record in lab.all(ADDRESSES, "")} == held

    run(story)


def test_one_service_may_have_one_port_number_for_two_protocols() -> None:
    async def story(lab: Cluster) -> None:
        both = [{"name": p.lower(), "port": 53, "protocol": p} for p in ("TCP", "UDP")]
        first = await lab.create("services", web("dns", both, type="NodePort"))
        assert len(set(node_ports(first))) == 1
        # A port that gets a second protocol keeps its number for both.
        await lab.create("services", web("web", [{"name": "tcp", "port": 80}], type="NodePort"))
        kept = node_ports(lab.one("services", "web"))[0]
        ports = [
            {"name": "tcp", "port": 80, "protocol": "TCP", "nodePort": kept},
            {"name": "udp", "port": 80, "protocol": "UDP"},
        ]
        assert node_ports(await lab.edit("services", "web", {"spec": {"ports": ports}})) == [kept, kept]

    run(story)
