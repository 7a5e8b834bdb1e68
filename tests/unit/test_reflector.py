"""Every transition of the reflector's protocol, with answers as an API server writes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from podlane.errors import ApiError, GoneError
from podlane.model.objects import Node
from podlane.watch.http import Unreachable
from podlane.watch.reflector import (
    PART_OBJECTS,
    Delete,
    News,
    Part,
    Reflector,
    Replace,
    Source,
    State,
    Upsert,
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
    reflector = Reflector(Source("Node", field_selector="metadata.name=a"), Node, streaming=False)
    first = reflector.next_request(300)
    assert first.query == {"fieldSelector": "metadata.name=a", "limit": "100"}
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


def test_a_bookmark_before_the_end_of_a_streamed_list_is_of_a_server_that_knows_none() -> None:
    reflector = Reflector(Source("Node"), Node)
    reflector.next_request(300)
    reflector.event(event("ADDED", node("a")))
    with pytest.raises(ApiError) as caught:
        reflector.event(bookmark("5"))
    assert reflector.refused(caught.value)
    assert not reflector.next_request(300).stream


def test_a_streamed_list_that_says_nothing_is_asked_for_in_pages() -> None:
    reflector = Reflector(Source("Node"), Node)
    assert reflector.next_request(300).stream
    assert reflector.silent()
    assert not reflector.next_request(300).stream
    watching = listed("a")
    assert not watching.silent(), "a quiet watch is nothing strange"


def test_a_streamed_list_refused_for_want_of_a_right_is_tried_again_another_time() -> None:
    reflector = Reflector(Source("Node"), Node)
    assert reflector.refused(ApiError("may not watch", code=403))
    assert not reflector.next_request(300).stream
    assert not reflector.refused(ApiError("may not list", code=403)), "then it waits"
    assert not reflector.next_request(300).stream
    reflector.page(page(node("a")))
    reflector.refused(GoneError("too old"))
    assert reflector.next_request(300).stream


@pytest.mark.parametrize(("bytes_each", "limit"), [(100, 500), (8_000, 262), (500_000, 20)])
def test_pages_are_as_many_objects_as_a_few_megabytes_hold(bytes_each: int, limit: int) -> None:
    reflector = Reflector(Source("Node"), Node, streaming=False)
    first = page(*(node(f"n{i}", labels={"a": ""}) for i in range(100)), more="token")
    pad = b" " * max(0, 100 * bytes_each - len(first))
    reflector.page(first + pad)
    assert int(reflector.next_request(300).query["limit"]) == pytest.approx(limit, rel=0.05)


@pytest.mark.parametrize(
    "line", [bookmark("9"), event("ADDED", node("b", "9")), event("DELETED", node("a", "3"))]
)
def test_a_version_below_the_last_is_an_older_database_and_listed_anew(line: bytes) -> None:
    reflector = listed("a")
    with pytest.raises(GoneError, match="an older one") as caught:
        reflector.event(line)
    assert reflector.refused(caught.value)
    assert reflector.state is State.LISTING


def test_versions_that_are_no_numbers_are_not_compared() -> None:
    reflector = listed("a")
    assert isinstance(reflector.event(event("ADDED", node("b", "abc"))), Upsert)
    assert isinstance(reflector.event(event("ADDED", node("c", "1"))), Upsert)


@pytest.mark.parametrize(
    ("shows", "state"), [("10", State.WATCHING), ("12", State.WATCHING), ("9", State.LISTING)]
)
def test_in_doubt_one_object_is_listed_for_the_version_it_shows(shows: str, state: State) -> None:
    reflector = listed("a")
    reflector.doubt()
    request = reflector.next_request(300)
    assert (request.stream, request.query) == (False, {"limit": "1"})
    assert reflector.page(page(node("b"), version=shows, more="token")) is None
    assert (reflector.state, reflector.version) == (state, "10")
    assert "continue" not in reflector.next_request(300).query
    assert reflector.next_request(300).stream


def test_who_has_not_listed_yet_has_no_doubts() -> None:
    reflector = Reflector(Source("Node"), Node, streaming=False)
    reflector.doubt()
    assert reflector.next_request(300).query["limit"] == "100"


@pytest.mark.parametrize("code", [429, 500, 502, 503])
def test_a_watch_that_is_refused_for_the_moment_goes_on_from_its_version(code: int) -> None:
    reflector = listed("a")
    reflector.next_request(300)
    assert not reflector.refused(ApiError("later", code=code))
    assert reflector.next_request(300).query["resourceVersion"] == "10"


def test_a_version_that_is_too_large_is_a_doubt() -> None:
    reflector = listed("a")
    reflector.next_request(300)
    assert not reflector.refused(ApiError("Too large resource version: 10, current: 5", code=504))
    assert reflector.next_request(300).query == {"limit": "1"}


def test_an_event_of_a_type_of_tomorrow_is_left_out() -> None:
    reflector = listed("a")
    assert reflector.event(event("COMPACTED", node("a", "11"))) is None
    assert reflector.version == "10"


def test_objects_as_they_are() -> None:
    reflector = Reflector(Source("things", collection="/apis/x/v1/things"), dict, streaming=False)
    assert reflector.next_request(300).path == "/apis/x/v1/things"
    body = {"apiVersion": "x/v1", "kind": "ThingList", "metadata": {"resourceVersion": "3"}}
    news = reflector.page(json.dumps(body | {"items": [{"metadata": {"name": "a"}, "any": [1]}]}).encode())
    assert isinstance(news, Replace)
    assert list(news.objects) == [
        {"apiVersion": "x/v1", "kind": "Thing", "metadata": {"name": "a"}, "any": [1]}
    ]


def test_who_may_not_list_in_doubt_goes_on_watching() -> None:
    reflector = listed("a")
    reflector.doubt()
    assert not reflector.refused(ApiError("etcd is away", code=500))
    assert not reflector.next_request(300).stream
    assert not reflector.refused(ApiError("may not list", code=403))
    assert reflector.next_request(300).query["resourceVersion"] == "10"


def keys_told(news: News[Node] | None) -> list[str]:
    assert isinstance(news, Replace)
    return sorted(name for _, name in news.keys)


def test_a_list_that_nobody_keeps_is_handed_out_page_by_page() -> None:
    reflector = Reflector(Source("Node"), Node, streaming=False, piecemeal=True)
    part = reflector.page(page(node("a"), node("b"), more="token"))
    assert isinstance(part, Part)
    assert [each.name for each in part.objects] == ["a", "b"]
    last = reflector.page(page(node("c"), {"metadata": {"name": "d"}, "spec": {"podCIDRs": 3}}))
    assert names(last) == ["c"]
    assert keys_told(last) == ["a", "b", "c", "d"]


def test_a_streamed_list_that_nobody_keeps_is_handed_out_as_it_comes() -> None:
    reflector = Reflector(Source("Node"), Node, piecemeal=True)
    reflector.next_request(300)
    every = [f"n{number:03}" for number in range(PART_OBJECTS + 3)]
    parts = [reflector.event(event("ADDED", node(name))) for name in every]
    found = [part for part in parts if part is not None]
    assert [len(part.objects) for part in found if isinstance(part, Part)] == [PART_OBJECTS]
    last = reflector.event(bookmark("9", **{"k8s.io/initial-events-end": "true"}))
    assert names(last) == every[PART_OBJECTS:]
    assert keys_told(last) == every


def test_what_a_broken_list_told_is_no_part_of_the_next() -> None:
    reflector = Reflector(Source("Node"), Node, streaming=False, piecemeal=True)
    assert isinstance(reflector.page(page(node("gone-meanwhile"), more="token")), Part)
    assert reflector.refused(GoneError("too old"))
    assert keys_told(reflector.page(page(node("a")))) == ["a"]
