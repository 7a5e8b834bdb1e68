"""Namespaces: what each one has from the start, and how a deleted one is emptied.

Pods go first, so that nothing that protects them (policies, say) goes before them (KEP-5080); then the
rest; then the namespace's own finalizer.
"""

from __future__ import annotations

from typing import ClassVar

from podlane.errors import AlreadyExistsError, NotFoundError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.controllers.everything import Everything, Kind
from podlane.lab.informer import Key

FINALIZER = "kubernetes"
ROOT_CA = "kube-root-ca.crt"
ACCOUNT = "default"


class Namespaces(Controller):
    resource: ClassVar[str] = "namespaces"

    def __init__(self, context: Context, everything: Everything) -> None:
        self.everything = everything
        super().__init__(context)

    def subscribe(self) -> None:
        self.everything.subscribe(self._content_changed)

    def _content_changed(self, kind: Kind, old: Obj | None, new: Obj | None) -> None:
        obj = new or old
        if obj is None or not kind.namespaced:
            return
        namespace = self.objects.get(obj["metadata"].get("namespace", ""))
        if namespace is None:
            return
        basics = (kind.resource, obj["metadata"]["name"]) in (
            ("serviceaccounts", ACCOUNT),
            ("configmaps", ROOT_CA),
        )
        if basics or (new is None and facts.is_deleting(namespace)):
            self.soon(("", namespace["metadata"]["name"]))

    async def reconcile(self, key: Key) -> float | None:
        namespace = self.objects.get(key[1])
        if namespace is None:
            return None
        if facts.is_deleting(namespace):
            await self._empty(namespace)
        else:
            await self._furnish(key[1])
        return None

    async def _furnish(self, name: str) -> None:
        if self.context.informer("serviceaccounts").get(ACCOUNT, name) is None:
            await self._create(
                "serviceaccounts",
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}},
                name,
            )
        if not self.context.ca_pem:
            return
        wanted = {"ca.crt": self.context.ca_pem}
        found = self.context.informer("configmaps").get(ROOT_CA, name)
        if found is None:
            meta = {
                "name": ROOT_CA,
                "annotations": {
                    "kubernetes.io/description": "Contains a CA bundle that can be used to verify the "
                    "kube-apiserver when using internal endpoints such as the internal service IP or "
                    "kubernetes.default.svc. No other usage is guaranteed across distributions of "
                    "Kubernetes clusters."
                },
            }
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": wanted}
            await self._create("configmaps", body, name)
        elif found.get("data") != wanted and not facts.is_deleting(found):
            await self.context.update("configmaps", {**found, "data": wanted})

    async def _create(self, resource: str, obj: Obj, namespace: str) -> None:
        try:
            await self.context.create(resource, obj, namespace)
        except AlreadyExistsError:
            return

    async def _empty(self, namespace: Obj) -> None:
        """One pass. What remains brings us back by its DELETED event."""
        name = namespace["metadata"]["name"]
        if await self._delete_all("pods", name):
            return
        left = 0
        for kind in tuple(self.everything.kinds.values()):
            if kind.namespaced:
                left += await self._delete_all(kind.resource, name)
        if left:
            return
        spec = namespace.get("spec") or {}
        kept = [f for f in spec.get("finalizers") or () if f != FINALIZER]
        try:
            await self.context.update(
                self.resource, {**namespace, "spec": {**spec, "finalizers": kept}}, subresource="finalize"
            )
        except NotFoundError:
            return

    async def _delete_all(self, resource: str, namespace: str) -> int:
        """How many there still are, after asking for the deletion of those that were not yet going."""
        objects, _ = await self.context.client.list(resource, namespace)
        for obj in objects:
            if not facts.is_deleting(obj):
                await self.context.delete(resource, obj)
        if not objects:
            return 0
        objects, _ = await self.context.client.list(resource, namespace)
        return len(objects)
