"""DaemonSets and StatefulSets, over the real API with pretended kubelets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from tests.unit.controller_lab import Cluster, cluster, name, workload

DAEMONS, STATEFUL, REVISIONS = "daemonsets.apps", "statefulsets.apps", "controllerrevisions.apps"
VERSION_2 = {"spec": {"template": {"metadata": {"annotations": {"v": "2"}}}}}


def run(story: Callable[[Cluster], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with cluster(**options) as lab:
            await story(lab)

    asyncio.run(main())


def daemon(name_: str = "agent", **spec: Any) -> Obj:
    return workload("apps/v1", "DaemonSet", name_, **spec)


def stateful(name_: str = "db", replicas: int = 3, **spec: Any) -> Obj:
    return workload("apps/v1", "StatefulSet", name_, replicas, serviceName=name_, **spec)


def status(lab: Cluster, resource: str, which: str) -> Obj:
    found: Obj = lab.one(resource, which).get("status") or {}
    return found


def where(lab: Cluster) -> list[str]:
    return sorted(facts.node_of(p) for p in lab.pods() if facts.is_ready(p))


def names(lab: Cluster) -> list[str]:
    return sorted(name(p) for p in lab.pods())


def versions(lab: Cluster) -> dict[str, str]:
    return {name(p): (p["metadata"].get("annotations") or {}).get("v", "1") for p in lab.pods()}


# --- DaemonSet ------------------------------------------------------------------------------------


def test_one_daemon_a_node_also_on_new_ones() -> None:
    async def story(lab: Cluster) -> None:
        await lab.node("tainted", spec={"taints": [{"key": "gpu", "effect": "NoSchedule"}]})
        await lab.edit("nodes", "node-3", {"spec": {"unschedulable": True}}, "")
        await lab.create(DAEMONS, daemon())
        await lab.until(lambda: where(lab) == ["node-1", "node-2", "node-3"])
        await lab.node("node-4")
        await lab.until(lambda: where(lab) == ["node-1", "node-2", "node-3", "node-4"])
        await lab.settled()
        assert status(lab, DAEMONS, "agent") == {
            "currentNumberScheduled": 4,
            "desiredNumberScheduled": 4,
            "numberMisscheduled": 0,
            "numberReady": 4,
            "numberAvailable": 4,
            "updatedNumberScheduled": 4,
            "observedGeneration": 1,
        }
        await lab.client.delete("nodes", "node-4")
        await lab.until(lambda: "node-4" not in {facts.node_of(p) for p in lab.pods()})

    run(story)


def test_daemons_follow_node_labels() -> None:
    async def story(lab: Cluster) -> None:
        body = daemon()
        body["spec"]["template"]["spec"]["nodeSelector"] = {"disk": "ssd"}
        await lab.create(DAEMONS, body)
        await lab.settled()
        assert not lab.pods()
        await lab.edit("nodes", "node-2", {"metadata": {"labels": {"disk": "ssd"}}}, "")
        await lab.until(lambda: where(lab) == ["node-2"])
        await lab.edit("nodes", "node-2", {"metadata": {"labels": {"disk": None}}}, "")
        await lab.until(lambda: not lab.all("pods"))

    run(story)


def daemons_updated(lab: Cluster) -> bool:
    """What `kubectl rollout status daemonset` waits for."""
    obj = lab.one(DAEMONS, "agent")
    found = obj.get("status") or {}
    wanted = found.get("desiredNumberScheduled", 0)
    return (
        found.get("observedGeneration", 0) >= obj["metadata"]["generation"]
        and found.get("updatedNumberScheduled", 0) >= wanted
        and found.get("numberAvailable", 0) >= wanted
    )


@pytest.mark.parametrize(
    ("rolling", "least", "most"),
    [
        ({"maxUnavailable": 1}, 3, 4),
        ({"maxUnavailable": "50%"}, 2, 4),
        ({"maxSurge": 1, "maxUnavailable": 0}, 4, 5),
    ],
)
def test_daemons_roll_within_their_limits(rolling: dict[str, Any], least: int, most: int) -> None:
    async def story(lab: Cluster) -> None:
        strategy = {"type": "RollingUpdate", "rollingUpdate": rolling}
        await lab.create(DAEMONS, daemon(updateStrategy=strategy))
        await lab.until(lambda: daemons_updated(lab) and len(where(lab)) == 4)
        await lab.settled()
        seen: list[tuple[int, int]] = []
        lab.server.store.subscribe(lambda events: seen.append((len(where(lab)), len(lab.pods()))))
        await lab.edit(DAEMONS, "agent", VERSION_2)
        await lab.until(lambda: set(versions(lab).values()) == {"2"} and len(where(lab)) == 4)
        await lab.until(lambda: daemons_updated(lab))
        await lab.settled()
        assert min(ready for ready, _ in seen) >= least
        assert max(count for _, count in seen) <= most
        assert where(lab) == ["node-1", "node-2", "node-3", "node-4"]
        assert len(lab.all(REVISIONS)) == 2

    run(story, nodes=4)


def test_daemons_on_delete_wait_for_the_deletion() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(DAEMONS, daemon(updateStrategy={"type": "OnDelete"}))
        await lab.until(lambda: len(where(lab)) == 2)
        await lab.edit(DAEMONS, "agent", VERSION_2)
        await lab.settled()
        assert set(versions(lab).values()) == {"1"}
        await lab.client.delete("pods", names(lab)[0], "default")
        await lab.until(lambda: sorted(versions(lab).values()) == ["1", "2"])

    run(story, nodes=2)


# --- StatefulSet ----------------------------------------------------------------------------------


def test_stateful_pods_have_names_that_stay() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(STATEFUL, stateful())
        await lab.until(lambda: status(lab, STATEFUL, "db").get("availableReplicas") == 3)
        assert names(lab) == ["db-0", "db-1", "db-2"]
        one = lab.one("pods", "db-1")
        assert one["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"] == "db-1"
        assert one["metadata"]["labels"]["apps.kubernetes.io/pod-index"] == "1"
        assert (one["spec"]["hostname"], one["spec"]["subdomain"]) == ("db-1", "db")
        await lab.client.delete("pods", "db-1", "default")
        await lab.until(
            lambda: (
                names(lab) == ["db-0", "db-1", "db-2"]
                and lab.one("pods", "db-1")["metadata"]["uid"] != one["metadata"]["uid"]
            )
        )
        await lab.until(lambda: status(lab, STATEFUL, "db").get("readyReplicas") == 3)
        await lab.settled()
        (revision,) = lab.all(REVISIONS)
        assert status(lab, STATEFUL, "db") == {
            "observedGeneration": 1,
            "replicas": 3,
            "readyReplicas": 3,
            "availableReplicas": 3,
            "currentReplicas": 3,
            "updatedReplicas": 3,
            "currentRevision": name(revision),
            "updateRevision": name(revision),
            "collisionCount": 0,
        }

    run(story)


def test_ordered_ready_waits_for_each_pod_both_ways() -> None:
    async def story(lab: Cluster) -> None:
        lab.ready = lambda p: name(p) != "db-1"
        await lab.create(STATEFUL, stateful())
        await lab.until(lambda: names(lab) == ["db-0", "db-1"])
        await lab.settled()
        assert names(lab) == ["db-0", "db-1"]
        lab.ready = lambda p: True
        await lab.report()
        await lab.until(lambda: len(where(lab)) == 3)
        lab.keep_terminating = True
        await lab.edit(STATEFUL, "db", {"spec": {"replicas": 0}})
        await lab.until(lambda: names(lab) == ["db-0", "db-1"])
        await lab.settled()
        assert names(lab) == ["db-0", "db-1"]
        lab.keep_terminating = False
        await lab.report()
        await lab.until(lambda: not lab.all("pods"))

    run(story)


def test_parallel_does_not_wait() -> None:
    async def story(lab: Cluster) -> None:
        lab.ready = lambda p: False
        await lab.create(STATEFUL, stateful(podManagementPolicy="Parallel", ordinals={"start": 5}))
        await lab.until(lambda: names(lab) == ["db-5", "db-6", "db-7"])
        await lab.edit(STATEFUL, "db", {"spec": {"replicas": 1}})
        await lab.until(lambda: names(lab) == ["db-5"])

    run(story)


def test_rolling_update_from_the_top_down_to_the_partition() -> None:
    async def story(lab: Cluster) -> None:
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
        await lab.create(STATEFUL, stateful(updateStrategy=strategy))
        await lab.until(lambda: len(where(lab)) == 3)
        await lab.settled()
        order: list[str] = []

        def watch(events: Any) -> None:
            order.extend(e.record.name for e in events if e.resource == "pods" and e.type == "DELETED")

        lab.server.store.subscribe(watch)
        await lab.edit(STATEFUL, "db", VERSION_2)
        await lab.until(lambda: versions(lab) == {"db-0": "1", "db-1": "2", "db-2": "2"})
        await lab.until(lambda: len(where(lab)) == 3)
        await lab.settled()
        assert order == ["db-2", "db-1"]
        found = status(lab, STATEFUL, "db")
        assert found["currentRevision"] != found["updateRevision"]
        assert (found["currentReplicas"], found["updatedReplicas"]) == (1, 2)
        # below the partition a pod comes back as it was
        await lab.client.delete("pods", "db-0", "default")
        await lab.until(lambda: len(where(lab)) == 3)
        assert versions(lab)["db-0"] == "1"
        await lab.edit(STATEFUL, "db", {"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}})
        await lab.until(lambda: set(versions(lab).values()) == {"2"})

        def over() -> bool:
            now = status(lab, STATEFUL, "db")
            return bool(now["currentRevision"] == now["updateRevision"] and now.get("currentReplicas") == 3)

        await lab.until(over)

    run(story)


def test_going_back_uses_the_old_revision() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(STATEFUL, stateful(replicas=1))
        await lab.until(lambda: len(where(lab)) == 1)
        await lab.settled()
        first = status(lab, STATEFUL, "db")["currentRevision"]
        await lab.edit(STATEFUL, "db", VERSION_2)
        await lab.until(lambda: versions(lab) == {"db-0": "2"} and len(where(lab)) == 1)
        await lab.edit(STATEFUL, "db", {"spec": {"template": {"metadata": {"annotations": None}}}})
        await lab.until(lambda: versions(lab) == {"db-0": "1"} and len(where(lab)) == 1)
        await lab.settled()
        assert status(lab, STATEFUL, "db")["currentRevision"] == first
        assert sorted(r["revision"] for r in lab.all(REVISIONS)) == [2, 3]

    run(story)


def test_revisions_beyond_the_limit_go() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(STATEFUL, stateful(replicas=1, revisionHistoryLimit=1))
        for version in ("a", "b", "c"):
            patch = {"spec": {"template": {"metadata": {"annotations": {"v": version}}}}}
            await lab.edit(STATEFUL, "db", patch)
            await lab.until(lambda v=version: versions(lab) == {"db-0": v} and len(where(lab)) == 1)
        await lab.until(lambda: len(lab.all(REVISIONS)) == 2)

    run(story)


@pytest.mark.parametrize("seed", range(4))
def test_restarts_make_nothing_twice(seed: int) -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(DAEMONS, daemon())
        await lab.create(STATEFUL, stateful())
        for round_ in range(8):
            for _ in range((seed * 11 + round_ * 7) % 29):
                await asyncio.sleep(0)
            await lab.manager.stop()
            assert len(lab.pods(app="agent")) <= 3
            lab.start_manager()
        await lab.until(lambda: len(where(lab)) == 6)
        await lab.settled()
        assert len(lab.pods(app="agent")) == 3
        assert len(lab.all(REVISIONS)) == 2

    run(story)
