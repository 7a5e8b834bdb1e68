"""Cells that many tables share: ages and durations as kubectl writes them, containers, selectors.

A cell is a function (object, Unix seconds now) -> what stands in the table.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Any

from podlane.errors import ConfigError
from podlane.lab.client import Obj
from podlane.model import selectors

Cell = Callable[[Obj, float], Any]

NONE = "<none>"
UNKNOWN = "<unknown>"

_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86400, 365 * 86400


def at(obj: Any, path: str, default: Any = None) -> Any:
    """A dotted path below an object; default when something on the way is absent."""
    for part in path.split("."):
        obj = obj.get(part) if isinstance(obj, dict) else None
        if obj is None:
            return default
    return obj


def field(path: str, default: Any = NONE) -> Cell:
    """The value at a path."""

    def cell(obj: Obj, _: float) -> Any:
        found = at(obj, path)
        return default if found is None or found == "" else found

    return cell


def number(path: str) -> Cell:
    def cell(obj: Obj, _: float) -> int:
        return int(at(obj, path, 0))

    return cell


def seconds(text: str) -> float | None:
    """Unix seconds of a metav1.Time or MicroTime; None when it is none."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, TypeError):
        return None


def human(duration_s: float) -> str:
    """k8s.io/apimachinery duration.HumanDuration: about two digits, in the units that fit."""
    s = int(duration_s)
    if s < -1:
        return "<invalid>"
    if s < 0:
        return "0s"
    if s < 2 * _MINUTE:
        return f"{s}s"
    minutes = s // _MINUTE
    if minutes < 10:
        return f"{minutes}m" if s % 60 == 0 else f"{minutes}m{s % 60}s"
    if minutes < 3 * 60:
        return f"{minutes}m"
    hours = s // _HOUR
    if hours < 8:
        return f"{hours}h" if minutes % 60 == 0 else f"{hours}h{minutes % 60}m"
    if hours < 48:
        return f"{hours}h"
    if hours < 24 * 8:
        return f"{hours // 24}d" if hours % 24 == 0 else f"{hours // 24}d{hours % 24}h"
    days = s // _DAY
    if days < 365 * 2:
        return f"{days}d"
    if days < 365 * 8:
        rest = days % 365
        return f"{days // 365}y" if rest == 0 else f"{days // 365}y{rest}d"
    return f"{s // _YEAR}y"


def since(text: str | None, now_s: float) -> str:
    """How long ago a timestamp is."""
    found = seconds(text) if text else None
    return UNKNOWN if found is None else human(now_s - found)


def age(obj: Obj, now_s: float) -> str:
    return since(obj["metadata"].get("creationTimestamp"), now_s)


def created_at(obj: Obj, _: float) -> str:
    found: str = obj["metadata"].get("creationTimestamp", UNKNOWN)
    return found


def selector(value: Any) -> str:
    """A LabelSelector or a map of labels."""
    if not value:
        return NONE
    try:
        if "matchLabels" in value or "matchExpressions" in value:
            return str(selectors.from_dict(value)) or NONE
        return ",".join(f"{k}={v}" for k, v in sorted(value.items()))
    except ConfigError:
        return "<error>"


def selector_at(path: str) -> Cell:
    def cell(obj: Obj, _: float) -> str:
        return selector(at(obj, path))

    return cell


def _containers(obj: Obj, path: str, key: str) -> str:
    return ",".join(str(c.get(key, "")) for c in at(obj, path, ()))


def container_names(path: str) -> Cell:
    return lambda obj, _: _containers(obj, path + ".containers", "name")


def container_images(path: str) -> Cell:
    return lambda obj, _: _containers(obj, path + ".containers", "image")


def joined(values: Iterable[Any], limit: int = 3) -> str:
    """a,b,c + 2 more..."""
    found = list(map(str, values))
    if not found:
        return NONE
    shown = ",".join(found[:limit])
    return f"{shown} + {len(found) - limit} more..." if len(found) > limit else shown


def host_port(address: str, port: Any) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
