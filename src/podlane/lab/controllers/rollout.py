"""The arithmetic of a Deployment's rolling update. Pure.

As kube-controller-manager does it (pkg/controller/deployment/{rolling,sync,progress}.go): the new
ReplicaSet grows within maxSurge, the old ones shrink within maxUnavailable, unhealthy pods first.
"""

from __future__ import annotations

import copy
from typing import Any

from podlane.lab.client import Obj
from podlane.lab.controllers import facts

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
OWN_ANNOTATIONS = (
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAXIMUM,
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
)


def replicas(obj: Obj) -> int:
    """spec.replicas."""
    return obj["spec"].get("replicas", 1)  # type: ignore[no-any-return]


def count(sets: list[Obj], field: str) -> int:
    """The sum of one status field."""
    return sum((s.get("status") or {}).get(field) or 0 for s in sets)


def total(sets: list[Obj]) -> int:
    return sum(map(replicas, sets))


def revision(obj: Obj) -> int:
    text = facts.annotations_of(obj).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def limits(deployment: Obj) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) as numbers of pods: (0, 0) for Recreate.

    Both zero would never move a rolling update: then one may be unavailable.
    """
    strategy = deployment["spec"].get("strategy") or {}
    wanted = replicas(deployment)
    if strategy.get("type") == "Recreate":
        return 0, 0
    rolling = strategy.get("rollingUpdate") or {}
    surge = facts.int_or_percent(rolling.get("maxSurge", "25%"), wanted, up=True)
    unavailable = facts.int_or_percent(rolling.get("maxUnavailable", "25%"), wanted, up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, wanted)


def template_without_hash(obj: Obj) -> Any:
    """spec.template without pod-template-hash: what says whether two ReplicaSets are the same version."""
    template = copy.deepcopy(obj["spec"].get("template") or {})
    labels = (template.get("metadata") or {}).get("labels") or {}
    labels.pop(HASH_LABEL, None)
    if template.get("metadata"):
        # The API's answers spell "no creation time" as null or not at all.
        if template["metadata"].get("creationTimestamp") is None:
            template["metadata"].pop("creationTimestamp", None)
        template["metadata"] = {k: v for k, v in template["metadata"].items() if v}
    return {k: v for k, v in template.items() if v}


def find_new(deployment: Obj, sets: list[Obj]) -> Obj | None:
    """The ReplicaSet of the deployment's present template, the oldest if there are several."""
    wanted = template_without_hash(deployment)
    same = [s for s in sets if template_without_hash(s) == wanted]
    return min(same, key=lambda s: (facts.created_s(s), s["metadata"]["name"])) if same else None


def new_size(deployment: Obj, sets: list[Obj], new: Obj) -> int:
    """spec.replicas of the new ReplicaSet in the next step of a rolling update."""
    wanted = replicas(deployment)
    if replicas(new) >= wanted:
        return wanted
    surge, _ = limits(deployment)
    room = wanted + surge - total(sets)
    return replicas(new) if room <= 0 else replicas(new) + min(room, wanted - replicas(new))


def old_sizes(deployment: Obj, sets: list[Obj], new: Obj, old: list[Obj]) -> dict[str, int]:
    """name -> spec.replicas of the old ReplicaSets that shrink in the next step."""
    if not total(old):
        return {}
    wanted = replicas(deployment)
    _, unavailable = limits(deployment)
    least = wanted - unavailable
    new_unavailable = replicas(new) - count([new], "availableReplicas")
    most = total(sets) - least - new_unavailable
    if most <= 0:
        return {}
    by_age = sorted(old, key=lambda s: (facts.created_s(s), s["metadata"]["name"]))
    sizes = {s["metadata"]["name"]: replicas(s) for s in by_age}
    # Pods that are not available cost nothing: they go first.
    for each in by_age:
        name = each["metadata"]["name"]
        unhealthy = min(most, max(0, sizes[name] - count([each], "availableReplicas")))
        sizes[name] -= unhealthy
        most -= unhealthy
    available = count(sets, "availableReplicas")
    spare = available - least
    for each in by_age:
        if spare <= 0:
            break
        name = each["metadata"]["name"]
        step = min(sizes[name], spare)
        sizes[name] -= step
        spare -= step
    before = {s["metadata"]["name"]: replicas(s) for s in old}
    return {name: size for name, size in sizes.items() if size != before[name]}


def proportional(deployment: Obj, sets: list[Obj]) -> dict[str, int]:
    """name -> spec.replicas when the deployment was scaled in the middle of a rollout.

    What is added or taken is shared among the ReplicaSets by their size; the remainder goes to the
    largest. Larger first when growing, newest last to shrink.
    """
    active = [s for s in sets if replicas(s)]
    surge, _ = limits(deployment)
    wanted = replicas(deployment)
    allowed = wanted + surge if wanted else 0
    add = allowed - total(active)
    order = sorted(
        active,
        key=lambda s: (-replicas(s), -facts.created_s(s) if add > 0 else facts.created_s(s)),
    )
    sizes = {s["metadata"]["name"]: replicas(s) for s in order}
    added = 0
    for each in order:
        name = each["metadata"]["name"]
        if add:
            share = _share(each, deployment, allowed, add, added)
            sizes[name] += share
            added += share
    if order:
        first = order[0]["metadata"]["name"]
        sizes[first] = max(0, sizes[first] + add - added)
    return sizes


def _share(each: Obj, deployment: Obj, allowed: int, add: int, added: int) -> int:
    size = replicas(each)
    before = int(facts.annotations_of(each).get(MAXIMUM) or 0) or (
        (deployment.get("status") or {}).get("replicas") or size
    )
    share = round(size * allowed / before) - size
    left = add - added
    return min(share, left) if add > 0 else max(share, left)
