"""A pod's status, from what its containers do. Pure: the kubelet hands in the time.

Rules are those of pkg/kubelet/kubelet_pods.go (getPhase) and pkg/kubelet/status/generate.go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from podlane.lab.controllers.facts import timestamp

Obj = dict[str, Any]


@dataclass
class Terminated:
    """started_s, finished_s: Unix seconds."""

    exit_code: int
    reason: str
    started_s: float
    finished_s: float
    message: str = ""
    container_id: str = ""

    @property
    def json(self) -> Obj:
        found: Obj = {
            "exitCode": self.exit_code,
            "reason": self.reason,
            "startedAt": timestamp(self.started_s),
            "finishedAt": timestamp(self.finished_s),
            "containerID": self.container_id,
        }
        if self.message:
            found["message"] = self.message
        if self.exit_code > 128:
            found["signal"] = self.exit_code - 128
        return found


@dataclass
class ContainerState:
    """One container of a pod as it is now.

    kind: init, sidecar, main or ephemeral. running_since_s: None unless it runs. terminated: how it ended,
    while it is not running. waiting: (reason, message). last: how it ended the time before.
    started: its startup probe, if any, has succeeded. ran: command, responder or nothing.
    """

    name: str
    kind: str
    image: str = ""
    waiting: tuple[str, str] = ("ContainerCreating", "")
    running_since_s: float | None = None
    terminated: Terminated | None = None
    last: Terminated | None = None
    restarts: int = 0
    started: bool = False
    ready: bool = False
    ran: str = ""
    container_id: str = ""
    finished: bool = False
    """It will not be started again."""

    @property
    def running(self) -> bool:
        return self.running_since_s is not None

    @property
    def json(self) -> Obj:
        state: Obj
        if self.running_since_s is not None:
            state = {"running": {"startedAt": timestamp(self.running_since_s)}}
        elif self.terminated is not None and (self.finished or not self.waiting[0]):
            state = {"terminated": self.terminated.json}
        else:
            reason, message = self.waiting
            state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        last = self.last
        if "waiting" in state and self.terminated is not None:
            last = self.terminated
        return {
            "name": self.name,
            "state": state,
            "lastState": {"terminated": last.json} if last is not None else {},
            "ready": self.is_ready,
            "started": self.started and self.running,
            "restartCount": self.restarts,
            "image": self.image,
            "imageID": image_id(self.image) if self.container_id else "",
            "containerID": self.container_id,
        }

    @property
    def is_ready(self) -> bool:
        if self.kind == "init":
            return self.finished and self.terminated is not None and self.terminated.exit_code == 0
        return self.running and self.ready


@dataclass
class PodState:
    """What the kubelet knows of a pod beyond its containers.

    verdict: (phase, reason, message) that ends the pod whatever its containers say (deadline, eviction).
    """

    containers: list[ContainerState] = field(default_factory=list)
    sandbox: bool = False
    addresses: Sequence[str] = ()
    node_addresses: Sequence[str] = ()
    started_s: float = 0.0
    verdict: tuple[str, str, str] | None = None


def image_id(image: str) -> str:
    """No image is ever pulled: a name that is the same for the same image."""
    return f"podlane.dev/host@sha256:{hashlib.sha256(image.encode()).hexdigest()}"


def initialized(state: PodState) -> bool:
    """Every init container has ended well, every sidecar among them has started."""
    return all(
        (c.is_ready if c.kind == "init" else c.started or c.finished or c.terminated is not None)
        for c in state.containers
        if c.kind in ("init", "sidecar")
    )


def phase(pod: Obj, state: PodState) -> str:
    if state.verdict is not None:
        return state.verdict[0]
    policy = pod["spec"].get("restartPolicy") or "Always"
    inits = [c for c in state.containers if c.kind == "init"]
    if any(c.finished and c.terminated is not None and c.terminated.exit_code for c in inits):
        return "Failed"
    if not initialized(state):
        return "Pending"
    mains = [c for c in state.containers if c.kind == "main"]
    if any(c.running for c in mains):
        return "Running"
    if all(c.terminated is not None for c in mains) and mains:
        if not all(c.finished for c in mains):
            return "Running"
        if policy == "Always" and not pod["metadata"].get("deletionTimestamp"):
            return "Running"
        if any(c.running for c in state.containers):  # sidecars are about to be stopped
            return "Running"
        bad = any(c.terminated is not None and c.terminated.exit_code for c in mains)
        return "Failed" if bad else "Succeeded"
    # Some wait: for the first time, or to be started again.
    return "Running" if any(c.terminated is not None or c.last is not None for c in mains) else "Pending"


def qos_class(pod: Obj) -> str:
    """Guaranteed, Burstable or BestEffort (pkg/apis/core/v1/helper/qos)."""
    limited = True
    any_set = False
    everyone = [*(pod["spec"].get("containers") or ()), *(pod["spec"].get("initContainers") or ())]
    for container in everyone:
        resources = container.get("resources") or {}
        request, limit = (
            {k: str(v) for k, v in (resources.get(key) or {}).items() if k in ("cpu", "memory")}
            for key in ("requests", "limits")
        )
        any_set = any_set or bool(request or limit)
        if limit.keys() != {"cpu", "memory"} or {**limit, **request} != limit:
            limited = False
    if not any_set:
        return "BestEffort"
    return "Guaranteed" if limited else "Burstable"


def pod_status(pod: Obj, state: PodState, now_s: float) -> Obj:
    """The whole status: what others wrote into the old one and does not concern us stays."""
    old: Obj = pod.get("status") or {}
    found = phase(pod, state)
    status: Obj = {
        key: value
        for key, value in old.items()
        if key in ("nominatedNodeName", "resourceClaimStatuses", "resize", "observedGeneration")
    }
    status["phase"] = found
    status["conditions"] = _conditions(pod, state, found, now_s)
    if state.verdict is not None:
        _, status["reason"], status["message"] = state.verdict
    if state.node_addresses:
        status["hostIP"] = state.node_addresses[0]
        status["hostIPs"] = [{"ip": a} for a in state.node_addresses]
    if state.addresses:
        status["podIP"] = state.addresses[0]
        status["podIPs"] = [{"ip": a} for a in state.addresses]
    status["startTime"] = old.get("startTime") or timestamp(state.started_s or now_s)
    status["qosClass"] = old.get("qosClass") or qos_class(pod)
    for key, kinds in (
        ("initContainerStatuses", ("init", "sidecar")),
        ("containerStatuses", ("main",)),
        ("ephemeralContainerStatuses", ("ephemeral",)),
    ):
        rows = [c.json for c in state.containers if c.kind in kinds]
        if rows:
            status[key] = rows
    if (generation := pod["metadata"].get("generation")) is not None:
        status["observedGeneration"] = generation
    return status


_OWN_CONDITIONS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


def _conditions(pod: Obj, state: PodState, found: str, now_s: float) -> list[Obj]:
    old = (pod.get("status") or {}).get("conditions") or []
    by_type = {c["type"]: c for c in old}
    ended = found in ("Succeeded", "Failed")
    unready = [c.name for c in state.containers if c.kind == "main" and not c.is_ready]
    unready += [c.name for c in state.containers if c.kind == "sidecar" and not c.is_ready]
    if ended:
        done = "PodCompleted" if found == "Succeeded" else "PodFailed"
        containers_ready = _Verdict(False, done)
    elif unready:
        message = f"containers with unready status: [{' '.join(unready)}]"
        containers_ready = _Verdict(False, "ContainersNotReady", message)
    else:
        containers_ready = _Verdict(True)
    ready = containers_ready
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or ()]
    missing = [g for g in gates if (by_type.get(g) or {}).get("status") != "True"]
    if containers_ready.ok and missing:
        why = "; ".join(
            f'corresponding condition of pod readiness gate "{g}" '
            + ('is not "True"' if g in by_type else "does not exist")
            + "."
            for g in missing
        )
        ready = _Verdict(False, "ReadinessGatesNotReady", why)
    if initialized(state) or found == "Succeeded":
        init = _Verdict(True, "PodCompleted" if found == "Succeeded" else "")
    else:
        names = [c.name for c in state.containers if c.kind in ("init", "sidecar") and not c.is_ready]
        init = _Verdict(
            False, "ContainersNotInitialized", f"containers with incomplete status: [{' '.join(names)}]"
        )
    verdicts = {
        "PodReadyToStartContainers": _Verdict(state.sandbox),
        "Initialized": init,
        "Ready": ready,
        "ContainersReady": containers_ready,
        "PodScheduled": _Verdict(True),
    }
    kept = [c for c in old if c["type"] not in _OWN_CONDITIONS]
    return [v.json(t, by_type.get(t), now_s) for t, v in verdicts.items()] + kept


@dataclass(frozen=True)
class _Verdict:
    ok: bool
    reason: str = ""
    message: str = ""

    def json(self, type_: str, old: Obj | None, now_s: float) -> Obj:
        status = "True" if self.ok else "False"
        since = timestamp(now_s)
        if old is not None and old.get("status") == status and old.get("lastTransitionTime"):
            since = old["lastTransitionTime"]
        found: Obj = {
            "type": type_,
            "status": status,
            "lastProbeTime": None,
            "lastTransitionTime": since,
        }
        if self.reason:
            found["reason"] = self.reason
        if self.message:
            found["message"] = self.message
        return found


def order(states: Iterable[ContainerState], names: Sequence[str]) -> list[ContainerState]:
    """In the order of the pod's spec."""
    rank = {name: index for index, name in enumerate(names)}
    return sorted(states, key=lambda s: rank.get(s.name, len(rank)))
