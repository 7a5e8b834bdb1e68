"""EndpointSlices and Endpoints of services, over the real API with pretended kubelets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from podlane.lab.controllers.context import Context
from podlane.lab.controllers.endpointslice import ServicePods
from podlane.lab.informer import Key, WorkQueue
from tests.unit.controller_lab import Cluster, cluster, deployment, name, pod, service

SLICES = "endpointslices.discovery.k8s.io"
ZONED = [("node-1", "rack-1"), ("node-2", "rack-2")]


def run(story: Callable[[Cluster], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with cluster(**options) as lab:
            await story(lab)

    asyncio.run(main())


def slices(lab: Cluster, of: str, family: str = "") -> list[Obj]:
    found = lab.all(SLICES, **{"kubernetes.io/service-name": of})
    return [s for s in found if not family or s["addressType"] == family]


def endpoints(lab: Cluster, of: str, family: str = "IPv4") -> list[Obj]:
    return [e for s in slices(lab, of, family) for e in s.get("endpoints") or ()]


def ready(lab: Cluster, of: str, family: str = "IPv4") -> list[Obj]:
    return [e for e in endpoints(lab, of, family) if e["conditions"]["ready"]]


async def dual(lab: Cluster, body: Obj) -> Obj:
    body["spec"] |= {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}
    return await lab.create("services", body)


def test_slices_say_what_a_proxy_needs() -> None:
    async def story(lab: Cluster) -> None:
        await dual(lab, service("web", {"app": "web"}, [{"port": 80, "targetPort": 8080, "name": "http"}]))
        await lab.create("pods", pod("one", {"app": "web"}, nodeName="node-2"))
        await lab.until(lambda: ready(lab, "web") and ready(lab, "web", "IPv6"))
        await lab.settled()
        (each,) = slices(lab, "web", "IPv4")
        assert name(each).startswith("web-")
        assert each["metadata"]["labels"] == {
            "kubernetes.io/service-name": "web",
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        }
        (owner,) = each["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("Service", "web", True)
        assert "endpoints.kubernetes.io/last-change-trigger-time" in each["metadata"]["annotations"]
        assert each["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
        one = lab.one("pods", "one")
        assert each["endpoints"] == [
            {
                "addresses": [one["status"]["podIP"]],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": "node-2",
                "zone": "rack-2",
                "targetRef": {
                    "kind": "Pod",
                    "namespace": "default",
                    "name": "one",
                    "uid": one["metadata"]["uid"],
                },
            }
        ]
        old = lab.one("endpoints", "web")
        (subset,) = old["subsets"]
        assert [a["ip"] for a in subset["addresses"]] == [one["status"]["podIP"]]
        assert subset["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]

    run(story, nodes=ZONED)


def test_a_selector_that_matches_nothing_has_one_empty_slice_a_family() -> None:
    async def story(lab: Cluster) -> None:
        await dual(lab, service("web", {"app": "web"}))
        await lab.until(lambda: len(slices(lab, "web")) == 2)
        await lab.settled()
        assert sorted(s["addressType"] for s in slices(lab, "web")) == ["IPv4", "IPv6"]
        assert not endpoints(lab, "web")
        # a pod comes and goes: back to one empty slice
        await lab.create("pods", pod("one", {"app": "web"}))
        await lab.until(lambda: ready(lab, "web"))
        await lab.client.delete("pods", "one", "default", grace_period_s=0)
        await lab.until(lambda: not endpoints(lab, "web"))
        await lab.settled()
        assert len(slices(lab, "web")) == 2

    run(story)


def test_readiness_and_termination() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("services", service("web", {"app": "web"}))
        lab.ready = lambda p: name(p) != "two"
        await lab.create("pods", pod("one", {"app": "web"}))
        await lab.create("pods", pod("two", {"app": "web"}))
        await lab.until(lambda: len(endpoints(lab, "web")) == 2 and len(ready(lab, "web")) == 1)
        lab.keep_terminating = True
        await lab.client.delete("pods", "one", "default")

        def draining() -> bool:
            found = {e["targetRef"]["name"]: e["conditions"] for e in endpoints(lab, "web")}
            return found.get("one") == {"ready": False, "serving": True, "terminating": True}

        await lab.until(draining)
        await lab.settled()
        assert not ready(lab, "web")
        # terminating pods are not in the older Endpoints at all
        (subset,) = lab.one("endpoints", "web")["subsets"]
        assert [a["targetRef"]["name"] for a in subset["notReadyAddresses"]] == ["two"]
        assert "addresses" not in subset

    run(story)


def test_publish_not_ready_addresses() -> None:
    async def story(lab: Cluster) -> None:
        lab.ready = lambda p: False
        body = service("db", {"app": "db"}, clusterIP="None", publishNotReadyAddresses=True)
        await lab.create("services", body)
        await lab.create("pods", pod("db-0", {"app": "db"}, hostname="db-0", subdomain="db"))
        await lab.until(lambda: ready(lab, "db"))
        (found,) = ready(lab, "db")
        assert found["conditions"] == {"ready": True, "serving": False, "terminating": False}
        assert found["hostname"] == "db-0"
        assert slices(lab, "db")[0]["metadata"]["labels"]["service.kubernetes.io/headless"] == ""

    run(story)


def test_pods_that_resolve_a_named_port_differently_are_in_different_slices() -> None:
    async def story(lab: Cluster) -> None:
        def member(name_: str, number: int) -> Obj:
            body = pod(name_, {"app": "web"})
            body["spec"]["containers"][0]["ports"] = [{"name": "http", "containerPort": number}]
            return body

        await lab.create("services", service("web", {"app": "web"}, [{"port": 80, "targetPort": "http"}]))
        for name_, number in (("a", 8080), ("b", 9090), ("c", 8080)):
            await lab.create("pods", member(name_, number))
        await lab.until(lambda: len(ready(lab, "web")) == 3)
        await lab.settled()
        found = {
            s["ports"][0]["port"]: sorted(e["targetRef"]["name"] for e in s["endpoints"])
            for s in slices(lab, "web")
        }
        assert found == {8080: ["a", "c"], 9090: ["b"]}
        ports = [s["ports"][0]["port"] for s in lab.one("endpoints", "web")["subsets"]]
        assert sorted(ports) == [8080, 9090]

    run(story)


def test_one_pods_change_rewrites_one_slice_and_silence_writes_nothing() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("services", service("web", {"app": "web"}))
        await lab.create("deployments.apps", deployment("web", 120))
        await lab.until(lambda: len(ready(lab, "web")) == 120)
        await lab.settled()
        sizes = [len(s["endpoints"]) for s in slices(lab, "web")]
        assert sum(sizes) == 120
        assert max(sizes) <= 100
        before = {name(s): s["metadata"]["resourceVersion"] for s in slices(lab, "web")}
        await lab.manager.stop()
        lab.start_manager()
        await lab.until(lambda: lab.manager.idle)
        await lab.settled()
        assert {name(s): s["metadata"]["resourceVersion"] for s in slices(lab, "web")} == before
        sick = ready(lab, "web")[0]["targetRef"]["name"]
        lab.ready = lambda p: name(p) != sick
        await lab.report()
        await lab.until(lambda: len(ready(lab, "web")) == 119)
        await lab.settled()
        after = {name(s): s["metadata"]["resourceVersion"] for s in slices(lab, "web")}
        assert len(after.items() - before.items()) == 1

    run(story, nodes=4)


def test_what_goes_is_told_sooner_than_what_comes_to_a_large_service() -> None:
    told: list[float] = []

    class Queue(WorkQueue[Key]):
        def add_after(self, key: Key, delay_s: float) -> None:
            told.append(delay_s)

    async def nothing(key: Key) -> None:
        return None

    async def story(lab: Cluster) -> None:
        lab.ready = lambda pod: pod["metadata"]["name"] != "late"
        await lab.create("services", service("web", {"app": "web"}, [{"port": 80}]))
        for number in range(40):
            await lab.create("pods", pod(f"pod-{number}", {"app": "web"}, nodeName="node-1"))
        context = Context(lab.client, lab.config)
        members = ServicePods(context)
        async with asyncio.TaskGroup() as group:
            context.informers.start(group)
            await context.informers.synced()
            await lab.until(lambda: all(facts.is_ready(p) for p in members.pods.list("default")))
            assert len(members.of(lab.one("services", "web"))) == 40
            members.subscribe(Queue("services", nothing))
            told.clear()
            await lab.create("pods", pod("late", {"app": "web"}, nodeName="node-1"))
            await lab.until(lambda: told)
            coming_s = told.pop()
            await lab.client.delete("pods", "pod-1", "default")
            await lab.until(lambda: min(told, default=coming_s) < coming_s)
            for resource in ("services", "pods", "nodes"):
                context.informers.forget(resource)

    run(story)


def test_traffic_distribution_becomes_hints() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("services", service("web", {"app": "web"}, trafficDistribution="PreferSameNode"))
        await lab.create("pods", pod("one", {"app": "web"}, nodeName="node-2"))
        await lab.until(lambda: ready(lab, "web"))
        assert ready(lab, "web")[0]["hints"] == {
            "forZones": [{"name": "rack-2"}],
            "forNodes": [{"name": "node-2"}],
        }
        await lab.edit("services", "web", {"spec": {"trafficDistribution": "PreferClose"}})
        await lab.until(lambda: ready(lab, "web")[0]["hints"] == {"forZones": [{"name": "rack-2"}]})
        await lab.edit("services", "web", {"spec": {"trafficDistribution": None}})
        await lab.until(lambda: "hints" not in ready(lab, "web")[0])

    run(story, nodes=ZONED)


def test_slices_and_endpoints_go_with_their_service() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("services", service("web", {"app": "web"}))
        await lab.until(lambda: slices(lab, "web") and lab.all("endpoints", "default"))
        await lab.client.delete("services", "web", "default")
        left = lambda: [e for e in lab.all("endpoints", "default") if name(e) == "web"]  # noqa: E731
        await lab.until(lambda: not slices(lab, "web") and not left())

    run(story)


def test_a_slice_somebody_deletes_or_edits_comes_back() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("services", service("web", {"app": "web"}))
        await lab.create("pods", pod("one", {"app": "web"}))
        await lab.until(lambda: ready(lab, "web"))
        await lab.client.delete(SLICES, name(slices(lab, "web")[0]), "default")
        await lab.until(lambda: ready(lab, "web"))
        await lab.edit(SLICES, name(slices(lab, "web")[0]), {"endpoints": []})
        await lab.until(lambda: ready(lab, "web"))

    run(story)


def test_endpoints_people_write_are_mirrored() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("services", service("db", None, [{"port": 5432, "name": "sql"}]))
        body = {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": "db"},
            "subsets": [
                {
                    "addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "nodeName": "node-1"}],
                    "notReadyAddresses": [{"ip": "192.0.2.3"}],
                    "ports": [{"port": 5432, "name": "sql"}],
                }
            ],
        }
        await lab.create("endpoints", body)
        await lab.until(lambda: len(endpoints(lab, "db")) == 3)
        (each,) = slices(lab, "db")
        labels = each["metadata"]["labels"]
        assert labels["endpointslice.kubernetes.io/managed-by"] == "endpointslicemirroring-controller.k8s.io"
        assert each["ports"] == [{"name": "sql", "port": 5432, "protocol": "TCP"}]
        assert sorted(e["addresses"][0] for e in ready(lab, "db")) == ["192.0.2.1", "192.0.2.2"]
        await lab.edit("endpoints", "db", {"subsets": [{"addresses": [{"ip": "192.0.2.9"}]}]})
        await lab.until(lambda: [e["addresses"] for e in endpoints(lab, "db")] == [["192.0.2.9"]])
        await lab.client.delete("endpoints", "db", "default")
        await lab.until(lambda: not slices(lab, "db"))
        # the lab's own `kubernetes` endpoints ask not to be mirrored
        managers = {
            s["metadata"]["labels"].get("endpointslice.kubernetes.io/managed-by") for s in lab.all(SLICES)
        }
        assert "endpointslicemirroring-controller.k8s.io" not in managers

    run(story)


def test_pods_without_an_address_or_finished_are_no_endpoints() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create("services", service("web", {"app": "web"}))
        lab.exit = lambda p: "Succeeded" if name(p) == "done" else ""
        await lab.create("pods", pod("done", {"app": "web"}))
        await lab.create("pods", pod("unbound", {"app": "web"}, nodeSelector={"no": "where"}))
        await lab.create("pods", pod("fine", {"app": "web"}))
        await lab.until(lambda: ready(lab, "web"))
        await lab.until(lambda: facts.is_finished(lab.one("pods", "done")))
        await lab.settled()
        assert [e["targetRef"]["name"] for e in endpoints(lab, "web")] == ["fine"]

    run(story)
