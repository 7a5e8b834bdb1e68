"""StatefulSet: pods with names that stay: web-0, web-1 ...

https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/
OrderedReady starts, stops and updates one pod at a time, in order; Parallel does not wait. A rolling
update goes from the highest ordinal down to `partition`. Volume claims are not made (a lab has no
volumes that outlive pods): each template becomes an emptyDir of its name.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from podlane.errors import AlreadyExistsError, ApiError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts, ownership, revisions
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.controllers.revisions import History
from podlane.lab.informer import Key

POD_NAME = "statefulset.kubernetes.io/pod-name"
POD_INDEX = "apps.kubernetes.io/pod-index"
_COMPONENT = "statefulset-controller"


class StatefulSets(Controller):
    resource: ClassVar[str] = "statefulsets.apps"
    settle_s = 0.005

    def __init__(self, context: Context) -> None:
        self.pods = context.informer("pods")
        context.informer(revisions.REVISIONS)
        super().__init__(context)

    def subscribe(self) -> None:
        self.pods.subscribe(ownership.add_owners(self.soon, "StatefulSet", self.objects))

    async def reconcile(self, key: Key) -> float | None:
        namespace, name = key
        owner = self.objects.get(name, namespace)
        if owner is None:
            return None
        selector = ownership.selector_of(owner)
        claimed = await ownership.claim(
            self.context,
            owner,
            "StatefulSet",
            self.resource,
            "pods",
            selector,
            accepts=lambda pod: ordinal(owner, pod) is not None,
        )
        pods = {i: p for p in claimed if (i := ordinal(owner, p)) is not None}
        if facts.is_deleting(owner):
            return None
        past = await revisions.history(self.context, owner, "StatefulSet", self.resource)
        versions = _Versions(owner, past)
        failure: ApiError | None = None
        try:
            await self._step(owner, pods, versions)
        except ApiError as error:
            failure = error
        pods = {
            i: p for p in self.pods.owned_by(owner["metadata"]["uid"]) if (i := ordinal(owner, p)) is not None
        }
        again_s = await self._status(owner, pods, versions)
        used = {_hash(p) for p in pods.values()} | {versions.current_hash}
        await revisions.forget(self.context, owner, past, used)
        if failure is not None:
            raise failure
        return again_s

    async def _step(self, owner: Obj, pods: dict[int, Obj], versions: _Versions) -> None:
        """Creations in order, then what is too many from the top, then the update from the top."""
        parallel = owner["spec"].get("podManagementPolicy") == "Parallel"
        wanted = ordinals(owner)
        for index in wanted:
            pod = pods.get(index)
            if pod is not None and facts.is_finished(pod) and not facts.is_deleting(pod):
                await self._delete(owner, pod)
                if not parallel:
                    return
                continue
            if pod is None:
                pod = await self._create(owner, index, versions)
            if not parallel and not self._settled(owner, pod):
                return
        for index in sorted(set(pods) - set(wanted), reverse=True):
            pod = pods[index]
            if not facts.is_deleting(pod):
                if not parallel and not self._below_ready(owner, pods, wanted):
                    return
                await self._delete(owner, pod)
            if not parallel:
                return
        await self._roll(owner, pods, wanted, versions)

    def _settled(self, owner: Obj, pod: Obj) -> bool:
        """Running, ready (for minReadySeconds), and staying."""
        due = facts.available_in_s(pod, owner["spec"].get("minReadySeconds") or 0, self.context.now())
        return due == 0 and facts.is_active(pod)

    def _below_ready(self, owner: Obj, pods: dict[int, Obj], wanted: range) -> bool:
        return all(i in pods and self._settled(owner, pods[i]) for i in wanted)

    async def _roll(self, owner: Obj, pods: dict[int, Obj], wanted: range, versions: _Versions) -> None:
        """Deletes pods of an older template, highest ordinal first, while few enough are down."""
        strategy = owner["spec"].get("updateStrategy") or {}
        if strategy.get("type") == "OnDelete":
            return
        rolling = strategy.get("rollingUpdate") or {}
        partition = rolling.get("partition") or 0
        most = max(1, facts.int_or_percent(rolling.get("maxUnavailable", 1), len(wanted), up=True))
        down = sum(i not in pods or not self._settled(owner, pods[i]) for i in wanted)
        for index in reversed(wanted):
            if index < partition:
                return
            pod = pods.get(index)
            if pod is None or facts.is_deleting(pod):
                if most == 1:
                    return
                continue
            if _hash(pod) != versions.update_hash:
                unhealthy = not self._settled(owner, pod)
                # One that is down already costs nothing, and may be just what the update mends.
                if unhealthy or down < most:
                    await self._delete(owner, pod)
                    down += not unhealthy
                if down >= most:
                    return
            elif not self._settled(owner, pod) and most == 1:
                return

    async def _create(self, owner: Obj, index: int, versions: _Versions) -> Obj:
        meta, spec = owner["metadata"], owner["spec"]
        name = f"{meta['name']}-{index}"
        revision = versions.for_new(index)
        labels = {POD_NAME: name, POD_INDEX: str(index), revisions.HASH_LABEL: revisions.hash_of(revision)}
        pod = ownership.pod_from(
            revisions.template_of(revision), owner, "StatefulSet", name=name, labels=labels
        )
        pod["spec"]["hostname"] = name
        if spec.get("serviceName"):
            pod["spec"]["subdomain"] = spec["serviceName"]
        if claims := spec.get("volumeClaimTemplates"):
            names = {c["metadata"]["name"] for c in claims}
            others = [v for v in pod["spec"].get("volumes") or () if v["name"] not in names]
            pod["spec"]["volumes"] = [*others, *({"name": n, "emptyDir": {}} for n in sorted(names))]
        try:
            made = await self.context.create("pods", pod, meta["namespace"])
        except AlreadyExistsError:
            # One that is leaving, or another's: its going brings nobody here if it was never ours.
            self._say(owner, "Warning", "FailedCreate", f"pod {name} already exists")
            raise
        except ApiError as error:
            self._say(
                owner,
                "Warning",
                "FailedCreate",
                f"create Pod {name} in StatefulSet {meta['name']} failed error: {error}",
            )
            raise
        self._say(
            owner,
            "Normal",
            "SuccessfulCreate",
            f"create Pod {name} in StatefulSet {meta['name']} successful",
        )
        return made

    async def _delete(self, owner: Obj, pod: Obj) -> None:
        await self.context.delete("pods", pod)
        name = pod["metadata"]["name"]
        message = f"delete Pod {name} in StatefulSet {owner['metadata']['name']} successful"
        self._say(owner, "Normal", "SuccessfulDelete", message)

    def _say(self, owner: Obj, type_: str, reason: str, message: str) -> None:
        say = self.context.events.normal if type_ == "Normal" else self.context.events.warning
        say("StatefulSet", owner, reason, message, _COMPONENT)

    async def _status(self, owner: Obj, pods: dict[int, Obj], versions: _Versions) -> float | None:
        now_s = self.context.now()
        min_ready_s = owner["spec"].get("minReadySeconds") or 0
        alive = [p for p in pods.values() if not facts.is_finished(p)]
        due = [facts.available_in_s(p, min_ready_s, now_s) for p in alive]
        staying = [p for p in alive if not facts.is_deleting(p)]
        current = sum(_hash(p) == versions.current_hash for p in staying)
        updated = sum(_hash(p) == versions.update_hash for p in staying)
        wanted = ordinals(owner)
        # The update is over when every pod has the new template: it is the current one from then on.
        over = (
            versions.current_hash != versions.update_hash
            and updated == len(wanted)
            and len(alive) == len(wanted)
            and all(d == 0 for d in due)
        )
        if over:
            current = updated
        status: dict[str, Any] = {
            "observedGeneration": owner["metadata"].get("generation", 1),
            "replicas": len(alive),
            "availableReplicas": sum(d == 0 for d in due),
            "currentRevision": versions.update_name if over else versions.current_name,
            "updateRevision": versions.update_name,
            "collisionCount": (owner.get("status") or {}).get("collisionCount") or 0,
        }
        for field, count in (
            ("readyReplicas", sum(d is not None for d in due)),
            ("currentReplicas", current),
            ("updatedReplicas", updated),
        ):
            if count:
                status[field] = count
        await self.context.status(self.resource, owner, status)
        return min((d for d in due if d), default=None)


class _Versions:
    """The template pods are to have (update), and the one they had before (current)."""

    def __init__(self, owner: Obj, past: History) -> None:
        self._owner = owner
        name = (owner.get("status") or {}).get("currentRevision")
        self.update = past.current
        self.current = next((r for r in past.old if r["metadata"]["name"] == name), past.current)

    @property
    def update_hash(self) -> str:
        return revisions.hash_of(self.update)

    @property
    def current_hash(self) -> str:
        return revisions.hash_of(self.current)

    @property
    def update_name(self) -> str:
        return str(self.update["metadata"]["name"])

    @property
    def current_name(self) -> str:
        return str(self.current["metadata"]["name"])

    def for_new(self, index: int) -> Obj:
        """A pod below the partition comes back with the template it had."""
        strategy = self._owner["spec"].get("updateStrategy") or {}
        partition = (strategy.get("rollingUpdate") or {}).get("partition") or 0
        return self.current if index < partition else self.update


def _hash(pod: Obj) -> str:
    return facts.labels_of(pod).get(revisions.HASH_LABEL, "")


def ordinals(owner: Obj) -> range:
    start = (owner["spec"].get("ordinals") or {}).get("start") or 0
    return range(start, start + owner["spec"].get("replicas", 1))


def ordinal(owner: Obj, pod: Obj) -> int | None:
    """Of web-3: 3, if it belongs to web."""
    found = re.fullmatch(re.escape(owner["metadata"]["name"]) + r"-(0|[1-9]\d*)", pod["metadata"]["name"])
    return int(found[1]) if found else None
