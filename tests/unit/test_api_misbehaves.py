"""The client against an API that is away, slow, full, wrong or put back, over real sockets.

Pauses are shortened, and nothing else: what is asked after what is as it would be. What a test waits for is a
state, with a generous end.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from podlane.errors import ApiError
from podlane.model.objects import KINDS, EndpointSlice, Object
from podlane.watch import http
from podlane.watch.backoff import Gate
from podlane.watch.follow import Progress, follow
from podlane.watch.http import ApiHttp
from podlane.watch.kubeconfig import Access
from podlane.watch.reflector import Delete, News, Part, Replace, Source, Upsert
from tests.unit.stand_in import NODES, PODS, SLICES, STREAM, Answer, Asked, StandIn, chunk, status


class Copy:
    """What a follower of one kind knows, and what it was told: ("=", names), ("+", name), ("-", name)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.objects: dict[str, Object] = {}
        self.told: list[tuple[str, Any]] = []
        self.error = "nothing heard yet"
        self.errors: list[str] = []
        self.malformed: dict[Any, str] = {}

    @property
    def names(self) -> set[str]:
        return set(self.objects)

    def deliver(self, kind: str, news: News[Object]) -> None:
        match news:
            case Part(objects):
                self.objects |= {each.name: each for each in objects}
            case Replace(objects):
                there = {name for _, name in news.keys}
                self.objects |= {each.name: each for each in objects}
                self.objects = {name: each for name, each in self.objects.items() if name in there}
                self.told.append(("=", sorted(self.objects)))
            case Upsert(found):
                self.objects[found.name] = found
                self.told.append(("+", found.name))
            case Delete((_, name)):
                self.objects.pop(name, None)
                self.told.append(("-", name))

    def heard(self, progress: Progress) -> None:
        self.error, self.malformed = progress.error, progress.reflector.malformed
        if progress.error and progress.error not in self.errors:
            self.errors.append(progress.error)

    async def until(self, condition: Callable[[], Any]) -> None:
        try:
            async with asyncio.timeout(20):
                while not condition():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"never came true: {self.told} {self.errors}") from None


class Site:
    """Followers of some kinds beside a stand-in. pauses: what they would have waited."""

    def __init__(self, server: StandIn, kinds: tuple[str, ...]) -> None:
        self.server = server
        self.copies = {kind: Copy(kind) for kind in kinds}
        self.pauses: list[float] = []
        self.api = ApiHttp(Access(server.url), rng=random.Random(1))

    @property
    def nodes(self) -> Copy:
        return self.copies["Node"]

    async def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        await asyncio.sleep(min(pause_s, 0.01))


@asynccontextmanager
async def followed(server: StandIn, *kinds: str) -> AsyncIterator[Site]:
    site = Site(server, kinds or ("Node",))
    gate = Gate(random.Random(1), site.sleep)
    tasks = [
        asyncio.create_task(
            follow(Source(kind), site.api, copy.deliver, copy.heard, gate=gate, sleep=site.sleep)
        )
        for kind, copy in site.copies.items()
    ]
    try:
        yield site
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def play(
    story: Callable[[StandIn], Any], *, streams: bool = True, before: tuple[str, ...] = ("a", "b")
) -> None:
    with StandIn(streams=streams) as server:
        for name in before:
            server.put(NODES, name)
        asyncio.run(story(server))


async def in_thread(work: Callable[..., Any], *args: Any, **more: Any) -> None:
    await asyncio.to_thread(work, *args, **more)


@pytest.mark.parametrize("streams", [True, False])
def test_refused_connections_then_only_the_difference(streams: bool) -> None:
    async def story(server: StandIn) -> None:
        async with followed(server) as site:
            nodes = site.nodes
            await nodes.until(lambda: nodes.names == {"a", "b"} and not nodes.error)
            await in_thread(server.stop)
            await nodes.until(lambda: "cannot be reached" in nodes.error)
            assert nodes.names == {"a", "b"}
            await in_thread(server.put, NODES, "c")
            await in_thread(server.delete, NODES, "a")
            await in_thread(server.start)
            await nodes.until(lambda: nodes.names == {"b", "c"} and not nodes.error)
            assert nodes.told == [("=", ["a", "b"]), ("+", "c"), ("-", "a")]
            # After an outage one object is listed, to see that it is the same database.
            assert server.count(lambda asked: asked.query.get("limit") == "1") == 1

    play(story, streams=streams)


def test_a_compaction_while_the_api_was_away_is_one_more_list() -> None:
    async def story(server: StandIn) -> None:
        async with followed(server) as site:
            nodes = site.nodes
            await nodes.until(lambda: nodes.names == {"a", "b"})
            await in_thread(server.stop)
            await nodes.until(lambda: nodes.error)
            await in_thread(server.put, NODES, "c")
            await in_thread(server.delete, NODES, "a")
            server.compact()
            await in_thread(server.start)
            await nodes.until(lambda: nodes.names == {"b", "c"})
            assert nodes.told == [("=", ["a", "b"]), ("=", ["b", "c"])]
            assert server.count(lambda asked: asked.streaming) == 2

    play(story)


def test_a_410_answered_to_the_watch_itself_lists_again() -> None:
    """Older servers say it with the status of the answer and not with an event."""
    left = 1

    def fault(asked: Asked) -> Answer | None:
        nonlocal left
        if asked.watching and left:
            left -= 1
            return status(410, "Expired", "too old resource version: 102 (999)")
        return None

    async def story(server: StandIn) -> None:
        server.fault = fault
        async with followed(server) as site:
            await site.nodes.until(lambda: len(site.nodes.told) == 2)
            assert site.nodes.told == [("=", ["a", "b"])] * 2
            assert site.pauses == []

    play(story, streams=False)


def test_a_continue_token_that_expired_begins_the_list_again_with_nothing_doubled() -> None:
    compacted = False

    async def story(server: StandIn) -> None:
        def fault(asked: Asked) -> Answer | None:
            nonlocal compacted
            if "continue" in asked.query and not compacted:
                compacted = True
                server.version += 1
                server.compact()
            return None

        server.fault = fault
        async with followed(server) as site:
            nodes = site.nodes
            await nodes.until(lambda: len(nodes.names) == 130)
            assert [kind for kind, _ in nodes.told] == ["="]
            assert compacted

    play(story, streams=False, before=tuple(f"n{i:03}" for i in range(130)))


def test_a_database_put_back_from_a_copy_is_taken_over_as_it_is() -> None:
    async def story(server: StandIn) -> None:
        async with followed(server) as site:
            nodes = site.nodes
            await nodes.until(lambda: nodes.names == {"a", "b"})
            await in_thread(server.stop)
            await nodes.until(lambda: nodes.error)
            server.restore(50, NODES, "a", "old")
            await in_thread(server.start)
            await nodes.until(lambda: nodes.names == {"a", "old"})
            await in_thread(server.put, NODES, "new")
            await nodes.until(lambda: nodes.names == {"a", "old", "new"})

    play(story)


def test_too_many_requests_are_met_with_the_pause_that_was_asked_for() -> None:
    left = 3

    def fault(asked: Asked) -> Answer | None:
        nonlocal left
        if not left:
            return None
        left -= 1
        return status(429, "TooManyRequests", "too many")._replace(headers=(("Retry-After", "7"),))

    async def story(server: StandIn) -> None:
        server.fault = fault
        async with followed(server) as site:
            await site.nodes.until(lambda: site.nodes.names == {"a", "b"})
            assert len(site.pauses) == 3
            assert all(7 <= pause_s <= 10.5 for pause_s in site.pauses)
            assert site.nodes.errors == ["too many"]

    play(story)


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_faults_of_the_server_while_watching_keep_what_is_known_and_its_version(code: int) -> None:
    async def story(server: StandIn) -> None:
        async with followed(server) as site:
            nodes = site.nodes
            await nodes.until(lambda: nodes.names == {"a", "b"})
            server.fault = lambda asked: status(code, "InternalError", "etcdserver: request timed out")
            await in_thread(server.stop)
            await in_thread(server.start)
            await nodes.until(lambda: "etcdserver" in nodes.error and len(site.pauses) > 4)
            assert nodes.names == {"a", "b"}
            await in_thread(server.put, NODES, "c")
            server.fault = lambda asked: None
            await nodes.until(lambda: nodes.names == {"a", "b", "c"})
            assert nodes.told == [("=", ["a", "b"]), ("+", "c")]

    play(story)


def test_a_list_that_breaks_off_and_a_watch_that_does() -> None:
    item = {"metadata": {"name": "x", "resourceVersion": "101"}}
    whole = json.dumps({"metadata": {"resourceVersion": "101"}, "items": [item]}).encode()
    faults: list[bytes | Answer | None] = [
        Answer(200, whole[:-20]),  # JSON that ends too early, in an HTTP answer that is whole
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + whole,  # an HTTP answer that is not
        None,
    ]
    line = json.dumps(
        {"type": "ADDED", "object": {"metadata": {"name": "x", "resourceVersion": "150"}}}
    ).encode()
    watches: list[bytes | Answer | None] = [
        STREAM + chunk(line + b"\n") + chunk(b'{"type":"MODIFIED","obj'),
        STREAM + chunk(b'{"type":"MODIFIED","object":{"metadata":{]}\n'),
        STREAM + b"5\r\nab",
    ]

    def fault(server: StandIn, asked: Asked) -> Answer | bytes | None:
        if asked.watching:
            server.version = 200
            return watches.pop(0) if watches else None
        return None if asked.streaming or not faults else faults.pop(0)

    async def story(server: StandIn) -> None:
        server.fault = partial(fault, server)
        async with followed(server) as site:
            nodes = site.nodes
            await nodes.until(lambda: not watches and not faults)
            await in_thread(server.put, NODES, "c")
            await nodes.until(lambda: "c" in nodes.names)
            assert nodes.told == [("=", ["a", "b"]), ("+", "x"), ("+", "c")]
            asked = [each.query["resourceVersion"] for each in server.asked if each.watching]
            assert asked == ["102", "150", "150", "150"]
            assert any("no JSON" in error for error in nodes.errors)

    play(story, streams=False)


def test_a_black_hole_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection stands and nobody answers: a request is given up, a stream too."""
    monkeypatch.setattr(http, "LIST_TIMEOUT_S", 0.2)
    monkeypatch.setattr("podlane.watch.follow.SILENCE_TIMEOUT_S", 0.3)

    async def story(server: StandIn) -> None:
        server.fault = lambda asked: b""
        async with followed(server) as site:
            nodes = site.nodes
            await nodes.until(lambda: server.count(lambda asked: True) >= 3)
            server.fault = lambda asked: None
            await nodes.until(lambda: nodes.names == {"a", "b"})
            # Now the stream itself: it was accepted, and then there is silence.
            await nodes.until(lambda: "nothing came for 0.3 s" in nodes.error)
            await in_thread(server.put, NODES, "c")
            await nodes.until(lambda: "c" in nodes.names)
            assert [kind for kind, _ in nodes.told] == ["=", "+"]

    play(story)


def test_an_older_server_that_takes_a_streaming_list_for_a_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends what there is, and no bookmark that says that this was all."""
    monkeypatch.setattr("podlane.watch.follow.STREAM_SILENCE_S", 0.2)
    line = json.dumps(
        {"type": "ADDED", "object": {"metadata": {"name": "a", "resourceVersion": "101"}}}
    ).encode()

    async def story(server: StandIn) -> None:
        left = 1

        def fault(asked: Asked) -> bytes | None:
            nonlocal left
            if not asked.streaming or not left:
                return None
            left -= 1
            return STREAM + chunk(line + b"\n") + b"ff\r\n"

        server.fault = fault
        async with followed(server) as site:
            await site.nodes.until(lambda: site.nodes.names == {"a", "b"})

    play(story)


def test_a_slow_list_is_waited_for() -> None:
    async def story(server: StandIn) -> None:
        async with followed(server) as site:
            await site.nodes.until(lambda: len(site.nodes.names) == 300)
            assert len(site.nodes.told) == 1

    play(story, before=tuple(f"n{i}" for i in range(300)))


def test_rights_taken_from_one_kind_leave_it_known_and_the_others_going(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forbidden = 'pods is forbidden: User "system:serviceaccount:podlane:agent" cannot watch resource "pods"'

    async def story(server: StandIn) -> None:
        await in_thread(server.put, PODS, "p", metadata={"namespace": "d"})
        async with followed(server, "Node", "Pod") as site:
            nodes, pods = site.copies["Node"], site.copies["Pod"]
            await nodes.until(lambda: nodes.names == {"a", "b"} and pods.names == {"p"})
            server.fault = lambda asked: status(403, "Forbidden", forbidden) if asked.path == PODS else None
            await in_thread(server.stop)
            await in_thread(server.start)
            await pods.until(lambda: pods.error == forbidden and len(site.pauses) > 6)
            await in_thread(server.put, NODES, "c")
            await nodes.until(lambda: "c" in nodes.names)
            assert pods.names == {"p"}
            assert nodes.error == ""
            await in_thread(server.put, PODS, "q", metadata={"namespace": "d"})
            server.fault = lambda asked: None
            await pods.until(lambda: pods.names == {"p", "q"})
            assert site.api.requests["watch", "pods", "403"] > 1

    with caplog.at_level("WARNING", "podlane.watch"):
        play(story)
    assert len([r for r in caplog.records if "forbidden" in r.getMessage()]) == 1


def test_objects_of_tomorrow_are_read_for_what_is_known_today() -> None:
    async def story(server: StandIn) -> None:
        await in_thread(
            server.put,
            NODES,
            "tomorrow",
            metadata={"labels": {"a": "b"}, "newMeta": {"deep": [1, None]}},
            spec={
                "podCIDRs": ["10.1.0.0/24"],
                "newField": 7,
                "taints": [{"key": "a", "effect": "Evict2030"}],
            },
            status={"addresses": [{"type": "NewKindOfAddress", "address": "x"}], "phase": "Quantum"},
        )
        await in_thread(server.put, NODES, "bare")  # no spec, no status, no addresses
        await in_thread(server.put, NODES, "broken", spec={"podCIDRs": 7})
        async with followed(server) as site:
            nodes = site.nodes
            await nodes.until(lambda: {"tomorrow", "bare", "a"} <= nodes.names)
            assert "broken" not in nodes.names
            assert list(nodes.malformed) == [("", "broken")]
            found: Any = nodes.objects["tomorrow"]
            assert found.spec.pod_cidrs == ["10.1.0.0/24"]

    play(story)


def test_a_slice_of_a_thousand_endpoints_and_one_of_another_family() -> None:
    endpoints = [
        {"addresses": [f"10.{i >> 8}.{i & 255}.7"], "conditions": {"ready": True}} for i in range(1000)
    ]

    async def story(server: StandIn) -> None:
        put = server.put
        meta = {"namespace": "d", "labels": {"kubernetes.io/service-name": "web"}}
        ports = [{"name": "", "port": 80, "protocol": "TCP"}]
        await in_thread(
            put, SLICES, "big", metadata=meta, addressType="IPv4", ports=ports, endpoints=endpoints
        )
        names = [{"addresses": ["db.example.com"]}]
        await in_thread(put, SLICES, "names", metadata=meta, addressType="FQDN", ports=ports, endpoints=names)
        async with followed(server, "EndpointSlice") as site:
            slices = site.copies["EndpointSlice"]
            await slices.until(lambda: slices.names == {"big", "names"})
            big = slices.objects["big"]
            assert isinstance(big, EndpointSlice)
            assert len(big.endpoints or ()) == 1000

    play(story)


def test_all_readers_of_a_process_ask_an_api_that_is_away_once_a_pause() -> None:
    kinds = tuple(kind for kind in KINDS if kind in ("Node", "Pod", "Service", "EndpointSlice", "Namespace"))

    async def story(server: StandIn) -> None:
        async with followed(server, *kinds) as site:
            for copy in site.copies.values():
                await copy.until(lambda copy=copy: copy.told)
            await in_thread(server.stop)
            before = sum(n for (*_, code), n in site.api.requests.items() if code == http.UNANSWERED)
            await site.nodes.until(lambda: all(copy.error for copy in site.copies.values()))
            pauses = len(site.pauses)
            await site.nodes.until(lambda: len(site.pauses) >= pauses + 8)
            tried = sum(n for (*_, code), n in site.api.requests.items() if code == http.UNANSWERED) - before
            # Each kind noticed for itself; from then on one of them asked.
            assert tried <= len(kinds) + len(site.pauses) - pauses + 2
            await in_thread(server.start)
            for copy in site.copies.values():
                await copy.until(lambda copy=copy: not copy.error)

    play(story)


def test_a_stand_in_is_refused_the_documented_way() -> None:
    """What a refusal becomes: code, reason and the pause asked for, from header or Status."""

    async def story(server: StandIn) -> None:
        api = ApiHttp(Access(server.url))
        for answer, seconds in (
            (status(503, "ServiceUnavailable", "later", retryAfterSeconds=4), 4),
            (status(429, "TooManyRequests", "later")._replace(headers=(("retry-after", "9"),)), 9),
            (Answer(429, b"", (("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT"),)), 0),
            (Answer(503, b"<html>", (("Retry-After", "-5"),)), 0),
        ):
            server.fault = lambda asked, answer=answer: answer
            with pytest.raises(ApiError) as caught:
                await api.get(NODES, {})
            assert (caught.value.code, caught.value.retry_after_s) == (answer.code, seconds)

    play(story)
