"""What every object says of itself: names, times, labels, conditions. Pure.

Who needs the time hands it in as seconds since 1970.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterable
from functools import lru_cache

from podlane.controller.client import Obj


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
