"""When is a lab ready: every pod of what was applied is Ready or Succeeded, and every node holds it all.

Pure judgements over objects and agents' answers; up.py asks again until nothing is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from podlane.controller import load_balancers
from podlane.controller.meta import annotations_of
from podlane.model import pools
from podlane.model.addresses import address

Obj = dict[str, Any]

WORKLOADS = {
    "Deployment": "deployments.apps",
    "ReplicaSet": "replicasets.apps",
    "StatefulSet": "statefulsets.apps",
    "DaemonSet": "daemonsets.apps",
    "Job": "jobs.batch",
    "ReplicationController": "replicationcontrollers",
}


def reference(obj: Obj) -> str:
    """kind/namespace/name, as people write it."""
    meta = obj.get("metadata", {})
    namespace = f"{meta['namespace']}/" if meta.get("namespace") else ""
    return f"{obj.get('kind', 'object')} {namespace}{meta.get('name', '?')}"


def workload_missing(obj: Obj) -> str | None:
    """Why a workload's controller has not made all its pods available; None when it has."""
    kind, spec, status = obj.get("kind"), obj.get("spec", {}), obj.get("status", {})
    generation = obj.get("metadata", {}).get("generation", 0)
    if kind == "Job":
        if spec.get("suspend"):
            return None
        wanted = spec.get("parallelism", 1)
        if any(c["type"] == "Failed" and c["status"] == "True" for c in status.get("conditions", [])):
            return f"{reference(obj)}: failed"
        done = status.get("succeeded", 0) >= (spec.get("completions") or wanted)
        return None if done or status.get("ready", 0) >= wanted else f"{reference(obj)}: not complete"
    if status.get("observedGeneration", 0) < generation:
        return f"{reference(obj)}: not yet seen by its controller"
    if kind == "DaemonSet":
        wanted, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
        updated = status.get("updatedNumberScheduled", 0)
    else:
        wanted, ready = spec.get("replicas", 1), status.get("readyReplicas", 0)
        # ReplicaSets have no updatedReplicas: their pods are of one template.
        updated = status.get("updatedReplicas", ready) if kind in ("Deployment", "StatefulSet") else ready
    if ready < wanted or min(updated, ready) < wanted:
        return f"{reference(obj)}: {min(ready, updated)} of {wanted} pods are ready"
    return None


def pod_missing(pod: Obj) -> str | None:
    """Why a pod is neither Ready nor Succeeded; None when it is, or is on its way out."""
    if pod.get("metadata", {}).get("deletionTimestamp"):
        return None
    status = pod.get("status", {})
    phase = status.get("phase", "Pending")
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    if phase == "Succeeded" or conditions.get("Ready", {}).get("status") == "True":
        return None
    reasons = []
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        reasons.append(scheduled.get("message") or scheduled.get("reason") or "not scheduled")
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        state = container.get("state", {})
        detail = state.get("waiting") or state.get("terminated")
        if detail and detail.get("reason") not in (None, "Completed", "PodInitializing"):
            why = f"{detail['reason']}: {detail['message']}" if detail.get("message") else detail["reason"]
            reasons.append(f"container {container['name']}: {why}")
        elif state.get("running") and not container.get("ready"):
            reasons.append(f"container {container['name']} is running but not ready")
    return f"{reference(pod)}: {phase}" + (f" ({'; '.join(reasons)})" if reasons else "")


def belongs(obj: Obj, roots: set[str], owners: dict[str, Obj]) -> bool:
    """Whether obj is one of the applied objects (by uid) or descends from one."""
    seen: set[str] = set()
    pending = [obj]
    while pending:
        current = pending.pop()
        uid = current.get("metadata", {}).get("uid", "")
        if uid in roots:
            return True
        if uid in seen:
            continue
        seen.add(uid)
        for owner in current.get("metadata", {}).get("ownerReferences", []):
            if owner["uid"] in roots:
                return True
            if owner["uid"] in owners:
                pending.append(owners[owner["uid"]])
    return False


def agent_missing(status: Obj, newest: dict[str, int]) -> list[str]:
    """What node agent `status` (GET /status) does not hold yet of objects up to `newest` resourceVersions."""
    node = status.get("node", "?")
    if not status.get("ready"):
        return [f"node {node}: its agent is not ready"]
    missing = [
        f"node {node}: {failure['table']} {failure['key']}: {failure['error']}"
        for failure in status.get("failures", [])
    ]
    behind = sorted(k for k, v in newest.items() if int(status.get("applied", {}).get(k) or 0) < v)
    if behind:
        missing.append(f"node {node}: its agent has yet to see the newest {', '.join(behind)}")
    if status.get("pending"):
        missing.append(f"node {node}: its agent has {status['pending']} changes to apply")
    return missing


def newest_versions(objects: Iterable[Obj], kind: str) -> dict[str, int]:
    """{kind: highest resourceVersion} of objects; empty when there are none."""
    versions = [int(o["metadata"].get("resourceVersion") or 0) for o in objects]
    return {kind: max(versions)} if versions else {}


def balancer_waits(service: Obj, *, any_pool: bool) -> bool:
    """A LoadBalancer that the lab serves has no address yet, or one of a pool that nobody answers for yet."""
    server, ingress = load_balancers.server_of(service, any_pool=any_pool), load_balancers.ingress_of(service)
    if server != load_balancers.POOLS:
        return server is not None and not ingress
    if pools.ALLOCATED_FROM not in annotations_of(service):
        return True
    said = [c.get("message", "") for c in (service.get("status") or {}).get("conditions") or ()]
    told = [found for found in map(pools.announcer, said) if found is not None]
    answered = {str(where) for _, where in told}
    return not ingress or any(str(address(each["ip"])) not in answered for each in ingress)
