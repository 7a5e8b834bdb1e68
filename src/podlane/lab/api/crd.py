"""CustomResourceDefinitions (apiextensions.k8s.io/v1): each makes a resource that is served like any other.

`Definitions` follows the stored definitions: a new one adds its versions to the catalog, a deleted one takes
its objects with it. Versions differ in name only (conversion None): an object shows under every version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from podlane.errors import ConfigError, NotFoundError
from podlane.lab.api import crd_openapi, jsonpath, metadata, structural, structural_validation, validation
from podlane.lab.api.cells import Cell, since
from podlane.lab.api.crd_definition import FINALIZER, STORAGE
from podlane.lab.api.deletion import DeleteOptions
from podlane.lab.api.registry import Registry
from podlane.lab.api.resources import Resource, resource
from podlane.lab.api.status import FieldProblem, shown
from podlane.lab.api.store import LogEvent, Transaction
from podlane.lab.api.strategy import count_generation, keep_status
from podlane.lab.api.table import AGE, NAME, Column, column
from podlane.lab.client import Obj


class Version(Struct, frozen=True):
    """One served version. scale: paths of spec and status replicas and of the selector."""

    row: Resource
    schema: structural.Schema
    columns: Sequence[Column]
    scale: tuple[str, str, str] | None
    selectable: tuple[str, ...]


class Definitions:
    """The custom resources of a registry; also their Strategy."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._versions: dict[tuple[str, str], Version] = {}
        """By (storage name, version)."""
        self._row = registry.catalog.named(STORAGE)
        for record in registry.store.records(STORAGE):
            self._serve(record.obj)
        registry.store.subscribe(self._follow)
        for record in registry.store.records(STORAGE):
            self._clean(record.name)

    def version(self, row: Resource) -> Version:
        """Raises NotFoundError for one that is no longer served."""
        found = self._versions.get((row.storage, row.version))
        if found is None:
            raise NotFoundError("the server could not find the requested resource")
        return found

    def scale_paths(self, row: Resource) -> tuple[str, str, str] | None:
        return self.version(row).scale

    def selectable(self, row: Resource) -> tuple[str, ...]:
        return self.version(row).selectable

    def columns(self, row: Resource) -> Sequence[Column]:
        return self.version(row).columns

    def openapi(self) -> dict[str, Obj]:
        """OpenAPI v3 documents by path."""
        return crd_openapi.documents((v.row, v.schema) for v in self._versions.values())

    def openapi_v2(self) -> Obj:
        """`definitions` and `paths` that they add to the document of the built-in kinds."""
        return crd_openapi.document_v2((v.row, v.schema) for v in self._versions.values())

    # --- definitions come and go -----------------------------------------------------------------

    def _follow(self, events: list[LogEvent]) -> None:
        for event in events:
            if event.resource == STORAGE:
                self._forget(event.record.obj)
                if event.type == "DELETED":
                    gone = NotFoundError("the server could not find the requested resource")
                    self._registry.hub.end(event.record.name, gone)
                else:
                    self._serve(event.record.obj)
                    self._clean(event.record.name)
            elif event.type == "DELETED" and "." in event.resource:
                self._clean(event.resource)

    def _serve(self, definition: Obj) -> None:
        for found in versions_of(definition):
            self._versions[found.row.storage, found.row.version] = found
            self._registry.catalog.add(found.row)

    def _forget(self, definition: Obj) -> None:
        spec = definition["spec"]
        storage = f"{spec['names']['plural']}.{spec['group']}"
        for key in [k for k in self._versions if k[0] == storage]:
            del self._versions[key]
        self._registry.catalog.remove(spec["group"], spec["names"]["plural"])

    def _clean(self, name: str) -> None:
        """A definition that is being deleted goes when the last of its objects is gone."""
        record = self._registry.store.get(STORAGE, "", name)
        if record is None or "deletionTimestamp" not in record.obj["metadata"]:
            return
        if FINALIZER not in metadata.finalizers(record.obj):
            return
        rows = [v.row for key, v in self._versions.items() if key[0] == name]
        for instance in self._registry.store.records(name):
            if "deletionTimestamp" not in instance.obj["metadata"] and rows:
                self._registry.delete(rows[0], instance.namespace, instance.name, DeleteOptions())
        if not self._registry.store.records(name):

            def without(old: Obj) -> Obj:
                kept = [f for f in metadata.finalizers(old) if f != FINALIZER]
                return {**old, "metadata": {**old["metadata"], "finalizers": kept}}

            if self._registry.store.get(STORAGE, "", name):
                self._registry.change(self._row, "", name, without)

    # --- Strategy of the objects -----------------------------------------------------------------

    def decode(self, resource: Resource, obj: Obj) -> tuple[Obj, list[str]]:
        schema = self.version(resource).schema
        unknown = structural.prune(obj, schema)
        structural.default(obj, schema)
        return obj, unknown

    def prepare_create(self, resource: Resource, obj: Obj) -> None:
        if "status" in resource.subresources:
            obj.pop("status", None)
        count_generation(resource, obj, None)

    def prepare_update(self, resource: Resource, new: Obj, old: Obj, subresource: str) -> None:
        keep_status(resource, new, old, subresource)
        count_generation(resource, new, old)

    def validate_create(self, resource: Resource, obj: Obj) -> Sequence[FieldProblem]:
        own = structural_validation.validate(obj, self.version(resource).schema)
        return [*validation.validate_create(obj), *own]

    def validate_update(
        self, resource: Resource, new: Obj, old: Obj, subresource: str
    ) -> Sequence[FieldProblem]:
        own = structural_validation.validate(new, self.version(resource).schema)
        return [*validation.validate_update(new, old, subresource), *own]

    def created(self, resource: Resource, obj: Obj, transaction: Transaction) -> None:
        pass

    def updated(self, resource: Resource, new: Obj, old: Obj, transaction: Transaction) -> None:
        pass

    def deleted(self, resource: Resource, obj: Obj, transaction: Transaction) -> None:
        pass


# --- one definition -------------------------------------------------------------------------------


def versions_of(definition: Obj) -> Iterator[Version]:
    """The served versions, the preferred one first (Kubernetes' order of versions)."""
    spec = definition["spec"]
    group, names = spec["group"], spec["names"]
    stored = next((v["name"] for v in spec["versions"] if v.get("storage")), spec["versions"][0]["name"])
    served = [v for v in spec["versions"] if v.get("served")]
    for version in sorted(served, key=lambda v: priority(v["name"]), reverse=True):
        sub = version.get("subresources") or {}
        doors = [name for name in ("status", "scale") if name in sub]
        row = resource(
            f"{group}/{version['name']}",
            names["kind"],
            names["plural"],
            cluster=spec.get("scope") == "Cluster",
            short=" ".join(names.get("shortNames") or ()),
            sub=" ".join(doors),
            categories=" ".join(names.get("categories") or ()),
            storage_version=f"{group}/{stored}",
            custom=True,
            singular=names.get("singular") or names["kind"].lower(),
        )
        scale = sub.get("scale")
        paths = None
        if scale:
            paths = tuple(
                str(scale.get(k) or "").lstrip(".")
                for k in ("specReplicasPath", "statusReplicasPath", "labelSelectorPath")
            )
        schema = (version.get("schema") or {}).get("openAPIV3Schema") or {structural.PRESERVE: True}
        yield Version(
            row,
            schema,
            _columns(version.get("additionalPrinterColumns") or ()),
            paths,  # type: ignore[arg-type]
            tuple(f["jsonPath"].lstrip(".") for f in version.get("selectableFields") or ()),
        )


_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")


def priority(version: str) -> tuple[int, int, int, int, str]:
    """v2 > v1 > v1beta2 > v1alpha1 > anything else, the latter alphabetically."""
    match = _VERSION.fullmatch(version)
    if not match:
        return (0, 0, 0, 0, version)
    stability = {None: 3, "beta": 2, "alpha": 1}[match[2]]
    return (1, stability, int(match[1]), int(match[3] or 0), "")


def _columns(given: Sequence[Obj]) -> Sequence[Column]:
    if not given:
        return (NAME, AGE)
    return (NAME, *(_column(c) for c in given))


def _column(given: Obj) -> Column:
    return column(
        given["name"],
        _cell(given["jsonPath"], given.get("type", "string")),
        type_=given.get("type", "string"),
        format_=given.get("format", ""),
        description=given.get("description", ""),
        priority=int(given.get("priority") or 0),
    )


def _cell(path: str, type_: str) -> Cell:
    def cell(obj: Obj, now_s: float) -> Any:
        try:
            found = jsonpath.find(obj, path)
        except ConfigError:
            return "<error>"
        if not found:
            return None
        if type_ == "date":
            return since(str(found[0]), now_s)
        if type_ in ("integer", "number", "boolean"):
            return found[0]
        if len(found) == 1 and isinstance(found[0], dict | list):
            return shown(found[0])
        return ",".join(v if isinstance(v, str) else shown(v) for v in found)

    return cell
