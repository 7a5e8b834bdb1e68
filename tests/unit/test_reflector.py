"""Every transition of the reflector's protocol, with answers as an API server writes them."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest

from podlane.errors import ApiError, GoneError, NotFoundError
from podlane.model.objects import KINDS, Node, Object
from podlane.watch.http import Unreachable
from podlane.watch.reflector import (
    Backoff,
    Delete,
    News,
    Progress,
    Reflector,
    Replace,
    Source,
    State,
    Upsert,
    follow,
)


def node(name: str, version: str = "1", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "resourceVersion": version, **metadata},
        "spec": {"podCIDRs": ["10.244.1.0/24"], "somethingNew": {"a": 1}},
    }


def page(*items: dict[str, Any], version: str = "10", more: str = "") -> bytes:
    return json.dumps(
        {"kind": "NodeList", "metadata": {"resourceVersion": version, "continue": more}, "items": items}
    ).encode()


def event(kind: str, item: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode()


def bookmark(version: str, **annotations: str) -> bytes:
    metadata = {"resourceVersion": version, "annotations": annotations}
    return event("BOOKMARK", {"kind": "Node", "metadata": metadata, "spec": {"podCIDRs": None}})


def error(code: int, reason: str = "") -> bytes:
    return event("ERROR", {"kind": "Status", "code": code, "reason": reason, "message": "too old"})


def listed(*names: str) -> Reflector[Node]:
    reflector = Reflector(Source("Node"), Node)
    reflector.page(page(*(node(n) for n in names)))
    return reflector


def names(news: News[Node] | None) -> list[str]:
    assert isinstance(news, Replace)
    return [each.name for each in news.objects]


def test_a_list_of_pages_becomes_one_replace() -> None:
    reflector = Reflector(Source("Node", field_selector="metadata.name=a"), Node)
    first = reflector.next_request(300)
    assert first.query == {"fieldSelector": "metadata.name=a", "limit": "500"}
    assert reflector.page(page(node("a"), more="token")) is None
    assert not reflector.synced
    assert reflector.next_request(300).query["continue"] == "token"
    assert names(reflector.page(page(node("b"), version="12"))) == ["a", "b"]
    assert (reflector.state, reflector.version, reflector.synced) == (State.WATCHING, "12", True)


def test_an_empty_list_may_have_null_items() -> None:
    body = b'{"metadata": {"resourceVersion": "3"}, "items": null}'
    assert names(Reflector(Source("Node"), Node).page(body)) == []


def test_the_watch_begins_where_the_list_ended() -> None:
    query = listed("a").next_request(333).query
    assert query == {
        "watch": "1",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "333",
        "resourceVersion": "10",
    }


@pytest.mark.parametrize("kind", ["ADDED", "MODIFIED"])
def test_added_and_modified_are_upserts(kind: str) -> None:
    reflector = listed("a")
    news = reflector.event(event(kind, node("b", "11")))
    assert isinstance(news, Upsert)
    assert (news.object.name, reflector.version) == ("b", "11")


def test_deleted_is_a_delete_even_if_the_last_state_cannot_be_read() -> None:
    reflector = listed("a")
    gone = node("a", "11")
    gone["spec"] = "nonsense"
    assert reflector.event(event("DELETED", gone)) == Delete(("", "a"))
    assert reflector.version == "11"


def test_a_bookmark_moves_the_version_only() -> None:
    reflector = listed("a")
    assert reflector.event(bookmark("99")) is None
    assert reflector.next_request(300).query["resourceVersion"] == "99"


def test_gone_while_watching_lists_again_at_once() -> None:
    reflector = listed("a")
    with pytest.raises(GoneError) as caught:
        reflector.event(error(410, "Expired"))
    assert reflector.refused(caught.value)
    assert reflector.state is State.LISTING
    assert names(reflector.page(page(node("b"), version="50"))) == ["b"]


def test_gone_within_a_list_begins_at_the_first_page_with_nothing_kept() -> None:
    reflector = Reflector(Source("Node"), Node)
    reflector.page(page(node("a"), more="token"))
    assert reflector.refused(GoneError("continue token expired"))
    assert "continue" not in reflector.next_request(300).query
    assert names(reflector.page(page(node("b")))) == ["b"]


def test_a_list_that_is_itself_refused_as_gone_waits() -> None:
    assert not Reflector(Source("Node"), Node).refused(GoneError("no"))


def test_another_error_event_lists_again_after_a_pause() -> None:
    reflector = listed("a")
    with pytest.raises(ApiError, match="too old") as caught:
        reflector.event(error(500))
    assert not reflector.refused(caught.value)
    assert reflector.state is State.LISTING


def test_unreachable_while_watching_resumes_from_the_last_version() -> None:
    reflector = listed("a")
    reflector.event(bookmark("20"))
    assert not reflector.refused(Unreachable("nobody there"))
    assert reflector.next_request(300).query["resourceVersion"] == "20"


def test_a_streamed_list_ends_with_its_bookmark() -> None:
    reflector = Reflector(Source("Node"), Node, streaming=True)
    assert reflector.next_request(300).query["sendInitialEvents"] == "true"
    assert reflector.event(event("ADDED", node("a"))) is None
    assert reflector.event(bookmark("5")) is None
    assert not reflector.synced
    assert names(reflector.event(bookmark("6", **{"k8s.io/initial-events-end": "true"}))) == ["a"]
    assert (reflector.state, reflector.version) == (State.WATCHING, "6")


def test_a_streamed_list_that_broke_off_begins_anew() -> None:
    reflector = Reflector(Source("Node"), Node, streaming=True)
    reflector.next_request(300)
    reflector.event(event("ADDED", node("a")))
    reflector.next_request(300)
    reflector.event(event("ADDED", node("b")))
    assert names(reflector.event(bookmark("6", **{"k8s.io/initial-events-end": "true"}))) == ["b"]


@pytest.mark.parametrize("code", [400, 422])
def test_a_server_without_streaming_lists_is_asked_for_pages(code: int) -> None:
    reflector = Reflector(Source("Node"), Node, streaming=True)
    assert reflector.refused(ApiError("sendInitialEvents is forbidden", code=code))
    assert not reflector.next_request(300).stream


def test_an_unreadable_object_is_named_and_the_others_stand() -> None:
    bad = node("bad")
    bad["spec"] = {"podCIDRs": 7}
    reflector = Reflector(Source("Node"), Node)
    news = reflector.page(page(node("a"), bad))
    assert names(news) == ["a"]
    assert isinstance(news, Replace)
    assert news.unreadable == {("", "bad")}
    assert "podCIDRs" in reflector.malformed["", "bad"]
    assert isinstance(reflector.event(event("MODIFIED", node("bad", "11"))), Upsert)
    assert reflector.malformed == {}


def test_annotations_nobody_reads_are_dropped() -> None:
    reflector = Reflector(Source("Node"), Node)
    kept = {"podlane.dev/x": "1"}
    news = reflector.page(page(node("a", annotations={**kept, "controller/leader": "now"})))
    assert isinstance(news, Replace)
    assert news.objects[0].metadata.annotations == kept


def test_pauses_begin_short_double_and_stay_below_the_most() -> None:
    backoff = Backoff(random.Random(1))
    pauses = [backoff.next_s() for _ in range(14)]
    assert 0.05 <= pauses[0] <= 0.075
    assert all(later > sooner for sooner, later in itertools.pairwise(pauses) if later < 20)
    assert max(pauses) <= 30.0
    backoff.succeeded()
    assert 0.8 <= backoff.next_s() <= 1.2


class Script:
    """An API that answers from a script: bytes for a list, a list of lines for a watch, or an error."""

    def __init__(self, *answers: bytes | list[bytes | Exception] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, str]] = []

    def _next(self, query: Mapping[str, str]) -> Any:
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

    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
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
            script,  # type: ignore[arg-type]
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
    script = Script(away, page(node("a")), [event("ADDED", node("b", "11")), away], away, [bookmark("12")])
    news, pauses, progress = run(script)
    assert [type(each) for each in news] == [Replace, Upsert]
    assert len(pauses) == 3
    assert pauses[0] < 0.1 < pauses[1]
    assert [q.get("resourceVersion") for q in script.asked] == [None, None, "10", "11", "11", "12"]
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
