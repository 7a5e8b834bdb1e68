"""What is particular to a kind when it is written: decoding, defaults, validation, what status may do.

The registry asks a `Strategy`; built-in kinds share one that reads the generated schemas, custom resources
have one made from their definition (crd.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from podlane.lab.api import (
    allocation_fields,
    crd_definition,
    defaults,
    metadata,
    pods,
    validation,
    validation_decode,
)
from podlane.lab.api.allocation import SERVICES, ServiceAllocator
from podlane.lab.api.crd_definition import STORAGE as DEFINITIONS
from podlane.lab.api.resources import Resource
from podlane.lab.api.status import FieldProblem
from podlane.lab.api.store import Transaction
from podlane.lab.client import Obj


class Strategy(Protocol):
    """Every method belongs to one resource; objects are in its storage version but for `decode`."""

    def decode(self, resource: Resource, obj: Obj) -> tuple[Obj, list[str]]:
        """(obj in the kind's own form, paths of unknown fields). Raises ApiError(400) on a wrong type."""
        ...

    def prepare_create(self, resource: Resource, obj: Obj) -> None:
        """In place: no status where the server owns it, defaults, the first generation."""
        ...

    def prepare_update(self, resource: Resource, new: Obj, old: Obj, subresource: str) -> None:
        """In place: what this door may not change comes from old; defaults, generation."""
        ...

    def validate_create(self, resource: Resource, obj: Obj) -> Sequence[FieldProblem]: ...

    def validate_update(
        self, resource: Resource, new: Obj, old: Obj, subresource: str
    ) -> Sequence[FieldProblem]: ...

    def created(self, resource: Resource, obj: Obj, transaction: Transaction) -> None:
        """Inside the transaction, before obj is stored: allocate. Raises ApiError: nothing happens."""
        ...

    def updated(self, resource: Resource, new: Obj, old: Obj, transaction: Transaction) -> None: ...

    def deleted(self, resource: Resource, obj: Obj, transaction: Transaction) -> None:
        """The object is gone for good: give back what was allocated."""
        ...


# Kinds with a generation (metadata.generation of their strategies in pkg/registry).
_GENERATIONS = frozenset(
    (
        "customresourcedefinitions.apiextensions.k8s.io",
        "cronjobs.batch",
        "daemonsets.apps",
        "deployments.apps",
        "endpointslices.discovery.k8s.io",
        "ingresses.networking.k8s.io",
        "ingressclasses.networking.k8s.io",
        "jobs.batch",
        "networkpolicies.networking.k8s.io",
        "poddisruptionbudgets.policy",
        "pods",
        "replicasets.apps",
        "replicationcontrollers",
        "statefulsets.apps",
    )
)


def counts_generations(resource: Resource) -> bool:
    return resource.custom or resource.storage in _GENERATIONS


def keep_status(resource: Resource, new: Obj, old: Obj, subresource: str) -> None:
    """Through the main door status stays as it was; through /status everything else does.

    Annotations and finalizers may come through /status (controllers of nodes and pods write them so).
    """
    if subresource == "status":
        kept = new.get("status")
        meta = {**old["metadata"]}
        for key in ("annotations", "labels"):
            if key in new["metadata"]:
                meta[key] = new["metadata"][key]
            else:
                meta.pop(key, None)
        new.clear()
        new.update({**old, "metadata": meta})
        new.pop("status", None)
        if kept is not None:
            new["status"] = kept
    elif "status" in resource.subresources and subresource not in ("binding", "finalize"):
        if "status" in old:
            new["status"] = old["status"]
        else:
            new.pop("status", None)


def count_generation(resource: Resource, new: Obj, old: Obj | None) -> None:
    if not counts_generations(resource):
        return
    if old is None:
        new["metadata"]["generation"] = 1
    elif metadata.spec_changed(new, old):
        new["metadata"]["generation"] = int(old["metadata"].get("generation", 0)) + 1


class CustomResources(Strategy, Protocol):
    """The Strategy of custom resources, and what their definitions say beyond it."""

    def scale_paths(self, row: Resource) -> tuple[str, str, str] | None:
        """Paths of spec and status replicas and of the selector; None without a scale subresource."""
        ...

    def selectable(self, row: Resource) -> tuple[str, ...]:
        """Paths that field selectors may ask about."""
        ...

    def openapi(self) -> dict[str, Obj]:
        """OpenAPI v3 documents by path, as "apis/example.com/v1"."""
        ...

    def openapi_v2(self) -> Obj:
        """`definitions` and `paths` that they add to the document of the built-in kinds."""
        ...


class BuiltinStrategy:
    """All built-in kinds. services: hands out addresses and node ports."""

    def __init__(self, services: ServiceAllocator) -> None:
        self._services = services

    def decode(self, resource: Resource, obj: Obj) -> tuple[Obj, list[str]]:
        found, unknown = validation_decode.decode(obj)
        defaults.apply(found)
        return found, unknown

    def prepare_create(self, resource: Resource, obj: Obj) -> None:
        if "status" in resource.subresources:
            obj.pop("status", None)
        if resource.storage == "pods":
            obj["status"] = {"phase": "Pending"}
        elif resource.storage == SERVICES:
            allocation_fields.prepare_create(obj)
            obj["status"] = {"loadBalancer": {}}
        elif resource.storage == "jobs.batch":
            defaults.own_pods(obj)
        elif resource.storage == DEFINITIONS:
            crd_definition.establish(obj, None, time.time())
        elif resource.storage == "jobs.batch":
            defaults.own_pods(obj)
        count_generation(resource, obj, None)

    def prepare_update(self, resource: Resource, new: Obj, old: Obj, subresource: str) -> None:
        keep_status(resource, new, old, subresource)
        if resource.storage == SERVICES and not subresource:
            allocation_fields.prepare_update(new, old)
        elif resource.storage == DEFINITIONS:
            crd_definition.establish(new, old, time.time())
        if subresource != "binding":
            count_generation(resource, new, old)

    def validate_create(self, resource: Resource, obj: Obj) -> Sequence[FieldProblem]:
        if resource.storage == DEFINITIONS:
            return list(crd_definition.problems(obj))
        return validation.validate_create(obj)

    def validate_update(
        self, resource: Resource, new: Obj, old: Obj, subresource: str
    ) -> Sequence[FieldProblem]:
        if resource.storage == DEFINITIONS:
            return [*crd_definition.problems(new), *crd_definition.changes(new, old)]
        return validation.validate_update(new, old, subresource)

    def created(self, resource: Resource, obj: Obj, transaction: Transaction) -> None:
        if resource.storage == SERVICES:
            self._services.create(transaction, obj)
        elif resource.storage == "pods":
            pods.admit(obj, transaction)

    def updated(self, resource: Resource, new: Obj, old: Obj, transaction: Transaction) -> None:
        if resource.storage == SERVICES:
            self._services.update(transaction, new, old)

    def deleted(self, resource: Resource, obj: Obj, transaction: Transaction) -> None:
        if resource.storage == SERVICES:
            self._services.delete(transaction, obj)
