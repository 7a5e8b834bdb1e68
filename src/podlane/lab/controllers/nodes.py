"""What a Node is given when it appears (spec.podCIDRs), and what becomes of pods whose node is gone."""

from __future__ import annotations

from typing import ClassVar

from podlane.controller.node_cidrs import ExhaustedError, NodeCidrs
from podlane.errors import NotFoundError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.informer import Key, WorkQueue, key_of

QUARANTINE_S = 10.0
"""How long a pod may name a node that is not there: nodes register while a lab starts."""


class NodePrefixes(Controller):
    """One allocator, fed by the informer before the first allocation: a restart hands nothing out twice."""

    resource: ClassVar[str] = "nodes"
    workers = 1

    def __init__(self, context: Context) -> None:
        self._cidrs = NodeCidrs(context.config)
        self._without: set[Key] = set()
        super().__init__(context)

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None:
            if old is not None:
                self._cidrs.release(old["metadata"]["name"])
                self._without.discard(key_of(old))
            for key in self._without:
                self.queue.add(key)
            return
        spec = new.get("spec") or {}
        if spec.get("podCIDRs"):
            self._cidrs.adopt(new["metadata"]["name"], spec["podCIDRs"])
        else:
            self.queue.add(key_of(new))

    async def reconcile(self, key: Key) -> float | None:
        node = self.objects.get(key[1])
        if node is None or facts.is_deleting(node) or (node.get("spec") or {}).get("podCIDRs"):
            self._without.discard(key)
            return None
        name = key[1]
        try:
            found = [str(p) for p in self._cidrs.allocate(name)]
        except ExhaustedError as error:
            self._without.add(key)
            message = f"Node {name} status is now: CIDRNotAvailable: {error}"
            self.context.events.warning("Node", node, "CIDRNotAvailable", message, "cidrAllocator")
            return None
        self._without.discard(key)
        await self.context.patch(self.resource, node, {"spec": {"podCIDR": found[0], "podCIDRs": found}})
        return None


class LostPods:
    """Deletes, without grace, pods that no kubelet will ever delete.

    Those bound to a node that is not there (after a quarantine), and terminating ones never bound.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.pods = context.informer("pods")
        self.nodes = context.informer("nodes")
        self.queue: WorkQueue[Key] = WorkQueue("lost pods", self.reconcile, workers=1)
        self._since: dict[Key, float] = {}
        self.pods.subscribe(self._pod_changed)
        self.nodes.subscribe(self._node_changed)

    def _pod_changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None:
            if old is not None:
                self._since.pop(key_of(old), None)
            return
        node = facts.node_of(new)
        if (facts.is_deleting(new) and not node) or (node and self.nodes.get(node) is None):
            self.queue.add(key_of(new))

    def _node_changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None and old is not None:
            for pod in self.pods.on_node(old["metadata"]["name"]):
                self.queue.add(key_of(pod))

    async def reconcile(self, key: Key) -> float | None:
        pod = self.pods.get(key[1], key[0])
        if pod is None:
            return None
        node = facts.node_of(pod)
        if not node:
            if facts.is_deleting(pod):
                await self.context.delete("pods", pod, grace_period_s=0)
            return None
        if await self._exists(node):
            self._since.pop(key, None)
            return None
        now_s = self.context.now()
        left_s = self._since.setdefault(key, now_s) + QUARANTINE_S - now_s
        if left_s > 0:
            return left_s
        await self.context.delete("pods", pod, grace_period_s=0)
        return None

    async def _exists(self, node: str) -> bool:
        if self.nodes.get(node) is not None:
            return True
        try:
            await self.context.client.get("nodes", node)
        except NotFoundError:
            return False
        return True

    async def run(self) -> None:
        await self.queue.run()

    @property
    def idle(self) -> bool:
        return self.queue.idle
