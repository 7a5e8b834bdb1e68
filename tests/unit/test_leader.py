"""One of several controllers leads, over the real API."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import pytest

from podlane.controller.client import ApiClient, Obj
from podlane.controller.fence import Fenced, NotLeadingError
from podlane.controller.leader import LEASES, LeaderElection
from podlane.errors import ApiError
from podlane.lab.api.server import ApiServer
from podlane.model.config import DEFAULT


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


class Site:
    """An API, and candidates on it whose clocks the test moves."""

    def __init__(self) -> None:
        self.server = ApiServer(":memory:", DEFAULT)
        self.leads: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.clock = Clock()

    def start(self, name: str, client: ApiClient | None = None, duration_s: int = 15) -> LeaderElection:
        election = LeaderElection(client or self.server.client, name, duration_s=duration_s, now=self.clock)

        async def lead() -> None:
            self.leads.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                self.leads.remove(name)

        self.tasks[name] = asyncio.create_task(election.run(lead))
        return election

    def lease(self) -> Obj:
        record = self.server.store.get(LEASES, "kube-system", "podlane-controller")
        return record.obj["spec"] if record is not None else {}

    async def end(self, name: str, *, kill: bool = False) -> None:
        task = self.tasks.pop(name)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if kill:  # it could say nothing any more
            record = self.server.store.get(LEASES, "kube-system", "podlane-controller")
            assert record is not None
            spec = {**record.obj["spec"], "holderIdentity": name, "leaseDurationSeconds": 15}
            await self.server.client.update(LEASES, {**record.obj, "spec": spec})


def run(story: Callable[[Site], Awaitable[None]]) -> None:
    async def main() -> None:
        site = Site()
        try:
            await story(site)
        finally:
            for name in list(site.tasks):
                await site.end(name)
            await site.server.stop()

    asyncio.run(main())


async def until(what: Callable[[], bool]) -> None:
    for _ in range(2000):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to be")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow one another quickly; how long a lease is good for is the clock's affair."""
    monkeypatch.setattr("podlane.controller.leader.RETRY", 0.002)


def test_one_leads_and_gives_it_back_when_it_ends() -> None:
    async def story(site: Site) -> None:
        first = site.start("a")
        await until(lambda: site.leads == ["a"])
        second = site.start("b")
        await until(lambda: second.leader == "a")
        assert (first.leading, second.leading, site.leads) == (True, False, ["a"])
        await site.end("a")
        await until(lambda: site.leads == ["b"])
        assert site.lease()["leaseTransitions"] == 1
        assert site.lease()["holderIdentity"] == "b"

    run(story)


def test_a_lease_is_taken_when_it_was_seen_unchanged_for_its_duration() -> None:
    async def story(site: Site) -> None:
        site.start("a")
        await until(lambda: site.leads == ["a"])
        await site.end("a", kill=True)
        second = site.start("b")
        await until(lambda: second.leader == "a")
        site.clock.s += 14.9
        await asyncio.sleep(0.2)
        assert site.leads == []
        site.clock.s += 0.2
        await until(lambda: site.leads == ["b"])

    run(story)


def test_who_cannot_renew_stops_before_another_may_begin() -> None:
    class Away:
        def __init__(self, client: ApiClient) -> None:
            self.client, self.away = client, False

        async def get(self, resource: str, name: str, namespace: str = "") -> Obj:
            if self.away:
                raise ApiError("away", code=503)
            return await self.client.get(resource, name, namespace)

        async def create(self, resource: str, obj: Obj, namespace: str = "") -> Obj:
            return await self.client.create(resource, obj, namespace)

        async def update(self, resource: str, obj: Obj, *, subresource: str = "") -> Obj:
            return await self.client.update(resource, obj, subresource=subresource)

    async def story(site: Site) -> None:
        client = Away(site.server.client)
        first = site.start("a", client)  # type: ignore[arg-type]
        await until(lambda: site.leads == ["a"])
        client.away = True
        await asyncio.sleep(0.1)
        assert site.leads == ["a"], "a moment without the API is nothing"
        site.clock.s += 10.1
        await until(lambda: site.leads == [])
        assert not first.leading
        client.away = False
        await until(lambda: site.leads == ["a"])

    run(story)


def test_of_two_that_begin_together_one_leads() -> None:
    async def story(site: Site) -> None:
        for name in "abcde":
            site.start(name)
        await until(lambda: bool(site.leads))
        await asyncio.sleep(0.2)
        assert len(site.leads) == 1

    run(story)


def test_who_was_stopped_and_goes_on_writes_nothing() -> None:
    async def story(site: Site) -> None:
        election = site.start("a")
        client = Fenced(site.server.client, election.holds)
        assert not election.holds()
        with pytest.raises(NotLeadingError, match="create nodes: this process has not renewed"):
            await client.create("nodes", {"metadata": {"name": "early"}})
        await until(lambda: site.leads == ["a"])
        node = await client.create("nodes", {"metadata": {"name": "n"}})
        site.clock.s += 10.1  # as if it had been stopped: its own clock alone has run on
        for write in (
            client.create("nodes", {"metadata": {"name": "late"}}),
            client.update("nodes", node),
            client.patch("nodes", "n", "", {"metadata": {"labels": {"a": "b"}}}),
            client.delete("nodes", "n"),
        ):
            with pytest.raises(NotLeadingError):
                await write
        assert (await client.get("nodes", "n"))["metadata"]["name"] == "n"
        assert [n["metadata"]["name"] for n in (await client.list("nodes"))[0]] == ["n"]
        await until(election.holds)  # nobody else came: it leads again, from the beginning

    run(story)


@pytest.mark.parametrize("seed", range(5))
def test_never_do_two_lead_whatever_becomes_of_them(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes, the API goes away from some and comes back, and they end with or without a word."""

    monkeypatch.setattr("podlane.controller.leader.RETRY", 0.0002)

    class Tired:
        """A client that may be cut off from the API."""

        def __init__(self, client: ApiClient) -> None:
            self.client, self.away = client, False

        def __getattr__(self, verb: str) -> object:
            async def call(*words: object, **more: object) -> object:
                await asyncio.sleep(0)
                if self.away:
                    raise ApiError("away", code=503)
                return await getattr(self.client, verb)(*words, **more)

            return call

    async def story(site: Site) -> None:
        chance = random.Random(seed)
        names = ["a", "b", "c"]
        clients = {name: Tired(site.server.client) for name in names}
        elections = {name: site.start(name, clients[name]) for name in names}  # type: ignore[arg-type]
        for _ in range(100):
            name = chance.choice(names)
            match chance.choice(["time", "time", "away", "back", "kill"]):
                case "time":
                    site.clock.s += chance.uniform(0, 8)
                case "away":
                    clients[name].away = True
                case "back":
                    clients[name].away = False
                case "kill":
                    await site.end(
                        name, kill=chance.random() < 0.5 and site.lease()["holderIdentity"] == name
                    )
                    elections[name] = site.start(name, clients[name])  # type: ignore[arg-type]
            for _ in range(chance.randrange(30)):
                await asyncio.sleep(0)
                holding = [each for each in names if elections[each].holds()]
                assert len(holding) <= 1
            await asyncio.sleep(0.003)
        # And whatever has become of them, another leads when the one that did is cut off.
        for name in names:
            clients[name].away = False
        await until(lambda: any(each.holds() for each in elections.values()))
        (leader,) = [name for name in names if elections[name].holds()]
        clients[leader].away = True
        site.clock.s += 16.0

        def other() -> bool:
            site.clock.s += 0.5  # the others see for its whole duration that nothing is renewed
            return any(elections[name].holds() for name in names if name != leader)

        await until(other)
        assert not elections[leader].holds()

    run(story)
