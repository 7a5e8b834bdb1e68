"""The verbs of resources over HTTP: from a request's method, target and body to the registry and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from msgspec import Struct

from podlane.errors import ApiError
from podlane.lab.api import patch as patches
from podlane.lab.api import request as requests
from podlane.lab.api import reviews, schema, status, strategic, subresources, tokens, watching
from podlane.lab.api.rbac import Authorizer, User
from podlane.lab.api.registry import Registry, WriteOptions
from podlane.lab.api.remote import Remote
from podlane.lab.api.render import Renderer
from podlane.lab.api.request import Target
from podlane.lab.api.resources import Resource
from podlane.lab.api.store import Record, encode
from podlane.lab.api.table import Tables
from podlane.lab.client import Obj

_STREAMS = ("log", "exec", "attach", "portforward")
_DOORS = ("", "status", "finalize")


class Answer(Struct, frozen=True):
    """body: JSON bytes. warnings: for Warning headers."""

    body: bytes
    code: int = 200
    warnings: tuple[str, ...] = ()
    yaml: bool = False


class Call:
    """One request for a resource."""

    def __init__(
        self, verbs: Verbs, request: web.BaseRequest, target: Target, body: bytes, user: User
    ) -> None:
        self.registry, self.request, self.target, self.body = verbs.registry, request, target, body
        self.user = user
        self.resource: Resource = verbs.registry.catalog.at(target.group, target.version, target.plural)
        self.query: Mapping[str, str] = request.query
        accept = requests.wanted(request.headers.get("Accept", ""))
        include = self.query.get("includeObject", "Metadata")
        self.renderer = Renderer(self.resource, accept, verbs.tables, include)
        self.check()

    def check(self) -> None:
        """The path fits the resource. Raises NotFoundError, ApiError(405)."""
        target, resource = self.target, self.resource
        if target.namespace and not resource.namespaced:
            raise ApiError("the server could not find the requested resource", code=404, reason="NotFound")
        if target.name and resource.namespaced and not target.namespace:
            raise ApiError("the server could not find the requested resource", code=404, reason="NotFound")
        if target.subresource and target.subresource not in resource.subresources:
            raise ApiError("the server could not find the requested resource", code=404, reason="NotFound")

    def require(self, verb: str) -> None:
        if verb not in self.resource.verbs:
            raise status.method_not_allowed()

    # --- bodies ----------------------------------------------------------------------------------

    @property
    def content_type(self) -> str:
        return self.request.headers.get("Content-Type", "")

    def options(self) -> WriteOptions:
        return WriteOptions(
            dry_run=requests.dry_run(self.query),
            field_validation=requests.field_validation(self.query),
            warnings=[],
        )

    def parsed(self, options: WriteOptions) -> Any:
        """The decoded body. Raises ApiError(400), also for fields given twice when Strict."""
        found = requests.parse_body(self.body, self.content_type)
        if options.field_validation != "Ignore" and "json" in (self.content_type or "json"):
            twice = [f'duplicate field "{name}"' for name in requests.duplicates(self.body)]
            if twice and options.field_validation == "Strict":
                raise status.bad_request(f"strict decoding error: {', '.join(twice)}")
            if options.warnings is not None:
                options.warnings.extend(twice)
        return found

    def answer(self, record: Record, options: WriteOptions, code: int = 200) -> Answer:
        return Answer(
            self.renderer.one(record), code, tuple(options.warnings or ()), self.renderer.wanted.yaml
        )


class Verbs:
    """token: the administrator's, which service accounts' are signed with."""

    def __init__(self, registry: Registry, tables: Tables, remote: Remote, token: str = "") -> None:
        self.registry, self.tables, self.remote, self._token = registry, tables, remote, token
        self._authorizer = Authorizer(registry.store)

    async def handle(
        self, request: web.BaseRequest, target: Target, body: bytes, user: User
    ) -> Answer | web.StreamResponse:
        """Raises the ApiError tree."""
        call = Call(self, request, target, body, user)
        if target.subresource in _STREAMS:
            return await self.remote.handle(request, call.resource, target)
        match request.method:
            case "GET" if target.subresource in subresources.OTHER_KINDS:
                found = subresources.read(
                    self.registry, call.resource, target.namespace, target.name, target.subresource
                )
                return Answer(encode(found))
            case "GET":
                query = requests.list_query(request.query)
                if query.watch or not target.name:
                    return await self._read_many(call, query)
                call.require("get")
                record = self.registry.get(call.resource, target.namespace, target.name)
                return Answer(call.renderer.one(record), yaml=call.renderer.wanted.yaml)
            case "POST" if target.subresource or not target.name:
                return self._create(call)
            case "PUT" if target.name:
                return self._update(call)
            case "PATCH" if target.name:
                return self._patch(call)
            case "DELETE" if not target.subresource:
                return self._delete(call)
        raise status.method_not_allowed()

    async def _read_many(self, call: Call, query: requests.ListQuery) -> Answer | web.StreamResponse:
        call.require("watch" if query.watch else "list")
        watching.check(query)
        fields = query.field_selector
        if call.target.name:
            fields = ",".join(filter(None, [fields, f"metadata.name={call.target.name}"]))
        scope = self.registry.scope(call.resource, call.target.namespace, query.label_selector, fields)
        if query.watch:
            return await watching.serve(call.request, self.registry, scope, query, call.renderer)
        watching.check_not_ahead(self.registry, int(query.resource_version or 0))
        if query.resource_version_match == "Exact" and int(query.resource_version or 0) != (
            self.registry.store.revision
        ):
            message = f"The resourceVersion for the provided list is too old: {query.resource_version}"
            raise ApiError(message, code=410, reason="Expired")
        page = self.registry.list(scope, limit=query.limit, continue_token=query.continue_token)
        return Answer(call.renderer.many(page), yaml=call.renderer.wanted.yaml)

    def _create(self, call: Call) -> Answer:
        target, options = call.target, call.options()
        obj = requests.an_object(call.parsed(options))
        if target.subresource == "token":
            account = self.registry.get(call.resource, target.namespace, target.name).obj
            return Answer(encode(tokens.answer(account, obj, self._token, time.time())), 201)
        if target.subresource:
            if target.subresource not in ("binding", "eviction"):
                raise status.method_not_allowed()
            found = subresources.write(
                self.registry, call.resource, target.namespace, target.name, target.subresource, obj, options
            )
            return Answer(encode(found), 201)
        call.require("create")
        if reviews.answers(call.resource):
            return Answer(encode(reviews.answer(self._authorizer, call.user, call.resource, obj)), 201)
        record = self.registry.create(call.resource, target.namespace, obj, options)
        return call.answer(record, options, 201)

    def _update(self, call: Call) -> Answer:
        target, options = call.target, call.options()
        call.require("update")
        obj = requests.an_object(call.parsed(options))
        if target.subresource in subresources.OTHER_KINDS:
            if target.subresource != "scale":
                raise status.method_not_allowed()
            found = subresources.write(
                self.registry, call.resource, target.namespace, target.name, "scale", obj, options
            )
            return Answer(encode(found))
        if target.subresource not in _DOORS:
            raise status.method_not_allowed()
        record = self.registry.update(
            call.resource, target.namespace, target.name, obj, options, subresource=target.subresource
        )
        return call.answer(record, options)

    def _patch(self, call: Call) -> Answer:
        target, options = call.target, call.options()
        call.require("patch")
        apply = self._applier(call, options)
        if target.subresource in subresources.OTHER_KINDS:
            if target.subresource != "scale":
                raise status.method_not_allowed()
            found = subresources.change(
                self.registry, call.resource, target.namespace, target.name, "scale", apply, options
            )
            return Answer(encode(found))
        if target.subresource not in ("", "status"):
            raise status.method_not_allowed()
        record = self.registry.change(
            call.resource, target.namespace, target.name, apply, options, subresource=target.subresource
        )
        return call.answer(record, options)

    def _applier(self, call: Call, options: WriteOptions) -> Callable[[Obj], Obj]:
        kind = requests.media_type(call.content_type)
        usable = ["application/json-patch+json", "application/merge-patch+json"]
        if not call.resource.custom:
            usable.append("application/strategic-merge-patch+json")
        if kind in ("application/apply-patch+yaml", "application/apply-patch+cbor"):
            raise status.unsupported_media(
                "server-side apply is not supported by this API server: use client-side apply "
                f"(kubectl apply without --server-side), or a patch of type {', '.join(usable)}"
            )
        if kind not in usable:
            raise status.unsupported_media(
                f"the body of the request was in an unknown format ({kind or 'no Content-Type'}) - accepted "
                f"media types include: {', '.join(usable)}"
            )
        patch = call.parsed(options)
        if kind == usable[0]:
            return lambda old: requests.an_object(patches.json_patch(old, patch))
        patch = requests.an_object(patch)
        if kind == usable[1]:
            return lambda old: requests.an_object(patches.merge(old, patch))
        if call.target.subresource == "scale":
            type_ = schema.type_of("autoscaling/v1", "Scale")
        else:
            type_ = schema.type_of(call.resource.api_version, call.resource.kind)
        return lambda old: strategic.merge(old, patch, type_)

    def _delete(self, call: Call) -> Answer:
        target = call.target
        body = requests.parse_body(call.body, call.content_type) if call.body else None
        options = requests.delete_options(call.query, body)
        if not target.name:
            call.require("deletecollection")
            query = requests.list_query(call.query)
            scope = self.registry.scope(
                call.resource, target.namespace, query.label_selector, query.field_selector
            )
            found = self.registry.delete_all(call.resource, scope, options)
            return Answer(call.renderer.many(found))
        call.require("delete")
        record, gone = self.registry.delete(call.resource, target.namespace, target.name, options)
        if gone and call.resource.storage != "pods":
            meta = record.obj["metadata"]
            return Answer(encode(status.success(call.resource, target.name, meta["uid"])))
        return Answer(call.renderer.one(record))
