"""Where pods go, and what is said about those that go nowhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from tests.unit.controller_lab import Cluster, cluster, deployment, name, pod

ZONED = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")]


def run(story: Callable[[Cluster], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with cluster(**options) as lab:
            await story(lab)

    asyncio.run(main())


def places(lab: Cluster, **labels: str) -> Counter[str]:
    return Counter(facts.node_of(p) for p in lab.pods(**labels) if facts.node_of(p))


async def unschedulable(lab: Cluster, which: str) -> str:
    """The words of PodScheduled=False."""
    found = await lab.until(
        lambda: (
            (c := facts.condition(lab.one("pods", which), "PodScheduled")) and c["status"] == "False" and c
        )
    )
    assert found["reason"] == "Unschedulable"
    return str(found["message"])


def test_replicas_spread_over_nodes_and_zones() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("deployments.apps", deployment("web", 2))
        await lab.until(lambda: places(lab).total() == 2)
        assert sorted(n[0] for n in places(lab)) == ["a", "b"]
        await lab.create("deployments.apps", deployment("more", 8))
        await lab.until(lambda: places(lab, app="more").total() == 8)
        assert set(places(lab, app="more").values()) == {2}

    run(story, nodes=ZONED)


def test_single_pods_of_one_label_set_spread_too() -> None:
    async def story(lab: Cluster) -> None:
        for number in range(3):
            await lab.create("pods", pod(f"web-{number}", {"app": "web"}))
        await lab.until(lambda: places(lab).total() == 3)
        assert set(places(lab).values()) == {1}

    run(story, nodes=3)


def test_bound_pods_and_other_schedulers_pods_are_left_alone() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("pods", pod("here", nodeName="node-2"))
        await lab.create("pods", pod("theirs", schedulerName="another"))
        await lab.create("pods", pod("gated", schedulingGates=[{"name": "example.com/wait"}]))
        await lab.settled()
        assert dict(places(lab)) == {"node-2": 1}
        assert facts.condition(lab.one("pods", "theirs"), "PodScheduled") is None

    run(story, nodes=3)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"nodeSelector": {"disk": "ssd"}},
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
        ),
        (
            {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 80}]}]},
            "0/3 nodes are available: 3 node(s) didn't have free ports for the requested pod ports.",
        ),
        (
            {
                "affinity": {
                    "podAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": [
                            {
                                "labelSelector": {"matchLabels": {"app": "none"}},
                                "topologyKey": "kubernetes.io/hostname",
                            }
                        ]
                    }
                }
            },
            "0/3 nodes are available: 3 node(s) didn't match pod affinity rules.",
        ),
    ],
)
def test_the_words_of_kube_scheduler(spec: dict[str, Any], words: str) -> None:
    async def story(lab: Cluster) -> None:
        for number in range(3):
            taken = pod(f"taken-{number}", nodeName=f"node-{number + 1}")
            taken["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": 80}]
            await lab.create("pods", taken)
        await lab.create("pods", {**pod("p"), "spec": {**pod("p")["spec"], **spec}})
        assert await unschedulable(lab, "p") == words
        events = await lab.until(lambda: [e for e in lab.all("events") if e["reason"] == "FailedScheduling"])
        assert events[0]["message"] == words
        assert events[0]["type"] == "Warning"

    run(story, nodes=3)


def test_reasons_are_counted() -> None:
    async def story(lab: Cluster) -> None:
        await lab.node("full", capacity=0)
        await lab.node("off", spec={"unschedulable": True})
        await lab.node("cp", spec={"taints": [{"key": "role", "value": "cp", "effect": "NoSchedule"}]})
        await lab.create("pods", pod("p"))
        assert await unschedulable(lab, "p") == (
            "0/3 nodes are available: 1 Too many pods, 1 node(s) had untolerated taint {role: cp}, "
            "1 node(s) were unschedulable."
        )

    run(story, nodes=0)


def test_without_nodes() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("pods", pod("p"))
        assert await unschedulable(lab, "p") == "no nodes available to schedule pods"
        await lab.node("first")
        await lab.until(lambda: places(lab)["first"])
        condition = facts.condition(lab.one("pods", "p"), "PodScheduled")
        assert condition is not None
        assert condition["status"] == "True"

    run(story, nodes=0)


def test_taints_and_tolerations() -> None:
    async def story(lab: Cluster) -> None:
        await lab.node("cp", spec={"taints": [{"key": "role", "value": "cp", "effect": "NoExecute"}]})
        for number, toleration in enumerate(
            (
                {"operator": "Exists"},
                {"key": "role", "operator": "Exists"},
                {"key": "role", "operator": "Equal", "value": "cp", "effect": "NoExecute"},
            )
        ):
            await lab.create("pods", pod(f"fits-{number}", tolerations=[toleration]))
        await lab.create("pods", pod("not", tolerations=[{"key": "role", "value": "worker"}]))
        await lab.until(lambda: places(lab)["cp"] == 3)
        assert "untolerated taint" in await unschedulable(lab, "not")
        # the taint goes: the waiting pod moves in without another change of its own
        await lab.edit("nodes", "cp", {"spec": {"taints": None}}, "")
        await lab.until(lambda: places(lab)["cp"] == 4)

    run(story, nodes=0)


def test_capacity_is_respected_and_freed() -> None:
    async def story(lab: Cluster) -> None:
        await lab.node("small", capacity=2)
        for each in "abc":
            await lab.create("pods", pod(each))
        await lab.until(lambda: places(lab)["small"] == 2)
        await lab.settled()
        (waiting,) = [p for p in lab.pods() if not facts.node_of(p)]
        other = next(name(p) for p in lab.pods() if facts.node_of(p))
        await lab.client.delete("pods", other, "default", grace_period_s=0)
        await lab.until(lambda: facts.node_of(lab.one("pods", name(waiting))))

    run(story, nodes=0)


def node_affinity(**terms: Any) -> Obj:
    return {"affinity": {"nodeAffinity": terms}}


def test_node_affinity_required_and_preferred() -> None:
    async def story(lab: Cluster) -> None:
        required = {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["b2"]}]},
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b1"]}]},
            ]
        }
        affinity = node_affinity(
            requiredDuringSchedulingIgnoredDuringExecution=required,
            preferredDuringSchedulingIgnoredDuringExecution=[
                {
                    "weight": 1,
                    "preference": {
                        "matchExpressions": [
                            {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["b1"]}
                        ]
                    },
                }
            ],
        )
        await lab.create("pods", pod("p", **affinity))
        await lab.until(lambda: places(lab)["b2"] == 1)

    run(story, nodes=ZONED)


def pod_affinity(kind: str, key: str, app: str) -> Obj:
    term = {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key}
    return {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}


def test_anti_affinity_keeps_one_pod_a_node_and_works_both_ways() -> None:
    async def story(lab: Cluster) -> None:
        away = pod_affinity("podAntiAffinity", "kubernetes.io/hostname", "web")
        for number in range(4):
            await lab.create("pods", pod(f"w{number}", {"app": "web"}, **away))
        await lab.until(lambda: places(lab).total() == 4)
        assert set(places(lab).values()) == {1}
        # one that says nothing itself is still refused by those that are there
        await lab.create("pods", pod("fifth", {"app": "web"}))
        assert await unschedulable(lab, "fifth") == (
            "0/4 nodes are available: 4 node(s) didn't satisfy existing pods anti-affinity rules."
        )

    run(story, nodes=ZONED)


def test_affinity_gathers_a_group_in_one_zone() -> None:
    async def story(lab: Cluster) -> None:
        near = pod_affinity("podAffinity", "topology.kubernetes.io/zone", "db")
        for number in range(3):
            await lab.create("pods", pod(f"db{number}", {"app": "db"}, **near))
        await lab.until(lambda: places(lab).total() == 3)
        assert len({node[0] for node in places(lab)}) == 1

    run(story, nodes=ZONED)


def test_topology_spread_is_a_limit() -> None:
    async def story(lab: Cluster) -> None:
        constraint = {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}},
        }
        await lab.edit("nodes", "b1", {"spec": {"unschedulable": True}}, "")
        await lab.edit("nodes", "b2", {"spec": {"unschedulable": True}}, "")
        for number in range(2):
            await lab.create(
                "pods", pod(f"w{number}", {"app": "web"}, topologySpreadConstraints=[constraint])
            )
        await lab.until(lambda: places(lab).total() == 1)
        await lab.settled()
        waiting = next(name(p) for p in lab.pods() if not facts.node_of(p))
        assert await unschedulable(lab, waiting) == (
            "0/4 nodes are available: 2 node(s) didn't match pod topology spread constraints, "
            "2 node(s) were unschedulable."
        )
        await lab.edit("nodes", "b2", {"spec": {"unschedulable": False}}, "")
        await lab.until(lambda: places(lab)["b2"] == 1)

    run(story, nodes=ZONED)


def test_a_node_that_is_not_ready_gets_no_pods() -> None:
    async def story(lab: Cluster) -> None:
        node = lab.one("nodes", "node-1", "")
        status = {**node["status"], "conditions": [{"type": "Ready", "status": "False"}]}
        await lab.client.update("nodes", {**node, "status": status}, subresource="status")
        await lab.create("pods", pod("p"))
        assert "untolerated taint {node.kubernetes.io/not-ready: }" in await unschedulable(lab, "p")
        node = lab.one("nodes", "node-1", "")
        status = {**node["status"], "conditions": [{"type": "Ready", "status": "True"}]}
        await lab.client.update("nodes", {**node, "status": status}, subresource="status")
        await lab.until(lambda: places(lab)["node-1"] == 1)

    run(story, nodes=1)
