"""A watch over HTTP: one JSON event a line, until the client leaves, its time is over or it is too slow."""

from __future__ import annotations

import asyncio
import random
import time

from aiohttp import web

from podlane.errors import ApiError
from podlane.lab.api import status
from podlane.lab.api.registry import Registry
from podlane.lab.api.render import Renderer
from podlane.lab.api.request import ListQuery
from podlane.lab.api.store import encode
from podlane.lab.api.watch import Delivery, Scope, Watcher

BOOKMARK_EVERY_S = 60.0
_TIMEOUT_S = (1800.0, 3600.0)


def check(query: ListQuery) -> None:
    """Which combinations make sense (validation of metav1.ListOptions). Raises ApiError(422)."""
    initial, match = query.send_initial_events, query.resource_version_match
    field, why = "sendInitialEvents", ""
    if initial is not None and match != "NotOlderThan":
        why = "requires setting resourceVersionMatch to NotOlderThan"
    elif initial is None and match and query.watch:
        field, why = "resourceVersionMatch", "is forbidden for watch unless sendInitialEvents is provided"
    elif initial is not None and not query.watch:
        why = "is forbidden for list"
    if why:
        message = f'ListOptions.meta.k8s.io "" is invalid: {field}: Forbidden: {field} {why}'
        raise ApiError(message, code=422, reason="Invalid")


def check_not_ahead(registry: Registry, revision: int) -> None:
    """A version of another, longer lived database: the client must list again. Raises ApiError(504)."""
    if revision > registry.store.revision:
        message = f"Too large resource version: {revision}, current: {registry.store.revision}"
        causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
        details: dict[str, object] = {"retryAfterSeconds": 1, "causes": causes}
        raise ApiError(message, code=504, reason="Timeout", details=details)


async def serve(
    request: web.BaseRequest, registry: Registry, scope: Scope, query: ListQuery, renderer: Renderer
) -> web.StreamResponse:
    """Answers with 200 and events; what is wrong with the resourceVersion is an ERROR event, as usual."""
    response = web.StreamResponse(
        headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
    )
    since = int(query.resource_version or 0)
    watcher: Watcher | None = None
    try:
        first, watcher = _begin(registry, scope, query, renderer, since)
    except ApiError as error:
        first = encode({"type": "ERROR", "object": status.of(error)}) + b"\n"
    await response.prepare(request)
    if first:
        await response.write(first)
    if watcher is not None:
        try:
            await _run(response, registry, watcher, query, renderer)
        finally:
            watcher.close()
    await response.write_eof()
    return response


def _begin(
    registry: Registry, scope: Scope, query: ListQuery, renderer: Renderer, since: int
) -> tuple[bytes, Watcher]:
    """(what is sent at once, the watcher from there on)."""
    check_not_ahead(registry, since)
    initial = query.send_initial_events
    if initial or (initial is None and since == 0):
        page = registry.list(scope)
        lines = [renderer.line(Delivery("ADDED", record, None)) for record in page.records]
        if initial and query.bookmarks:
            lines.append(renderer.bookmark(page.revision, initial_events_end=True))
        return b"".join(lines), registry.watch(scope, page.revision)
    return b"", registry.watch(scope, since or registry.store.revision)


async def _run(
    response: web.StreamResponse, registry: Registry, watcher: Watcher, query: ListQuery, renderer: Renderer
) -> None:
    timeout_s = query.timeout_s or random.uniform(*_TIMEOUT_S)
    ends_s = time.monotonic() + timeout_s
    bookmark_s = time.monotonic() + BOOKMARK_EVERY_S
    while True:
        now_s = time.monotonic()
        last = now_s >= ends_s
        if query.bookmarks and (last or now_s >= bookmark_s) and watcher.idle:
            # Nothing waits, so everything up to the store's revision was sent.
            await response.write(renderer.bookmark(registry.store.revision))
            bookmark_s = now_s + BOOKMARK_EVERY_S
        if last:
            return
        try:
            deliveries = await watcher.batch(min(ends_s, bookmark_s) - now_s)
        except ApiError:
            return  # too slow, or no longer served: the client goes on from what it saw last
        if deliveries:
            await response.write(b"".join(map(renderer.line, deliveries)))
            await asyncio.sleep(0)
