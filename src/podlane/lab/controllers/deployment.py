"""Deployment: moves pods from one version of a template to the next through ReplicaSets.

https://kubernetes.io/docs/concepts/workloads/controllers/deployment/
Each version is a ReplicaSet named after the hash of its template; old ones stay at size 0, up to
revisionHistoryLimit, so that `kubectl rollout undo` finds their template. Status and conditions are
those `kubectl rollout status` waits for.
"""

from __future__ import annotations

import copy
from typing import ClassVar

from podlane.errors import AlreadyExistsError, ApiError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts, ownership, rollout
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.informer import Key

_SETS = "replicasets.apps"
_COMPONENT = "deployment-controller"
_MOVING = ("NewReplicaSetCreated", "FoundNewReplicaSet", "ReplicaSetUpdated", "DeploymentResumed")


class Deployments(Controller):
    resource: ClassVar[str] = "deployments.apps"
    settle_s = 0.005

    def __init__(self, context: Context) -> None:
        self.sets = context.informer(_SETS)
        self.pods = context.informer("pods")
        self._news: dict[str, tuple[str, str]] = {}
        """uid -> reason and message of Progressing that this look found; its status write carries them."""
        super().__init__(context)

    def subscribe(self) -> None:
        self.sets.subscribe(ownership.add_owners(self.soon, "Deployment", self.objects))
        self.pods.subscribe(self._pod_gone)

    def _pod_gone(self, old: Obj | None, new: Obj | None) -> None:
        """Recreate waits for the last old pod; nothing else here looks at pods."""
        pod = new or old
        if pod is None or (new is not None and not facts.is_finished(pod)):
            return
        ref = ownership.controller_of(pod)
        if ref is None or ref.get("kind") != "ReplicaSet":
            return
        each = self.sets.get(ref["name"], pod["metadata"]["namespace"])
        for owner in ownership.owners_of(each, "Deployment", self.objects) if each is not None else ():
            self.soon((owner["metadata"]["namespace"], owner["metadata"]["name"]))

    async def reconcile(self, key: Key) -> float | None:
        namespace, name = key
        deployment = self.objects.get(name, namespace)
        if deployment is None:
            return None
        selector = ownership.selector_of(deployment)
        sets = await ownership.claim(self.context, deployment, "Deployment", self.resource, _SETS, selector)
        if not facts.is_deleting(deployment):
            sets = await self._step(deployment, sets)
        return await self._status(self.objects.get(name, namespace) or deployment, sets)

    # --- steps ---

    async def _step(self, deployment: Obj, sets: list[Obj]) -> list[Obj]:
        paused = bool(deployment["spec"].get("paused"))
        new = rollout.find_new(deployment, sets)
        if paused or self._was_scaled(deployment, sets):
            sets = await self._scale(deployment, sets, new)
            return await self._clean(deployment, sets, new) if paused else sets
        recreate = (deployment["spec"].get("strategy") or {}).get("type") == "Recreate"
        if recreate:
            return await self._recreate(deployment, sets, new)
        new, sets = await self._new_set(deployment, sets, new)
        size = rollout.new_size(deployment, sets, new)
        if size != rollout.replicas(new):
            return _swap(sets, await self._resize(deployment, new, size))
        old = [s for s in sets if not _same(s, new)]
        for each in old:
            size = rollout.old_sizes(deployment, sets, new, old).get(
                each["metadata"]["name"], rollout.replicas(each)
            )
            if size != rollout.replicas(each):
                resized = await self._resize(deployment, each, size)
                sets, old = _swap(sets, resized), _swap(old, resized)
        return await self._clean(deployment, sets, new)

    async def _recreate(self, deployment: Obj, sets: list[Obj], new: Obj | None) -> list[Obj]:
        for each in list(sets):
            if not _same(each, new) and rollout.replicas(each):
                sets = _swap(sets, await self._resize(deployment, each, 0))
        old = [s for s in sets if not _same(s, new)]
        if any(not facts.is_finished(p) for s in old for p in self.pods.owned_by(s["metadata"]["uid"])):
            return sets
        new, sets = await self._new_set(deployment, sets, new)
        if rollout.replicas(new) != rollout.replicas(deployment):
            sets = _swap(sets, await self._resize(deployment, new, rollout.replicas(deployment)))
        return await self._clean(deployment, sets, new)

    async def _new_set(self, deployment: Obj, sets: list[Obj], new: Obj | None) -> tuple[Obj, list[Obj]]:
        """The ReplicaSet of the present template, made if need be, with the newest revision number."""
        newest = max((rollout.revision(s) for s in sets if not _same(s, new)), default=0) + 1
        if new is None:
            new, created = await self._create_set(deployment, sets, newest)
            if created:
                sets = [*sets, new]
            message = f'Created new replica set "{new["metadata"]["name"]}"'
            self._news[deployment["metadata"]["uid"]] = "NewReplicaSetCreated", message
        else:
            annotations = self._annotations(deployment, new, newest)
            if annotations != facts.annotations_of(new):
                new = await self.context.update(_SETS, _with_annotations(new, annotations))
                sets = _swap(sets, new)
            if facts.condition(deployment, "Progressing") is None:
                message = f'Found new replica set "{new["metadata"]["name"]}"'
                self._news[deployment["metadata"]["uid"]] = "FoundNewReplicaSet", message
        await self._record_revision(deployment, str(rollout.revision(new)))
        return new, sets

    async def _create_set(self, deployment: Obj, sets: list[Obj], newest: int) -> tuple[Obj, bool]:
        """(the ReplicaSet, whether it is not among sets yet)"""
        meta, spec = deployment["metadata"], deployment["spec"]
        template = copy.deepcopy(spec["template"])
        collisions = (deployment.get("status") or {}).get("collisionCount") or 0
        digest = ownership.stable_hash([rollout.template_without_hash(deployment), collisions])
        template.setdefault("metadata", {}).setdefault("labels", {})[rollout.HASH_LABEL] = digest
        selector = copy.deepcopy(spec["selector"])
        selector.setdefault("matchLabels", {})[rollout.HASH_LABEL] = digest
        body: Obj = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{meta['name']}-{digest}",
                "namespace": meta["namespace"],
                "labels": dict(template["metadata"]["labels"]),
                "ownerReferences": [ownership.reference(deployment, "Deployment")],
            },
            "spec": {
                "replicas": 0,
                "selector": selector,
                "template": template,
                "minReadySeconds": spec.get("minReadySeconds") or 0,
            },
        }
        body["metadata"]["annotations"] = self._annotations(deployment, body, newest)
        recreate = (spec.get("strategy") or {}).get("type") == "Recreate"
        body["spec"]["replicas"] = (
            rollout.replicas(deployment) if recreate else rollout.new_size(deployment, [*sets, body], body)
        )
        try:
            made = await self.context.create(_SETS, body, meta["namespace"])
        except AlreadyExistsError:
            found = await self.context.client.get(_SETS, body["metadata"]["name"], meta["namespace"])
            ref = ownership.controller_of(found)
            same = rollout.template_without_hash(found) == rollout.template_without_hash(deployment)
            if ref is not None and ref["uid"] == meta["uid"] and same:
                return self.sets.wrote(found), True
            # Another template hashed to this name: the next attempt hashes with the count of collisions.
            status = {**(deployment.get("status") or {}), "collisionCount": collisions + 1}
            await self.context.status(self.resource, deployment, status)
            raise
        except ApiError as error:
            message = f'Failed to create new replica set "{body["metadata"]["name"]}": {error}'
            self.context.events.warning(
                "Deployment", deployment, "ReplicaSetCreateError", message, _COMPONENT
            )
            status = deployment.get("status") or {}
            conditions = facts.with_condition(
                status.get("conditions") or (),
                "Progressing",
                "False",
                "ReplicaSetCreateError",
                message,
                self.context.now(),
                updates=True,
            )
            await self.context.status(self.resource, deployment, {**status, "conditions": conditions})
            raise
        self._say_scaled(deployment, made, 0, rollout.replicas(made))
        return made, True

    def _annotations(self, deployment: Obj, each: Obj, newest: int) -> dict[str, str]:
        """Of the new ReplicaSet: the deployment's own, and the bookkeeping of revisions and sizes."""
        result = dict(facts.annotations_of(each))
        result |= {
            k: v for k, v in facts.annotations_of(deployment).items() if k not in rollout.OWN_ANNOTATIONS
        }
        before = rollout.revision(each)
        if before < newest:
            if before:
                history = [h for h in result.get(rollout.REVISION_HISTORY, "").split(",") if h]
                result[rollout.REVISION_HISTORY] = ",".join([*history, str(before)])
            result[rollout.REVISION] = str(newest)
        return result | self._sizes(deployment)

    def _sizes(self, deployment: Obj) -> dict[str, str]:
        surge, _ = rollout.limits(deployment)
        wanted = rollout.replicas(deployment)
        return {rollout.DESIRED: str(wanted), rollout.MAXIMUM: str(wanted + surge)}

    async def _record_revision(self, deployment: Obj, number: str) -> None:
        if facts.annotations_of(deployment).get(rollout.REVISION) != number:
            current = self.objects.get(deployment["metadata"]["name"], deployment["metadata"]["namespace"])
            await self.context.patch(
                self.resource,
                current or deployment,
                {"metadata": {"annotations": {rollout.REVISION: number}}},
            )

    def _was_scaled(self, deployment: Obj, sets: list[Obj]) -> bool:
        wanted = str(rollout.replicas(deployment))
        return any(
            rollout.replicas(s) and facts.annotations_of(s).get(rollout.DESIRED, wanted) != wanted
            for s in sets
        )

    async def _scale(self, deployment: Obj, sets: list[Obj], new: Obj | None) -> list[Obj]:
        """spec.replicas changed, or the rollout is paused: sizes follow without moving the rollout on."""
        wanted = rollout.replicas(deployment)
        active = [s for s in sets if rollout.replicas(s)]
        sizes: dict[str, int]
        if len(active) <= 1:
            target = active[0] if active else new or max(sets, key=facts.created_s, default=None)
            sizes = {target["metadata"]["name"]: wanted} if target is not None else {}
        elif (
            new is not None
            and rollout.replicas(new) == wanted
            and rollout.count([new], "availableReplicas") == wanted
        ):
            sizes = {s["metadata"]["name"]: 0 for s in active if not _same(s, new)}
        elif (deployment["spec"].get("strategy") or {}).get("type") == "Recreate":
            sizes = {}
        else:
            sizes = rollout.proportional(deployment, sets)
        for each in list(sets):
            size = sizes.get(each["metadata"]["name"], rollout.replicas(each))
            if size != rollout.replicas(each) or (size and self._was_scaled(deployment, [each])):
                sets = _swap(sets, await self._resize(deployment, each, size))
        return sets

    async def _resize(self, deployment: Obj, each: Obj, size: int) -> Obj:
        before = rollout.replicas(each)
        body = _with_annotations(each, facts.annotations_of(each) | self._sizes(deployment))
        updated = await self.context.update(_SETS, {**body, "spec": {**each["spec"], "replicas": size}})
        self._say_scaled(deployment, updated, before, size)
        return updated

    def _say_scaled(self, deployment: Obj, each: Obj, before: int, after: int) -> None:
        if before != after:
            word = "up" if after > before else "down"
            message = f"Scaled {word} replica set {each['metadata']['name']} from {before} to {after}"
            self.context.events.normal("Deployment", deployment, "ScalingReplicaSet", message, _COMPONENT)

    async def _clean(self, deployment: Obj, sets: list[Obj], new: Obj | None) -> list[Obj]:
        """Once the rollout is over: forgets the oldest empty ReplicaSets beyond revisionHistoryLimit."""
        if not _complete(deployment, sets, new):
            return sets
        limit = deployment["spec"].get("revisionHistoryLimit", 10)
        idle = [
            s
            for s in sets
            if not _same(s, new)
            and not rollout.replicas(s)
            and not rollout.count([s], "replicas")
            and not facts.is_deleting(s)
            and (s.get("status") or {}).get("observedGeneration", 0) >= s["metadata"].get("generation", 1)
        ]
        idle.sort(key=lambda s: (rollout.revision(s), facts.created_s(s)))
        for each in idle[: max(0, len(idle) - limit)]:
            await self.context.delete(_SETS, each)
            sets = [s for s in sets if s is not each]
        return sets

    # --- status ---

    async def _status(self, deployment: Obj, sets: list[Obj]) -> float | None:
        now_s = self.context.now()
        old = deployment.get("status") or {}
        new = rollout.find_new(deployment, sets)
        available = rollout.count(sets, "availableReplicas")
        wanted = rollout.replicas(deployment)
        counts = {
            "replicas": rollout.count(sets, "replicas"),
            "updatedReplicas": rollout.count([new], "replicas") if new is not None else 0,
            "readyReplicas": rollout.count(sets, "readyReplicas"),
            "availableReplicas": available,
            "unavailableReplicas": max(0, rollout.total(sets) - available),
        }
        status: Obj = {k: v for k, v in counts.items() if v}
        status["observedGeneration"] = deployment["metadata"].get("generation", 1)
        if old.get("collisionCount"):
            status["collisionCount"] = old["collisionCount"]
        conditions, again_s = self._conditions(deployment, sets, new, status, now_s)
        _, unavailable = rollout.limits(deployment)
        enough = available >= wanted - unavailable
        conditions = facts.with_condition(
            conditions,
            "Available",
            "True" if enough else "False",
            "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
            "Deployment has minimum availability."
            if enough
            else "Deployment does not have minimum availability.",
            now_s,
            updates=True,
        )
        failures = [c for s in sets if (c := facts.condition(s, "ReplicaFailure")) is not None]
        if failures:
            conditions = facts.with_condition(
                conditions,
                "ReplicaFailure",
                failures[0]["status"],
                failures[0].get("reason", ""),
                failures[0].get("message", ""),
                now_s,
                updates=True,
            )
        else:
            conditions = facts.without_condition(conditions, "ReplicaFailure")
        status["conditions"] = conditions
        await self.context.status(self.resource, deployment, status)
        return again_s

    def _conditions(
        self, deployment: Obj, sets: list[Obj], new: Obj | None, status: Obj, now_s: float
    ) -> tuple[list[Obj], float | None]:
        """(conditions with Progressing as it is now, seconds until the progress deadline)"""
        old_status = deployment.get("status") or {}
        conditions = list(old_status.get("conditions") or ())
        progressing = facts.condition(deployment, "Progressing")
        deadline_s = deployment["spec"].get("progressDeadlineSeconds", 600)
        name = new["metadata"]["name"] if new is not None else deployment["metadata"]["name"]
        what = f'ReplicaSet "{name}"' if new is not None else f'Deployment "{name}"'

        def progress(state: str, reason: str, message: str) -> list[Obj]:
            return facts.with_condition(
                conditions, "Progressing", state, reason, message, now_s, updates=True
            )

        if deployment["spec"].get("paused"):
            return progress("Unknown", "DeploymentPaused", "Deployment is paused"), None
        if progressing is not None and progressing.get("reason") == "DeploymentPaused":
            conditions = progress("Unknown", "DeploymentResumed", "Deployment is resumed")
            progressing = {"reason": "DeploymentResumed", "lastUpdateTime": facts.timestamp(now_s)}
        news = self._news.pop(deployment["metadata"]["uid"], None)
        if _complete(deployment, sets, new):
            return progress("True", "NewReplicaSetAvailable", f"{what} has successfully progressed."), None
        moved = any(
            (status.get(field) or 0) > (old_status.get(field) or 0)
            for field in ("updatedReplicas", "readyReplicas", "availableReplicas")
        ) or _old_count(status) < _old_count(old_status)
        if news is not None:
            return progress("True", *news), deadline_s + 1.0
        if moved or progressing is None or progressing.get("reason") == "NewReplicaSetAvailable":
            conditions = progress("True", "ReplicaSetUpdated", f"{what} is progressing.")
            # The deadline runs from the last progress, also when the words stay the same.
            conditions = [
                {**c, "lastUpdateTime": facts.timestamp(now_s)} if c["type"] == "Progressing" else c
                for c in conditions
            ]
            return conditions, deadline_s + 1.0
        if progressing.get("reason") in _MOVING:
            left_s = facts.seconds(progressing.get("lastUpdateTime")) + deadline_s - now_s
            if left_s > 0:
                return conditions, left_s + 1.0
            message = f"{what} has timed out progressing."
            return progress("False", "ProgressDeadlineExceeded", message), None
        return conditions, None


def _old_count(status: Obj) -> int:
    return (status.get("replicas") or 0) - (status.get("updatedReplicas") or 0)


def _complete(deployment: Obj, sets: list[Obj], new: Obj | None) -> bool:
    """Every pod is of the present version and available, and no other is left."""
    wanted = rollout.replicas(deployment)
    return (
        (new is not None or wanted == 0)
        and rollout.count(sets, "replicas") == wanted
        and rollout.total(sets) == wanted
        and (new is None or rollout.count([new], "replicas") == wanted)
        and rollout.count(sets, "availableReplicas") == wanted
    )


def _same(one: Obj, other: Obj | None) -> bool:
    return other is not None and bool(one["metadata"]["uid"] == other["metadata"]["uid"])


def _with_annotations(obj: Obj, annotations: dict[str, str]) -> Obj:
    return {**obj, "metadata": {**obj["metadata"], "annotations": annotations}}


def _swap(sets: list[Obj], updated: Obj) -> list[Obj]:
    uid = updated["metadata"]["uid"]
    return [updated if s["metadata"]["uid"] == uid else s for s in sets]
