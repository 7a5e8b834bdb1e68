"""Services of type LoadBalancer get the nodes' addresses: over the real API with pretended kubelets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from podlane.lab.client import Obj
from tests.unit.controller_lab import Cluster, cluster, pod, service

NODES = {f"node-{n}": [f"172.30.1.1{n}", f"fd00:172:30::1:1{n}"] for n in (1, 2, 3)}
FOUR = [addresses[0] for addresses in NODES.values()]
SIX = [addresses[1] for addresses in NODES.values()]


def run(story: Callable[[Cluster], Awaitable[None]]) -> None:
    async def main() -> None:
        async with cluster(nodes=3) as lab:
            for name in NODES:
                await told(lab, name)
            await story(lab)

    asyncio.run(main())


async def told(lab: Cluster, name: str, ready: str = "True") -> None:
    """The node's kubelet reports."""
    node = lab.one("nodes", name, "")
    condition = {"type": "Ready", "status": ready, "reason": "x", "message": ""}
    addresses = [{"type": "InternalIP", "address": a} for a in NODES[name]]
    addresses.append({"type": "Hostname", "address": name})
    status = {**node["status"], "addresses": addresses, "conditions": [condition]}
    await lab.client.update("nodes", {**node, "status": status}, subresource="status")


def ingress(lab: Cluster, name: str) -> list[str]:
    found: list[Obj] = lab.one("services", name)["status"]["loadBalancer"].get("ingress") or []
    assert all(each["ipMode"] == "VIP" for each in found)
    return [each["ip"] for each in found]


def balancer(name: str, port: int = 80, **spec: Any) -> Obj:
    return service(name, {"app": name}, [{"port": port}], type="LoadBalancer", **spec)


def test_every_ready_node_gives_its_addresses() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("services", balancer("web"))
        await lab.until(lambda: ingress(lab, "web") == FOUR)
        await told(lab, "node-2", "False")
        await lab.until(lambda: ingress(lab, "web") == [FOUR[0], FOUR[2]])
        label = {"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}}
        await lab.edit("nodes", "node-1", label, "")
        await lab.until(lambda: ingress(lab, "web") == [FOUR[2]])
        await told(lab, "node-2")
        await lab.until(lambda: ingress(lab, "web") == FOUR[1:])

    run(story)


def test_addresses_are_of_the_services_families_in_their_order() -> None:
    async def story(lab: Cluster) -> None:
        both = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}
        await lab.create("services", balancer("both", **both))
        await lab.create("services", balancer("six", 81, ipFamilies=["IPv6"]))
        await lab.until(lambda: ingress(lab, "both") == SIX + FOUR)
        await lab.until(lambda: ingress(lab, "six") == SIX)

    run(story)


def test_with_policy_local_nodes_without_a_ready_endpoint_are_left_out() -> None:
    async def story(lab: Cluster) -> None:
        lab.ready = lambda each: each["metadata"]["name"] != "late"
        await lab.create("services", balancer("web", externalTrafficPolicy="Local"))
        await lab.settled()
        assert ingress(lab, "web") == []
        await lab.create("pods", pod("one", {"app": "web"}, nodeName="node-2"))
        await lab.create("pods", pod("late", {"app": "web"}, nodeName="node-3"))
        await lab.until(lambda: ingress(lab, "web") == [FOUR[1]])
        lab.ready = lambda each: True
        await lab.report()
        await lab.until(lambda: ingress(lab, "web") == FOUR[1:])

    run(story)


def test_other_types_and_classes_have_none() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("services", balancer("theirs", loadBalancerClass="example.com/other"))
        await lab.create("services", balancer("web", 81))
        await lab.create("services", service("plain", {"app": "plain"}))
        await lab.until(lambda: ingress(lab, "web") == FOUR)
        await lab.edit("services", "web", {"spec": {"type": "ClusterIP"}})
        await lab.settled()
        assert [ingress(lab, name) for name in ("theirs", "web", "plain")] == [[], [], []]
        await lab.edit("services", "web", {"spec": {"type": "LoadBalancer"}})
        await lab.until(lambda: ingress(lab, "web") == FOUR)

    run(story)


def test_a_port_belongs_to_one_service_until_that_is_gone() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("services", balancer("z-first"))
        await lab.until(lambda: ingress(lab, "z-first") == FOUR)
        await lab.create("services", balancer("a-second"))
        await lab.create("services", balancer("other", 443))
        await lab.until(lambda: ingress(lab, "other") == FOUR)
        await lab.settled()
        assert (ingress(lab, "z-first"), ingress(lab, "a-second")) == (FOUR, [])
        (event,) = await lab.until(lambda: lab.all("events", "default"))
        assert event["involvedObject"]["name"] == "a-second"
        assert "service default/z-first has the same port" in event["message"]
        await lab.client.delete("services", "z-first", "default")
        await lab.until(lambda: ingress(lab, "a-second") == FOUR)

    run(story)
