"""What an agent tells the API of the addresses it answers for, with the API and the time of the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from podlane.agent import announcements
from podlane.agent.announcements import Announcements
from podlane.compile.engine import Compiler
from podlane.compile.view import Change
from podlane.errors import ApiError, NotFoundError
from podlane.model.addresses import Address, Family
from podlane.model.config import NetworkConfig
from podlane.model.objects import Condition, Service
from podlane.model.pools import ANNOUNCED, announcement
from tests.unit.test_announce import FOUR, service


class Api:
    """Takes conditions in, as a watch would bring them back."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler = compiler
        self.failures: list[ApiError] = []
        self.events: list[str] = []
        self.patches = 0

    def say(self, status: str, message: str) -> None:
        conditions = [Condition(ANNOUNCED[Family.IPV4], status, "Layer2", message)]
        old = service("192.0.2.7")
        status_ = type(old.status)(old.status.load_balancer, conditions)
        changed = Service(metadata=old.metadata, spec=old.spec, status=status_)
        self.compiler.apply([Change("Service", None, changed)])

    @property
    def said(self) -> tuple[str, str] | None:
        known = self.compiler.view.services["default", "web"].status.conditions
        return (known[0].status, known[0].message) if known else None

    async def patch(self, path: str, body: bytes, content_type: str) -> bytes:
        assert path == "/api/v1/namespaces/default/services/web/status"
        if self.failures:
            raise self.failures.pop(0)
        (condition,) = json.loads(body)["status"]["conditions"]
        self.patches += 1
        self.say(condition["status"], condition["message"])
        return b""

    async def post(self, path: str, body: bytes) -> bytes:
        self.events.append(json.loads(body)["message"])
        return b""


class Driver:
    def listen(self, changed: Callable[[Address, bool], None]) -> None:
        self.changed = changed


def run(story: Callable[[Api, Driver], Awaitable[None]]) -> None:
    async def main() -> None:
        compiler = Compiler("node-1", NetworkConfig())
        compiler.apply([Change("Service", None, service("192.0.2.7"))])
        api, driver = Api(compiler), Driver()
        told: Any = Announcements("node-1", compiler.view, api)  # type: ignore[arg-type]
        told.listen(driver)
        task = asyncio.create_task(told.run())
        try:
            await story(api, driver)
        finally:
            task.cancel()
            await asyncio.wait({task})

    asyncio.run(main())


async def until(what: Callable[[], bool]) -> None:
    for _ in range(500):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to be")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRY_FIRST_S", "LAST_WORD_S", "LOOK_S", "AGAIN_FIRST_S"):
        monkeypatch.setattr(announcements, name, 0.05)


MINE = ("True", announcement("node-1", FOUR))


def test_it_is_told_once_and_again_when_the_api_did_not_take_it() -> None:
    async def story(api: Api, driver: Driver) -> None:
        api.failures = [ApiError("away", code=503), ApiError("away", code=503)]
        driver.changed(FOUR, True)
        await until(lambda: api.said == MINE)
        driver.changed(FOUR, True)
        await asyncio.sleep(0.3)
        assert (api.patches, api.events) == (1, ["announcing 192.0.2.7 from node node-1 (layer 2)"])

    run(story)


def test_who_gives_it_up_says_so_unless_another_has_spoken() -> None:
    async def story(api: Api, driver: Driver) -> None:
        driver.changed(FOUR, True)
        await until(lambda: api.said == MINE)
        driver.changed(FOUR, False)
        await until(lambda: api.said == ("False", "no node answers for 192.0.2.7"))
        driver.changed(FOUR, True)
        await until(lambda: api.said == MINE)
        driver.changed(FOUR, False)
        api.say("True", announcement("node-2", FOUR))
        await asyncio.sleep(0.3)
        assert api.said == ("True", announcement("node-2", FOUR))

    run(story)


def test_a_word_to_the_contrary_is_answered_less_and_less() -> None:
    async def story(api: Api, driver: Driver) -> None:
        driver.changed(FOUR, True)
        await until(lambda: api.said == MINE)
        for _ in range(3):
            before = asyncio.get_running_loop().time()
            api.say("True", announcement("node-2", FOUR))
            await until(lambda: api.said == MINE)
        assert asyncio.get_running_loop().time() - before >= 0.2, "0.05, 0.1, 0.2 s"

    run(story)


def test_a_service_that_is_gone_is_no_matter() -> None:
    async def story(api: Api, driver: Driver) -> None:
        api.failures = [NotFoundError("gone")]
        driver.changed(FOUR, True)
        await until(lambda: not api.failures)
        assert api.events == []

    run(story)
