"""Whatever happens in whatever order, with the manager killed in between: it ends where it should."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from podlane.errors import ApiError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts, ownership, slicing
from tests.unit.controller_lab import Cluster, cluster, deployment, name, service, template, workload

SLICES = "endpointslices.discovery.k8s.io"
WORKLOADS = ("deployments.apps", "replicasets.apps", "statefulsets.apps", "daemonsets.apps", "jobs.batch")


def body(resource: str, which: str, replicas: int) -> Obj:
    match resource:
        case "deployments.apps":
            return deployment(which, replicas)
        case "replicasets.apps":
            return workload("apps/v1", "ReplicaSet", which, replicas)
        case "statefulsets.apps":
            return workload("apps/v1", "StatefulSet", which, replicas, serviceName=which)
        case "daemonsets.apps":
            return workload("apps/v1", "DaemonSet", which)
        case _:
            spec = {
                "completions": replicas,
                "parallelism": 2,
                "template": template({"app": which}, restartPolicy="Never"),
            }
            return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": which}, "spec": spec}


class Story:
    def __init__(self, lab: Cluster, chance: random.Random) -> None:
        self.lab, self.chance = lab, chance

    def some(self, resource: str) -> Obj | None:
        found = [o for o in self.lab.all(resource) if o["metadata"].get("namespace", "default") == "default"]
        return self.chance.choice(found) if found else None

    async def step(self) -> None:
        """One thing a person, a node or fate might do."""
        lab, chance = self.lab, self.chance
        resource = chance.choice(WORKLOADS)
        which = f"{resource[0]}{chance.randrange(2)}"  # kinds do not share selectors
        match chance.randrange(11):
            case 0 | 1 | 2:
                await lab.create(resource, body(resource, which, chance.randrange(5)))
            case 3 if (obj := self.some(resource)) and resource != "jobs.batch":
                await lab.edit(resource, name(obj), {"spec": {"replicas": chance.randrange(6)}})
            case 4 if (obj := self.some(resource)) and resource != "jobs.batch":
                change = {"template": {"metadata": {"annotations": {"v": str(chance.randrange(3))}}}}
                await lab.edit(resource, name(obj), {"spec": change})
            case 5 if obj := self.some(resource):
                how = chance.choice(["Background", "Foreground", "Orphan"])
                await lab.client.delete(resource, name(obj), "default", propagation=how)
            case 6 if obj := self.some("pods"):
                await lab.client.delete("pods", name(obj), "default")
            case 7 if (obj := self.some("pods")) and not name(obj).startswith("s"):
                # (not those of StatefulSets: a name somebody else holds cannot be made again)
                app = chance.choice(["d0", "r1", "s0", "none"])
                await lab.edit("pods", name(obj), {"metadata": {"labels": {"app": app}}})
            case 8:
                await lab.create("services", service(which, {"app": which}))
            case 9 if obj := self.some(SLICES):
                await lab.client.delete(SLICES, name(obj), "default")
            case _:
                for _ in range(chance.randrange(30)):
                    await asyncio.sleep(0)
                await lab.manager.stop()
                lab.start_manager()


def check(lab: Cluster) -> None:
    """What must hold once everything is quiet."""
    pods = lab.all("pods", "default")
    owners = {o["metadata"]["uid"]: o for r in WORKLOADS for o in lab.all(r, "default")}
    mine: Counter[str] = Counter()
    for pod in pods:
        for ref in pod["metadata"].get("ownerReferences") or ():
            assert ref["uid"] in owners, f"{name(pod)} belongs to {ref['kind']} {ref['name']}, which is gone"
        ref = ownership.controller_of(pod)
        if ref is not None and facts.is_active(pod):
            mine[ref["uid"]] += 1
            selector = ownership.selector_of(owners[ref["uid"]])
            assert selector.matches(facts.labels_of(pod))
    for resource in ("replicasets.apps", "statefulsets.apps"):
        for obj in lab.all(resource, "default"):
            wanted = obj["spec"]["replicas"]
            theirs = [name(p) for p in pods if _owned(p, obj)]
            assert mine[obj["metadata"]["uid"]] == wanted, f"{resource} {name(obj)}: {theirs}"
            assert obj["status"]["replicas"] == wanted
            assert obj["status"].get("readyReplicas", 0) == wanted
    for obj in lab.all("daemonsets.apps", "default"):
        assert mine[obj["metadata"]["uid"]] == 3
        assert obj["status"]["numberReady"] == 3
    for obj in lab.all("deployments.apps", "default"):
        sets = [s for s in lab.all("replicasets.apps") if _owned(s, obj)]
        assert sum(s["spec"]["replicas"] for s in sets) == obj["spec"]["replicas"]
        assert sum(1 for s in sets if s["spec"]["replicas"]) <= 1
        assert obj["status"].get("availableReplicas", 0) == obj["spec"]["replicas"]
        assert obj["status"]["observedGeneration"] == obj["metadata"]["generation"]
    for obj in lab.all("jobs.batch", "default"):
        assert facts.condition(obj, "Complete") is not None
        assert obj["status"].get("succeeded", 0) == obj["spec"]["completions"]
    for obj in lab.all("services", "default"):
        if not obj["spec"].get("selector"):
            continue
        selected = [p for p in pods if obj["spec"]["selector"].items() <= facts.labels_of(p).items()]
        wanted = sorted(ip for p in selected if slicing.has_endpoints(p) for ip in facts.ips_of(p)[:1])
        slices = lab.all(SLICES, "default", **{"kubernetes.io/service-name": name(obj)})
        found = [e["addresses"][0] for s in slices for e in s.get("endpoints") or ()]
        assert sorted(found) == wanted
        assert all(_owned(s, obj) for s in slices)


def _owned(obj: Obj, owner: Obj) -> bool:
    ref = ownership.controller_of(obj)
    return ref is not None and bool(ref["uid"] == owner["metadata"]["uid"])


def jobs_done(pod: Any) -> str:
    return "Succeeded" if "job-name" in facts.labels_of(pod) else ""


@pytest.mark.parametrize("seed", range(12))
def test_it_ends_where_it_should(seed: int) -> None:
    async def main() -> None:
        chance = random.Random(seed)
        async with cluster(3) as lab:
            lab.exit = jobs_done
            story = Story(lab, chance)
            for _ in range(60):
                try:
                    await story.step()
                except ApiError as error:
                    # what a person would be told, too: the name is taken, or it is gone meanwhile
                    assert error.code in (404, 409)  # noqa: PT017
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
            await lab.settled()

            async def calm() -> bool:
                await lab.settled()
                before = lab.server.store.revision
                await lab.settled()
                return before == lab.server.store.revision

            while not await calm():  # events of their own come a second later
                pass
            check(lab)

    asyncio.run(main())
