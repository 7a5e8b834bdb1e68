"""ApiClient without HTTP: the lab's controllers, scheduler and kubelets, in the API server's own process.

The same registry, so the same validation, allocation and errors. Objects that come out are the store's
own and shared by everybody; objects that go in are copied.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from podlane.controller.client import Listed, follow
from podlane.lab.api import patch as patches
from podlane.lab.api import subresources
from podlane.lab.api.deletion import DeleteOptions
from podlane.lab.api.registry import Registry
from podlane.lab.api.store import copied
from podlane.lab.client import Event, Obj


class LocalClient:
    """podlane.lab.client.ApiClient over a Registry. Must be used on the registry's own event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def get(self, resource: str, name: str, namespace: str = "") -> Obj:
        return self._registry.get(self._registry.catalog.named(resource), namespace, name).obj

    async def list(
        self, resource: str, namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> tuple[list[Obj], str]:
        row = self._registry.catalog.named(resource)
        page = self._registry.list(self._registry.scope(row, namespace, label_selector, field_selector))
        return [record.obj for record in page.records], str(page.revision)

    async def create(self, resource: str, obj: Obj, namespace: str = "") -> Obj:
        row = self._registry.catalog.named(resource)
        return self._registry.create(row, namespace, copied(obj)).obj

    async def update(self, resource: str, obj: Obj, *, subresource: str = "") -> Obj:
        """obj is of the resource's kind, or a Scale, Binding or the like where the subresource takes one."""
        row = self._registry.catalog.named(resource)
        metadata = obj["metadata"]
        namespace, name = metadata.get("namespace") or "", metadata["name"]
        if subresource in subresources.OTHER_KINDS:
            return subresources.write(self._registry, row, namespace, name, subresource, copied(obj))
        return self._registry.update(row, namespace, name, copied(obj), subresource=subresource).obj

    async def patch(
        self, resource: str, name: str, namespace: str, patch: Obj, *, subresource: str = ""
    ) -> Obj:
        row = self._registry.catalog.named(resource)

        def apply(old: Obj) -> Obj:
            found: Obj = patches.merge(old, patch)
            return found

        if subresource in subresources.OTHER_KINDS:
            return subresources.change(self._registry, row, namespace, name, subresource, apply)
        return self._registry.change(row, namespace, name, apply, subresource=subresource).obj

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
        row = self._registry.catalog.named(resource)
        options = DeleteOptions(grace_period_s=grace_period_s, uid=uid, propagation=propagation)
        self._registry.delete(row, namespace, name, options)

    async def watch(
        self,
        resource: str,
        namespace: str = "",
        *,
        since: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncIterator[Event]:
        row = self._registry.catalog.named(resource)
        scope = self._registry.scope(row, namespace, label_selector, field_selector)
        watcher = self._registry.watch(scope, int(since))
        try:
            while True:
                for delivery in await watcher.batch():
                    yield Event(delivery.type, delivery.record.obj)
        finally:
            watcher.close()

    async def follow(self, resource: str, deliver: Callable[[Listed | Event], None]) -> None:
        await follow(self, resource, deliver)
