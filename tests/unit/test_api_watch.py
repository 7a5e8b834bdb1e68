from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podlane.errors import GoneError
from podlane.lab.api.local import LocalClient
from podlane.lab.api.registry import Registry
from podlane.lab.api.sqlite_store import SqliteStore
from podlane.lab.api.store import copied
from podlane.lab.api.watch import Hub, Scope, Watcher
from tests.unit.api_lab import make, pod, registry


@pytest.fixture
def api() -> Iterator[Registry]:
    with registry() as found:
        yield found


def watch(api: Registry, labels: str = "", fields: str = "", namespace: str = "default") -> Watcher:
    row = api.catalog.named("pods")
    return api.watch(api.scope(row, namespace, labels, fields), api.store.revision)


def seen(watcher: Watcher) -> list[tuple[str, str]]:
    found = asyncio.run(watcher.batch(0))
    return [(d.type, d.record.name) for d in found]


def change(api: Registry, name: str, **metadata: Any) -> None:
    row = api.catalog.named("pods")
    obj = copied(api.get(row, "default", name).obj)
    obj["metadata"] |= metadata
    api.update(row, "default", name, obj)


def test_a_watch_sees_what_is_in_its_scope(api: Registry) -> None:
    make(api, "namespaces", {"metadata": {"name": "other"}})
    everything, here = watch(api, namespace=""), watch(api)
    make(api, "pods", pod("a"))
    elsewhere = pod("b")
    elsewhere["metadata"]["namespace"] = "other"
    make(api, "pods", elsewhere)
    make(api, "configmaps", {"metadata": {"name": "c"}})
    change(api, "a", labels={"x": "y"})
    api.delete(api.catalog.named("pods"), "default", "a")
    assert seen(here) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    assert [n for _, n in seen(everything)] == ["a", "b", "a", "a"]


def test_crossing_a_selector_is_coming_or_going(api: Registry, tmp_path: Path) -> None:
    start = api.store.revision
    live = watch(api, "app=web")
    make(api, "pods", pod("a"))
    change(api, "a", labels={"app": "web"})
    change(api, "a", labels={"app": "web", "more": "x"})
    change(api, "a", labels={"app": "db"})
    api.delete(api.catalog.named("pods"), "default", "a")
    expected = [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    assert seen(live) == expected
    row = api.catalog.named("pods")
    late = api.watch(api.scope(row, "default", "app=web"), start)
    assert seen(late) == expected


def test_field_selectors_follow_the_scheduler(api: Registry) -> None:
    start = api.store.revision
    mine = watch(api, fields="spec.nodeName=n1")
    make(api, "pods", pod("a"))
    from podlane.lab.api import subresources

    row = api.catalog.named("pods")
    subresources.write(api, row, "default", "a", "binding", {"target": {"kind": "Node", "name": "n1"}})
    api.delete(row, "default", "a")
    expected = [("ADDED", "a"), ("MODIFIED", "a")]
    assert seen(mine) == expected
    assert seen(api.watch(api.scope(row, "", "", "spec.nodeName=n1"), start)) == expected


def test_all_watchers_share_one_encoding(api: Registry) -> None:
    watchers = [watch(api) for _ in range(3)]
    make(api, "pods", pod("a"))
    lines = [asyncio.run(w.batch(0))[0].line for w in watchers]
    assert lines[0] is lines[1] is lines[2]


def test_a_watcher_that_falls_behind_is_dropped() -> None:
    store = SqliteStore(":memory:")
    hub = Hub(store, queue_length=2)
    from podlane.lab.api.fields import FieldSelector
    from podlane.model.selectors import EVERYTHING

    scope = Scope("pods", "", EVERYTHING, FieldSelector())
    slow, start = hub.watch(scope, store.revision), store.revision
    for i in range(3):
        with store.transaction() as transaction:
            transaction.put("pods", {"metadata": {"name": f"p{i}", "namespace": "default"}})
    with pytest.raises(GoneError, match="events behind"):
        asyncio.run(slow.batch(0))
    assert len(store.events_since("pods", start)) == 3
    store.close()


def test_the_local_client_reads_its_own_writes_and_watches_from_a_list(api: Registry) -> None:
    async def scenario() -> None:
        client = LocalClient(api)
        before, revision = await client.list("pods", "default")
        assert before == []
        given = {"apiVersion": "v1", "kind": "Pod", **pod("a")}
        made = await client.create("pods", given, "default")
        assert "namespace" not in given["metadata"]
        await client.patch("pods", "a", "default", {"metadata": {"labels": {"x": "y"}}})
        await client.patch("pods", "a", "default", {"status": {"phase": "Running"}}, subresource="status")
        await client.delete("pods", "a", "default", uid=made["metadata"]["uid"])
        events = client.watch("pods", "default", since=revision)
        found = [(await anext(events)) for _ in range(4)]
        await events.aclose()  # type: ignore[attr-defined]
        assert [e.type for e in found] == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]
        assert found[2].object["status"]["phase"] == "Running"

    asyncio.run(scenario())
