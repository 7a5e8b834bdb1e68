"""What every store of the lab's API promises, asked of SQLite and of etcd; then what etcd alone has to."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from podlane.errors import ApiError, ConfigError, GoneError, LabError
from podlane.lab.api.auth import make_pki
from podlane.lab.api.etcd_store import EtcdStore, occupied, remove
from podlane.lab.api.registry import Registry
from podlane.lab.api.sqlite_store import SqliteStore
from podlane.lab.api.store import LogEvent, RacedError, Store
from podlane.model.stores import parse
from tests.netns.etcd import EtcdCluster
from tests.unit.api_lab import make, pod

POD = {"metadata": {"name": "a", "namespace": "default", "labels": {"app": "web"}}, "spec": {"nodeName": "n"}}

Opener = Callable[..., Store]
"""The same database each time, as after a restart. log_length: of the store."""

_prefixes = (f"/test/{i}" for i in itertools.count())


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "etcd"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    made: list[Store] = []
    cluster = request.getfixturevalue("single") if request.param == "etcd" else None
    prefix = next(_prefixes)

    def reopen(**options: Any) -> Store:
        close()
        if cluster is None:
            made.append(SqliteStore(tmp_path / "api.sqlite", **options))
        else:
            made.append(EtcdStore(cluster.address, prefix, connect=cluster.connect, **options))
        return made[-1]

    def close() -> None:
        while made:
            made.pop().close()

    yield reopen
    close()


def put(store: Store, name: str, **labels: str) -> int:
    with store.transaction() as transaction:
        obj = {"metadata": {"name": name, "namespace": "default", "labels": labels}, "spec": {}}
        record = transaction.put("pods", obj)
    return record.revision  # known when it is committed


def names(store: Store) -> list[str]:
    return [record.name for record in store.records("pods")]


def told(events: list[LogEvent]) -> list[tuple[str, str]]:
    return [(event.type, event.record.name) for event in events]


# --- both ----------------------------------------------------------------------------------------


def test_revisions_grow_over_all_resources_and_restarts(reopen: Opener) -> None:
    store = reopen()
    first = put(store, "a")
    service = {"metadata": {"name": "s", "namespace": "default"}}
    with store.transaction() as transaction:
        second = transaction.put("services", service)
        third = transaction.delete("pods", "default", "a")
    assert third is not None
    assert second.obj["metadata"]["resourceVersion"] == str(second.revision)
    again = reopen()
    assert first < second.revision <= third.revision <= again.revision < put(again, "b")
    assert again.get("pods", "default", "a") is None
    kept = again.get("services", "default", "s")
    assert kept is not None
    assert kept.revision == second.revision
    assert kept.data == second.data


def test_a_transaction_that_fails_leaves_nothing(reopen: Opener) -> None:
    store = reopen()
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
    assert names(reopen()) == ["a"]


def test_a_dry_run_tries_everything_and_keeps_nothing(reopen: Opener) -> None:
    store = reopen()
    before = store.revision
    with store.transaction(dry_run=True) as transaction:
        assert transaction.put("pods", dict(POD, metadata=dict(POD["metadata"]))).revision > before
    assert store.records("pods") == []
    assert store.events_since("pods", before) == []
    assert store.revision == before
    assert reopen().records("pods") == []


def test_one_object_written_twice_in_a_transaction_is_as_written_last(reopen: Opener) -> None:
    store = reopen()
    with store.transaction() as transaction:
        for label in ("x", "y"):
            transaction.put(
                "pods", {"metadata": {"name": "a", "namespace": "default", "labels": {"l": label}}}
            )
        transaction.put("pods", {"metadata": {"name": "b", "namespace": "default"}})
        transaction.delete("pods", "default", "b")
    for each in (store, reopen()):
        assert [r.obj["metadata"]["labels"] for r in each.records("pods")] == [{"l": "y"}]


def test_events_are_read_back_after_a_restart_with_what_selectors_need(reopen: Opener) -> None:
    store = reopen()
    start = store.revision
    put(store, "a", app="old")
    put(store, "a", app="new")
    with store.transaction() as transaction:
        transaction.delete("pods", "default", "a")
    revisions = [event.record.revision for event in store.events_since("pods", start)]
    again = reopen()
    events = again.events_since("pods", start)
    assert [e.type for e in events] == ["ADDED", "MODIFIED", "DELETED"]
    assert [e.record.revision for e in events] == revisions
    assert events[0].before is None
    assert [e.before["metadata"]["labels"] for e in events[1:] if e.before] == [
        {"app": "old"},
        {"app": "new"},
    ]
    assert [e.record.name for e in again.events_since("pods", revisions[1])] == ["a"]
    assert again.events_since("services", start) == []
    assert again.events_since("pods", again.revision) == []


def test_what_is_older_than_the_log_is_gone(reopen: Opener) -> None:
    store = reopen(log_length=3)
    revisions = [put(store, f"p{i}") for i in range(6)]
    with pytest.raises(GoneError, match="too old resource version"):
        store.events_since("pods", revisions[1])
    assert [e.record.name for e in store.events_since("pods", revisions[2])] == ["p3", "p4", "p5"]
    again = reopen(log_length=3)
    with pytest.raises(GoneError):
        again.events_since("pods", revisions[1])
    assert [e.record.name for e in again.events_since("pods", revisions[3])] == ["p4", "p5"]


def test_records_come_in_order_of_namespace_and_name(reopen: Opener) -> None:
    store = reopen()
    with store.transaction() as transaction:
        for namespace, name in (("b", "x"), ("a", "z"), ("a-b", "q"), ("a", "c")):
            transaction.put("pods", {"metadata": {"name": name, "namespace": namespace}})
    for each in (store, reopen()):
        assert [r.key for r in each.records("pods")] == [("a", "c"), ("a", "z"), ("a-b", "q"), ("b", "x")]
        assert [r.name for r in each.records("pods", "a")] == ["c", "z"]
        assert each.records("pods", "none") == []


def test_pages_of_a_list_show_one_moment(reopen: Opener) -> None:
    registry = Registry(reopen())
    make(registry, "namespaces", {"metadata": {"name": "default"}})
    for i in range(5):
        make(registry, "pods", pod(f"p{i}"))
    row = registry.catalog.named("pods")
    scope = registry.scope(row, "default")
    page = registry.list(scope, limit=2)
    registry.delete(row, "default", "p4")
    make(registry, "pods", pod("p1x"))
    shown, revision = list(page.records), page.revision
    while page.continue_token:
        page = registry.list(scope, limit=2, continue_token=page.continue_token)
        assert page.revision == revision
        shown += page.records
    assert [r.name for r in shown] == ["p0", "p1", "p2", "p3", "p4"]


# --- etcd ----------------------------------------------------------------------------------------


class Site:
    """Stores over one prefix of a cluster; all are closed in the end."""

    def __init__(self, cluster: EtcdCluster) -> None:
        self.cluster, self.prefix = cluster, next(_prefixes)
        self.stores: list[EtcdStore] = []

    def open(self, writer: str = "control", **options: Any) -> EtcdStore:
        options = {"connect": self.cluster.connect, **options}
        self.stores.append(EtcdStore(self.cluster.address, self.prefix, writer=writer, **options))
        return self.stores[-1]


@pytest.fixture
def site(single: EtcdCluster) -> Iterator[Site]:
    site = Site(single)
    yield site
    for store in site.stores:
        store.close()


def test_of_two_api_servers_each_sees_the_others_writes_in_order(site: Site) -> None:
    one, other = site.open("one"), site.open("other")
    start = one.revision
    woken = threading.Event()
    one.attend(woken.set)
    put(other, "a", app="x")
    assert woken.wait(10)
    one.poll()
    assert names(one) == ["a"]
    # A commit of `one` now has revisions of `other` before it that it has not seen.
    put(other, "b")
    put(other, "a", app="y")
    seen: list[LogEvent] = []
    one.subscribe(seen.extend)
    last = put(one, "c")
    assert told(seen) == [("ADDED", "b"), ("MODIFIED", "a"), ("ADDED", "c")]
    assert [e.record.revision for e in seen] == sorted(e.record.revision for e in seen)
    assert seen[-1].record.revision == last == one.revision
    record = one.get("pods", "default", "c")
    assert record is not None
    assert record.obj["metadata"]["resourceVersion"] == str(last)
    assert told(one.events_since("pods", start)) == [("ADDED", "a"), *told(seen)]
    other.poll()
    put(other, "d")
    assert told(other.events_since("pods", start))[-2:] == [("ADDED", "c"), ("ADDED", "d")]


def test_who_writes_second_what_another_has_written_writes_nothing(site: Site) -> None:
    one, other = site.open("one"), site.open("other")
    put(one, "a")
    other.attend(lambda: None)
    until(lambda: (other.poll(), names(other) == ["a"])[1])

    def race() -> None:
        with one.transaction() as transaction:
            transaction.put(
                "pods", {"metadata": {"name": "a", "namespace": "default", "labels": {"by": "one"}}}
            )
            transaction.put("pods", {"metadata": {"name": "free", "namespace": "default"}})
            put(other, "a", by="other")

    with pytest.raises(RacedError):
        race()
    assert names(one) == ["a"]
    one.poll()  # waits for what it was refused for
    assert [r.obj["metadata"]["labels"] for r in one.records("pods")] == [{"by": "other"}]
    assert one.get("pods", "default", "free") is None
    put(one, "a", by="one")
    until(lambda: (other.poll(), other.records("pods")[0].obj["metadata"]["labels"] == {"by": "one"})[1])


def test_a_change_that_lost_a_race_is_made_to_what_won(site: Site) -> None:
    registry, other = Registry(site.open("one")), site.open("other")
    make(registry, "namespaces", {"metadata": {"name": "default"}})
    make(registry, "configmaps", {"metadata": {"name": "c"}, "data": {}})
    row = registry.catalog.named("configmaps")
    calls = 0

    def add(obj: dict[str, Any]) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 1:
            until(lambda: (other.poll(), other.records("configmaps"))[1])
            with other.transaction() as transaction:
                theirs = transaction.get("configmaps", "default", "c")
                assert theirs is not None
                transaction.put("configmaps", {**theirs.obj, "data": {"theirs": "1"}})
        return {**obj, "data": {**obj.get("data", {}), "ours": "1"}}

    assert registry.change(row, "default", "c", add).obj["data"] == {"theirs": "1", "ours": "1"}
    assert calls == 2


def test_a_lost_answer_does_not_make_a_commit_fail_or_happen_twice(site: Site) -> None:
    """The connection breaks after etcd has done what was asked, and before it is heard of."""
    proxy = Breaking(site.cluster)
    store = site.open(connect=proxy.connect)
    seen: list[LogEvent] = []
    store.subscribe(seen.extend)
    put(store, "a")
    proxy.break_next()
    revision = put(store, "b")
    assert proxy.broken
    with store.transaction() as transaction:
        transaction.delete("pods", "default", "a")
    assert told(seen) == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")]
    assert [r.revision for r in site.open("other").records("pods")] == [revision]


class Breaking:
    """Sockets to a cluster; one of them, when asked to, sends and then gets nothing back."""

    def __init__(self, cluster: EtcdCluster) -> None:
        self._cluster, self._sockets = cluster, []
        self.broken = False

    def connect(self, host: str, port: int, timeout_s: float) -> Any:
        outer = self
        real = self._cluster.connect(host, port, timeout_s)
        plain_send = real.sendall

        class Socket(type(real)):  # type: ignore[misc]
            def sendall(self, data: bytes, *flags: int) -> None:
                super().sendall(data, *flags)
                if self.fileno() == outer._victim and b"/v3/kv/txn" in data:
                    outer._victim = -1
                    time.sleep(0.3)  # etcd has done it by now
                    self.shutdown(2)
                    outer.broken = True

        del plain_send
        made = Socket(fileno=real.detach())
        made.settimeout(timeout_s)
        self._sockets.append(made)
        return made

    _victim = -1

    def break_next(self) -> None:
        self._victim = self._sockets[0].fileno()


def test_history_that_was_compacted_by_others_is_gone_after_a_restart(site: Site) -> None:
    store = site.open()
    first = put(store, "a")
    put(store, "b")
    client = site.cluster.client()
    client.compact(store.revision, timeout_s=5)
    client.close()
    assert told(store.events_since("pods", first)) == [("ADDED", "b")]  # it has them in memory
    store.close()
    again = site.open()
    with pytest.raises(GoneError):
        again.events_since("pods", first - 1)
    assert names(again) == ["a", "b"]


def test_a_watch_that_was_away_while_history_was_compacted_sees_the_difference(site: Site) -> None:
    gate = Gate(site.cluster)
    one, other = site.open("one", connect=gate.connect), site.open("other")
    for name in ("kept", "changed", "gone"):
        put(one, name)
    position = one.revision
    seen: list[LogEvent] = []
    one.subscribe(seen.extend)
    gate.shut()
    until(lambda: (other.poll(), len(names(other)) == 3)[1])
    put(other, "changed", by="other")
    put(other, "new")
    with other.transaction() as transaction:
        transaction.delete("pods", "default", "gone")
    put(other, "new", by="other")
    client = site.cluster.client()
    client.compact(other.revision, timeout_s=5)
    client.close()
    gate.open()
    until(lambda: (one.poll(), len(seen) >= 3)[1])
    assert sorted(told(seen)) == [("ADDED", "new"), ("DELETED", "gone"), ("MODIFIED", "changed")]
    assert names(one) == ["changed", "kept", "new"]
    with pytest.raises(GoneError):
        one.events_since("pods", position)
    put(one, "after")
    assert told(seen)[3:] == [("ADDED", "after")]


class Gate:
    """Connections to a cluster that can all be cut, and refused from then on."""

    def __init__(self, cluster: EtcdCluster) -> None:
        self._cluster, self._sockets, self._shut = cluster, [], False

    def connect(self, host: str, port: int, timeout_s: float) -> Any:
        if self._shut:
            raise ConnectionRefusedError
        self._sockets.append(self._cluster.connect(host, port, timeout_s))
        return self._sockets[-1]

    def shut(self) -> None:
        self._shut = True
        for sock in self._sockets:
            if sock.fileno() >= 0:
                sock.shutdown(2)

    def open(self) -> None:
        self._shut = False


def test_an_object_too_large_for_etcd_is_refused_and_nothing_changes(site: Site) -> None:
    store = site.open()
    with pytest.raises(ApiError, match="large") as caught:
        put(store, "a", big="x" * 2_000_000)
    assert caught.value.code == 413
    assert names(store) == []
    assert put(store, "a") == store.revision


def test_what_is_no_object_is_left_alone(site: Site) -> None:
    store = site.open()
    client = site.cluster.client()
    client.put(f"{site.prefix}/objects/pods/default/junk".encode(), b"not JSON", timeout_s=5)
    client.put(f"{site.prefix}/objects/pods/default/odd".encode(), b'["no", "object"]', timeout_s=5)
    client.put(f"{site.prefix}/objects/one".encode(), b"{}", timeout_s=5)
    client.close()
    put(store, "a")
    assert names(store) == ["a"]
    assert names(site.open("other")) == ["a"]


def test_many_objects_are_read_page_by_page(site: Site) -> None:
    store = site.open()
    for first in range(0, 1100, 100):
        with store.transaction() as transaction:
            for i in range(first, first + 100):
                transaction.put("pods", {"metadata": {"name": f"p{i:04}", "namespace": "default"}})
    assert names(site.open("other")) == [f"p{i:04}" for i in range(1100)]


def test_a_prefix_is_taken_until_it_is_removed(site: Site) -> None:
    cluster = site.cluster
    assert not occupied(cluster.address, site.prefix, cluster.connect)
    put(site.open(), "a")
    assert occupied(cluster.address, site.prefix, cluster.connect)
    assert not occupied(cluster.address, site.prefix[:-1], cluster.connect)  # /test/1 is no part of /test/12
    site.stores.pop().close()
    remove(cluster.address, site.prefix, cluster.connect)
    assert not occupied(cluster.address, site.prefix, cluster.connect)


def test_where_nobody_answers_is_said(single: EtcdCluster) -> None:
    def nobody(*_: object) -> Any:
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(LabError, match=r"127\.0\.0\.1:2379.*Connection refused.*is etcd running"):
        EtcdStore(single.address, "/nowhere", connect=nobody, timeout_s=0.1)


def test_over_tls_etcd_is_who_its_authority_says(tmp_path: Path) -> None:
    pki = make_pki(tmp_path / "pki", ["localhost"], ["127.0.0.1"]).directory
    mine = (f"--cert-file={pki}/server.crt", f"--key-file={pki}/server.key")
    url = "https://127.0.0.1:2379"
    urls = (f"--listen-client-urls={url}", f"--advertise-client-urls={url}")
    cluster = EtcdCluster(tmp_path, 1, options=[*mine, *urls])
    plain = f"etcds://127.0.0.1/p?ca={pki}/ca.crt"
    try:
        cluster.start(0)
        store = EtcdStore(parse(plain), "/p", connect=cluster.connect)
        put(store, "a")
        store.close()
        with pytest.raises(LabError, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
            EtcdStore(parse("etcds://127.0.0.1/p"), "/p", connect=cluster.connect, timeout_s=0.1)
        shown = f"{plain}&cert={pki}/server.crt&key={pki}/server.key"
        again = EtcdStore(parse(shown), "/p", connect=cluster.connect)
        assert names(again) == ["a"]
        again.close()
        with pytest.raises(ConfigError, match=r"nothing\.crt"):
            EtcdStore(parse(f"etcds://127.0.0.1/p?ca={pki}/nothing.crt"), "/p", connect=cluster.connect)
    finally:
        cluster.__exit__()


# --- three members -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd"), 3) as cluster:
        yield cluster


@pytest.fixture
def trio(three: EtcdCluster) -> Iterator[Site]:
    for member in range(3):
        if member not in three.processes:
            three.start(member)
    three.leader()
    site = Site(three)
    yield site
    for store in site.stores:
        store.close()


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.01)


class Asked:
    """Writes one object after another, and follows the log of another API server meanwhile."""

    def __init__(self, site: Site) -> None:
        self.writer, self.reader = site.open("writer"), site.open("reader")
        self.start, self.count = self.reader.revision, 0
        self.seen: list[LogEvent] = []
        self.reader.subscribe(self.seen.extend)

    def write(self, count: int) -> None:
        for _ in range(count):
            self.count += 1
            put(self.writer, f"p{self.count:04}")

    def check(self) -> None:
        """All were stored once and seen in order, once."""
        until(lambda: (self.reader.poll(), len(self.seen) >= self.count)[1])
        wanted = [("ADDED", f"p{i:04}") for i in range(1, self.count + 1)]
        assert told(self.seen) == wanted
        assert told(self.writer.events_since("pods", self.start)) == wanted


@pytest.mark.parametrize("which", ["the leader", "the member that is asked", "another"])
def test_with_one_of_three_members_killed_everything_goes_on(trio: Site, which: str) -> None:
    asked = Asked(trio)
    asked.write(20)
    leader = trio.cluster.leader()
    members = {"the leader": leader, "the member that is asked": 0}
    trio.cluster.end(members.get(which, next(m for m in (1, 2) if m != leader)))
    asked.write(20)
    asked.check()
    assert len(names(trio.open("restarted"))) == 40  # and who starts now finds two members to ask


def test_a_member_that_hangs_is_left_for_another(trio: Site) -> None:
    asked = Asked(trio)
    asked.write(5)
    process = trio.cluster.processes[0]  # whom both ask first
    process.send_signal(signal.SIGSTOP)
    try:
        asked.write(5)
    finally:
        process.send_signal(signal.SIGCONT)
    asked.check()


def test_without_a_majority_reads_go_on_and_writes_are_refused_until_it_is_back(trio: Site) -> None:
    store = trio.open(commit_s=1.0)
    put(store, "a")
    for member in (0, 1):
        trio.cluster.end(member)
    with pytest.raises(ApiError, match="may or may not") as caught:
        put(store, "b")
    assert caught.value.code == 504
    with pytest.raises(ApiError, match="does not answer") as caught:
        put(store, "c")  # at once
    assert caught.value.code == 503
    assert names(store) == ["a"]
    for member in (0, 1):
        trio.cluster.start(member)
    trio.cluster.leader()

    def works() -> bool:
        try:
            return put(store, "d") > 0
        except ApiError:
            return False

    until(works)
    until(lambda: (store.poll(), True)[1])
    assert set(names(store)) - {"b"} == {"a", "d"}
    assert names(trio.open("other")) == names(store)
