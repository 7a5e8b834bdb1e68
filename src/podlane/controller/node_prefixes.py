"""Nodes' spec.podCIDRs, where nobody else gives them: one prefix of each family, primary family first.

    Node without podCIDRs ──NodeCidrs.allocate──> spec.podCIDR and podCIDRs, in one write
    nothing left          ──> event CIDRNotAvailable and a condition of the Node; asked again when one goes

A Node that has podCIDRs is never touched: they cannot be changed (Kubernetes' validation), and what they
cover is nobody else's. What is taken is known from the Nodes alone, and all of them have been listed before
anything is given; a write holds for the Node as it was read. A leader that was replaced without noticing
cannot give a prefix twice by that: its successor has at once given prefixes to all Nodes that had none,
so each of them is another version by then.
"""

from __future__ import annotations

from typing import ClassVar, Final

from podlane.controller.client import Obj
from podlane.controller.context import Context, Controller
from podlane.controller.informer import Key, key_of
from podlane.controller.meta import is_deleting
from podlane.controller.node_cidrs import ExhaustedError, NodeCidrs
from podlane.controller.node_conditions import Problem, tell

NO_CIDR: Final = "podlane.dev/PodCIDRNotAvailable"
_GIVEN: Final = Problem("PodCIDRGiven", "the node has its podCIDRs")


class NodePrefixes(Controller):
    """One allocator, fed by the informer before the first allocation: a restart hands nothing out twice."""

    resource: ClassVar[str] = "nodes"
    workers = 1

    def __init__(self, context: Context) -> None:
        self.cidrs = NodeCidrs(context.config)
        self._without: set[Key] = set()
        super().__init__(context)

    @property
    def without(self) -> int:
        """How many nodes no prefix could be given."""
        return len(self._without)

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None:
            if old is not None:
                self.cidrs.release(old["metadata"]["name"])
                self._without.discard(key_of(old))
            for key in self._without:
                self.queue.add(key)
            return
        known = _prefixes(new)
        if known:
            if old is None or _prefixes(old) != known:
                self.cidrs.adopt(new["metadata"]["name"], known)
                self.queue.add(key_of(new))
        elif key_of(new) not in self._without:
            self.queue.add(key_of(new))

    async def reconcile(self, key: Key) -> float | None:
        node = self.objects.get(key[1])
        if node is None or is_deleting(node):
            self._without.discard(key)
            return None
        problem = None
        if not _prefixes(node):
            try:
                found = [str(p) for p in self.cidrs.allocate(key[1])]
            except ExhaustedError as error:
                self._without.add(key)
                problem = Problem("CIDRNotAvailable", str(error))
            else:
                patch = {"spec": {"podCIDR": found[0], "podCIDRs": found}}
                node = await self.context.patch(self.resource, node, patch)
        if problem is None:
            self._without.discard(key)
        await tell(self.context, node, NO_CIDR, problem, _GIVEN)
        return None


def _prefixes(node: Obj) -> list[str]:
    found: list[str] = (node.get("spec") or {}).get("podCIDRs") or []
    return found
