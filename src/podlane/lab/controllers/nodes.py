"""What becomes of pods whose node is gone."""

from __future__ import annotations

from podlane.errors import NotFoundError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from podlane.lab.controllers.context import Context
from podlane.lab.informer import Key, WorkQueue, key_of

QUARANTINE_S = 10.0
"""How long a pod may name a node that is not there: nodes register while a lab starts."""


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
