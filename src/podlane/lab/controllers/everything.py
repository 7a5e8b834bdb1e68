"""Informers on every resource there is, custom ones as they come and go.

For those who must see all objects: the garbage collector and the deletion of namespaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from podlane.lab.api.resources import BUILTIN
from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from podlane.lab.controllers.context import Context
from podlane.lab.informer import Informer

CRDS = "customresourcedefinitions.apiextensions.k8s.io"


class Kind(NamedTuple):
    """resource: as clients name it."""

    resource: str
    group: str
    kind: str
    namespaced: bool


EveryHandler: TypeAlias = Callable[[Kind, Obj | None, Obj | None], None]


class Everything:
    """All kinds that can be listed and watched. One a context."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.kinds: dict[str, Kind] = {}
        self._handlers: list[EveryHandler] = []
        stored: set[str] = set()
        for row in BUILTIN:
            # Versions and groups that share their storage are the same objects: one of them is enough.
            if {"list", "watch"} <= set(row.verbs) and row.storage not in stored:
                stored.add(row.storage)
                self._add(Kind(row.id, row.group, row.kind, row.namespaced))
        self._custom: dict[str, Kind] = {}
        context.informer(CRDS).subscribe(self._definition_changed)

    def _add(self, kind: Kind) -> None:
        self.kinds[kind.resource] = kind
        informer = self._context.informer(kind.resource)
        informer.subscribe(lambda old, new: self._tell(kind, old, new))

    def _definition_changed(self, old: Obj | None, new: Obj | None) -> None:
        definition = new or old
        if definition is None:
            return
        spec = definition["spec"]
        resource = f"{spec['names']['plural']}.{spec['group']}"
        established = facts.condition(definition, "Established") if new is not None else None
        if established is not None and established.get("status") == "True":
            if resource not in self.kinds:
                self._add(Kind(resource, spec["group"], spec["names"]["kind"], spec["scope"] == "Namespaced"))
        elif new is None and self.kinds.pop(resource, None) is not None:
            self._context.informers.forget(resource)

    def _tell(self, kind: Kind, old: Obj | None, new: Obj | None) -> None:
        for handler in self._handlers:
            handler(kind, old, new)

    def subscribe(self, handler: EveryHandler) -> None:
        self._handlers.append(handler)
        for kind, informer in self.informers():
            for obj in informer.list():
                handler(kind, None, obj)

    def informers(self) -> Iterator[tuple[Kind, Informer]]:
        for kind in tuple(self.kinds.values()):
            yield kind, self._context.informer(kind.resource)

    def find(self, api_version: str, kind: str) -> Kind | None:
        """The resource an owner reference means; its version does not matter."""
        group = api_version.rpartition("/")[0]
        for each in self.kinds.values():
            if each.kind == kind and each.group == group:
                return each
        return None
