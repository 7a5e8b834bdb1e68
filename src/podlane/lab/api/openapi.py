"""/openapi/v2 and /openapi/v3: the generated documents of built-in kinds, and those of custom resources.

v2 is JSON or, for kubectl 1.28 and older, gnostic's protobuf; v3 is JSON only, which all its clients ask for.
"""

from __future__ import annotations

import hashlib
from functools import cache

from aiohttp import web

from podlane.errors import ApiError, NotFoundError
from podlane.lab.api import gnostic, schema
from podlane.lab.api.registry import Registry
from podlane.lab.api.request import ranges
from podlane.lab.api.resources import Catalog
from podlane.lab.api.store import decode, encode
from podlane.lab.client import Obj

_JSON = "application/json"


def root_paths(catalog: Catalog) -> list[str]:
    found = ["/api", "/api/v1", "/apis"]
    for group, versions in catalog.groups().items():
        if group:
            found += [f"/apis/{group}", *(f"/apis/{group}/{v}" for v in versions)]
    found += ["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
    return sorted(found)


def respond(registry: Registry, request: web.BaseRequest, parts: list[str]) -> web.Response:
    """parts: the path's segments, "openapi" first. Raises NotFoundError, ApiError(406)."""
    if request.method != "GET":
        raise ApiError("method not allowed", code=405, reason="MethodNotAllowed")
    if parts == ["openapi", "v2"]:
        if _accepted(request, _JSON, *gnostic.MEDIA_TYPES) == _JSON:
            return _cached(request, _v2(registry), _JSON)
        return _cached(request, _v2_protobuf(registry), gnostic.MEDIA_TYPE)
    if parts[:2] != ["openapi", "v3"]:
        raise NotFoundError("the server could not find the requested resource")
    if len(parts) == 2:
        return web.Response(body=encode(_index(registry)), content_type=_JSON)
    _accepted(request, _JSON)
    return _cached(request, _document(registry, "/".join(parts[2:])), _JSON)


def _accepted(request: web.BaseRequest, *served: str) -> str:
    """The first media type of the Accept header that is served; the first one served if any will do.

    Raises ApiError(406).
    """
    accept = request.headers.get("Accept", "")
    for kind, _ in ranges(accept or "*/*"):
        if kind in ("*/*", "application/*"):
            return served[0]
        if kind in served:
            return kind
    message = f"only the following media types are accepted: {', '.join(served)}"
    raise ApiError(message, code=406, reason="NotAcceptable")


def _cached(request: web.BaseRequest, body: bytes, media_type: str) -> web.Response:
    tag = f'"{_hash(body)}"'
    headers = {"ETag": tag, "Vary": "Accept"}
    if request.query.get("hash") == tag.strip('"'):
        headers["Cache-Control"] = "public, immutable"
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type=media_type, headers=headers)


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest().upper()


_hashes: dict[str, str] = {}


def _custom(registry: Registry) -> dict[str, Obj]:
    return registry.custom.openapi() if registry.custom else {}


def _index(registry: Registry) -> Obj:
    paths: Obj = {}
    for path in schema.openapi_v3_paths():
        if path not in _hashes:
            _hashes[path] = _hash(schema.openapi_v3(path))
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={_hashes[path]}"}
    for path, body in _custom(registry).items():
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={_hash(encode(body))}"}
    return {"paths": paths}


def _document(registry: Registry, path: str) -> bytes:
    if path in schema.openapi_v3_paths():
        return schema.openapi_v3(path)
    custom = _custom(registry).get(path)
    if custom is None:
        raise NotFoundError("the server could not find the requested resource")
    return encode(custom)


def _v2(registry: Registry) -> bytes:
    body, added = schema.openapi_v2(), _added_v2(registry)
    if not added["definitions"]:
        return body
    document = decode(body)
    for part, entries in added.items():
        document[part] |= entries
    return encode(document)


def _v2_protobuf(registry: Registry) -> bytes:
    return _builtin_protobuf() + gnostic.encode(_added_v2(registry))


def _added_v2(registry: Registry) -> Obj:
    return registry.custom.openapi_v2() if registry.custom else {"definitions": {}, "paths": {}}


@cache
def _builtin_protobuf() -> bytes:
    """Made when somebody asks for the first time, which takes some 50 ms; kept, some 750 kB."""
    return gnostic.encode(decode(schema.openapi_v2()))
