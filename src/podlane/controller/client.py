"""How the lab's own controllers, scheduler and kubelets, and `podlane controller`, speak to the API.

In the lab's control process the API server offers this without HTTP (lab/api/local.py). Objects are
plain JSON dicts, as the API shows them; callers must not change what they were given (copy first).

resource: plural, with its group unless core: "pods", "deployments.apps",
"endpointslices.discovery.k8s.io". namespace "" means cluster-scoped, or all namespaces in list and watch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeAlias

from podlane.errors import ApiError, GoneError

log = logging.getLogger(__name__)

RETRY_FIRST_S, RETRY_LAST_S = 0.005, 5.0

Obj: TypeAlias = dict[str, Any]


class Event(NamedTuple):
    """type: ADDED, MODIFIED or DELETED (object: the last state)."""

    type: str
    object: Obj


class Listed(NamedTuple):
    """Everything there is, as of resourceVersion version."""

    objects: Iterable[Obj]
    version: int


class ApiClient(Protocol):
    """Raises the ApiError tree of podlane.errors."""

    async def get(self, resource: str, name: str, namespace: str = "") -> Obj: ...

    async def list(
        self, resource: str, namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> tuple[list[Obj], str]:
        """(objects, resourceVersion of the list)"""
        ...

    async def create(self, resource: str, obj: Obj, namespace: str = "") -> Obj: ...

    async def update(self, resource: str, obj: Obj, *, subresource: str = "") -> Obj:
        """PUT. With metadata.resourceVersion set, a stale one is a ConflictError."""
        ...

    async def patch(
        self, resource: str, name: str, namespace: str, patch: Obj, *, subresource: str = ""
    ) -> Obj:
        """JSON merge patch (RFC 7396)."""
        ...

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
        """uid: delete only that incarnation (ConflictError otherwise)."""
        ...

    async def follow(self, resource: str, deliver: Callable[[Listed | Event], None]) -> None:
        """Without end: everything there is, then what changes; everything again when something was missed.

        What goes wrong meanwhile is the client's own affair: it pauses, says so in the log, and goes on.
        """
        ...


class Watches(Protocol):
    """The halves of `follow`, for a client of an API in the same process."""

    async def list(self, resource: str) -> tuple[list[Obj], str]: ...

    def watch(self, resource: str, *, since: str) -> AsyncIterator[Event]:
        """Events after resourceVersion `since`, without end. GoneError when it is too old."""
        ...


async def follow(client: Watches, resource: str, deliver: Callable[[Listed | Event], None]) -> None:
    """ApiClient.follow out of list and watch. Lists again after 410 or any other refusal."""
    delay_s = 0.0
    while True:
        await asyncio.sleep(delay_s)
        try:
            objects, version = await client.list(resource)
            deliver(Listed(objects, int(version)))
            async for event in client.watch(resource, since=version):
                delay_s = 0.0
                deliver(event)
            # An orderly end (a server that stops) is followed by a list, but not in a tight loop.
            delay_s = RETRY_FIRST_S
        except GoneError:
            delay_s = 0.0
        except ApiError as error:
            delay_s = min(max(2 * delay_s, RETRY_FIRST_S), RETRY_LAST_S)
            log.warning("watch of %s: %s; again in %.3f s", resource, error, delay_s)
