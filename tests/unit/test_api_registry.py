from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from podlane.errors import AlreadyExistsError, ApiError, ConflictError, GoneError, InvalidError, NotFoundError
from podlane.lab.api.deletion import DeleteOptions
from podlane.lab.api.registry import Registry, WriteOptions
from podlane.lab.api.store import copied
from tests.unit.api_lab import make, pod, registry

Obj = dict[str, Any]


@pytest.fixture
def api() -> Iterator[Registry]:
    with registry() as found:
        yield found


def update(api: Registry, resource: str, obj: Obj, subresource: str = "") -> Obj:
    row = api.catalog.named(resource)
    meta = obj["metadata"]
    return api.update(row, meta.get("namespace", ""), meta["name"], obj, subresource=subresource).obj


def delete(api: Registry, resource: str, name: str, namespace: str = "default", **options: Any) -> bool:
    return api.delete(api.catalog.named(resource), namespace, name, DeleteOptions(**options))[1]


def get(api: Registry, resource: str, name: str, namespace: str = "default") -> Obj:
    return api.get(api.catalog.named(resource), namespace, name).obj


def test_what_a_new_object_gets(api: Registry) -> None:
    obj = make(api, "pods", {"metadata": {"generateName": "web-", "uid": "mine"}, "spec": pod()["spec"]})
    meta = obj["metadata"]
    assert meta["name"].startswith("web-")
    assert len(meta["name"]) == 9
    assert meta["namespace"] == "default"
    assert len(meta["uid"]) == 36
    assert meta["generation"] == 1
    assert obj["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    assert obj["spec"]["restartPolicy"] == "Always"


@pytest.mark.parametrize(
    ("obj", "error", "message"),
    [
        ({"metadata": {}}, InvalidError, "name or generateName is required"),
        ({"metadata": {"name": "a", "resourceVersion": "5"}}, ApiError, "should not be set on objects to be"),
        ({"metadata": {"name": "a", "namespace": "other"}}, ApiError, "does not match the namespace sent"),
        ({"metadata": {"name": "a"}, "kind": "Secret"}, ApiError, "cannot be handled as a ConfigMap"),
        (
            {"metadata": {"name": "a"}, "apiVersion": "v2"},
            ApiError,
            "does not match the expected API version",
        ),
        ({"metadata": {"name": "a"}, "data": {"a": 1}}, ApiError, "cannot unmarshal number"),
    ],
)
def test_objects_that_cannot_be_created(api: Registry, obj: Obj, error: type[ApiError], message: str) -> None:
    before = api.store.revision
    with pytest.raises(error, match=message):
        api.create(api.catalog.named("configmaps"), "default", obj)
    assert api.store.revision == before


def test_a_name_is_taken_once(api: Registry) -> None:
    make(api, "configmaps", {"metadata": {"name": "a"}})
    with pytest.raises(AlreadyExistsError, match=r'^configmaps "a" already exists$'):
        make(api, "configmaps", {"metadata": {"name": "a"}})


def test_namespaces_hold_what_is_made_in_them(api: Registry) -> None:
    with pytest.raises(NotFoundError, match=r'^namespaces "none" not found$'):
        make(api, "configmaps", {"metadata": {"name": "a", "namespace": "none"}})
    made = make(api, "namespaces", {"metadata": {"name": "team"}})
    assert made["metadata"]["labels"] == {"kubernetes.io/metadata.name": "team"}
    assert made["spec"] == {"finalizers": ["kubernetes"]}
    changed = copied(made)
    changed["metadata"]["labels"] = {"a": "b"}
    assert update(api, "namespaces", changed)["metadata"]["labels"] == {
        "a": "b",
        "kubernetes.io/metadata.name": "team",
    }
    assert not delete(api, "namespaces", "team", "")
    assert get(api, "namespaces", "team", "")["status"]["phase"] == "Terminating"
    with pytest.raises(ApiError, match="because it is being terminated") as caught:
        make(api, "configmaps", {"metadata": {"name": "a", "namespace": "team"}})
    assert caught.value.code == 403
    final = copied(get(api, "namespaces", "team", ""))
    final["spec"]["finalizers"] = []
    update(api, "namespaces", copied(final))
    assert get(api, "namespaces", "team", "")["spec"] == {"finalizers": ["kubernetes"]}
    final = copied(get(api, "namespaces", "team", ""))
    final["spec"]["finalizers"] = []
    update(api, "namespaces", final, "finalize")
    with pytest.raises(NotFoundError):
        get(api, "namespaces", "team", "")
    with pytest.raises(ApiError, match="may not be deleted"):
        delete(api, "namespaces", "default", "")


def test_the_second_writer_is_told(api: Registry) -> None:
    first = make(api, "configmaps", {"metadata": {"name": "a"}})
    update(api, "configmaps", {**copied(first), "data": {"a": "1"}})
    with pytest.raises(
        ConflictError, match='Operation cannot be fulfilled on configmaps "a": the object has been'
    ):
        update(api, "configmaps", {**copied(first), "data": {"a": "2"}})
    blind = copied(first)
    del blind["metadata"]["resourceVersion"]
    assert update(api, "configmaps", {**blind, "data": {"a": "3"}})["data"] == {"a": "3"}
    blind["metadata"]["uid"] = "another"
    with pytest.raises(ConflictError, match="Precondition failed: UID"):
        update(api, "configmaps", blind)


def test_an_update_that_changes_nothing_is_no_write(api: Registry) -> None:
    first = make(api, "configmaps", {"metadata": {"name": "a", "labels": {"x": "y"}}, "data": {"a": "1"}})
    again = copied(first)
    again["metadata"] |= {"finalizers": [], "annotations": {}, "managedFields": [{"manager": "m"}]}
    assert update(api, "configmaps", again) == first


def test_spec_and_status_have_doors_of_their_own(api: Registry) -> None:
    spec = {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod()["spec"]},
    }
    made = make(api, "deployments.apps", {"metadata": {"name": "d"}, "spec": spec, "status": {"replicas": 9}})
    assert "status" not in made or "replicas" not in made["status"]
    both = copied(made)
    both["spec"]["replicas"] = 7
    both["status"] = {"replicas": 3, "observedGeneration": 1}
    changed = update(api, "deployments.apps", copied(both), "status")
    assert changed["spec"]["replicas"] == 1
    assert changed["status"]["replicas"] == 3
    assert changed["metadata"]["generation"] == 1
    del both["metadata"]["resourceVersion"]
    both["status"]["replicas"] = 5
    changed = update(api, "deployments.apps", both)
    assert changed["spec"]["replicas"] == 7
    assert changed["status"]["replicas"] == 3
    assert changed["metadata"]["generation"] == 2


# --- deletion -------------------------------------------------------------------------------------


def test_a_pod_on_a_node_waits_for_its_kubelet(api: Registry) -> None:
    make(api, "pods", pod("waiting"))
    assert delete(api, "pods", "waiting")
    make(api, "pods", pod("bound", nodeName="n"))
    assert not delete(api, "pods", "bound")
    meta = get(api, "pods", "bound")["metadata"]
    assert meta["deletionGracePeriodSeconds"] == 30
    assert meta["generation"] == 2
    assert not delete(api, "pods", "bound", grace_period_s=60)
    assert get(api, "pods", "bound")["metadata"] == meta
    assert not delete(api, "pods", "bound", grace_period_s=5)
    assert get(api, "pods", "bound")["metadata"]["deletionGracePeriodSeconds"] == 5
    assert delete(api, "pods", "bound", grace_period_s=0)
    with pytest.raises(NotFoundError, match=r'^pods "bound" not found$'):
        get(api, "pods", "bound")


def test_finalizers_hold_an_object_until_they_are_gone(api: Registry) -> None:
    make(api, "configmaps", {"metadata": {"name": "a", "finalizers": ["x.io/y", "x.io/z"]}})
    assert not delete(api, "configmaps", "a")
    held = copied(get(api, "configmaps", "a"))
    stamp = held["metadata"]["deletionTimestamp"]
    assert not delete(api, "configmaps", "a")
    more = copied(held)
    more["metadata"]["finalizers"].append("x.io/new")
    with pytest.raises(InvalidError, match="no new finalizers can be added"):
        update(api, "configmaps", more)
    held["metadata"]["finalizers"] = ["x.io/z"]
    held["metadata"]["deletionTimestamp"] = None
    held = copied(update(api, "configmaps", held))
    assert held["metadata"]["deletionTimestamp"] == stamp
    held["metadata"]["finalizers"] = []
    update(api, "configmaps", held)
    with pytest.raises(NotFoundError):
        get(api, "configmaps", "a")


@pytest.mark.parametrize(
    ("policy", "finalizers"),
    [("Orphan", ["orphan"]), ("Foreground", ["foregroundDeletion"]), ("Background", None), ("", None)],
)
def test_propagation_is_kept_for_the_garbage_collector(api: Registry, policy: str, finalizers: Any) -> None:
    make(api, "configmaps", {"metadata": {"name": "a"}})
    assert delete(api, "configmaps", "a", propagation=policy) is (finalizers is None)
    if finalizers:
        assert get(api, "configmaps", "a")["metadata"]["finalizers"] == finalizers


def test_a_deletion_may_ask_for_one_incarnation(api: Registry) -> None:
    made = make(api, "configmaps", {"metadata": {"name": "a"}})
    with pytest.raises(ConflictError, match="Precondition failed: UID"):
        delete(api, "configmaps", "a", uid="other")
    with pytest.raises(ConflictError, match="ResourceVersion"):
        delete(api, "configmaps", "a", resource_version="1")
    assert delete(api, "configmaps", "a", uid=made["metadata"]["uid"])


def test_a_collection_is_deleted_by_selector(api: Registry) -> None:
    for name, label in (("a", "x"), ("b", "x"), ("c", "y")):
        make(api, "configmaps", {"metadata": {"name": name, "labels": {"l": label}}})
    row = api.catalog.named("configmaps")
    api.delete_all(row, api.scope(row, "default", "l=x"))
    assert [r.name for r in api.list(api.scope(row, "default")).records] == ["c"]


def test_a_dry_run_says_what_would_be(api: Registry) -> None:
    row = api.catalog.named("services")
    before = api.store.revision
    obj = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}
    made = api.create(row, "default", obj, WriteOptions(dry_run=True)).obj
    assert made["spec"]["clusterIP"].startswith("10.96.")
    assert api.store.revision == before
    assert api.store.records("ipaddresses.networking.k8s.io") == []


def test_a_service_that_is_refused_keeps_no_address(api: Registry) -> None:
    with pytest.raises(InvalidError):
        make(
            api,
            "services",
            {
                "metadata": {"name": "s"},
                "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]},
            },
        )
    assert api.store.records("ipaddresses.networking.k8s.io") == []


# --- lists ----------------------------------------------------------------------------------------


def test_pages_show_one_moment(api: Registry) -> None:
    row = api.catalog.named("configmaps")
    for i in range(5):
        make(api, "configmaps", {"metadata": {"name": f"c{i}"}})
    scope = api.scope(row, "default")
    first = api.list(scope, limit=2)
    assert [r.name for r in first.records] == ["c0", "c1"]
    assert first.remaining == 3
    delete(api, "configmaps", "c2")
    make(api, "configmaps", {"metadata": {"name": "c9"}})
    second = api.list(scope, limit=2, continue_token=first.continue_token)
    assert [r.name for r in second.records] == ["c2", "c3"]
    last = api.list(scope, limit=2, continue_token=second.continue_token)
    assert [r.name for r in last.records] == ["c4"]
    assert last.continue_token == ""
    assert first.revision == second.revision == last.revision


def test_old_and_wrong_tokens_are_refused(api: Registry) -> None:
    row = api.catalog.named("configmaps")
    for i in range(3):
        make(api, "configmaps", {"metadata": {"name": f"c{i}"}})
    scope = api.scope(row, "default")
    token = api.list(scope, limit=1).continue_token
    for _ in range(100):
        api.list(scope, limit=1)
    with pytest.raises(GoneError, match="too old to display a consistent list"):
        api.list(scope, continue_token=token)
    with pytest.raises(ApiError, match="continue key is not valid"):
        api.list(scope, continue_token="nonsense")


@pytest.mark.parametrize(
    ("labels", "fields", "names"),
    [
        ("app=web", "", ["a", "b"]),
        ("app in (web),tier!=x", "", ["b"]),
        ("", "spec.nodeName=n1", ["a"]),
        ("", "spec.nodeName!=n1", ["b", "c"]),
        ("", "metadata.name=b", ["b"]),
        ("", "metadata.name=b,spec.nodeName=n1", []),
        ("", "status.phase=Pending,metadata.namespace=default", ["a", "b", "c"]),
    ],
)
def test_selectors(api: Registry, labels: str, fields: str, names: list[str]) -> None:
    for name, node, label in (
        ("a", "n1", {"app": "web", "tier": "x"}),
        ("b", "n2", {"app": "web"}),
        ("c", "", {}),
    ):
        obj = pod(name, **({"nodeName": node} if node else {}))
        obj["metadata"]["labels"] = label
        make(api, "pods", obj)
    row = api.catalog.named("pods")
    assert [r.name for r in api.list(api.scope(row, "default", labels, fields)).records] == names


@pytest.mark.parametrize(
    ("labels", "fields", "message"),
    [
        ("app in web", "", "unable to parse requirement"),
        ("", "spec.image=x", "is not a known field selector: only"),
        ("", "metadata.name", "invalid selector"),
    ],
)
def test_selectors_that_cannot_be_read(api: Registry, labels: str, fields: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        api.scope(api.catalog.named("pods"), "default", labels, fields)
    assert caught.value.code == 400


def test_events_are_one_kind_under_two_groups(api: Registry) -> None:
    core, new = api.catalog.at("", "v1", "events"), api.catalog.at("events.k8s.io", "v1", "events")
    event = {
        "metadata": {"name": "e", "namespace": "default"},
        "eventTime": "2024-01-01T00:00:00.000000Z",
        "note": "hello",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "R",
        "type": "Normal",
        "action": "A",
        "reportingController": "example.com/c",
        "reportingInstance": "i",
    }
    api.create(new, "default", event)
    stored = api.get(core, "default", "e").obj
    assert stored["apiVersion"] == "v1"
    assert stored["message"] == "hello"
    assert stored["involvedObject"]["name"] == "p"
    found = api.list(api.scope(new, "default", "", "regarding.name=p,reportingController=example.com/c"))
    assert [r.name for r in found.records] == ["e"]


def test_events_go_after_an_hour() -> None:
    clock = [1_700_000_000.0]
    with registry(now_s=lambda: clock[0]) as api:
        make(api, "events", {"metadata": {"name": "old"}, "involvedObject": {"namespace": "default"}})
        clock[0] += 1800
        make(api, "events", {"metadata": {"name": "new"}, "involvedObject": {"namespace": "default"}})
        clock[0] += 1801
        assert api.expire_events(3600) == 1
        assert [r.name for r in api.store.records("events")] == ["new"]


def test_autoscalers_are_one_kind_under_two_versions(api: Registry) -> None:
    old, new = (api.catalog.at("autoscaling", v, "horizontalpodautoscalers") for v in ("v1", "v2"))
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}
    spec = {"scaleTargetRef": target, "maxReplicas": 5, "targetCPUUtilizationPercentage": 70}
    api.create(old, "default", {"metadata": {"name": "h"}, "spec": spec})
    stored = api.get(new, "default", "h").obj
    assert stored["apiVersion"] == "autoscaling/v2"
    assert stored["spec"]["minReplicas"] == 1
    assert stored["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 70
    api.change(
        old, "default", "h", lambda o: {**o, "spec": {**o["spec"], "targetCPUUtilizationPercentage": 50}}
    )
    stored = api.get(new, "default", "h").obj
    assert stored["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 50
