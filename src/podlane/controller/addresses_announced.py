"""What agents said of load-balancer addresses, taken back where nobody can any more.

An agent writes who answers for an address into the Service (agent/announcements.py), and takes it back.
Left behind is what it said of an address that the Service has lost meanwhile or that BGP alone announces now,
and what an agent said whose Node is gone. One that lives on without its Node is answered once.
"""

from __future__ import annotations

from typing import ClassVar

from podlane.controller.client import Obj
from podlane.controller.context import Context, Controller
from podlane.controller.informer import Key, key_of
from podlane.controller.meta import annotations_of, is_deleting
from podlane.model import pools


class Announced(Controller):
    resource: ClassVar[str] = "services"

    def __init__(self, context: Context) -> None:
        self.nodes = context.informer("nodes")
        self._by_node: dict[str, set[Key]] = {}
        self._answered: dict[Key, set[str]] = {}  # service -> what was taken back for want of a Node
        super().__init__(context)

    def subscribe(self) -> None:
        self.nodes.subscribe(self._node_changed)

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        for node in _nodes(old):
            self._by_node[node].discard(key_of(old or {}))
            if not self._by_node[node]:
                del self._by_node[node]
        for node in _nodes(new):
            self._by_node.setdefault(node, set()).add(key_of(new or {}))
        if new is not None and _conditions(new):
            self.queue.add(key_of(new))
        elif new is None and old is not None:
            self._answered.pop(key_of(old), None)

    def _node_changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None and old is not None:
            for key in self._by_node.get(old["metadata"]["name"], ()):
                self.queue.add(key)
        elif old is None and new is not None:
            for said in self._answered.values():
                said -= {each for each in said if _node(each) == new["metadata"]["name"]}

    async def reconcile(self, key: Key) -> float | None:
        service = self.objects.get(key[1], key[0])
        if service is None or is_deleting(service):
            return None
        status = service.get("status") or {}
        there = {each.get("ip", "") for each in (status.get("loadBalancer") or {}).get("ingress") or ()}
        silent = _by_bgp_alone(service)
        left = [each for each in _conditions(service) if self._left(key, each)]
        stale = [each for each in _conditions(service) if silent or each in left or outdated(each, there)]
        if stale:
            kept = [each for each in status["conditions"] if each not in stale]
            await self.context.status("services", service, {**status, "conditions": kept})
            if left:
                self._answered.setdefault(key, set()).update(each["message"] for each in left)
        return None

    def _left(self, key: Key, condition: Obj) -> bool:
        """Said by an agent whose Node is gone, and not taken back before."""
        node = _node(condition.get("message") or "")
        if not node or condition.get("status") != "True" or self.nodes.get(node) is not None:
            return False
        return condition["message"] not in self._answered.get(key, ())


def _by_bgp_alone(service: Obj) -> bool:
    """Nobody answers ARP or NDP for its addresses, nor shall."""
    ways = annotations_of(service).get(pools.ANNOUNCED_BY, "")
    return bool(ways) and pools.Way.L2 not in ways.split(",")


def outdated(condition: Obj, there: set[str]) -> bool:
    """Whether it tells of an address that the Service has no more."""
    if condition.get("type") not in pools.ANNOUNCED.values():
        return False
    told = pools.announcer(condition.get("message") or "")
    return told is None or str(told[1]) not in there


def _conditions(service: Obj) -> list[Obj]:
    found = (service.get("status") or {}).get("conditions") or ()
    return [each for each in found if each.get("type") in pools.ANNOUNCED.values()]


def _nodes(service: Obj | None) -> set[str]:
    """Those of which it is said that they answer."""
    said = [each for each in _conditions(service) if each.get("status") == "True"] if service else []
    return {_node(each.get("message") or "") for each in said} - {""}


def _node(message: str) -> str:
    """Which node answers, "" for a message that does not say so."""
    told = pools.announcer(message)
    return told[0] if told is not None else ""
