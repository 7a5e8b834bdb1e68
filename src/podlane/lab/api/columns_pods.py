"""Columns of pods: what STATUS, READY and RESTARTS say (kubernetes pkg/printers/internalversion printPod)."""

from __future__ import annotations

from typing import Any

from podlane.lab.api.cells import NONE, age, at, field, human, seconds
from podlane.lab.client import Obj


def _sidecars(pod: Obj) -> set[str]:
    """Init containers that run on (KEP-753)."""
    found = at(pod, "spec.initContainers", ())
    return {c["name"] for c in found if c.get("restartPolicy") == "Always"}


def _condition(pod: Obj, type_: str, status: str) -> bool:
    found = at(pod, "status.conditions", ())
    return any(c.get("type") == type_ and c.get("status") == status for c in found)


def _init_reason(pod: Obj) -> str:
    """What init containers have to say; "" when they are done."""
    sidecars = _sidecars(pod)
    for i, container in enumerate(at(pod, "status.initContainerStatuses", ())):
        state = container.get("state") or {}
        ended, waiting = state.get("terminated"), state.get("waiting") or {}
        if ended and not ended.get("exitCode"):
            continue
        if container["name"] in sidecars and container.get("started"):
            continue
        if ended:
            if ended.get("reason"):
                return f"Init:{ended['reason']}"
            if ended.get("signal"):
                return f"Init:Signal:{ended['signal']}"
            return f"Init:ExitCode:{ended.get('exitCode', 0)}"
        if waiting.get("reason") and waiting["reason"] != "PodInitializing":
            return f"Init:{waiting['reason']}"
        return f"Init:{i}/{len(at(pod, 'spec.initContainers', ()))}"
    return ""


def status(pod: Obj, _: float = 0) -> str:
    reason = str(at(pod, "status.reason") or at(pod, "status.phase", ""))
    if any(
        c.get("type") == "PodScheduled" and c.get("reason") == "SchedulingGated"
        for c in at(pod, "status.conditions", ())
    ):
        reason = "SchedulingGated"
    init = _init_reason(pod)
    if init:
        reason = init
    if not init or _condition(pod, "Initialized", "True"):
        running = False
        for container in reversed(at(pod, "status.containerStatuses", [])):
            state = container.get("state") or {}
            waiting, ended = state.get("waiting") or {}, state.get("terminated")
            if waiting.get("reason"):
                reason = waiting["reason"]
            elif ended and ended.get("reason"):
                reason = ended["reason"]
            elif ended and ended.get("signal"):
                reason = f"Signal:{ended['signal']}"
            elif ended:
                reason = f"ExitCode:{ended.get('exitCode', 0)}"
            elif container.get("ready") and "running" in state:
                running = True
        if reason == "Completed" and running:
            reason = "Running" if _condition(pod, "Ready", "True") else "NotReady"
    if "deletionTimestamp" in pod["metadata"] and at(pod, "status.reason") == "NodeLost":
        return "Unknown"
    if "deletionTimestamp" in pod["metadata"] and at(pod, "status.phase") not in ("Succeeded", "Failed"):
        return "Terminating"
    return reason


def ready(pod: Obj, _: float) -> str:
    sidecars = _sidecars(pod)
    statuses = list(at(pod, "status.containerStatuses", ()))
    statuses += [c for c in at(pod, "status.initContainerStatuses", ()) if c["name"] in sidecars]
    count = sum(1 for c in statuses if c.get("ready"))
    return f"{count}/{len(at(pod, 'spec.containers', ())) + len(sidecars)}"


def restarts(pod: Obj, now_s: float) -> str:
    sidecars = _sidecars(pod)
    init: list[Any] = list(at(pod, "status.initContainerStatuses", ()))
    counted = list(at(pod, "status.containerStatuses", ()))
    counted += [c for c in init if c["name"] in sidecars]
    if _init_reason(pod):
        counted = init
    total = sum(int(c.get("restartCount") or 0) for c in counted)
    ends = [seconds(at(c, "lastState.terminated.finishedAt", "")) for c in counted]
    last = max((e for e in ends if e is not None), default=None)
    return str(total) if not total or last is None else f"{total} ({human(now_s - last)} ago)"


def ip(pod: Obj, _: float) -> str:
    addresses = at(pod, "status.podIPs") or [{"ip": at(pod, "status.podIP", NONE)}]
    found: str = addresses[0].get("ip") or NONE
    return found


def gates(pod: Obj, _: float) -> str:
    wanted = [g["conditionType"] for g in at(pod, "spec.readinessGates", ())]
    return f"{sum(_condition(pod, g, 'True') for g in wanted)}/{len(wanted)}" if wanted else NONE


ROWS = (
    ("Ready", ready),
    ("Status", status),
    ("Restarts", restarts),
    ("Age", age),
    ("+IP", ip),
    ("+Node", field("spec.nodeName")),
    ("+Nominated Node", field("status.nominatedNodeName")),
    ("+Readiness Gates", gates),
)
