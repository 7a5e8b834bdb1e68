"""What pods and conditions say. Pure: who needs the time hands it in as seconds since 1970."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from podlane.lab.client import Obj

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
ZONE = "topology.kubernetes.io/zone"


def timestamp(now_s: float) -> str:
    """metav1.Time: whole seconds, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))


@lru_cache(maxsize=4096)
def seconds(text: str | None) -> float:
    """A metav1.Time or MicroTime as seconds since 1970; 0 when absent."""
    if not text:
        return 0.0
    whole, _, fraction = text.removesuffix("Z").partition(".")
    try:
        at = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0.0
    return at + (float(f"0.{fraction}") if fraction.isdigit() else 0.0)


def is_deleting(obj: Obj) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


def created_s(obj: Obj) -> float:
    return seconds(obj["metadata"].get("creationTimestamp"))


def labels_of(obj: Obj) -> dict[str, str]:
    return obj["metadata"].get("labels") or {}


def annotations_of(obj: Obj) -> dict[str, str]:
    return obj["metadata"].get("annotations") or {}


# --- conditions -----------------------------------------------------------------------------------


def condition(obj: Obj, type_: str) -> Obj | None:
    for found in (obj.get("status") or {}).get("conditions") or ():
        if found.get("type") == type_:
            return found  # type: ignore[no-any-return]
    return None


def with_condition(
    conditions: Iterable[Obj],
    type_: str,
    status: str,
    reason: str,
    message: str,
    now_s: float,
    *,
    updates: bool = False,
) -> list[Obj]:
    """conditions with one set: in place if it was there, else at the end.

    The transition time changes with the status only. updates: kinds with lastUpdateTime (Deployment),
    which changes with the reason or the message too.
    """
    now = timestamp(now_s)
    new: Obj = {"type": type_, "status": status, "reason": reason, "message": message}
    result, placed = [], False
    for old in conditions:
        if old.get("type") != type_:
            result.append(old)
            continue
        placed = True
        if all(old.get(k) == v for k, v in new.items()):
            result.append(old)
            continue
        moved = old.get("status") != status
        new["lastTransitionTime"] = now if moved else old.get("lastTransitionTime", now)
        if updates:
            new["lastUpdateTime"] = now
        result.append(new)
    if not placed:
        new["lastTransitionTime"] = now
        if updates:
            new["lastUpdateTime"] = now
        result.append(new)
    return result


def without_condition(conditions: Iterable[Obj], type_: str) -> list[Obj]:
    return [c for c in conditions if c.get("type") != type_]


# --- pods -----------------------------------------------------------------------------------------


def phase(pod: Obj) -> str:
    return (pod.get("status") or {}).get("phase") or "Pending"


def is_finished(pod: Obj) -> bool:
    return phase(pod) in ("Succeeded", "Failed")


def is_active(pod: Obj) -> bool:
    """It runs or will run: neither finished nor terminating."""
    return not is_finished(pod) and not is_deleting(pod)


def is_ready(pod: Obj) -> bool:
    found = condition(pod, "Ready")
    return found is not None and found.get("status") == "True"


def available_in_s(pod: Obj, min_ready_s: float, now_s: float) -> float | None:
    """Seconds until the pod has been ready for min_ready_s: 0 when it has, None while it is not ready."""
    if not is_ready(pod):
        return None
    since = seconds((condition(pod, "Ready") or {}).get("lastTransitionTime"))
    return max(0.0, since + min_ready_s - now_s) if min_ready_s else 0.0


def node_of(pod: Obj) -> str:
    return pod.get("spec", {}).get("nodeName") or ""


def ips_of(pod: Obj) -> list[str]:
    status = pod.get("status") or {}
    found = [e["ip"] for e in status.get("podIPs") or () if e.get("ip")]
    return found or ([status["podIP"]] if status.get("podIP") else [])


def restarts(pod: Obj) -> int:
    return sum(s.get("restartCount") or 0 for s in (pod.get("status") or {}).get("containerStatuses") or ())


def deletion_order(pod: Obj, neighbours: int) -> tuple[Any, ...]:
    """Sort key: the pod a ReplicaSet gives up first comes first (kube's ActivePodsWithRanks).

    Unassigned, then pending, then not ready; the cheaper one (pod-deletion-cost); where more pods of the
    same owner (neighbours) share its node; ready for a shorter time; more restarts; newer; by name.
    """
    ready = is_ready(pod)
    since = seconds((condition(pod, "Ready") or {}).get("lastTransitionTime")) if ready else 0.0
    return (
        bool(node_of(pod)),
        {"Pending": 0, "Unknown": 1}.get(phase(pod), 2),
        ready,
        _integer(annotations_of(pod).get(DELETION_COST)),
        -neighbours,
        -since,
        -restarts(pod),
        -created_s(pod),
        pod["metadata"]["name"],
    )


def _integer(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return 0


def int_or_percent(value: int | str | None, total: int, *, up: bool) -> int:
    """An IntOrString such as maxSurge, of total. up: round a percentage up."""
    if isinstance(value, str) and value.endswith("%"):
        share = int(value[:-1]) * total
        return -(-share // 100) if up else share // 100
    return int(value or 0)
