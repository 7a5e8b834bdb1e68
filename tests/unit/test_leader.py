"""One of several controllers leads, over the real API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from podlane.controller.client import ApiClient, Obj
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
