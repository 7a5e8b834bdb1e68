"""What pods and conditions say. Pure: who needs the time hands it in as seconds since 1970."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from podlane.controller.meta import (
    annotations_of,
    condition,
    created_s,
    is_deleting,
    labels_of,
    seconds,
    timestamp,
    with_condition,
)
from podlane.lab.client import Obj

__all__ = [
    "annotations_of",
    "condition",
    "created_s",
    "is_deleting",
    "labels_of",
    "seconds",
    "timestamp",
    "with_condition",
]

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
ZONE = "topology.kubernetes.io/zone"


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
