"""Tables for people: what `kubectl get` prints, made here as kube-apiserver makes it.

The columns of each kind are in columns.py, those of a custom resource in its definition; other kinds have
Name and Age.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from podlane.lab.api import columns as builtin
from podlane.lab.api.cells import Cell, age
from podlane.lab.api.resources import Resource
from podlane.lab.client import Obj


class Column(NamedTuple):
    """priority 0: always shown; 1: with -o wide."""

    definition: Obj
    cell: Cell


def column(
    name: str,
    cell: Cell,
    *,
    type_: str = "string",
    format_: str = "",
    description: str = "",
    priority: int = 0,
) -> Column:
    definition: Obj = {
        "name": name,
        "type": type_,
        "format": format_,
        "description": description,
        "priority": priority,
    }
    return Column(definition, cell)


def _name(obj: Obj, now_s: float) -> str:
    found: str = obj["metadata"]["name"]
    return found


NAME = column("Name", _name, format_="name", description="Name of the object")
AGE = column("Age", age, description="Time since the object was made")
DEFAULT = (NAME, AGE)


def _parse(rows: Sequence[builtin.Row]) -> tuple[Column, ...]:
    found = [] if any(r[0] == "Name" for r in rows) or rows is builtin.EVENTS else [NAME]
    for title, cell, *more in rows:
        priority = 1 if title.startswith("+") else 0
        type_ = more[0] if more else "string"
        form = "name" if title == "Name" else ""
        found.append(column(title.lstrip("+"), cell, type_=type_, priority=priority, format_=form))
    return tuple(found)


_BUILTIN = {storage: _parse(rows) for storage, rows in builtin.COLUMNS.items()}


class Tables:
    """custom: the columns of a custom resource, from its definition."""

    def __init__(
        self,
        custom: Callable[[Resource], Sequence[Column] | None] = lambda _: None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._custom, self._now_s = custom, now_s

    def columns(self, resource: Resource) -> Sequence[Column]:
        if resource.custom:
            return self._custom(resource) or DEFAULT
        return _BUILTIN.get(resource.storage, DEFAULT)

    def cells(self, resource: Resource, obj: Obj) -> list[Any]:
        now_s = self._now_s()
        return [c.cell(obj, now_s) for c in self.columns(resource)]
