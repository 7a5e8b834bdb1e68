from __future__ import annotations

from typing import Any

import pytest

from podlane.lab.kubelet.status import ContainerState, PodState, Terminated, phase, pod_status, qos_class

NOW = 1_700_000_000.0


def pod(policy: str = "Always", **fields: Any) -> dict[str, Any]:
    spec = {"restartPolicy": policy, **fields}
    return {"metadata": {"name": "p", "namespace": "d", "uid": "u", "generation": 2}, "spec": spec}


def container(name: str = "c", kind: str = "main", **fields: Any) -> ContainerState:
    return ContainerState(name, kind, "image", **fields)


def running(name: str = "c", kind: str = "main", ready: bool = True) -> ContainerState:
    return container(name, kind, running_since_s=NOW, started=True, ready=ready, waiting=("", ""))


def ended(code: int, name: str = "c", kind: str = "main", finished: bool = True) -> ContainerState:
    how = Terminated(code, "Error" if code else "Completed", NOW, NOW)
    return container(name, kind, terminated=how, finished=finished, waiting=("", ""))


@pytest.mark.parametrize(
    ("policy", "states", "wanted"),
    [
        ("Always", [container()], "Pending"),
        ("Always", [running()], "Running"),
        ("Always", [running(), container("d")], "Running"),
        ("Always", [ended(1, finished=False)], "Running"),
        ("Never", [ended(0)], "Succeeded"),
        ("Never", [ended(0), ended(1, "d")], "Failed"),
        ("Never", [ended(0), running("d")], "Running"),
        ("OnFailure", [ended(1, finished=False)], "Running"),
        ("OnFailure", [ended(0)], "Succeeded"),
        ("Always", [container("i", "init"), container()], "Pending"),
        ("Always", [ended(1, "i", "init", finished=False), container()], "Pending"),
        ("Never", [ended(1, "i", "init"), container()], "Failed"),
        ("Always", [ended(0, "i", "init"), running()], "Running"),
        ("Never", [running("s", "sidecar"), ended(0)], "Running"),
        ("Never", [ended(143, "s", "sidecar"), ended(0)], "Succeeded"),
    ],
)
def test_phase(policy, states, wanted):
    assert phase(pod(policy), PodState(states)) == wanted


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in status["conditions"]}


def test_running_pod():
    state = PodState(
        [running(), running("d", ready=False)],
        sandbox=True,
        addresses=["10.244.0.2", "fd00::2"],
        node_addresses=["172.30.1.11"],
        started_s=NOW,
    )
    status = pod_status(pod(), state, NOW)
    assert status["podIP"] == "10.244.0.2"
    assert status["podIPs"] == [{"ip": "10.244.0.2"}, {"ip": "fd00::2"}]
    assert status["observedGeneration"] == 2
    assert conditions(status) == {
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "Ready": "False",
        "ContainersReady": "False",
        "PodScheduled": "True",
    }
    (ready,) = [c for c in status["conditions"] if c["type"] == "Ready"]
    assert ready["message"] == "containers with unready status: [d]"
    state.containers[1].ready = True
    assert conditions(pod_status(pod(), state, NOW))["Ready"] == "True"


def test_status_that_has_not_changed_is_the_same_later():
    state = PodState([running()], started_s=NOW)
    first = pod_status(pod(), state, NOW)
    assert pod_status({**pod(), "status": first}, state, NOW + 100) == first


def test_transition_times_move_with_the_status_only():
    state = PodState([running()], started_s=NOW)
    first = pod_status(pod(), state, NOW)
    state.containers[0].ready = False
    second = pod_status({**pod(), "status": first}, state, NOW + 100)
    moved = {
        c["type"]
        for c, old in zip(second["conditions"], first["conditions"], strict=True)
        if c["lastTransitionTime"] != old["lastTransitionTime"]
    }
    assert moved == {"Ready", "ContainersReady"}


def test_readiness_gates_hold_a_pod_back():
    gated = pod(readinessGates=[{"conditionType": "lb"}])
    state = PodState([running()])
    status = pod_status(gated, state, NOW)
    assert (conditions(status)["Ready"], conditions(status)["ContainersReady"]) == ("False", "True")
    gated["status"] = {"conditions": [{"type": "lb", "status": "True"}]}
    status = pod_status(gated, state, NOW)
    assert conditions(status)["Ready"] == "True"
    assert conditions(status)["lb"] == "True"


def test_container_states():
    waiting = container(waiting=("CrashLoopBackOff", "back-off"), restarts=2)
    waiting.terminated = Terminated(137, "Error", NOW, NOW)
    shown = waiting.json
    assert shown["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    assert shown["lastState"]["terminated"]["signal"] == 9
    assert shown["restartCount"] == 2
    assert "terminated" in ended(0).json["state"]
    assert running().json["ready"] is True


def test_a_verdict_ends_the_pod():
    state = PodState([running()], verdict=("Failed", "DeadlineExceeded", "too long"))
    status = pod_status(pod(), state, NOW)
    assert (status["phase"], status["reason"], status["message"]) == (
        "Failed",
        "DeadlineExceeded",
        "too long",
    )


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}, "Burstable"),
        ({"limits": {"cpu": "1"}}, "Burstable"),
    ],
)
def test_qos(resources, wanted):
    assert qos_class(pod(containers=[{"name": "c", "resources": resources}])) == wanted
