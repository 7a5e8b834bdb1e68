"""Services get addresses of LoadBalancerPools: over the real API, with the real controllers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from podlane.controller.client import Obj
from podlane.errors import InvalidError
from podlane.model import pools
from tests.unit.controller_lab import Cluster, cluster, service
from tests.unit.test_loadbalancers import NODES, told

FINALIZER = pools.FINALIZER


def run(story: Callable[[Cluster], Awaitable[None]]) -> None:
    async def main() -> None:
        async with cluster(nodes=1) as lab:
            await told(lab, "node-1")
            await story(lab)

    asyncio.run(main())


async def make_pool(lab: Cluster, name: str, *addresses: str, **spec: Any) -> Obj:
    body = {
        "apiVersion": "podlane.dev/v1alpha1",
        "kind": "LoadBalancerPool",
        "metadata": {"name": name},
        "spec": {"addresses": list(addresses), **spec},
    }
    return await lab.create(pools.RESOURCE, body, "")


def balancer(name: str, annotations: dict[str, str] | None = None, **spec: Any) -> Obj:
    made = service(name, {"app": name}, [{"port": 80}], type="LoadBalancer", **spec)
    made["metadata"]["annotations"] = annotations or {}
    return made


def ingress(lab: Cluster, name: str) -> list[str]:
    found = lab.one("services", name)["status"]["loadBalancer"].get("ingress") or []
    assert all(each["ipMode"] == "VIP" for each in found)
    return [each["ip"] for each in found]


def said(lab: Cluster, name: str) -> list[tuple[str, str]]:
    events = [e for e in lab.all("events") if e["involvedObject"]["name"] == name]
    return [(e["reason"], e["message"]) for e in events]


def marks(lab: Cluster, name: str) -> tuple[list[str], str | None]:
    meta = lab.one("services", name)["metadata"]
    return meta.get("finalizers") or [], (meta.get("annotations") or {}).get(pools.ALLOCATED_FROM)


def condition(lab: Cluster, pool: str) -> Obj:
    (found,) = lab.one(pools.RESOURCE, pool, "").get("status", {}).get("conditions") or [{}]
    return found  # type: ignore[no-any-return]


def test_a_service_gets_addresses_and_gives_them_back() -> None:
    async def story(lab: Cluster) -> None:
        await make_pool(lab, "public", "192.0.2.10-192.0.2.11", "2001:db8::/126")
        both = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}
        await lab.create("services", balancer("web", **both))
        await lab.until(lambda: ingress(lab, "web") == ["2001:db8::", "192.0.2.10"])
        assert marks(lab, "web") == ([FINALIZER], "public")
        await lab.until(lambda: condition(lab, "public").get("status") == "True")

        def use() -> list[Any]:
            status = lab.one(pools.RESOURCE, "public", "")["status"]
            return [status.get(f"{w}{f}") for f in ("IPv4", "IPv6") for w in ("assigned", "available")]

        await lab.until(lambda: use() == [1, 1, 1, 3])
        message = "Assigned 2001:db8::, 192.0.2.10 from pool public"
        await lab.until(lambda: ("IPAllocated", message) in said(lab, "web"))
        # It is no LoadBalancer any more, then again, then deleted.
        await lab.edit("services", "web", {"spec": {"type": "ClusterIP"}})
        await lab.until(lambda: marks(lab, "web") == ([], None))
        await lab.until(lambda: use() == [0, 2, 0, 4])
        await lab.edit("services", "web", {"spec": {"type": "LoadBalancer"}})
        await lab.until(lambda: len(ingress(lab, "web")) == 2)
        await lab.client.delete("services", "web", "default")
        await lab.until(lambda: not [s for s in lab.all("services") if s["metadata"]["name"] == "web"])
        await lab.until(lambda: use() == [0, 2, 0, 4])

    run(story)


def test_who_waits_gets_the_address_that_comes_free() -> None:
    async def story(lab: Cluster) -> None:
        await make_pool(lab, "tiny", "192.0.2.10")
        await lab.create("services", balancer("first"))
        await lab.until(lambda: ingress(lab, "first") == ["192.0.2.10"])
        await lab.create("services", balancer("second"))
        refused = ("AllocationFailed", "pool tiny: all its IPv4 addresses are taken")
        await lab.until(lambda: refused in said(lab, "second"))
        assert (ingress(lab, "second"), marks(lab, "second")) == ([], ([], None))
        await lab.client.delete("services", "first", "default")
        await lab.until(lambda: ingress(lab, "second") == ["192.0.2.10"])
        await lab.create("services", balancer("third"))
        await lab.settled()
        await make_pool(lab, "more", "192.0.2.20")
        await lab.until(lambda: ingress(lab, "third") == ["192.0.2.20"])

    run(story)


def test_addresses_outlive_the_controller() -> None:
    async def story(lab: Cluster) -> None:
        await make_pool(lab, "public", "192.0.2.0/29")
        for name in ("a", "b", "c"):
            await lab.create("services", balancer(name))
        await lab.until(lambda: all(ingress(lab, n) for n in "abc"))
        before = {n: ingress(lab, n) for n in "bc"}
        await lab.client.delete("services", "a", "default")
        await lab.settled()
        versions = [lab.one("services", n)["metadata"]["resourceVersion"] for n in "bc"]
        await lab.manager.stop()
        lab.start_manager()
        await lab.settled()
        assert {n: ingress(lab, n) for n in "bc"} == before
        assert [lab.one("services", n)["metadata"]["resourceVersion"] for n in "bc"] == versions

    run(story)


def test_pools_that_change_and_go() -> None:
    async def story(lab: Cluster) -> None:
        await make_pool(lab, "public", "192.0.2.10-192.0.2.20")
        wanted = {pools.WANTED_ADDRESSES: "192.0.2.15"}
        await lab.create("services", balancer("web", wanted))
        await lab.create("services", balancer("by-field", loadBalancerIP="192.0.2.16"))
        await lab.create("services", balancer("any"))
        await lab.until(
            lambda: [ingress(lab, n) for n in ("web", "by-field")] == [["192.0.2.15"], ["192.0.2.16"]]
        )
        await lab.until(lambda: ingress(lab, "any") == ["192.0.2.10"])
        nodes = {"matchLabels": {"lb": "yes"}}
        spec = {"addresses": ["192.0.2.12-192.0.2.20"], "nodeSelector": nodes}
        await lab.edit(pools.RESOURCE, "public", {"spec": spec}, "")
        await lab.until(lambda: ingress(lab, "any") == ["192.0.2.12"])
        moved = "Assigned 192.0.2.12 from pool public in place of 192.0.2.10"
        await lab.until(lambda: ("IPAllocated", moved) in said(lab, "any"))
        assert ingress(lab, "web") == ["192.0.2.15"]

        def selector() -> str | None:
            return lab.one("services", "web")["metadata"]["annotations"].get(pools.ANNOUNCING_NODES)

        await lab.until(lambda: selector() == "lb=yes")
        # A pool over the first is refused, until the first is gone; then it has what it can.
        await make_pool(lab, "second", "192.0.2.0/27")
        await lab.until(lambda: condition(lab, "second").get("reason") == "Overlaps")
        await lab.client.delete(pools.RESOURCE, "public")
        await lab.until(lambda: condition(lab, "second").get("status") == "True")
        await lab.until(lambda: marks(lab, "web") == ([FINALIZER], "second"))
        assert ingress(lab, "web") == ["192.0.2.15"]
        await lab.client.delete(pools.RESOURCE, "second")
        # Without any pool the nodes' own addresses are back.
        await lab.until(lambda: ingress(lab, "any") == [NODES["node-1"][0]] or said(lab, "any"))
        await lab.until(lambda: [marks(lab, n) for n in ("web", "any", "by-field")] == [([], None)] * 3)

    run(story)


def test_classes_and_bad_wishes() -> None:
    async def story(lab: Cluster) -> None:
        own = [NODES["node-1"][0]]
        await lab.create("services", balancer("before"))
        await lab.until(lambda: ingress(lab, "before") == own)
        await lab.create("services", balancer("pooled", loadBalancerClass=pools.CLASS_POOL))
        await lab.until(lambda: ("AllocationFailed", "there is no pool") in said(lab, "pooled"))
        await make_pool(lab, "closed", "192.0.2.0/29", autoAssign=False)
        await lab.until(lambda: ingress(lab, "before") == [])
        await lab.create("services", balancer("node", loadBalancerClass=pools.CLASS_NODE))
        await lab.until(lambda: ingress(lab, "node") == own)
        await lab.create("services", balancer("theirs", loadBalancerClass="example.com/other"))
        wishes = {
            "bad-address": ({pools.WANTED_ADDRESSES: "192.0.2.1x"}, "'192.0.2.1x' is not an IP address"),
            "bad-family": ({pools.WANTED_ADDRESSES: "2001:db8::1"}, "its ipFamilies are IPv4"),
            "too-many": ({pools.WANTED_ADDRESSES: "192.0.2.1,192.0.2.2"}, "one address a family"),
            "no-pool": ({pools.WANTED_POOL: "nowhere"}, "pool nowhere, which is not there"),
        }
        for name, (wish, _) in wishes.items():
            await lab.create("services", balancer(name, wish))
        for name, (_, words) in wishes.items():
            await lab.until(lambda n=name, w=words: any(w in m for _, m in said(lab, n)))  # type: ignore[misc]
        await lab.create("services", balancer("metallb", {"metallb.io/address-pool": "closed"}))
        await lab.until(lambda: ingress(lab, "metallb") == ["192.0.2.0"])
        assert ingress(lab, "theirs") == []
        assert marks(lab, "theirs") == marks(lab, "bad-address") == ([], None)

    run(story)


def test_namespaces_by_label() -> None:
    async def story(lab: Cluster) -> None:
        await make_pool(lab, "team", "192.0.2.0/29", namespaceSelector={"matchLabels": {"team": "a"}})
        await lab.create("services", balancer("web"))
        await lab.until(lambda: said(lab, "web"))
        await lab.edit("namespaces", "default", {"metadata": {"labels": {"team": "a"}}}, "")
        await lab.until(lambda: ingress(lab, "web") == ["192.0.2.0"])

    run(story)


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({}, "spec.addresses"),
        ({"addresses": []}, "spec.addresses"),
        ({"addresses": ["not an address"]}, "spec.addresses[0]"),
        ({"addresses": ["192.0.2.0/24"], "namespaceQuota": -1}, "spec.namespaceQuota"),
        ({"addresses": ["192.0.2.0/24"], "autoAssign": "yes"}, "spec.autoAssign"),
    ],
)
def test_the_schema_refuses(spec: Obj, where: str) -> None:
    async def story(lab: Cluster) -> None:
        body = {"apiVersion": "podlane.dev/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": "p"}}
        with pytest.raises(InvalidError, match=where.replace("[", r"\[")):
            await lab.create(pools.RESOURCE, {**body, "spec": spec}, "")

    run(story)


def test_a_pool_that_says_nonsense_says_so() -> None:
    async def story(lab: Cluster) -> None:
        await make_pool(lab, "odd", "192.0.2.9-192.0.2.1")
        await lab.until(lambda: condition(lab, "odd").get("reason") == "Invalid")
        assert "comes after the last" in condition(lab, "odd")["message"]
        await lab.until(lambda: [reason for reason, _ in said(lab, "odd")] == ["Invalid"])

    run(story)


def test_a_pool_of_which_nothing_is_left_says_so_once() -> None:
    async def story(lab: Cluster) -> None:
        await make_pool(lab, "tiny", "192.0.2.1-192.0.2.2", announce=["bgp"])
        for name in ("a", "b", "c"):
            await lab.create("services", balancer(name))
        await lab.until(lambda: ("Exhausted", f"all 2 {EXHAUSTED}") in said(lab, "tiny"))
        # And nobody would be told of its addresses.
        conditions = {c["type"]: c for c in lab.one(pools.RESOURCE, "tiny", "")["status"]["conditions"]}
        assert (conditions["Ready"]["status"], conditions["Announced"]["reason"]) == ("True", "NoPeers")
        assert [reason for reason, _ in said(lab, "tiny")].count("NoPeers") == 1
        annotations = lab.one("services", "a")["metadata"]["annotations"]
        assert annotations[pools.ANNOUNCED_BY] == "bgp"
        await lab.edit(pools.RESOURCE, "tiny", {"spec": {"announce": ["l2", "bgp"]}}, "")
        await lab.until(lambda: '"l2,bgp"' in json.dumps(lab.one("services", "a")["metadata"]["annotations"]))
        await lab.until(lambda: "True" in str(lab.one(pools.RESOURCE, "tiny", "")["status"]["conditions"][1]))

    run(story)


EXHAUSTED = "IPv4 addresses are given; add a range to spec.addresses"


def test_what_agents_said_goes_with_the_address_and_with_the_node() -> None:
    async def story(lab: Cluster) -> None:
        await make_pool(lab, "public", "192.0.2.0/29")
        await lab.create("services", balancer("web"))
        await lab.until(lambda: ingress(lab, "web") == ["192.0.2.0"])
        await lab.node("node-2")

        def conditions() -> list[Obj]:
            found: list[Obj] = lab.one("services", "web")["status"].get("conditions") or []
            return found

        async def say(message: str) -> None:
            said = {"type": "podlane.dev/AnnouncedIPv4", "status": "True", "reason": "Layer2"}
            said |= {"message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}
            other = {**said, "type": "example.com/Other"}
            patch = {"status": {"conditions": [said, other]}}
            await lab.client.patch("services", "web", "default", patch, subresource="status")
            await lab.settled()

        await say("node-2 answers for 192.0.2.0")
        assert len(conditions()) == 2
        await lab.client.delete("nodes", "node-2")
        await lab.until(lambda: [c["type"] for c in conditions()] == ["example.com/Other"])
        # An agent that lives on without its Node says so again, and there it stays: no quarrel.
        await say("node-2 answers for 192.0.2.0")
        assert len(conditions()) == 2
        await say("node-1 answers for 192.0.2.5")
        assert [c["type"] for c in conditions()] == ["example.com/Other"], "the service has another address"
        # Announced by BGP alone, no node answers, nor shall.
        await say("node-1 answers for 192.0.2.0")
        assert len(conditions()) == 2
        await lab.edit(pools.RESOURCE, "public", {"spec": {"announce": ["bgp"]}}, "")
        await lab.until(lambda: [c["type"] for c in conditions()] == ["example.com/Other"])
        await lab.edit(pools.RESOURCE, "public", {"spec": {"announce": None}}, "")
        await lab.settled()
        # One that changes its type keeps nothing of ours.
        await say("node-1 answers for 192.0.2.0")
        await lab.edit("services", "web", {"spec": {"type": "ClusterIP"}})
        await lab.until(lambda: marks(lab, "web") == ([], None))
        await lab.until(lambda: [c["type"] for c in conditions()] == ["example.com/Other"])
        assert ingress(lab, "web") == []
        annotations = lab.one("services", "web")["metadata"].get("annotations") or {}
        assert not {pools.ANNOUNCED_BY, pools.ANNOUNCING_NODES} & annotations.keys()

    run(story)


@pytest.mark.parametrize("seed", range(4))
def test_leaders_that_end_at_any_moment_give_no_address_twice(seed: int) -> None:
    """Services come, go, share and change their type while controllers begin and end."""

    async def story(lab: Cluster) -> None:
        chance = random.Random(seed)
        await make_pool(lab, "four", "192.0.2.0/28", "2001:db8::/124")
        await make_pool(lab, "more", "198.51.100.0/29", namespaceQuota=5)

        async def come_and_go() -> None:
            names: list[str] = []
            for number in range(40):
                names.append(f"s{number}")
                share = {pools.SHARING_KEY: "k"} if chance.random() < 0.3 else {}
                families = chance.choice(["SingleStack", "PreferDualStack"])
                made = balancer(names[-1], share, ipFamilyPolicy=families)
                made["spec"]["ports"] = [{"port": 100 + number}]
                await lab.create("services", made)
                if len(names) > 12:
                    name = names.pop(chance.randrange(len(names)))
                    if chance.random() < 0.5:
                        await lab.client.delete("services", name, "default")
                    else:
                        await lab.edit("services", name, {"spec": {"type": "ClusterIP"}})
                await asyncio.sleep(chance.choice([0, 0.002]))

        services = asyncio.create_task(come_and_go())
        while not services.done():
            await asyncio.sleep(chance.uniform(0, 0.03))
            await lab.manager.stop()
            lab.start_manager()
        await services
        await lab.settled()
        holders: dict[str, list[Obj]] = {}
        for each in lab.all("services"):
            balanced = each["spec"]["type"] == "LoadBalancer"
            found = each["status"]["loadBalancer"].get("ingress") or []
            assert bool(found) is bool(marks(lab, each["metadata"]["name"])[1]) is balanced, each
            for entry in found:
                holders.setdefault(entry["ip"], []).append(each)
        for where, those in holders.items():
            keys = {(s["metadata"].get("annotations") or {}).get(pools.SHARING_KEY) for s in those}
            assert len(those) == 1 or keys == {"k"}, (where, [s["metadata"]["name"] for s in those])

        def assigned() -> Any:
            return lab.one(pools.RESOURCE, "four", "").get("status", {}).get("assignedIPv4")

        await lab.until(lambda: assigned() == sum(where.startswith("192.0.2.") for where in holders))

    run(story)


def test_another_leader_is_left_alone() -> None:
    async def story(lab: Cluster) -> None:
        lease = lab.one("leases.coordination.k8s.io", "podlane-controller", "kube-system")
        assert lease["spec"]["holderIdentity"] == "lab-control"
        await lab.manager.stop()
        lease = lab.one("leases.coordination.k8s.io", "podlane-controller", "kube-system")
        assert lease["spec"]["holderIdentity"] == "", "it was given back"
        spec = {**lease["spec"], "holderIdentity": "somebody", "leaseDurationSeconds": 60}
        await lab.client.update("leases.coordination.k8s.io", {**lease, "spec": spec})
        lab.start_manager()
        await lab.settled()
        await make_pool(lab, "public", "192.0.2.10")
        await lab.create("services", balancer("web"))
        await lab.settled()
        assert (ingress(lab, "web"), marks(lab, "web")) == ([], ([], None))

    run(story)
