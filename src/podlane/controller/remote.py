"""ApiClient over HTTP, for the kinds that the controller reads and writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from podlane.controller.client import Event, Obj
from podlane.errors import ApiError, GoneError
from podlane.model import pools
from podlane.watch.http import ApiHttp

PAGE_OBJECTS: Final = 500
WATCH_S: Final = 290
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
    """podlane.controller.client.ApiClient. Watches go on from where the server ended them in good order."""

    def __init__(self, http: ApiHttp) -> None:
        self._http = http

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
        return _object(await self._http.put(where, _body(obj)))

    async def patch(
        self, resource: str, name: str, namespace: str, patch: Obj, *, subresource: str = ""
    ) -> Obj:
        where = path(resource, namespace, name, subresource)
        return _object(await self._http.patch(where, _body(patch), MERGE_PATCH))

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

    async def watch(
        self,
        resource: str,
        namespace: str = "",
        *,
        since: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncIterator[Event]:
        query = _selectors(label_selector, field_selector)
        query |= {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_S)}
        while True:
            query["resourceVersion"] = since
            heard = False
            async with aclosing(self._http.lines(path(resource, namespace), query)) as lines:
                async for line in lines:
                    if not line:
                        continue
                    event = _object(line)
                    obj = event["object"]
                    if event["type"] == "ERROR":
                        raise _failure(obj)
                    since, heard = obj["metadata"]["resourceVersion"], True
                    if event["type"] != "BOOKMARK":
                        yield Event(event["type"], obj)
            if not heard:
                return  # a server that ends watches at once: the caller lists anew, after a pause


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


def _failure(status: Obj) -> ApiError:
    kind = GoneError if status.get("code") == 410 else ApiError
    return kind(
        status.get("message") or "the watch failed",
        code=int(status.get("code") or 500),
        reason=status.get("reason"),
    )
