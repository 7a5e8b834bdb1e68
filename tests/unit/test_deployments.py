"""Deployments and ReplicaSets, over the real API with pretended kubelets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from tests.unit.controller_lab import Cluster, cluster, deployment, name, pod, workload

SETS = "replicasets.apps"
DEPLOYMENTS = "deployments.apps"


def run(story: Callable[[Cluster], Awaitable[None]], **options: object) -> None:
    async def main() -> None:
        async with cluster(**options) as lab:  # type: ignore[arg-type]
            await story(lab)

    asyncio.run(main())


def ready(lab: Cluster, **labels: str) -> list[Obj]:
    return [p for p in lab.pods(**labels) if facts.is_ready(p)]


def rolled_out(lab: Cluster, which: str) -> bool:
    """What `kubectl rollout status` waits for."""
    obj = lab.one(DEPLOYMENTS, which)
    status, wanted = obj.get("status") or {}, obj["spec"]["replicas"]
    return (
        status.get("observedGeneration", 0) >= obj["metadata"]["generation"]
        and status.get("updatedReplicas", 0) >= wanted
        and status.get("replicas", 0) == status.get("updatedReplicas", 0)
        and status.get("availableReplicas", 0) == status.get("updatedReplicas", 0)
    )


def test_deployment_makes_one_set_and_its_pods() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(DEPLOYMENTS, deployment("web", 3))
        await lab.until(lambda: rolled_out(lab, "web"))
        (replica_set,) = lab.all(SETS)
        digest = replica_set["metadata"]["labels"]["pod-template-hash"]
        assert name(replica_set) == f"web-{digest}"
        for each in lab.pods():
            assert name(each).startswith(f"web-{digest}-")
            assert each["metadata"]["labels"] == {"app": "web", "pod-template-hash": digest}
            (owner,) = each["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["uid"]) == ("ReplicaSet", replica_set["metadata"]["uid"])
            assert owner["controller"]
            assert owner["blockOwnerDeletion"]
        await lab.settled()
        found = lab.one(DEPLOYMENTS, "web")
        assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1"
        conditions = {c["type"]: (c["status"], c["reason"]) for c in found["status"]["conditions"]}
        assert conditions == {
            "Available": ("True", "MinimumReplicasAvailable"),
            "Progressing": ("True", "NewReplicaSetAvailable"),
        }
        assert lab.all(SETS)[0]["status"] == {
            "replicas": 3,
            "fullyLabeledReplicas": 3,
            "readyReplicas": 3,
            "availableReplicas": 3,
            "observedGeneration": 1,
        }

    run(story)


def test_rolling_update_keeps_enough_pods_and_not_too_many() -> None:
    async def story(lab: Cluster) -> None:
        rolling = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}
        await lab.create(DEPLOYMENTS, deployment("web", 4, strategy=rolling))
        await lab.until(lambda: rolled_out(lab, "web"))
        await lab.settled()
        seen: list[tuple[int, int]] = []
        lab.server.store.subscribe(lambda events: seen.append((len(ready(lab)), len(lab.pods()))))
        await lab.edit(DEPLOYMENTS, "web", {"spec": {"template": {"metadata": {"annotations": {"v": "2"}}}}})
        await lab.until(lambda: rolled_out(lab, "web"))
        await lab.settled()
        assert min(r for r, _ in seen) >= 3
        assert max(p for _, p in seen) <= 5
        assert all(p["metadata"]["annotations"] == {"v": "2"} for p in lab.pods())
        assert sorted(s["spec"]["replicas"] for s in lab.all(SETS)) == [0, 4]

    run(story)


def test_a_bad_version_stops_before_it_hurts() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(DEPLOYMENTS, deployment("web", 4))
        await lab.until(lambda: rolled_out(lab, "web"))
        lab.ready = lambda p: "bad" not in (p["metadata"].get("annotations") or {})
        await lab.edit(
            DEPLOYMENTS, "web", {"spec": {"template": {"metadata": {"annotations": {"bad": "1"}}}}}
        )
        await lab.until(lambda: len(lab.pods()) == 5)
        await lab.settled()
        # 25 % of 4: one more than wanted, one fewer ready
        assert len(ready(lab)) == 3
        assert len(lab.pods()) == 5
        # the way of `kubectl rollout undo`: the old template is patched back
        old = next(s for s in lab.all(SETS) if "annotations" not in s["spec"]["template"]["metadata"])
        await lab.edit(
            DEPLOYMENTS, "web", {"spec": {"template": {"metadata": {"annotations": {"bad": None}}}}}
        )
        await lab.until(lambda: rolled_out(lab, "web"))
        await lab.until(lambda: len(lab.pods()) == 4)
        assert len(lab.all(SETS)) == 2
        again = lab.one(SETS, name(old))
        assert again["spec"]["replicas"] == 4
        assert again["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"
        assert again["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"] == "1"

    run(story)


def test_recreate_waits_for_the_last_old_pod() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(DEPLOYMENTS, deployment("web", 2, strategy={"type": "Recreate"}))
        await lab.until(lambda: rolled_out(lab, "web"))
        lab.keep_terminating = True
        await lab.edit(DEPLOYMENTS, "web", {"spec": {"template": {"metadata": {"annotations": {"v": "2"}}}}})
        await lab.until(lambda: not lab.pods())
        await lab.settled()
        assert not lab.pods()
        lab.keep_terminating = False
        await lab.report()
        await lab.until(lambda: rolled_out(lab, "web"))
        assert [p["metadata"]["annotations"] for p in lab.pods()] == [{"v": "2"}] * 2

    run(story)


def test_scale_in_the_middle_of_a_rollout_is_shared() -> None:
    async def story(lab: Cluster) -> None:
        rolling = {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}
        await lab.create(DEPLOYMENTS, deployment("web", 10, strategy=rolling))
        await lab.until(lambda: rolled_out(lab, "web"))
        lab.ready = lambda p: "bad" not in (p["metadata"].get("annotations") or {})
        await lab.edit(
            DEPLOYMENTS, "web", {"spec": {"template": {"metadata": {"annotations": {"bad": "1"}}}}}
        )
        await lab.until(lambda: sorted(s["spec"]["replicas"] for s in lab.all(SETS)) == [5, 8])
        # the example of the Deployment's documentation
        await lab.edit(DEPLOYMENTS, "web", {"spec": {"replicas": 15}})
        await lab.until(lambda: sorted(s["spec"]["replicas"] for s in lab.all(SETS)) == [7, 11])

    run(story)


def test_paused_deployment_scales_but_does_not_move() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(DEPLOYMENTS, deployment("web", 2))
        await lab.until(lambda: rolled_out(lab, "web"))
        change = {"template": {"metadata": {"annotations": {"v": "2"}}}, "replicas": 3, "paused": True}
        await lab.edit(DEPLOYMENTS, "web", {"spec": change})
        await lab.until(lambda: len(lab.pods()) == 3)
        await lab.settled()
        assert len(lab.all(SETS)) == 1
        await lab.edit(DEPLOYMENTS, "web", {"spec": {"paused": False}})
        await lab.until(lambda: rolled_out(lab, "web"))
        assert all(p["metadata"]["annotations"] == {"v": "2"} for p in lab.pods())

    run(story)


def test_old_sets_beyond_the_history_limit_go() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(DEPLOYMENTS, deployment("web", 1, revisionHistoryLimit=1))
        await lab.until(lambda: rolled_out(lab, "web"))
        for version in "abc":
            await lab.edit(
                DEPLOYMENTS, "web", {"spec": {"template": {"metadata": {"annotations": {"v": version}}}}}
            )
            await lab.until(lambda: rolled_out(lab, "web"))
        await lab.until(lambda: len(lab.all(SETS)) == 2)
        await lab.settled()
        assert sorted(s["spec"]["replicas"] for s in lab.all(SETS)) == [0, 1]

    run(story)


def test_progress_deadline_is_reported() -> None:
    async def story(lab: Cluster) -> None:
        lab.ready = lambda p: False
        await lab.create(DEPLOYMENTS, deployment("web", 1, progressDeadlineSeconds=60))
        await lab.until(lambda: lab.pods())
        await lab.settled()
        lab.clock.ahead_s = 120
        await lab.edit(DEPLOYMENTS, "web", {"metadata": {"labels": {"look": "again"}}})

        def late() -> bool:
            condition = facts.condition(lab.one(DEPLOYMENTS, "web"), "Progressing")
            return condition is not None and condition["reason"] == "ProgressDeadlineExceeded"

        await lab.until(late)

    run(story)


def test_scale_down_gives_up_the_pod_that_is_not_ready() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(SETS, workload("apps/v1", "ReplicaSet", "web", 3))
        # The set's own count, not the pods: a count on its way up passes through 2 as well.
        await lab.until(lambda: (lab.one(SETS, "web").get("status") or {}).get("readyReplicas") == 3)
        sick = name(lab.pods()[1])
        lab.ready = lambda p: name(p) != sick
        await lab.report()
        await lab.until(lambda: lab.one(SETS, "web")["status"].get("readyReplicas") == 2)
        await lab.edit(SETS, "web", {"spec": {"replicas": 2}})
        await lab.until(lambda: len(lab.pods()) == 2)
        assert sick not in map(name, lab.pods())

    run(story)


def test_orphans_are_adopted_and_strangers_released() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("pods", pod("stray", {"app": "web"}))
        await lab.create(SETS, workload("apps/v1", "ReplicaSet", "web", 2))
        await lab.until(lambda: len(ready(lab)) == 2)
        assert "stray" in map(name, lab.pods())
        assert lab.one("pods", "stray")["metadata"]["ownerReferences"][0]["name"] == "web"
        await lab.edit("pods", "stray", {"metadata": {"labels": {"app": "other"}}})
        await lab.until(lambda: len(ready(lab, app="web")) == 2)
        assert "ownerReferences" not in lab.one("pods", "stray")["metadata"]

    run(story)


def test_finished_pods_are_replaced() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(SETS, workload("apps/v1", "ReplicaSet", "web", 2))
        await lab.until(lambda: len(ready(lab)) == 2)
        victim = name(lab.pods()[0])
        lab.exit = lambda p: "Failed" if name(p) == victim else ""
        await lab.report()
        await lab.until(lambda: len(ready(lab)) == 2)
        assert victim not in map(name, lab.pods())

    run(story)


def test_availability_waits_for_min_ready_seconds() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(SETS, workload("apps/v1", "ReplicaSet", "web", 1, minReadySeconds=100))
        await lab.until(lambda: lab.one(SETS, "web").get("status", {}).get("readyReplicas") == 1)
        await lab.settled()
        assert "availableReplicas" not in lab.one(SETS, "web")["status"]
        lab.clock.ahead_s = 101
        await lab.edit(SETS, "web", {"metadata": {"labels": {"look": "again"}}})
        await lab.until(lambda: lab.one(SETS, "web")["status"].get("availableReplicas") == 1)

    run(story)


def test_replication_controller() -> None:
    async def story(lab: Cluster) -> None:
        body = workload("v1", "ReplicationController", "old", 2)
        body["spec"]["selector"] = {"app": "old"}
        await lab.create("replicationcontrollers", body)
        await lab.until(lambda: len(ready(lab)) == 2)
        await lab.edit("replicationcontrollers", "old", {"spec": {"replicas": 1}})
        await lab.until(lambda: len(lab.pods()) == 1)

    run(story)


@pytest.mark.parametrize("seed", range(6))
def test_a_manager_killed_at_any_point_makes_nothing_twice(seed: int) -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(DEPLOYMENTS, deployment("web", 5))
        for round_ in range(8):
            for _ in range((seed * 7 + round_ * 5) % 23):
                await asyncio.sleep(0)
            await lab.manager.stop()
            assert len(lab.all(SETS)) <= 1
            assert len(lab.pods()) <= 5
            lab.start_manager()
        await lab.until(lambda: rolled_out(lab, "web"))
        await lab.settled()
        assert len(lab.all(SETS)) == 1
        assert len(lab.pods()) == 5

    run(story)
