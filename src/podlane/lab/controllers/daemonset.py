"""DaemonSet: one pod on every node that its template admits.

https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/
Each pod is made for one node (required node affinity on metadata.name) and bound by the scheduler.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from podlane.errors import ApiError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts, nodefit, ownership, revisions
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.informer import Key, key_of

_COMPONENT = "daemonset-controller"
GENERATION_LABEL = "pod-template-generation"
_TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)


class DaemonSets(Controller):
    resource: ClassVar[str] = "daemonsets.apps"
    settle_s = 0.005

    def __init__(self, context: Context) -> None:
        self.pods = context.informer("pods")
        self.nodes = context.informer("nodes")
        context.informer(revisions.REVISIONS)
        super().__init__(context)

    def subscribe(self) -> None:
        self.pods.subscribe(ownership.add_owners(self.soon, "DaemonSet", self.objects))
        self.nodes.subscribe(self._node_changed)

    def _node_changed(self, old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None or _node_facts(old) != _node_facts(new):
            for owner in self.objects.list():
                self.soon(key_of(owner))

    async def reconcile(self, key: Key) -> float | None:
        namespace, name = key
        owner = self.objects.get(name, namespace)
        if owner is None:
            return None
        selector = ownership.selector_of(owner)
        pods = await ownership.claim(self.context, owner, "DaemonSet", self.resource, "pods", selector)
        if facts.is_deleting(owner):
            return None
        past = await revisions.history(self.context, owner, "DaemonSet", self.resource)
        failure: ApiError | None = None
        try:
            await self._place(owner, pods, past.hash)
        except ApiError as error:
            failure = error
        uid = owner["metadata"]["uid"]
        pods = [p for p in self.pods.owned_by(uid) if ownership.controller_of(p) is not None]
        await revisions.forget(
            self.context, owner, past, (facts.labels_of(p).get(revisions.HASH_LABEL, "") for p in pods)
        )
        again_s = await self._status(owner, pods, past.hash)
        if failure is not None:
            raise failure
        return again_s

    async def _place(self, owner: Obj, pods: list[Obj], digest: str) -> None:
        nodes = {n["metadata"]["name"]: n for n in self.nodes.list() if not facts.is_deleting(n)}
        probe = _probe(owner)
        by_node = _by_node(pods)
        doomed: list[Obj] = []
        for name in sorted(by_node):
            theirs = by_node[name]
            node = nodes.get(name)
            run, keep = (False, False) if node is None else wanted(probe, node)
            for pod in theirs:
                if facts.is_finished(pod) and not facts.is_deleting(pod):
                    doomed.append(pod)
            alive = [p for p in theirs if facts.is_active(p)]
            if not (run or keep):
                doomed += alive
            else:
                doomed += _doubles(alive, digest)
        for pod in doomed:
            await self._delete(owner, pod)
        gone = {p["metadata"]["uid"] for p in doomed}
        alive_on = {
            name: [p for p in theirs if facts.is_active(p) and p["metadata"]["uid"] not in gone]
            for name, theirs in by_node.items()
        }
        running = sorted(n for n in nodes if wanted(probe, nodes[n])[0])
        surge_on = await self._update(owner, alive_on, running, digest)
        for name in running:
            leaving = any(facts.is_deleting(p) or p["metadata"]["uid"] in gone for p in by_node.get(name, ()))
            if name in surge_on or (not alive_on.get(name) and not leaving):
                await self._create(owner, name, digest)

    # --- rolling update ---

    async def _update(
        self, owner: Obj, alive_on: dict[str, list[Obj]], running: list[str], digest: str
    ) -> set[str]:
        """Makes room for the present template. The nodes that get a second pod first (maxSurge)."""
        strategy = owner["spec"].get("updateStrategy") or {}
        if strategy.get("type") == "OnDelete":
            return set()
        rolling = strategy.get("rollingUpdate") or {}
        total = len(running)
        surge = facts.int_or_percent(rolling.get("maxSurge", 0), total, up=True)
        most = facts.int_or_percent(rolling.get("maxUnavailable", 1), total, up=True)
        if not surge and not most:
            most = 1
        now_s = self.context.now()
        min_ready_s = owner["spec"].get("minReadySeconds") or 0

        def available(pod: Obj) -> bool:
            return facts.available_in_s(pod, min_ready_s, now_s) == 0

        old_on: dict[str, Obj] = {}
        for name in running:
            old = [p for p in alive_on.get(name, ()) if _hash(p) != digest]
            new = [p for p in alive_on.get(name, ()) if _hash(p) == digest]
            if old and any(available(p) for p in new):
                await self._delete(owner, old[0])
                alive_on[name].remove(old[0])
            elif old and not new:
                old_on[name] = old[0]
        if surge:
            surging = sum(len(alive_on.get(n, ())) > 1 for n in running)
            chosen = [n for n in sorted(old_on) if not available(old_on[n])]
            chosen += [n for n in sorted(old_on) if n not in chosen][: max(0, surge - surging)]
            return set(chosen)
        down = sum(not any(available(p) for p in alive_on.get(n, ())) for n in running)
        for name, pod in sorted(old_on.items()):
            if not available(pod):  # costs nothing: it is down already
                await self._delete(owner, pod)
                alive_on[name].remove(pod)
        for name, pod in sorted(old_on.items()):
            if available(pod) and down < most:
                down += 1
                await self._delete(owner, pod)
                alive_on[name].remove(pod)
        # Their successors are made when they are gone: the DELETED event brings us back.
        leaving = {n for n in old_on if not alive_on.get(n)}
        running[:] = [n for n in running if n not in leaving]
        return set()

    async def _delete(self, owner: Obj, pod: Obj) -> None:
        await self.context.delete("pods", pod)
        message = f"Deleted pod: {pod['metadata']['name']}"
        self.context.events.normal("DaemonSet", owner, "SuccessfulDelete", message, _COMPONENT)

    async def _create(self, owner: Obj, node: str, digest: str) -> None:
        labels = {
            revisions.HASH_LABEL: digest,
            GENERATION_LABEL: str(owner["metadata"].get("generation", 1)),
        }
        pod = ownership.pod_from(owner["spec"]["template"], owner, "DaemonSet", labels=labels)
        pod["spec"] = _spec_for(owner, node)
        try:
            made = await self.context.create("pods", pod, owner["metadata"]["namespace"])
        except ApiError as error:
            self.context.events.warning(
                "DaemonSet", owner, "FailedCreate", f"Error creating: {error}", _COMPONENT
            )
            raise
        message = f"Created pod: {made['metadata']['name']}"
        self.context.events.normal("DaemonSet", owner, "SuccessfulCreate", message, _COMPONENT)

    # --- status ---

    async def _status(self, owner: Obj, pods: list[Obj], digest: str) -> float | None:
        now_s = self.context.now()
        min_ready_s = owner["spec"].get("minReadySeconds") or 0
        by_node = _by_node([p for p in pods if facts.is_active(p)])
        desired = current = misplaced = ready = available = updated = 0
        waits: list[float] = []
        probe = _probe(owner)
        for node in self.nodes.list():
            theirs = by_node.get(node["metadata"]["name"], [])
            if not wanted(probe, node)[0]:
                misplaced += bool(theirs)
                continue
            desired += 1
            if not theirs:
                continue
            current += 1
            newest = max(theirs, key=facts.created_s)
            due = [facts.available_in_s(p, min_ready_s, now_s) for p in theirs]
            waits += [d for d in due if d]
            ready += any(d is not None for d in due)
            available += any(d == 0 for d in due)
            updated += _hash(newest) == digest
        status: dict[str, Any] = {
            "currentNumberScheduled": current,
            "desiredNumberScheduled": desired,
            "numberMisscheduled": misplaced,
            "numberReady": ready,
            "observedGeneration": owner["metadata"].get("generation", 1),
        }
        for field, count in (
            ("updatedNumberScheduled", updated),
            ("numberAvailable", available),
            ("numberUnavailable", desired - available),
        ):
            if count:
                status[field] = count
        await self.context.status(self.resource, owner, status)
        return min(waits, default=None)


def _probe(owner: Obj) -> Obj:
    """A pod of the template as far as nodes ask: selector, affinity, tolerations."""
    spec = owner["spec"]["template"].get("spec") or {}
    return {
        "metadata": {"namespace": owner["metadata"]["namespace"]},
        "spec": {
            "nodeSelector": spec.get("nodeSelector"),
            "affinity": spec.get("affinity"),
            "tolerations": _tolerations(spec),
        },
    }


def wanted(probe: Obj, node: Obj) -> tuple[bool, bool]:
    """(a pod should start there, one that is there may stay)"""
    if not nodefit.matches_node(probe, node):
        return False, False
    # Only the taints somebody wrote: that a node is not ready keeps no daemon away.
    taints = [t for t in (node.get("spec") or {}).get("taints") or () if not nodefit.tolerates(probe, t)]
    run = not any(t.get("effect") in ("NoSchedule", "NoExecute") for t in taints)
    keep = not any(t.get("effect") == "NoExecute" for t in taints)
    return run, keep


def _tolerations(spec: Obj) -> list[Obj]:
    """The template's, and what every daemon must endure."""
    taints = list(_TOLERATED)
    if spec.get("hostNetwork"):
        taints.append(("node.kubernetes.io/network-unavailable", "NoSchedule"))
    present = spec.get("tolerations") or []
    added = [{"key": key, "operator": "Exists", "effect": effect} for key, effect in taints]
    return [*present, *(t for t in added if t not in present)]


def _hash(pod: Obj) -> str:
    return facts.labels_of(pod).get(revisions.HASH_LABEL, "")


def _spec_for(owner: Obj, node: str) -> Obj:
    """The template's spec, for one node: no other one fits."""
    spec: Obj = copy.deepcopy(owner["spec"]["template"].get("spec") or {})
    only = {"key": "metadata.name", "operator": "In", "values": [node]}
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or [{}]
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
        "nodeSelectorTerms": [{**t, "matchFields": [only]} for t in terms]
    }
    spec["tolerations"] = _tolerations(spec)
    return spec


def target_of(pod: Obj) -> str:
    """The node a daemon's pod is for, bound or not yet."""
    if node := facts.node_of(pod):
        return node
    affinity = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    for term in affinity.get("nodeSelectorTerms") or ():
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and len(field.get("values") or ()) == 1:
                return str(field["values"][0])
    return ""


def _by_node(pods: list[Obj]) -> dict[str, list[Obj]]:
    found: dict[str, list[Obj]] = {}
    for pod in pods:
        found.setdefault(target_of(pod), []).append(pod)
    return found


def _doubles(alive: list[Obj], digest: str) -> list[Obj]:
    """All but the best of several pods of one version on one node: the oldest bound one stays."""
    extra = []
    for same in (
        [p for p in alive if _hash(p) == digest],
        [p for p in alive if _hash(p) != digest],
    ):
        same.sort(key=lambda p: (not facts.node_of(p), facts.created_s(p), p["metadata"]["name"]))
        extra += same[1:]
    return extra


def _node_facts(node: Obj) -> Any:
    spec = node.get("spec") or {}
    return facts.labels_of(node), spec.get("taints"), facts.is_deleting(node)
