"""/openapi/v2 and /openapi/v3: the generated documents of built-in kinds, and those of custom resources."""

from __future__ import annotations

import hashlib

from aiohttp import web

from podlane.errors import ApiError, NotFoundError
from podlane.lab.api import schema
from podlane.lab.api.registry import Registry
from podlane.lab.api.request import ranges
from podlane.lab.api.resources import Catalog
from podlane.lab.api.store import decode, encode
from podlane.lab.client import Obj


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
        _accept_json(request)
        return _cached(request, _v2(registry))
    if parts[:2] != ["openapi", "v3"]:
        raise NotFoundError("the server could not find the requested resource")
    if len(parts) == 2:
        return web.Response(body=encode(_index(registry)), content_type="application/json")
    _accept_json(request)
    body = _document(registry, "/".join(parts[2:]))
    return _cached(request, body)


def _accept_json(request: web.BaseRequest) -> None:
    """The documents are served as JSON only; a client that takes nothing else than protobuf is told so."""
    accept = request.headers.get("Accept", "")
    kinds = [kind for kind, _ in ranges(accept)] if accept else []
    if kinds and not any(k in ("application/json", "*/*", "application/*") for k in kinds):
        raise ApiError(
            "only the following media types are accepted: application/json", code=406, reason="NotAcceptable"
        )


def _cached(request: web.BaseRequest, body: bytes) -> web.Response:
    tag = f'"{_hash(body)}"'
    headers = {"ETag": tag, "Vary": "Accept"}
    if request.query.get("hash") == tag.strip('"'):
        headers["Cache-Control"] = "public, immutable"
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type="application/json", headers=headers)


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
    """With custom resources: their definitions, and paths by which `kubectl explain` finds them."""
    body = schema.openapi_v2()
    custom = _custom(registry)
    if not custom:
        return body
    document = decode(body)
    for part in custom.values():
        document["definitions"] |= part["components"]["schemas"]
        for path, methods in part["paths"].items():
            document["paths"][path] = {
                method: {**operation, "responses": {"200": {"description": "OK"}}, "parameters": []}
                for method, operation in methods.items()
                if isinstance(operation, dict)
            }
    return encode(document)
