from __future__ import annotations

from pathlib import Path

import pytest

from podlane.errors import GoneError
from podlane.lab.api.store import Store

POD = {"metadata": {"name": "a", "namespace": "default", "labels": {"app": "web"}}, "spec": {"nodeName": "n"}}


def put(store: Store, name: str, **labels: str) -> int:
    with store.transaction() as transaction:
        obj = {"metadata": {"name": name, "namespace": "default", "labels": labels}, "spec": {}}
        return transaction.put("pods", obj).revision


def test_revisions_grow_over_all_resources_and_restarts(tmp_path: Path) -> None:
    store = Store(tmp_path / "api.sqlite")
    first = put(store, "a")
    with store.transaction() as transaction:
        second = transaction.put("services", {"metadata": {"name": "s", "namespace": "default"}}).revision
        third = transaction.delete("pods", "default", "a")
    assert third is not None
    store.close()
    again = Store(tmp_path / "api.sqlite")
    assert first < second < third.revision == again.revision < put(again, "b")
    assert again.get("pods", "default", "a") is None
    assert again.get("services", "default", "s") is not None
    again.close()


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "api.sqlite")
    put(store, "a", app="old")
    before, seen = store.revision, []
    store.subscribe(seen.extend)

    def fail() -> None:
        with store.transaction() as transaction:
            transaction.put("pods", {"metadata": {"name": "a", "namespace": "default"}})
            transaction.put("pods", {"metadata": {"name": "b", "namespace": "default"}})
            transaction.delete("pods", "default", "a")
            assert [r.name for r in transaction.records("pods")] == ["b"]
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.revision == before
    assert seen == []
    assert [(r.name, r.obj["metadata"]["labels"]) for r in store.records("pods")] == [("a", {"app": "old"})]
    store.close()
    again = Store(tmp_path / "api.sqlite")
    assert [r.name for r in again.records("pods")] == ["a"]
    again.close()


def test_a_dry_run_tries_everything_and_keeps_nothing() -> None:
    store = Store(":memory:")
    with store.transaction(dry_run=True) as transaction:
        assert transaction.put("pods", dict(POD, metadata=dict(POD["metadata"]))).revision > store.floor
    assert store.records("pods") == []
    assert store.events_since("pods", store.floor) == []
    store.close()


def test_events_are_read_back_after_a_restart_with_what_selectors_need(tmp_path: Path) -> None:
    store = Store(tmp_path / "api.sqlite")
    start = store.revision
    put(store, "a", app="old")
    put(store, "a", app="new")
    with store.transaction() as transaction:
        transaction.delete("pods", "default", "a")
    store.close()
    again = Store(tmp_path / "api.sqlite")
    events = again.events_since("pods", start)
    assert [e.type for e in events] == ["ADDED", "MODIFIED", "DELETED"]
    assert events[0].before is None
    assert [e.before["metadata"]["labels"] for e in events[1:] if e.before] == [
        {"app": "old"},
        {"app": "new"},
    ]
    assert again.events_since("services", start) == []
    assert again.events_since("pods", again.revision) == []
    again.close()


def test_what_is_older_than_the_log_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path / "api.sqlite", log_length=3)
    revisions = [put(store, f"p{i}") for i in range(6)]
    with pytest.raises(GoneError, match="too old resource version"):
        store.events_since("pods", revisions[1])
    assert [e.record.name for e in store.events_since("pods", revisions[2])] == ["p3", "p4", "p5"]
    store.close()
    again = Store(tmp_path / "api.sqlite", log_length=3)
    with pytest.raises(GoneError):
        again.events_since("pods", revisions[1])
    assert len(again.events_since("pods", revisions[2])) == 3
    again.close()


def test_records_come_in_order_of_namespace_and_name() -> None:
    store = Store(":memory:")
    with store.transaction() as transaction:
        for namespace, name in (("b", "x"), ("a", "z"), ("a-b", "q"), ("a", "c")):
            transaction.put("pods", {"metadata": {"name": name, "namespace": namespace}})
    assert [r.key for r in store.records("pods")] == [("a", "c"), ("a", "z"), ("a-b", "q"), ("b", "x")]
    assert [r.name for r in store.records("pods", "a")] == ["c", "z"]
    assert store.records("pods", "none") == []
    store.close()
