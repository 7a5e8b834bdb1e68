"""Three-way merge, as `kubectl apply` does it: what was written last, what is there, what shall be. Pure.

A field of `last` that is not in `new` is removed; a field of `new` is set; everything else (defaults, what
controllers wrote) stays. Lists with a merge key are merged element by element, lists of plain values with
strategy "merge" as sets; every other list is replaced. Merge keys are those of the generated schemas; objects
without one (custom resources) are merged as JSON merge patch would (RFC 7396).
"""

from __future__ import annotations

from typing import Any

from podlane.lab.api import schema
from podlane.lab.api.schema import Field, Type
from podlane.lab.client import Obj

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def merge(last: Obj, new: Obj, current: Obj) -> Obj:
    """A new object; apiVersion and kind are new's. Nothing that is given is changed."""
    kind = schema.type_of(new.get("apiVersion", ""), new.get("kind", ""))
    return _map(last, new, current, kind, "")


def _map(last: Any, new: Obj, current: Any, kind: Type | None, strategy: str) -> Obj:
    last = last if isinstance(last, dict) else {}
    current = current if isinstance(current, dict) else {}
    # retainKeys: of a union, what is not said is not wanted (strategy.rollingUpdate, a volume's source).
    keep = "retainKeys" not in strategy
    merged = {k: v for k, v in current.items() if k in new or (keep and k not in last)}
    for key, value in new.items():
        if value is None:
            merged.pop(key, None)
            continue
        field = kind.fields.get(key) if kind is not None else None
        merged[key] = _value(last.get(key), value, current.get(key), field)
    return merged


def _value(last: Any, new: Any, current: Any, field: Field | None) -> Any:
    strategy = (field.strategy or "") if field is not None else ""
    if isinstance(new, dict) and strategy != "replace":
        child = field.child if field is not None and field.form == "ref" else None
        return _map(last, new, current, child, strategy)
    if isinstance(new, list) and field is not None and "merge" in strategy.split(","):
        last, current = last or [], current or []
        if field.merge_key is not None:
            return _elements(last, new, current, field, strategy)
        return [*new, *(v for v in current if v not in new and v not in last)]
    return new


def _elements(last: list[Any], new: list[Any], current: list[Any], field: Field, strategy: str) -> list[Any]:
    key = field.merge_key
    named = {e.get(key): e for e in current if isinstance(e, dict)}
    before = {e.get(key): e for e in last if isinstance(e, dict)}
    merged: list[Any] = []
    wanted = set()
    for element in new:
        if not isinstance(element, dict) or key not in element:
            return new
        name = element[key]
        wanted.add(name)
        merged.append(_map(before.get(name), element, named.get(name), field.child, strategy))
    return [*merged, *(e for name, e in named.items() if name not in wanted and name not in before)]
