"""An ApiClient that writes only while this process may lead.

A process that is stopped (SIGSTOP, a machine that is suspended or starved) goes on in the middle of what it
did, and learns only then that another leads. So every write asks first whether the lease was renewed lately,
by a clock that does not stand still meanwhile. What slips through between the question and the send, and a
request that was on its way already, is held by the object's resourceVersion: Context's writes carry it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from podlane.controller.client import ApiClient, Obj
from podlane.errors import ApiError


class NotLeadingError(ApiError):
    code, reason = 409, "NotLeading"


class Fenced:
    """holds: whether this process leads, as of now. Its writes raise NotLeadingError if not."""

    def __init__(self, client: ApiClient, holds: Callable[[], bool]) -> None:
        self._client, self._holds = client, holds
        self.get, self.list, self.follow = client.get, client.list, client.follow

    async def create(self, resource: str, obj: Obj, namespace: str = "") -> Obj:
        self._ask("create", resource)
        return await self._client.create(resource, obj, namespace)

    async def update(self, resource: str, obj: Obj, *, subresource: str = "") -> Obj:
        self._ask("update", resource)
        return await self._client.update(resource, obj, subresource=subresource)

    async def patch(
        self, resource: str, name: str, namespace: str, patch: Obj, *, subresource: str = ""
    ) -> Obj:
        self._ask("patch", resource)
        return await self._client.patch(resource, name, namespace, patch, subresource=subresource)

    async def delete(self, resource: str, name: str, namespace: str = "", **more: Any) -> None:
        self._ask("delete", resource)
        await self._client.delete(resource, name, namespace, **more)

    def _ask(self, verb: str, resource: str) -> None:
        if not self._holds():
            raise NotLeadingError(
                f"{verb} {resource}: this process has not renewed its lease and may not write"
            )
