"""The HTTP door: who may come in, which room a path leads to, and how answers and refusals look."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import yaml
from aiohttp import web

from podlane.errors import ApiError, NotFoundError
from podlane.lab.api import discovery, openapi, status
from podlane.lab.api import request as requests
from podlane.lab.api.accounts import Accounts
from podlane.lab.api.rbac import Attributes, Authorizer, User
from podlane.lab.api.registry import Registry
from podlane.lab.api.request import BODY_LIMIT_BYTES
from podlane.lab.api.store import decode, encode
from podlane.lab.api.verbs import Answer, Verbs

log = logging.getLogger(__name__)

_JSON = "application/json"
_OPEN = ("healthz", "livez", "readyz", "version")
"""First segments of paths that need no token."""
_NO_STORE = {"Cache-Control": "no-cache, private"}


class Door:
    """`handle` is the aiohttp handler of every request. token: the administrator's; "" lets everybody in."""

    def __init__(self, registry: Registry, verbs: Verbs, token: str) -> None:
        self._registry, self._verbs = registry, verbs
        self._accounts, self._authorizer = Accounts(registry.store, token), Authorizer(registry.store)
        self._rooms: dict[
            str, Callable[[web.BaseRequest, list[str], User], Awaitable[web.StreamResponse]]
        ] = {
            "api": self._api,
            "apis": self._apis,
            "openapi": self._openapi,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._dispatch(request)
        except ApiError as error:
            return _refused(error)
        except RecursionError:
            return _refused(status.bad_request("the body of the request is nested too deeply"))
        except ConnectionError:
            raise
        except Exception:
            log.exception("%s %s", request.method, request.rel_url)
            return _refused(ApiError("Internal error occurred: see the log of the control process"))

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        # The raw path is split before it is unquoted, so that %2F in a name stays in its segment.
        parts = [unquote(p) for p in request.rel_url.raw_path.strip("/").split("/")]
        user = self._accounts.who(request.headers.get("Authorization", ""))
        if parts[0] in ("healthz", "livez", "readyz"):
            return web.Response(text="ok")
        if parts[0] in _OPEN:
            return _json(discovery.VERSION)
        if user is None:
            return _refused(ApiError("Unauthorized", code=401, reason="Unauthorized"))
        asked = requests.attributes(parts, request.method, request.query) or Attributes(
            verb=request.method.lower(), path=request.path
        )
        self._authorizer.require(user, asked)
        if parts == [""]:
            return _json({"paths": openapi.root_paths(self._registry.catalog)})
        room = self._rooms.get(parts[0])
        if room is None:
            raise NotFoundError("the server could not find the requested resource")
        return await room(request, parts, user)

    # --- rooms -----------------------------------------------------------------------------------

    async def _api(self, request: web.BaseRequest, parts: list[str], user: User) -> web.StreamResponse:
        if len(parts) == 1:
            return self._discovery(request, core=True)
        if len(parts) == 2:
            return _json(discovery.resources(self._registry.catalog, "", parts[1]))
        return await self._resource(request, parts, user)

    async def _apis(self, request: web.BaseRequest, parts: list[str], user: User) -> web.StreamResponse:
        catalog = self._registry.catalog
        if len(parts) == 1:
            return self._discovery(request, core=False)
        if len(parts) == 2:
            return _json(discovery.group(catalog, parts[1]))
        if len(parts) == 3:
            return _json(discovery.resources(catalog, parts[1], parts[2]))
        return await self._resource(request, parts, user)

    def _discovery(self, request: web.BaseRequest, *, core: bool) -> web.StreamResponse:
        catalog = self._registry.catalog
        version = discovery.aggregated_version(request.headers.get("Accept", ""))
        if version:
            headers = {"ETag": discovery.etag(catalog), "Vary": "Accept", "Cache-Control": "public"}
            if request.headers.get("If-None-Match") == headers["ETag"]:
                return web.Response(status=304, headers=headers)
            headers["Content-Type"] = discovery.content_type(version)
            return web.Response(
                body=encode(discovery.aggregated(catalog, version, core=core)), headers=headers
            )
        host = request.headers.get("Host", "")
        return _json(discovery.core_versions(host) if core else discovery.groups(catalog))

    async def _openapi(self, request: web.BaseRequest, parts: list[str], user: User) -> web.StreamResponse:
        return openapi.respond(self._registry, request, parts)

    async def _resource(self, request: web.BaseRequest, parts: list[str], user: User) -> web.StreamResponse:
        target = requests.target(parts)
        body = await read_body(request) if request.method in ("POST", "PUT", "PATCH", "DELETE") else b""
        answer = await self._verbs.handle(request, target, body, user)
        return _respond(answer) if isinstance(answer, Answer) else answer


async def read_body(request: web.BaseRequest) -> bytes:
    """Raises ApiError(413) beyond BODY_LIMIT_BYTES."""
    if (request.content_length or 0) > BODY_LIMIT_BYTES:
        raise status.too_large(BODY_LIMIT_BYTES)
    chunks, size = [], 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > BODY_LIMIT_BYTES:
            raise status.too_large(BODY_LIMIT_BYTES)
        chunks.append(chunk)
    return b"".join(chunks)


def _respond(answer: Answer) -> web.Response:
    if answer.yaml:
        text = yaml.safe_dump(decode(answer.body), sort_keys=False)
        response = web.Response(text=text, content_type="application/yaml", status=answer.code)
    else:
        response = web.Response(body=answer.body, content_type=_JSON, status=answer.code)
    response.headers.update(_NO_STORE)
    for text in answer.warnings:
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')
    return response


def _json(value: Any, code: int = 200) -> web.Response:
    return web.Response(body=encode(value), content_type=_JSON, status=code, headers=_NO_STORE)


def _refused(error: ApiError) -> web.Response:
    response = _json(status.of(error), error.code)
    retry = error.details.get("retryAfterSeconds")
    if retry:
        response.headers["Retry-After"] = str(retry)
    return response
