"""Nobody writes without need: a quiet cluster costs its API nothing, a quarrel is not led at full speed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from podlane.agent.announcer import Announcer
from podlane.agent.node_conditions import Condition, NodeConditions
from podlane.controller.context import ContestedError, Context, Controller
from podlane.errors import ConflictError
from podlane.model.config import DEFAULT
from podlane.model.objects import Node, ObjectMeta
from podlane.watch import kubeconfig
from podlane.watch.contest import FIRST_S, FREE, MOST_S, Contest
from podlane.watch.http import ApiHttp
from tests.unit.api_lab import Lab, running
from tests.unit.controller_lab import Cluster, cluster
from tests.unit.test_pool_controller import balancer, ingress, make_pool

ROUNDS = 5


def writes(api: ApiHttp) -> int:
    """Requests that were to change something."""
    return sum(n for (verb, *_), n in api.requests.items() if verb not in ("get", "list", "watch"))


# --- the controllers ------------------------------------------------------------------------------


def test_controllers_look_again_at_everything_and_write_nothing() -> None:
    async def main() -> None:
        async with cluster(nodes=3) as lab:
            await make_pool(lab, "public", "192.0.2.10-192.0.2.19", "2001:db8::10-2001:db8::19")
            for name in ("web", "shop"):
                await lab.create("services", balancer(name))
            await lab.until(lambda: all(ingress(lab, name) for name in ("web", "shop")))
            await lab.settled()
            await asyncio.sleep(1.1)  # events are written a second later
            await lab.settled()
            before = lab.server.store.revision
            looked = 0
            for _ in range(ROUNDS):
                for each in lab.manager.controllers:
                    if isinstance(each, Controller):
                        for obj in each.objects.list():
                            each.changed(obj, obj)
                            looked += 1
                await lab.settled()
            assert looked >= ROUNDS * 10
            assert lab.server.store.revision == before

    asyncio.run(main())


def test_another_that_undoes_a_services_address_is_not_answered_at_full_speed() -> None:
    async def main() -> None:
        async with cluster(nodes=1) as lab:
            await make_pool(lab, "public", "192.0.2.10-192.0.2.19")
            await lab.create("services", balancer("web"))
            undone = await quarrel(lab)
            assert FREE <= undone <= FREE + 2

    asyncio.run(main())


async def quarrel(lab: Cluster) -> int:
    """Somebody clears the status whenever an address is in it; how often within two seconds."""
    undone = 0
    ends_s = asyncio.get_running_loop().time() + 2
    while asyncio.get_running_loop().time() < ends_s:
        if ingress(lab, "web"):
            service = lab.one("services", "web")
            try:
                await lab.client.update(
                    "services", {**service, "status": {"loadBalancer": {}}}, subresource="status"
                )
                undone += 1
            except ConflictError:
                continue
        await asyncio.sleep(0.002)
    return undone


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def test_what_was_undone_is_written_again_after_a_while_and_sooner_when_it_is_something_else() -> None:
    async def main() -> None:
        lab, clock = Cluster(), Clock()
        context = Context(lab.client, DEFAULT, monotonic=clock)
        node = await lab.node("n")

        async def say(text: str) -> None:
            nonlocal node
            node = await context.patch("nodes", node, {"metadata": {"annotations": {"podlane.dev/x": text}}})

        try:
            for _ in range(FREE):
                await say("a")
            with pytest.raises(ContestedError, match="somebody else writes nodes /n, too") as caught:
                await say("a")
            assert 0 < caught.value.retry_after_s <= FIRST_S
            await say("b")
            await say("a")
            for _ in range(FREE - 1):
                await say("a")
            clock.s += FIRST_S
            await say("a")
            with pytest.raises(ContestedError):
                await say("a")
        finally:
            await lab.close()

    asyncio.run(main())


def test_every_write_stands_upon_what_was_read() -> None:
    async def main() -> None:
        async with cluster(nodes=1) as lab:
            old = lab.one("nodes", "node-1", "")
            await lab.edit("nodes", "node-1", {"metadata": {"labels": {"x": "y"}}}, "")
            context = Context(lab.client, DEFAULT)
            with pytest.raises(ConflictError):
                await context.patch("nodes", old, {"metadata": {"labels": {"x": "z"}}})
            with pytest.raises(ConflictError):
                await context.status("nodes", old, {"conditions": []})
            assert lab.one("nodes", "node-1", "")["metadata"]["labels"]["x"] == "y"

    asyncio.run(main())


# --- the agent ------------------------------------------------------------------------------------


class Site:
    """A Node in a real API, and what an agent tells of it. The Node is seen as it is at that moment."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.api = ApiHttp(kubeconfig.load(lab.kubeconfig))
        self.announcer = Announcer(self.api, self.node)
        self.conditions = NodeConditions(self.api, self.node)

    def node(self) -> Node:
        meta = self.stored["metadata"]
        annotations = dict(meta.get("annotations") or {})
        return Node(metadata=ObjectMeta(name="node-1", uid=meta["uid"], annotations=annotations))

    @property
    def stored(self) -> dict[str, Any]:
        record = self.lab.server.store.get("nodes", "", "node-1")
        assert record is not None
        return record.obj

    async def annotate(self, **annotations: str | None) -> None:
        patch = {"metadata": {"annotations": {f"podlane.dev/{k}": v for k, v in annotations.items()}}}
        client = self.lab.server.client
        await asyncio.to_thread(self.lab.run, lambda: client.patch("nodes", "node-1", "", patch))


def run(where: Path, story: Callable[[Site], Awaitable[None]]) -> None:
    async def main(lab: Lab) -> None:
        client = lab.server.client
        await asyncio.to_thread(lab.run, lambda: client.create("nodes", {"metadata": {"name": "node-1"}}))
        site = Site(lab)
        tasks = [asyncio.create_task(each.run()) for each in (site.announcer, site.conditions)]
        try:
            await story(site)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with running(where) as lab:
        asyncio.run(main(lab))


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_an_agent_looks_again_and_writes_nothing(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        site.announcer.say({"podlane.dev/a": "1"})
        site.conditions.say(Condition("NetworkUnavailable", "False", "PodlaneIsUp", "fine"))
        await until(lambda: writes(site.api) == 2 and not site.announcer.pending)
        before = site.lab.server.store.revision
        for _ in range(ROUNDS):
            site.announcer.say({"podlane.dev/a": "1"})
            site.announcer.look()
            site.conditions.say(Condition("NetworkUnavailable", "False", "PodlaneIsUp", "fine"))
            site.conditions.look()
            await asyncio.sleep(0.05)
        assert writes(site.api) == 2
        assert site.lab.server.store.revision == before

    run(tmp_path, story)


def test_another_that_writes_the_same_annotation_is_answered_less_and_less(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        site.announcer.say({"podlane.dev/a": "ours"})
        for turn in range(50):
            await until(lambda turn=turn: not site.announcer.pending or turn > FREE)
            await site.annotate(a="theirs")
            site.announcer.look()  # as the watch has it
            await asyncio.sleep(0.01)
        assert FREE <= writes(site.api) <= FREE + 2
        assert site.announcer.error == "somebody else writes podlane.dev/a of Node node-1, too"
        # Something else is no part of the quarrel.
        site.announcer.say({"podlane.dev/b": "2"})
        await until(lambda: "podlane.dev/b" in site.stored["metadata"]["annotations"])

    run(tmp_path, story)


# --- the pauses -----------------------------------------------------------------------------------


def test_pauses_of_a_quarrel_double_and_are_forgotten() -> None:
    contest, now_s = Contest(), 5000.0
    pauses = []
    for _ in range(14):
        pause_s = contest.wait_s("place", "ours", now_s)
        pauses.append(pause_s)
        now_s += pause_s
        contest.wrote("place", "ours", now_s)
    assert pauses[:FREE] == [0.0] * FREE
    assert pauses[FREE : FREE + 3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert pauses[-1] == MOST_S
    assert contest.wait_s("place", "ours", now_s) == MOST_S
    assert contest.wait_s("place", "other", now_s) == 0.0
    assert contest.wait_s("elsewhere", "ours", now_s) == 0.0
    assert contest.wait_s("place", "ours", now_s + 601) == 0.0


def test_what_changes_of_its_own_accord_is_no_quarrel() -> None:
    contest = Contest()
    for turn in range(100):
        assert contest.wait_s("slice", turn % 2, float(turn)) == 0.0
        contest.wrote("slice", turn % 2, float(turn))
