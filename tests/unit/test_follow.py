"""The loop around the reflector: what is asked when, what is told, and how long it pauses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest

from podlane.errors import ApiError, NotFoundError
from podlane.model.objects import KINDS, Object
from podlane.watch.backoff import Backoff, Gate
from podlane.watch.follow import Progress, follow
from podlane.watch.http import Silent, Unreachable
from podlane.watch.reflector import News, Replace, Source, Upsert
from podlane.watch.servers import Servers
from tests.unit.test_reflector import bookmark, error, event, node, page


class Script:
    """An API that answers from a script: bytes for a list, a list of lines for a watch, or an error."""

    def __init__(self, *answers: bytes | list[bytes | Exception] | Exception, streams: bool = False) -> None:
        """streams: whether it knows streaming lists; one that does not refuses them beside the script."""
        self.answers, self.streams = list(answers), streams
        self.asked: list[dict[str, str]] = []

    def _next(self, query: Mapping[str, str]) -> Any:
        if "sendInitialEvents" in query and not self.streams:
            raise ApiError("sendInitialEvents: Forbidden", code=422)
        self.asked.append(dict(query))
        if not self.answers:
            raise asyncio.CancelledError
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def get(self, path: str, query: Mapping[str, str]) -> bytes:
        answer = self._next(query)
        assert isinstance(answer, bytes)
        return answer

    async def lines(
        self, path: str, query: Mapping[str, str], silence_s: object = None
    ) -> AsyncGenerator[bytes, None]:
        answer = self._next(query)
        yield b""
        for line in answer:
            if isinstance(line, Exception):
                raise line
            yield line


def run(script: Script, kind: str = "Node") -> tuple[list[News[Object]], list[float], list[Progress]]:
    news: list[News[Object]] = []
    pauses: list[float] = []
    progress: list[Progress] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    async def main() -> None:
        await follow(
            Source(kind),
            script,
            lambda kind, each: news.append(each),
            progress.append,
            rng=random.Random(1),
            sleep=sleep,
            kinds=KINDS,
        )

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    return news, pauses, progress


def test_the_loop_keeps_everything_while_the_api_is_away() -> None:
    away = Unreachable("nobody there")
    answers = [event("ADDED", node("b", "11")), away], away, page(version="11"), [bookmark("12")]
    script = Script(away, page(node("a")), *answers)
    news, pauses, progress = run(script)
    assert [type(each) for each in news] == [Replace, Upsert]
    assert len(pauses) == 3
    assert pauses[0] <= 0.1 < pauses[1]
    asked = [q.get("resourceVersion") or "limit " + q["limit"] for q in script.asked]
    assert asked == ["limit 100", "limit 100", "10", "limit 1", "limit 1", "11", "12"]
    assert {p.error for p in progress} == {"", "nobody there"}


def test_a_kind_that_an_older_api_lacks_is_none_until_it_is_there() -> None:
    lacking = NotFoundError("the server could not find the requested resource")
    script = Script(lacking, lacking, page(version="7"), [bookmark("8")])
    news, pauses, progress = run(script, "ServiceCIDR")
    assert [each.objects for each in news if isinstance(each, Replace)] == [[], [], []]
    assert len(pauses) == 2
    assert {p.error for p in progress} == {""}
    assert all(p.reflector.synced for p in progress)
    _, _, progress = run(Script(lacking))
    assert progress[0].error
    assert not progress[0].reflector.synced


def test_the_loop_relists_after_gone_without_a_pause() -> None:
    script = Script(page(node("a")), [error(410)], page(node("b"), version="50"), [bookmark("51")])
    news, pauses, _ = run(script)
    assert [type(each) for each in news] == [Replace, Replace]
    assert pauses == []


def test_a_watch_that_ends_at_once_is_not_asked_in_a_spin() -> None:
    _, pauses, _ = run(Script(page(), [], [], []))
    assert len(pauses) == 3


def test_a_broken_line_resumes_from_the_last_good_one() -> None:
    script = Script(page(), [event("ADDED", node("a", "11")), b'{"type": "ADD'], [bookmark("12")])
    news, pauses, progress = run(script)
    assert len(news) == 2
    assert len(pauses) == 1
    assert script.asked[2]["resourceVersion"] == "11"
    assert any("no JSON" in p.error for p in progress)


def test_a_list_comes_as_a_stream() -> None:
    end = bookmark("6", **{"k8s.io/initial-events-end": "true"})
    stream = [event("ADDED", node("a")), end, event("ADDED", node("b", "7"))]
    script = Script(stream, [bookmark("8")], streams=True)
    news, pauses, _ = run(script)
    assert [type(each) for each in news] == [Replace, Upsert]
    assert script.asked[0]["sendInitialEvents"] == "true"
    assert script.asked[1]["resourceVersion"] == "7"
    assert pauses == []


def test_a_stream_that_stays_silent_becomes_pages_at_once() -> None:
    script = Script(Silent("nothing came", connected=True), page(node("a")), [bookmark("12")], streams=True)
    news, pauses, progress = run(script)
    assert len(news) == 1
    assert "limit" in script.asked[1]
    assert pauses == []
    assert {p.error for p in progress} == {""}


def test_what_the_api_asks_for_is_waited_for() -> None:
    later = ApiError("slow down", code=429, retry_after_s=25)
    _, pauses, _ = run(Script(later, page(), [bookmark("12")]))
    assert 25 <= pauses[0] <= 37.5
    absurd = ApiError("slow down", code=429, retry_after_s=1e9)
    assert run(Script(absurd))[1][0] <= 450


def test_rights_that_were_taken_away_leave_what_is_known() -> None:
    refused = ApiError('nodes is forbidden: User "x" cannot watch', code=403, reason="Forbidden")
    script = Script(page(node("a")), refused, refused, refused, [event("ADDED", node("b", "11"))])
    news, pauses, progress = run(script)
    assert [type(each) for each in news] == [Replace, Upsert]
    assert len(pauses) == 3
    assert "cannot watch" in progress[2].error
    assert progress[-1].error == ""


def test_a_fault_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    refused = ApiError("nodes is forbidden", code=403)
    with caplog.at_level("INFO", "podlane.watch"):
        run(Script(page(node("a")), refused, refused, refused, [bookmark("11")], refused))
    said = [r.getMessage() for r in caplog.records if "forbidden" in r.getMessage()]
    assert len([each for each in said if "what is known stays" in each]) == 2


def test_a_compaction_while_the_api_was_away_is_one_list_more() -> None:
    away = Unreachable("nobody there")
    gone = [error(410, "Expired")]
    script = Script(
        page(node("a")), away, page(version="90"), gone, page(node("b"), version="91"), [bookmark("92")]
    )
    news, _, _ = run(script)
    assert [[o.name for o in each.objects] for each in news if isinstance(each, Replace)] == [["a"], ["b"]]


def test_an_older_database_is_found_after_the_api_was_away() -> None:
    away = Unreachable("nobody there")
    script = Script(page(node("a")), away, page(version="4"), page(node("b"), version="4"), [bookmark("5")])
    news, _, progress = run(script)
    assert [[o.name for o in each.objects] for each in news if isinstance(each, Replace)] == [["a"], ["b"]]
    assert progress[-1].reflector.version == "5"


# --- pauses ---------------------------------------------------------------------------------------


def test_pauses_begin_short_double_and_stay_below_the_most() -> None:
    backoff = Backoff(random.Random(1))
    pauses = [backoff.next_s() for _ in range(14)]
    assert 0.05 <= pauses[0] <= 0.1
    assert all(
        base / 2 <= each <= base for base, each in zip([0.8, 1.6, 3.2, 6.4, 12.8], pauses[1:], strict=False)
    )
    assert all(10 <= each <= 20 for each in pauses[6:])
    backoff.succeeded()
    assert 0.8 <= backoff.next_s() <= 1.6


def test_thousands_that_lost_the_api_together_do_not_come_back_together() -> None:
    """Most that ask within one second of an hour's outage, of 5,000 nodes."""
    per_second: dict[int, int] = {}
    for number in range(5000):
        backoff = Backoff(random.Random(number))
        at_s = 0.0
        while at_s < 3600:
            at_s += backoff.next_s()
        per_second[int(at_s)] = per_second.get(int(at_s), 0) + 1
    assert max(per_second) - 3600 <= 20
    assert max(per_second.values()) < 5000 / 10


def test_one_of_a_process_tries_for_all_while_the_api_is_away() -> None:
    tries: list[str] = []
    away = True

    async def main() -> None:
        nonlocal away

        async def sleep(pause_s: float) -> None:
            await asyncio.sleep(0)

        gate = Gate(random.Random(1), sleep)

        async def reader(name: str) -> None:
            who = object()
            while True:
                await gate.through(who)
                tries.append(name)
                if away:
                    gate.closed(who)
                else:
                    gate.opened()
                    return
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(reader(name)) for name in "abcdefgh"]
        for _ in range(200):
            await asyncio.sleep(0)
        assert not gate.is_open
        assert set(tries) == {"a"}
        assert len(tries) > 50
        away = False
        await asyncio.gather(*tasks)
        assert gate.is_open

    asyncio.run(main())


def test_who_ends_while_it_tries_for_all_leaves_it_to_another() -> None:
    async def main() -> None:
        gate = Gate(random.Random(1), lambda pause_s: asyncio.sleep(0))
        first, second = object(), object()
        gate.closed(first)
        gate.closed(second)
        waiting = asyncio.create_task(gate.through(second))
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.left(first)
        await asyncio.wait_for(waiting, 5)

    asyncio.run(main())


def test_of_several_servers_the_last_good_is_asked_first() -> None:
    servers = Servers(["a", "b", "c", "a"], random.Random(1))
    first = servers.current
    assert sorted(servers.order()) == ["a", "b", "c"]
    servers.failed(first)
    second = servers.current
    assert second != first
    servers.failed(first)
    assert servers.current == second, "what fails late does not move it again"
    servers.good(first)
    assert servers.order()[0] == first
    starts = {Servers(["a", "b", "c"], random.Random(n)).current for n in range(20)}
    assert starts == {"a", "b", "c"}, "a cluster's nodes spread over them"
