"""Informers and work queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from podlane.controller.client import Listed, follow
from podlane.errors import ApiError, ConflictError, GoneError
from podlane.lab.api.server import ApiServer
from podlane.lab.client import Event, Obj
from podlane.lab.informer import Informer, Informers, WorkQueue, key_of
from podlane.model.config import DEFAULT


def obj(name: str, version: int, uid: str = "", **meta: Any) -> Obj:
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid or name,
            "resourceVersion": str(version),
            **meta,
        }
    }


class Script:
    """A client that answers lists and watches from a script, then waits for ever."""

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.watched_since: list[str] = []
        self.finished = asyncio.Event()

    async def list(self, resource: str) -> tuple[list[Obj], str]:
        if not self.steps:
            await asyncio.Event().wait()
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step  # type: ignore[no-any-return]

    async def follow(self, resource: str, deliver: Callable[[Listed | Event], None]) -> None:
        await follow(self, resource, deliver)

    async def watch(self, resource: str, *, since: str) -> AsyncIterator[Event]:
        self.watched_since.append(since)
        for step in self.steps.pop(0):
            if isinstance(step, Exception):
                raise step
            yield step
        self.finished.set()
        await asyncio.Event().wait()


class Told:
    """What a handler heard, as (name, old version, new version)."""

    def __init__(self, informer: Informer) -> None:
        self.heard: list[tuple[str, str | None, str | None]] = []
        informer.subscribe(self)

    def __call__(self, old: Obj | None, new: Obj | None) -> None:
        some = new or old
        assert some is not None
        versions = [o["metadata"]["resourceVersion"] if o else None for o in (old, new)]
        self.heard.append((some["metadata"]["name"], *versions))


def play(*steps: Any) -> tuple[Informer, Told, Script]:
    async def main() -> tuple[Informer, Told, Script]:
        client = Script(*steps)
        informer = Informer(client, "pods")  # type: ignore[arg-type]
        told = Told(informer)
        task = asyncio.create_task(informer.run())
        await asyncio.wait_for(client.finished.wait(), 5)
        task.cancel()
        await asyncio.wait({task})
        return informer, told, client

    return asyncio.run(main())


def test_list_then_watch() -> None:
    informer, told, client = play(
        ([obj("a", 1), obj("b", 2)], "5"),
        [Event("MODIFIED", obj("a", 6)), Event("DELETED", obj("b", 7)), Event("ADDED", obj("c", 8))],
    )
    assert told.heard == [
        ("a", None, "1"),
        ("b", None, "2"),
        ("a", "1", "6"),
        ("b", "2", None),
        ("c", None, "8"),
    ]
    assert sorted(o["metadata"]["name"] for o in informer.list()) == ["a", "c"]
    assert client.watched_since == ["5"]


def test_410_lists_again_and_tells_only_the_differences() -> None:
    informer, told, client = play(
        ([obj("same", 1), obj("gone", 2), obj("changed", 3), obj("reborn", 4, uid="first")], "5"),
        [GoneError("too old")],
        ([obj("same", 1), obj("changed", 9), obj("new", 8), obj("reborn", 7, uid="second")], "9"),
        [],
    )
    assert sorted(told.heard[4:], key=str) == [
        ("changed", "3", "9"),
        ("gone", "2", None),
        ("new", None, "8"),
        ("reborn", "4", None),
        ("reborn", None, "7"),
    ]
    assert client.watched_since == ["5", "9"]
    assert len(informer) == 4


def test_a_refused_list_is_tried_again() -> None:
    informer, told, _ = play(ApiError("not now"), ([obj("a", 1)], "1"), [])
    assert told.heard == [("a", None, "1")]
    assert informer.synced.is_set()


def test_own_writes_are_seen_at_once_and_their_echo_is_dropped() -> None:
    informer = Informer(Script(), "pods")  # type: ignore[arg-type]
    told = Told(informer)
    informer.replace([obj("a", 1)], 5)
    informer.wrote(obj("a", 7))
    informer.wrote(obj("b", 8))
    informer._event("MODIFIED", obj("a", 6))
    informer._event("MODIFIED", obj("a", 7))
    informer._event("ADDED", obj("b", 8))
    assert told.heard == [("a", None, "1"), ("a", "1", "7"), ("b", None, "8")]
    # what the watch has passed is not brought back by a late answer
    informer._event("DELETED", obj("b", 9))
    informer.wrote(obj("b", 8))
    assert informer.get("b", "default") is None


def test_a_list_older_than_an_own_write_does_not_undo_it() -> None:
    informer = Informer(Script(), "pods")  # type: ignore[arg-type]
    informer.replace([obj("a", 1)], 5)
    informer.wrote(obj("mine", 8))
    informer.wrote(obj("a", 9))
    informer.replace([obj("a", 1)], 7)
    assert sorted(o["metadata"]["resourceVersion"] for o in informer.list()) == ["8", "9"]


def test_what_is_being_deleted_shows_it_before_the_event_comes() -> None:
    informer = Informer(Script(), "pods")  # type: ignore[arg-type]
    informer.replace([obj("a", 1)], 5)
    informer.deleting(obj("a", 1))
    found = informer.get("a", "default")
    assert found is not None
    assert found["metadata"]["deletionTimestamp"]
    informer._event("MODIFIED", obj("a", 6))  # written before the deletion, heard after it
    found = informer.get("a", "default")
    assert found is not None
    assert found["metadata"]["deletionTimestamp"]
    informer._event("DELETED", obj("a", 8))
    assert informer.get("a", "default") is None


def test_indexes_follow_changes() -> None:
    informer = Informer(Script(), "pods")  # type: ignore[arg-type]

    def bound(name: str, version: int, node: str, *owners: str) -> Obj:
        refs = [{"uid": u} for u in owners]
        return {**obj(name, version, ownerReferences=refs), "spec": {"nodeName": node}}

    def names(found: Any) -> list[str]:
        return sorted(o["metadata"]["name"] for o in found)

    informer.replace([bound("a", 1, "", "x"), bound("b", 2, "n1", "x", "y")], 2)
    assert (names(informer.on_node("")), names(informer.on_node("n1"))) == (["a"], ["b"])
    assert (names(informer.owned_by("x")), names(informer.owned_by("y"))) == (["a", "b"], ["b"])
    informer._event("MODIFIED", bound("a", 3, "n1", "y"))
    assert (names(informer.on_node("")), names(informer.on_node("n1"))) == ([], ["a", "b"])
    assert (names(informer.owned_by("x")), names(informer.owned_by("y"))) == (["b"], ["a", "b"])
    informer._event("DELETED", bound("b", 4, "n1", "x", "y"))
    assert (names(informer.owned_by("x")), names(informer.list("default"))) == ([], ["a"])


def test_a_late_subscriber_hears_of_what_is_there() -> None:
    informer = Informer(Script(), "pods")  # type: ignore[arg-type]
    informer.replace([obj("a", 1)], 5)
    assert Told(informer).heard == [("a", None, "1")]


def test_over_the_real_api() -> None:
    async def main() -> None:
        server = ApiServer(":memory:", DEFAULT)
        informers = Informers(server.client)
        maps = informers["configmaps"]
        assert informers["configmaps"] is maps
        seen = asyncio.Event()
        maps.subscribe(lambda old, new: seen.set() if new and new.get("data") == {"k": "v"} else None)
        async with asyncio.TaskGroup() as group:
            informers.start(group)
            await informers.synced()
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}}
            made = await server.client.create("configmaps", body, "default")
            await server.client.update("configmaps", {**made, "data": {"k": "v"}})
            await asyncio.wait_for(seen.wait(), 5)
            late = informers["secrets"]
            await asyncio.wait_for(late.synced.wait(), 5)
            informers.forget("configmaps")
            informers.forget("secrets")
        assert maps.list() == ()
        await server.stop()

    asyncio.run(main())


# --- queues ---------------------------------------------------------------------------------------


def work(
    reconcile: Callable[[str], Any], feed: Callable[[WorkQueue[str]], Any], **options: Any
) -> WorkQueue[str]:
    async def main() -> WorkQueue[str]:
        queue: WorkQueue[str] = WorkQueue("test", reconcile, **options)
        task = asyncio.create_task(queue.run())
        await feed(queue)
        task.cancel()
        await asyncio.wait({task})
        return queue

    return asyncio.run(main())


async def idle(queue: WorkQueue[str]) -> None:
    while not queue.idle or queue._timers:  # noqa: ASYNC110 (it tells nobody when it is)
        await asyncio.sleep(0.001)


def test_a_key_waits_once_and_is_never_worked_on_twice_at_a_time() -> None:
    busy: set[str] = set()
    runs: list[str] = []

    async def reconcile(key: str) -> None:
        assert key not in busy
        busy.add(key)
        runs.append(key)
        await asyncio.sleep(0.01)
        busy.remove(key)

    async def feed(queue: WorkQueue[str]) -> None:
        for _ in range(5):
            queue.add("a")
            queue.add("b")
        await asyncio.sleep(0.005)
        assert busy == {"a", "b"}
        for _ in range(5):
            queue.add("a")  # while it is being worked on: once more afterwards
        await idle(queue)

    work(reconcile, feed)
    assert sorted(runs) == ["a", "a", "b"]


def test_failures_are_retried_until_they_pass() -> None:
    attempts: list[str] = []

    async def reconcile(key: str) -> None:
        attempts.append(key)
        if len(attempts) < 4:
            raise ConflictError("another writer was first")

    async def feed(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await idle(queue)

    work(reconcile, feed)
    assert attempts == ["a"] * 4


def test_a_number_returned_is_another_look() -> None:
    looks: list[str] = []

    async def reconcile(key: str) -> float | None:
        looks.append(key)
        return 0.002 if len(looks) < 3 else None

    async def feed(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await idle(queue)

    work(reconcile, feed)
    assert looks == ["a"] * 3


def test_the_earlier_of_two_appointments_stands() -> None:
    async def main() -> None:
        async def reconcile(key: str) -> None:
            raise AssertionError("nobody works here")

        queue: WorkQueue[str] = WorkQueue("test", reconcile)
        queue.add_after("a", 50)
        first = queue._timers["a"]
        queue.add_after("a", 100)
        assert queue._timers["a"] is first
        queue.add_after("a", 10)
        assert queue._timers["a"].when() < first.when()
        queue.add("a")
        assert not queue._timers
        assert not queue.idle

    asyncio.run(main())


def test_order_decides_among_those_that_wait() -> None:
    done: list[str] = []

    async def reconcile(key: str) -> None:
        done.append(key)

    async def feed(queue: WorkQueue[str]) -> None:
        for key in "cab":
            queue.add(key)
        await idle(queue)

    work(reconcile, feed, workers=1, order=lambda key: key)
    assert done == ["a", "b", "c"]


def test_key_of_cluster_scoped_objects() -> None:
    assert key_of({"metadata": {"name": "n"}}) == ("", "n")
