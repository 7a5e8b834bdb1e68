"""ReplicaSet and ReplicationController: as many pods of one template as spec.replicas says.

https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/
Pods are made in batches of 1, 2, 4 ... so that a template the API refuses is not tried a thousand times.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import ClassVar

from podlane.errors import ApiError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts, ownership
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.informer import Key
from podlane.model import selectors
from podlane.model.selectors import Selector

BURST = 500


class ReplicaSets(Controller):
    resource: ClassVar[str] = "replicasets.apps"
    kind: ClassVar[str] = "ReplicaSet"
    settle_s = 0.005

    def __init__(self, context: Context) -> None:
        self.pods = context.informer("pods")
        super().__init__(context)

    def subscribe(self) -> None:
        self.pods.subscribe(ownership.add_owners(self.soon, self.kind, self.objects))

    def selector(self, owner: Obj) -> Selector:
        return ownership.selector_of(owner)

    async def reconcile(self, key: Key) -> float | None:
        namespace, name = key
        owner = self.objects.get(name, namespace)
        if owner is None:
            return None
        selector = self.selector(owner)
        claimed = await ownership.claim(self.context, owner, self.kind, self.resource, "pods", selector)
        active = [p for p in claimed if facts.is_active(p)]
        wanted = owner["spec"].get("replicas", 1)
        failure: ApiError | None = None
        if not facts.is_deleting(owner):
            try:
                if len(active) < wanted:
                    active += await self._create(owner, min(wanted - len(active), BURST))
                elif len(active) > wanted:
                    active = await self._delete(owner, active, min(len(active) - wanted, BURST))
            except ApiError as error:
                failure = error
        again_s = await self._status(owner, active, failure)
        if failure is not None:
            raise failure
        return again_s

    async def _create(self, owner: Obj, count: int) -> list[Obj]:
        made: list[Obj] = []
        batch = 1
        while len(made) < count:
            size = min(batch, count - len(made))
            answers = await asyncio.gather(
                *(self._create_one(owner) for _ in range(size)), return_exceptions=True
            )
            made += [a for a in answers if not isinstance(a, BaseException)]
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
            batch = min(2 * batch, 16)
            await asyncio.sleep(0)
        return made

    async def _create_one(self, owner: Obj) -> Obj:
        template = owner["spec"]["template"]
        try:
            pod = ownership.pod_from(template, owner, self.kind)
            pod = await self.context.create("pods", pod, owner["metadata"]["namespace"])
        except ApiError as error:
            self._say(owner, "Warning", "FailedCreate", f"Error creating: {error}")
            raise
        self._say(owner, "Normal", "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")
        return pod

    async def _delete(self, owner: Obj, active: list[Obj], count: int) -> list[Obj]:
        """Gives up count pods; those that remain."""
        neighbours = Counter(facts.node_of(p) for p in active if facts.node_of(p))
        order = sorted(active, key=lambda p: facts.deletion_order(p, neighbours[facts.node_of(p)]))
        for pod in order[:count]:
            await self.context.delete("pods", pod)
            self._say(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")
        return order[count:]

    def _say(self, owner: Obj, type_: str, reason: str, message: str) -> None:
        say = self.context.events.normal if type_ == "Normal" else self.context.events.warning
        say(self.kind, owner, reason, message, f"{self.kind.lower()}-controller")

    async def _status(self, owner: Obj, active: list[Obj], failure: ApiError | None) -> float | None:
        now_s = self.context.now()
        old = owner.get("status") or {}
        template_labels = (owner["spec"].get("template") or {}).get("metadata", {}).get("labels") or {}
        due = [facts.available_in_s(p, owner["spec"].get("minReadySeconds") or 0, now_s) for p in active]
        counts = {
            "replicas": len(active),
            "fullyLabeledReplicas": sum(
                template_labels.items() <= facts.labels_of(p).items() for p in active
            ),
            "readyReplicas": sum(d is not None for d in due),
            "availableReplicas": sum(d == 0 for d in due),
        }
        # As the API shows it: counts of zero are left out, but for replicas.
        status: Obj = {k: v for k, v in counts.items() if v or k == "replicas"}
        status["observedGeneration"] = owner["metadata"].get("generation", 1)
        conditions = list(old.get("conditions") or ())
        if failure is None:
            conditions = facts.without_condition(conditions, "ReplicaFailure")
        else:
            reason = "FailedCreate" if len(active) < owner["spec"].get("replicas", 1) else "FailedDelete"
            conditions = facts.with_condition(
                conditions, "ReplicaFailure", "True", reason, str(failure), now_s
            )
        if conditions:
            status["conditions"] = conditions
        await self.context.status(self.resource, owner, status)
        return min((d for d in due if d), default=None)


class ReplicationControllers(ReplicaSets):
    """The ReplicaSet of the core group: its selector is a map of labels, the template's if absent."""

    resource: ClassVar[str] = "replicationcontrollers"
    kind: ClassVar[str] = "ReplicationController"

    def subscribe(self) -> None:
        def handler(old: Obj | None, new: Obj | None) -> None:
            for pod in (old, new):
                if pod is None:
                    continue
                namespace = pod["metadata"]["namespace"]
                if (ref := ownership.controller_of(pod)) is not None:
                    if ref.get("kind") == self.kind:
                        self.soon((namespace, ref["name"]))
                else:
                    for owner in self.objects.list(namespace):
                        if self.selector(owner).matches(facts.labels_of(pod)):
                            self.soon((namespace, owner["metadata"]["name"]))

        self.pods.subscribe(handler)

    def selector(self, owner: Obj) -> Selector:
        spec = owner["spec"]
        labels = spec.get("selector") or (spec.get("template") or {}).get("metadata", {}).get("labels")
        return selectors.from_labels(labels) if labels else selectors.NOTHING
