from __future__ import annotations

from typing import Any

import pytest

from podlane.lab import ready
from podlane.model import pools


def deployment(wanted: int, **status: Any) -> dict[str, Any]:
    return {
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "generation": 2},
        "spec": {"replicas": wanted},
        "status": status,
    }


@pytest.mark.parametrize(
    ("obj", "missing"),
    [
        (deployment(2, observedGeneration=1, readyReplicas=2, updatedReplicas=2), "not yet seen"),
        (deployment(2, observedGeneration=2, readyReplicas=1, updatedReplicas=2), "1 of 2"),
        (deployment(2, observedGeneration=2, readyReplicas=2, updatedReplicas=1), "1 of 2"),
        (deployment(2, observedGeneration=2, readyReplicas=2, updatedReplicas=2), None),
        (deployment(0, observedGeneration=2), None),
        (
            {
                "kind": "Job",
                "metadata": {"name": "j"},
                "spec": {"completions": 2},
                "status": {"succeeded": 1},
            },
            "not",
        ),
        ({"kind": "Job", "metadata": {"name": "j"}, "spec": {}, "status": {"succeeded": 1}}, None),
        ({"kind": "Job", "metadata": {"name": "j"}, "spec": {}, "status": {"ready": 1}}, None),
    ],
)
def test_a_workload_is_ready_when_its_controller_has_seen_it_and_its_pods_answer(
    obj: dict[str, Any], missing: str | None
) -> None:
    found = ready.workload_missing(obj)
    assert (found is None) if missing is None else (found is not None and missing in found)


def pod(phase: str, ready_status: str = "False", **status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready_status}]
    return {
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "ns"},
        "status": {"phase": phase, "conditions": conditions, **status},
    }


def test_a_pod_is_ready_by_condition_or_when_it_succeeded() -> None:
    assert ready.pod_missing(pod("Running", "True")) is None
    assert ready.pod_missing(pod("Succeeded")) is None
    assert ready.pod_missing(pod("Running")) is not None
    assert ready.pod_missing(pod("Failed")) is not None


def test_why_a_pod_is_not_ready_is_told() -> None:
    waiting = [{"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}}]
    told = ready.pod_missing(pod("Running", containerStatuses=waiting))
    assert told == "Pod ns/p: Running (container c: CrashLoopBackOff: back-off)"
    unscheduled = pod("Pending")
    unscheduled["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
    ]
    assert "0/3 nodes" in (ready.pod_missing(unscheduled) or "")


def test_descendants_belong_to_what_was_applied() -> None:
    replicaset = {"metadata": {"uid": "rs", "ownerReferences": [{"uid": "d"}]}}
    child = {"metadata": {"uid": "p", "ownerReferences": [{"uid": "rs"}]}}
    owners = {"rs": replicaset}
    assert ready.belongs(child, {"d"}, owners)
    assert ready.belongs({"metadata": {"uid": "d"}}, {"d"}, {})
    assert not ready.belongs(child, {"other"}, owners)


def test_owner_loops_end() -> None:
    a = {"metadata": {"uid": "a", "ownerReferences": [{"uid": "b"}]}}
    b = {"metadata": {"uid": "b", "ownerReferences": [{"uid": "a"}]}}
    assert not ready.belongs(a, {"x"}, {"a": a, "b": b})


def test_an_agent_is_waited_for_until_it_has_seen_the_newest_of_every_kind() -> None:
    status = {"node": "node-1", "ready": True, "applied": {"Pod": "7"}, "pending": 0, "failures": []}
    assert ready.agent_missing(status, {"Pod": 7}) == []
    assert "newest Pod" in ready.agent_missing(status, {"Pod": 8})[0]
    assert "newest Service" in ready.agent_missing(status, {"Service": 1})[0]
    assert "not ready" in ready.agent_missing(status | {"ready": False}, {})[0]
    refused = {"table": "routes", "key": "10.0.0.0/8", "error": "no"}
    assert "10.0.0.0/8" in ready.agent_missing(status | {"failures": [refused]}, {})[0]


def test_load_balancers_are_waited_for_until_somebody_answers() -> None:
    def waits(ips: list[str], told: str = "", *, any_pool: bool = True, **spec: Any) -> bool:
        marks = {"annotations": {pools.ALLOCATED_FROM: "p"}} if any_pool else {}
        service = {
            "metadata": {"name": "web", **marks},
            "spec": {"type": "LoadBalancer", **spec},
            "status": {
                "loadBalancer": {"ingress": [{"ip": ip} for ip in ips]},
                "conditions": [{"type": "x", "message": told}],
            },
        }
        return ready.balancer_waits(service, any_pool=any_pool)

    assert waits([], any_pool=False)
    assert not waits(["172.30.1.11"], any_pool=False)
    assert waits(["192.0.2.1"])
    assert not waits(["192.0.2.1"], "node-1 answers for 192.0.2.1")
    assert waits(["192.0.2.1", "2001:db8::1"], "node-1 answers for 192.0.2.1")
    assert not waits([], loadBalancerClass="example.com/other")
    assert not waits([], type="ClusterIP")
