"""The scheduler: binds pods that have no node, one after the other, most important and oldest first.

What cannot be placed waits without polling until a node or another pod changes. It is said (condition
PodScheduled=False, event FailedScheduling) only when it has lasted a moment: while a lab starts, pods are
often there before nodes are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from podlane.errors import ConflictError, NotFoundError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts, nodefit, scheduling
from podlane.lab.controllers.context import Context
from podlane.lab.informer import Key, WorkQueue, key_of

NAME = "default-scheduler"
SETTLE_S = 0.02
PATIENCE_S = 0.3


class Scheduler:
    def __init__(self, context: Context) -> None:
        self.context = context
        self.pods = context.informer("pods")
        self.nodes = context.informer("nodes")
        self.namespaces = context.informer("namespaces")
        self.queue: WorkQueue[Key] = WorkQueue("scheduler", self.reconcile, workers=1, order=self._rank)
        self._waiting: dict[Key, float] = {}
        """Pods that found no node -> since when."""
        self.keep_away: dict[Key, Obj] = {}
        """Bound pods with a required anti-affinity."""
        self.pods.subscribe(self._pod_changed)
        self.nodes.subscribe(self._node_changed)

    # --- events ---

    def _rank(self, key: Key) -> Any:
        pod = self.pods.get(key[1], key[0])
        if pod is None:
            return (0, 0.0)
        return (-(pod["spec"].get("priority") or 0), facts.created_s(pod))

    def _pod_changed(self, old: Obj | None, new: Obj | None) -> None:
        pod = new or old
        if pod is None:
            return
        key = key_of(pod)
        holds = new is not None and facts.node_of(new) and not facts.is_finished(new)
        if holds and new is not None and scheduling.required_terms(new, "podAntiAffinity"):
            self.keep_away[key] = new
        else:
            self.keep_away.pop(key, None)
        if new is not None and wants_node(new):
            if old is None or not _same_wish(old, new):
                self.queue.add(key)
            return
        self._waiting.pop(key, None)
        if old is not None and new is not None and _same_place(old, new):
            return
        self._retry()

    def _node_changed(self, old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None or _node_facts(old) != _node_facts(new):
            self._retry()

    def _retry(self) -> None:
        for key in self._waiting:
            self.queue.add_after(key, SETTLE_S)

    # --- work ---

    async def reconcile(self, key: Key) -> float | None:
        pod = self.pods.get(key[1], key[0])
        if pod is None or not wants_node(pod):
            self._waiting.pop(key, None)
            return None
        placement = scheduling.place(pod, _View(self))
        if placement.node:
            await self._bind(pod, placement.node)
            self._waiting.pop(key, None)
            return None
        now_s = self.context.now()
        since_s = self._waiting.setdefault(key, now_s)
        left_s = since_s + PATIENCE_S - now_s
        if left_s > 0:
            return left_s
        await self._say(pod, placement.message)
        return None

    async def _bind(self, pod: Obj, node: str) -> None:
        namespace, name = key_of(pod)
        try:
            await bind(self.context, pod, node)
        except (NotFoundError, ConflictError):
            # Gone, or bound by another: the next event says which.
            return
        message = f"Successfully assigned {namespace}/{name} to {node}"
        self.context.events.normal("Pod", pod, "Scheduled", message, NAME)

    async def _say(self, pod: Obj, message: str) -> None:
        condition = facts.condition(pod, "PodScheduled")
        if condition is not None and condition.get("message") == message:
            return
        self.context.events.warning("Pod", pod, "FailedScheduling", message, NAME)
        status = pod.get("status") or {}
        conditions = facts.with_condition(
            status.get("conditions") or (),
            "PodScheduled",
            "False",
            "Unschedulable",
            message,
            self.context.now(),
        )
        await self.context.status("pods", pod, {**status, "conditions": conditions})

    async def run(self) -> None:
        await self.queue.run()

    @property
    def idle(self) -> bool:
        return self.queue.idle


class _View:
    """The informers as scheduling.Cluster."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def nodes(self) -> Iterable[Obj]:
        return [n for n in self._scheduler.nodes.list() if not facts.is_deleting(n)]

    def pods_on(self, node: str) -> Iterable[Obj]:
        return [p for p in self._scheduler.pods.on_node(node) if not facts.is_finished(p)]

    def pods_in(self, namespace: str) -> Iterable[Obj]:
        return [
            p for p in self._scheduler.pods.list(namespace) if facts.node_of(p) and not facts.is_finished(p)
        ]

    def owned_by(self, uid: str) -> Iterable[Obj]:
        return [
            p for p in self._scheduler.pods.owned_by(uid) if facts.node_of(p) and not facts.is_finished(p)
        ]

    def with_anti_affinity(self) -> Iterable[Obj]:
        return self._scheduler.keep_away.values()

    def namespaces(self) -> Mapping[str, Mapping[str, str]]:
        return {n["metadata"]["name"]: facts.labels_of(n) for n in self._scheduler.namespaces.list()}


async def bind(context: Context, pod: Obj, node: str) -> None:
    """The binding subresource: sets spec.nodeName once, and PodScheduled=True."""
    namespace, name = key_of(pod)
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "namespace": namespace, "uid": pod["metadata"]["uid"]},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
    await context.client.update("pods", binding, subresource="binding")
    context.informer("pods").assume({**pod, "spec": {**pod["spec"], "nodeName": node}})


def wants_node(pod: Obj) -> bool:
    """It is ours to place."""
    spec = pod["spec"]
    return (
        not spec.get("nodeName")
        and spec.get("schedulerName", NAME) == NAME
        and not spec.get("schedulingGates")
        and facts.is_active(pod)
    )


def _same_wish(old: Obj, new: Obj) -> bool:
    """Nothing changed that could make another node fit: our own condition, say."""
    return wants_node(old) and old["spec"] == new["spec"] and facts.labels_of(old) == facts.labels_of(new)


def _same_place(old: Obj, new: Obj) -> bool:
    """A bound pod takes the same room and shows the same labels as before."""
    return (
        facts.node_of(old) == facts.node_of(new)
        and facts.is_finished(old) == facts.is_finished(new)
        and facts.is_deleting(old) == facts.is_deleting(new)
        and facts.labels_of(old) == facts.labels_of(new)
    )


def _node_facts(node: Obj) -> Any:
    ready = facts.condition(node, "Ready")
    return (
        facts.labels_of(node),
        node.get("spec"),
        nodefit.pod_limit(node),
        ready.get("status") if ready is not None else None,
        facts.is_deleting(node),
    )
