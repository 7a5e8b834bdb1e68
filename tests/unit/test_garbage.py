"""Owner references, namespaces, nodes: what follows from deletions, and what new objects are given."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from podlane.lab.client import Obj
from podlane.model.addresses import Family
from podlane.model.config import NetworkConfig
from tests.unit.controller_lab import Cluster, cluster, deployment, name, pod, service

SETS, DEPLOYMENTS = "replicasets.apps", "deployments.apps"


def config_map(name_: str, *owners: Obj, block: bool = True, **meta: Any) -> Obj:
    refs = [
        {
            "apiVersion": "v1",
            "kind": o.get("kind", "ConfigMap"),
            "name": o["metadata"]["name"],
            "uid": o["metadata"]["uid"],
            "blockOwnerDeletion": block,
        }
        for o in owners
    ]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name_, **({"ownerReferences": refs} if refs else {}), **meta},
    }


def maps(lab: Cluster) -> set[str]:
    return {name(m) for m in lab.all("configmaps", "default")} - {"kube-root-ca.crt"}


async def gone_deployment(lab: Cluster, propagation: str) -> None:
    await lab.create(DEPLOYMENTS, deployment("web", 2))
    await lab.until(lambda: len(lab.pods()) == 2)
    await lab.settled()
    await lab.client.delete(DEPLOYMENTS, "web", "default", propagation=propagation)
    await lab.until(lambda: not lab.all(DEPLOYMENTS))


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_a_deleted_deployment_takes_its_sets_and_pods_along(propagation: str) -> None:
    async def story() -> None:
        async with cluster() as lab:
            await gone_deployment(lab, propagation)
            if propagation == "Foreground":
                assert not lab.all(SETS)
                assert not lab.all("pods")
            await lab.until(lambda: not lab.all(SETS) and not lab.all("pods"))

    asyncio.run(story())


def test_orphaned_sets_and_pods_stay() -> None:
    async def story() -> None:
        async with cluster() as lab:
            await gone_deployment(lab, "Orphan")
            await lab.settled()
            (left,) = lab.all(SETS)
            assert "ownerReferences" not in left["metadata"]
            assert len(lab.pods()) == 2
            # a deployment of the same shape finds them again
            await lab.create(DEPLOYMENTS, deployment("web", 2))
            await lab.until(lambda: lab.all(SETS)[0]["metadata"].get("ownerReferences"))
            await lab.settled()
            assert len(lab.all(SETS)) == 1
            assert len(lab.pods()) == 2

    asyncio.run(story())


def test_an_object_stays_while_one_owner_does() -> None:
    async def story() -> None:
        async with cluster(0) as lab:
            one = await lab.create("configmaps", config_map("one"))
            two = await lab.create("configmaps", config_map("two"))
            await lab.create("configmaps", config_map("both", one, two))
            await lab.client.delete("configmaps", "one", "default")
            await lab.until(
                lambda: (
                    [r["name"] for r in lab.one("configmaps", "both")["metadata"]["ownerReferences"]]
                    == ["two"]
                )
            )
            await lab.client.delete("configmaps", "two", "default")
            await lab.until(lambda: maps(lab) == set())

    asyncio.run(story())


def test_what_names_an_owner_that_never_was_goes() -> None:
    async def story() -> None:
        async with cluster(0) as lab:
            ghost = {"metadata": {"name": "ghost", "uid": "no-such-uid"}}
            await lab.create("configmaps", config_map("child", ghost))
            await lab.until(lambda: maps(lab) == set())
            # an owner of a kind nobody serves is not judged
            alien = {"kind": "Alien", "metadata": {"name": "ghost", "uid": "no-such-uid"}}
            await lab.create("configmaps", config_map("kept", alien))
            await lab.settled()
            assert maps(lab) == {"kept"}

    asyncio.run(story())


def test_owner_gone_while_nobody_watched() -> None:
    async def story() -> None:
        async with cluster(0) as lab:
            owner = await lab.create("configmaps", config_map("owner"))
            await lab.create("configmaps", config_map("child", owner))
            await lab.settled()
            await lab.manager.stop()
            await lab.client.delete("configmaps", "owner", "default")
            lab.start_manager()
            await lab.until(lambda: maps(lab) == set())

    asyncio.run(story())


def test_foreground_waits_for_blocking_dependents_only() -> None:
    async def story() -> None:
        async with cluster(0) as lab:
            owner = await lab.create("configmaps", config_map("owner"))
            await lab.create("configmaps", config_map("blocks", owner, finalizers=["example.com/held"]))
            await lab.create(
                "configmaps", config_map("free", owner, block=False, finalizers=["example.com/held"])
            )
            await lab.client.delete("configmaps", "owner", "default", propagation="Foreground")
            await lab.settled()
            assert maps(lab) == {"owner", "blocks", "free"}
            await lab.edit("configmaps", "blocks", {"metadata": {"finalizers": None}})
            await lab.until(lambda: maps(lab) == {"free"})
            await lab.edit("configmaps", "free", {"metadata": {"finalizers": None}})
            await lab.until(lambda: maps(lab) == set())

    asyncio.run(story())


def test_a_namespace_is_furnished_and_emptied() -> None:
    async def story() -> None:
        async with cluster() as lab:
            space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
            await lab.client.create("namespaces", space)
            await lab.until(lambda: lab.all("serviceaccounts", "shop") and lab.all("configmaps", "shop"))
            assert lab.one("configmaps", "kube-root-ca.crt", "shop")["data"] == {"ca.crt": "CA\n"}
            await lab.client.delete("configmaps", "kube-root-ca.crt", "shop")
            await lab.until(lambda: lab.all("configmaps", "shop"))
            await lab.create(DEPLOYMENTS, deployment("web", 2), "shop")
            await lab.create("services", service("web", {"app": "web"}), "shop")
            await lab.until(lambda: len(lab.pods("shop")) == 2)
            held = config_map("held", finalizers=["example.com/held"])
            await lab.create("configmaps", held, "shop")
            await lab.client.delete("namespaces", "shop")
            await lab.settled()
            assert not lab.all("pods", "shop")
            assert [name(o) for o in lab.all("configmaps", "shop")] == ["held"]
            assert "shop" in map(name, lab.all("namespaces"))
            await lab.edit("configmaps", "held", {"metadata": {"finalizers": None}}, "shop")
            await lab.until(lambda: "shop" not in map(name, lab.all("namespaces")))
            left = [r for r in ("services", SETS, "serviceaccounts", "events") if lab.all(r, "shop")]
            assert left == []

    asyncio.run(story())


def test_nodes_get_prefixes_of_both_families_once() -> None:
    async def story() -> None:
        async with cluster(3) as lab:
            await lab.until(lambda: all(n["spec"].get("podCIDRs") for n in lab.all("nodes")))
            before = {name(n): n["spec"]["podCIDRs"] for n in lab.all("nodes")}
            assert sorted(before.values()) == [
                [f"10.244.{i}.0/24", f"fd00:10:244:{i:x}::/64" if i else "fd00:10:244::/64"] for i in range(3)
            ]
            assert all(n["spec"]["podCIDR"] == n["spec"]["podCIDRs"][0] for n in lab.all("nodes"))
            await lab.manager.stop()
            await lab.node("late")
            lab.start_manager()
            await lab.until(lambda: lab.all("nodes")[0]["spec"].get("podCIDRs"))
            after = {name(n): n["spec"]["podCIDRs"] for n in lab.all("nodes")}
            assert after.pop("late")[0] == "10.244.3.0/24"
            assert after == before

    asyncio.run(story())


def test_a_node_without_a_free_prefix_gets_the_next_returned_one() -> None:
    tight = NetworkConfig(
        ip_families=[Family.IPV4],
        pod_cidrs=["10.0.0.0/29"],
        service_cidrs=["10.96.0.0/16"],
        node_cidrs=["172.30.0.0/16"],
        node_cidr_mask_sizes=[30],
    )

    async def story() -> None:
        async with cluster(3, config=tight) as lab:
            without = [n for n in lab.all("nodes") if not n["spec"].get("podCIDRs")]
            assert len(without) == 1
            await lab.until(lambda: [e for e in lab.all("events") if e["reason"] == "CIDRNotAvailable"])
            victim = next(name(n) for n in lab.all("nodes") if n["spec"].get("podCIDRs"))
            await lab.client.delete("nodes", victim)
            await lab.until(lambda: lab.one("nodes", name(without[0]), "")["spec"].get("podCIDRs"))

    asyncio.run(story())


def test_pods_of_a_lost_node_are_deleted_after_a_while() -> None:
    async def story() -> None:
        async with cluster(2) as lab:
            await lab.create("pods", pod("early", nodeName="node-9"))
            await lab.create("pods", pod("fine", nodeName="node-1"))
            await lab.settled()
            assert len(lab.all("pods")) == 2
            lab.clock.ahead_s = 60
            await lab.client.delete("nodes", "node-2")
            await lab.edit("pods", "early", {"metadata": {"labels": {"look": "again"}}})
            await lab.until(lambda: list(map(name, lab.all("pods"))) == ["fine"])

    asyncio.run(story())
