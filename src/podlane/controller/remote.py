"""ApiClient over HTTP, for the kinds that the controller reads and writes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from podlane.controller.client import Event, Listed, Obj
from podlane.errors import ApiError
from podlane.model import pools
from podlane.watch.backoff import Gate
from podlane.watch.follow import Follower
from podlane.watch.http import ApiHttp
from podlane.watch.reflector import Delete, News, Replace, Source, Upsert

PAGE_OBJECTS: Final = 500
MERGE_PATCH: Final = "application/merge-patch+json"


class _Place(NamedTuple):
    group: str
    namespaced: bool


_PLACES: Final = {
    "events": _Place("/api/v1", namespaced=True),
    "leases.coordination.k8s.io": _Place("/apis/coordination.k8s.io/v1", namespaced=True),
    "namespaces": _Place("/api/v1", namespaced=False),
    "nodes": _Place("/api/v1", namespaced=False),
    "services": _Place("/api/v1", namespaced=True),
    pools.RESOURCE: _Place("/apis/podlane.dev/v1alpha1", namespaced=False),
}


def path(resource: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """Raises KeyError for a resource that is not known here."""
    place = _PLACES[resource]
    scope = ["namespaces", namespace] if place.namespaced and namespace else []
    parts = [*scope, resource.partition(".")[0], *([name] if name else [])]
    parts += [subresource] if subresource else []
    return "/".join([place.group, *(quote(part, safe="") for part in parts)])


class HttpClient:
    """podlane.controller.client.ApiClient."""

    def __init__(self, http: ApiHttp) -> None:
        self._http = http
        self._gate = Gate(random.Random())

    @property
    def requests(self) -> Mapping[tuple[str, ...], int]:
        """How many were made, by (verb, resource, HTTP status)."""
        return self._http.requests

    async def get(self, resource: str, name: str, namespace: str = "") -> Obj:
        return _object(await self._http.get(path(resource, namespace, name), {}))

    async def list(
        self, resource: str, namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> tuple[list[Obj], str]:
        query = _selectors(label_selector, field_selector) | {"limit": str(PAGE_OBJECTS)}
        found: list[Obj] = []
        while True:
            page = _object(await self._http.get(path(resource, namespace), query))
            kind = {
                "apiVersion": page.get("apiVersion"),
                "kind": str(page.get("kind")).removesuffix("List"),
            }
            found += [kind | item for item in page.get("items") or ()]
            meta = page["metadata"]
            if not meta.get("continue"):
                return found, meta["resourceVersion"]
            query["continue"] = meta["continue"]

    async def create(self, resource: str, obj: Obj, namespace: str = "") -> Obj:
        return _object(await self._http.post(path(resource, namespace), _body(obj)))

    async def update(self, resource: str, obj: Obj, *, subresource: str = "") -> Obj:
        meta = obj["metadata"]
        where = path(resource, meta.get("namespace") or "", meta["name"], subresource)
        return slim(_object(await self._http.put(where, _body(obj))))

    async def patch(
        self, resource: str, name: str, namespace: str, patch: Obj, *, subresource: str = ""
    ) -> Obj:
        where = path(resource, namespace, name, subresource)
        return slim(_object(await self._http.patch(where, _body(patch), MERGE_PATCH)))

    async def delete(
        self,
        resource: str,
        name: str,
        namespace: str = "",
        *,
        grace_period_s: int | None = None,
        uid: str = "",
        propagation: str = "Background",
    ) -> None:
        options: Obj = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        if uid:
            options["preconditions"] = {"uid": uid}
        await self._http.delete(path(resource, namespace, name), _body(options))

    async def follow(self, resource: str, deliver: Callable[[Listed | Event], None]) -> None:
        """Without end. Events are of type MODIFIED, or DELETED with name and version only."""

        def heard(news: News[Obj]) -> None:
            version = follower.reflector.version
            match news:
                case Replace(objects):
                    deliver(Listed([slim(each) for each in objects], _number(version)))
                case Upsert(obj):
                    deliver(Event("MODIFIED", slim(obj)))
                case Delete((namespace, name)):
                    meta = {"namespace": namespace, "name": name, "resourceVersion": version}
                    deliver(Event("DELETED", {"metadata": meta}))

        source = Source(resource, collection=path(resource))
        follower: Follower[Obj] = Follower(
            source, dict, self._http, heard, lambda error: None, gate=self._gate
        )
        await follower.run()


def slim(obj: Obj) -> Obj:
    """obj without what nobody here reads and what is most of a Node: who wrote which field, which images are
    on it. Not missed: an update without managedFields leaves them as they are, and Nodes are patched."""
    meta, status = obj.get("metadata") or {}, obj.get("status") or {}
    found = obj
    if "managedFields" in meta:
        found = {**found, "metadata": {key: value for key, value in meta.items() if key != "managedFields"}}
    if not _UNREAD.isdisjoint(status):
        found = {**found, "status": {key: value for key, value in status.items() if key not in _UNREAD}}
    return found


_UNREAD: Final = frozenset({"images", "volumesInUse", "volumesAttached", "runtimeHandlers", "features"})


def _selectors(label: str, field: str) -> dict[str, str]:
    named = {"labelSelector": label, "fieldSelector": field}
    return {key: value for key, value in named.items() if value}


def _body(obj: Obj) -> bytes:
    return msgspec.json.encode(obj)


def _object(body: bytes) -> Obj:
    """Raises ApiError for what is no JSON object."""
    try:
        found: Any = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ApiError(f"an answer that is no JSON of Kubernetes: {error}") from None
    if not isinstance(found, dict):
        raise ApiError("an answer that is no JSON object")
    return found


def _number(version: str) -> int:
    return int(version) if version.isdigit() else 0
