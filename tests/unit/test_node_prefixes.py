"""Nodes' podCIDRs given by `podlane controller`, and what it has to say of Nodes, over the real API."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from itertools import combinations
from typing import Any

import pytest

from podlane.controller.client import Obj
from podlane.controller.context import Context, Runnable
from podlane.controller.events import Recorder
from podlane.controller.manager import Manager
from podlane.controller.meta import condition
from podlane.controller.node_claims import MISCONFIGURED, NodeClaims
from podlane.controller.node_prefixes import NO_CIDR, NodePrefixes
from podlane.lab.api.server import ApiServer
from podlane.model.addresses import prefix
from podlane.model.config import NetworkConfig, parse

DUAL = {"podCIDRs": ["10.0.0.0/26", "fd00:10::/60"], "nodeCidrMaskSizes": [29, 64]}  # 8 and 16 parts


class Site:
    """The API, and one controller at a time on it. ahead_s: how far its clock is before ours."""

    def __init__(self, config: NetworkConfig, *, allocate: bool = True) -> None:
        self.config, self.allocate = config, allocate
        self.server = ApiServer(":memory:", config)
        self.client = self.server.client
        self.ahead_s = 0.0
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        def make(context: Context) -> list[Runnable]:
            context.events = Recorder(self.client, context.now, delay_s=0.0)
            claims = NodeClaims(context, allocated=self.allocate)
            return [claims, *([NodePrefixes(context)] if self.allocate else [])]

        self.manager = Manager(self.client, self.config, make=make, now=lambda: time.time() + self.ahead_s)
        self.task = asyncio.create_task(self.manager.run())

    async def stop(self) -> None:
        await self.manager.stop()
        if self.task is not None:
            await asyncio.wait({self.task})

    async def settled(self) -> None:
        calm = 0
        while calm < 5:
            await asyncio.sleep(0.003)
            calm = calm + 1 if self.manager.idle else 0

    async def node(self, name: str, *addresses: str, spec: Obj | None = None) -> Obj:
        made = await self.client.create("nodes", {"metadata": {"name": name}, "spec": spec or {}})
        if not addresses:
            return made
        status = {"addresses": [{"type": "InternalIP", "address": each} for each in addresses]}
        return await self.client.update("nodes", {**made, "status": status}, subresource="status")

    def read(self, name: str) -> Obj:
        record = self.server.store.get("nodes", "", name)
        assert record is not None
        return record.obj

    def cidrs(self, name: str) -> list[str]:
        found: list[str] = self.read(name)["spec"].get("podCIDRs") or []
        return found

    async def heard(self, *wanted: tuple[str, str]) -> None:
        """Until there are events of these (name, reason)."""
        for _ in range(1000):
            found = [r.obj for r in self.server.store.records("events", "")]
            if set(wanted) <= {(e["involvedObject"]["name"], e["reason"]) for e in found}:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"no events {wanted} among {found}")

    def said(self, name: str, type_: str = MISCONFIGURED) -> tuple[str, str, str] | None:
        found = condition(self.read(name), type_)
        return (found["status"], found["reason"], found["message"]) if found else None


def run(
    story: Callable[[Site], Awaitable[None]], config: Obj | None = None, *, allocate: bool = True
) -> None:
    async def main() -> None:
        site = Site(parse(DUAL if config is None else config), allocate=allocate)
        site.start()
        try:
            await story(site)
        finally:
            await site.stop()
            await site.server.stop()

    asyncio.run(main())


@pytest.mark.parametrize("families", [["IPv4", "IPv6"], ["IPv6", "IPv4"], ["IPv6"]])
def test_one_prefix_a_family_primary_first(families: list[str]) -> None:
    async def story(site: Site) -> None:
        await site.node("a", spec={"podCIDR": "10.0.0.8/29", "podCIDRs": ["10.0.0.8/29", "fd00:10:0:5::/64"]})
        before = site.read("a")
        await site.node("b")
        await site.node("c")
        await site.settled()
        assert site.read("a") == before, "who has some is not touched"
        four, six = {"b": "10.0.0.0/29", "c": "10.0.0.16/29"}, {"b": "fd00:10::/64", "c": "fd00:10:0:1::/64"}
        for name in "bc":
            wanted = [{"IPv4": four, "IPv6": six}[family][name] for family in families]
            assert site.cidrs(name) == wanted
            assert site.read(name)["spec"]["podCIDR"] == wanted[0]

    run(story, {**DUAL, "ipFamilies": families})


def test_nothing_left_is_told_and_over_when_a_node_goes() -> None:
    async def story(site: Site) -> None:
        for number in range(9):
            await site.node(f"n{number}")
        await site.settled()
        (without,) = (name for name in (f"n{n}" for n in range(9)) if not site.cidrs(name))
        told = site.said(without, NO_CIDR)
        assert told is not None
        assert told[:2] == ("True", "CIDRNotAvailable")
        assert "all 8 parts (/29) of 10.0.0.0/26 are taken" in told[2]
        await site.heard((without, "CIDRNotAvailable"))
        # A new leader says nothing twice, and a quiet cluster writes nothing.
        version = site.server.store.revision
        await site.stop()
        site.start()
        await site.settled()
        assert site.server.store.revision == version
        gone = "n3" if without != "n3" else "n4"
        free = site.cidrs(gone)
        await site.client.delete("nodes", gone)
        await site.settled()
        assert site.cidrs(without)[0] == free[0]
        told = site.said(without, NO_CIDR)
        assert told is not None
        assert told[0] == "False"

    run(story)


@pytest.mark.parametrize("seed", range(4))
def test_leaders_that_end_at_any_moment_give_no_prefix_twice(seed: int) -> None:
    async def story(site: Site) -> None:
        chance = random.Random(seed)
        names: list[str] = []

        async def come_and_go() -> None:
            for number in range(60):
                names.append(f"n{number}")
                await site.node(names[-1])
                if len(names) > 40 and chance.random() < 0.5:
                    await site.client.delete("nodes", names.pop(chance.randrange(len(names))))
                await asyncio.sleep(chance.choice([0, 0, 0.001]))

        nodes = asyncio.create_task(come_and_go())
        while not nodes.done():
            await asyncio.sleep(chance.uniform(0, 0.01))
            await site.stop()
            site.start()
        await nodes
        await site.settled()
        held = {name: [prefix(text) for text in site.cidrs(name)] for name in names}
        assert all(len(found) == 2 for found in held.values())
        for (_, one), (_, other) in combinations(held.items(), 2):
            assert not any(a.version == b.version and a.overlaps(b) for a in one for b in other)

    run(story, {"podCIDRs": ["10.0.0.0/20", "fd00:10::/56"], "nodeCidrMaskSizes": [26, 64]})


def test_a_leader_that_was_replaced_without_noticing_gives_nothing() -> None:
    """Its write is of the Node as it was, and its successor has written to it."""

    async def story(site: Site) -> None:
        stopped, go_on = asyncio.Event(), asyncio.Event()
        patch = site.client.patch

        async def held_back(*words: Any, **more: Any) -> Obj:
            stopped.set()
            await go_on.wait()
            return await patch(*words, **more)

        site.client.patch = held_back  # type: ignore[method-assign]
        await site.node("a")
        await stopped.wait()
        site.client.patch = patch  # type: ignore[method-assign]
        old = site.manager
        site.start()
        await site.node("b")
        await site.settled()
        before = {name: site.cidrs(name) for name in "ab"}
        assert before["a"] != before["b"]
        go_on.set()
        await site.settled()
        assert {name: site.cidrs(name) for name in "ab"} == before
        await old.stop()

    run(story)


# --- what Nodes claim -----------------------------------------------------------------------------


def test_two_nodes_of_one_address_or_prefix_are_both_told() -> None:
    async def story(site: Site) -> None:
        await site.node("a", "172.30.1.1", "fd00::1", spec={"podCIDRs": ["10.0.0.0/24"]})
        await site.node("b", "172.30.1.2", spec={"podCIDRs": ["10.0.0.128/25"]})
        await site.node("c", "172.30.1.1", "fd00::3", spec={"podCIDRs": ["10.0.9.0/24", "fd00:10::/64"]})
        await site.settled()
        overlap = "podCIDR 10.0.0.0/24 overlaps 10.0.0.128/25 of node b"
        taken = "InternalIP 172.30.1.1 is also that of node "
        assert site.said("a") == ("True", "AddressTaken", f"{taken}c; {overlap}")
        assert site.said("b") == (
            "True",
            "PodCIDROverlap",
            "podCIDR 10.0.0.128/25 overlaps 10.0.0.0/24 of node a",
        )
        assert site.said("c") == ("True", "AddressTaken", f"{taken}a")
        await site.heard(("a", "AddressTaken"), ("b", "PodCIDROverlap"), ("c", "PodCIDRForeign"))
        await site.client.delete("nodes", "b")
        status = {**site.read("c")["status"], "addresses": [{"type": "InternalIP", "address": "172.30.1.3"}]}
        await site.client.update("nodes", {**site.read("c"), "status": status}, subresource="status")
        await site.settled()
        for name in "ac":
            told = site.said(name)
            assert told is not None
            assert told[:2] == ("False", "NothingFound")

    run(story, allocate=False)


def test_what_a_node_lacks_is_told_when_it_has_had_time() -> None:
    async def story(site: Site) -> None:
        await site.node("bare")
        await site.node("half", "172.30.1.4", spec={"podCIDRs": ["10.0.0.0/24"]})
        await site.node("fine", "172.30.1.5", spec={"podCIDRs": ["10.0.1.0/24", "fd00:10::/64"]})
        await site.settled()
        assert [site.said(name) for name in ("bare", "half", "fine")] == [None, None, None]
        await site.stop()
        site.ahead_s = 61.0
        site.start()
        await site.settled()
        told = site.said("bare")
        assert told is not None
        assert told[1] == "NoInternalIP"
        assert "no podCIDR, and nobody gives one: set controller.allocateNodeCIDRs" in told[2]
        told = site.said("half")
        assert told is not None
        assert told[1:] == ("PodCIDRMissing", "no podCIDR of IPv6; register the node anew")
        assert site.said("fine") is None

    run(story, allocate=False)
