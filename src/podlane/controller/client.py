"""How the lab's own controllers, scheduler and kubelets, and `podlane controller`, speak to the API.

In the lab's control process the API server offers this without HTTP (lab/api/local.py). Objects are
plain JSON dicts, as the API shows them; callers must not change what they were given (copy first).

resource: plural, with its group unless core: "pods", "deployments.apps",
"endpointslices.discovery.k8s.io". namespace "" means cluster-scoped, or all namespaces in list and watch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Protocol, TypeAlias

Obj: TypeAlias = dict[str, Any]


class Event(NamedTuple):
    """type: ADDED, MODIFIED or DELETED (object: the last state)."""

    type: str
    object: Obj


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

    def watch(
        self,
        resource: str,
        namespace: str = "",
        *,
        since: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncIterator[Event]:
        """Events after resourceVersion `since`, without end. GoneError when it is too old."""
        ...
