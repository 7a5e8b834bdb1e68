# ruff: noqa: E501  (one row a case)
"""What `apply` makes of the last state written, the new one and the current one."""

from __future__ import annotations

from typing import Any

import pytest

from podlane.lab.three_way import merge


def service(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec}


def deployment(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec}


def pod_spec(**spec: Any) -> dict[str, Any]:
    return deployment(template={"spec": spec})


CASES = [
    # name, last, new, current, expected
    ("server's fields stay", service(type="ClusterIP"), service(type="NodePort"), service(type="ClusterIP", clusterIP="1"), service(type="NodePort", clusterIP="1")),
    ("what was removed goes", service(type="NodePort", externalIPs=["1"]), service(type="NodePort"), service(type="NodePort", externalIPs=["1"]), service(type="NodePort")),
    ("what somebody else set stays", service(), service(), service(sessionAffinity="ClientIP"), service(sessionAffinity="ClientIP")),
    ("maps merge", service(selector={"a": "1", "b": "1"}), service(selector={"a": "2"}), service(selector={"a": "1", "b": "1", "c": "1"}), service(selector={"a": "2", "c": "1"})),
    ("lists with a key merge", service(ports=[{"port": 80}]), service(ports=[{"port": 80, "name": "a"}]), service(ports=[{"port": 80, "nodePort": 30000}]), service(ports=[{"port": 80, "name": "a", "nodePort": 30000}])),
    ("elements that were removed go", service(ports=[{"port": 80}, {"port": 81}]), service(ports=[{"port": 80}]), service(ports=[{"port": 80}, {"port": 81}]), service(ports=[{"port": 80}])),
    ("elements of others stay, last", pod_spec(containers=[{"name": "a"}]), pod_spec(containers=[{"name": "b"}, {"name": "a"}]), pod_spec(containers=[{"name": "x"}, {"name": "a", "image": "i"}]), pod_spec(containers=[{"name": "b"}, {"name": "a", "image": "i"}, {"name": "x"}])),
    ("plain lists are replaced", pod_spec(containers=[{"name": "a", "args": ["1"]}]), pod_spec(containers=[{"name": "a", "args": ["2"]}]), pod_spec(containers=[{"name": "a", "args": ["1", "3"]}]), pod_spec(containers=[{"name": "a", "args": ["2"]}])),
    ("unions keep only what is said", deployment(strategy={"type": "RollingUpdate"}), deployment(strategy={"type": "Recreate"}), deployment(strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}), deployment(strategy={"type": "Recreate"})),
    ("volumes are unions", pod_spec(volumes=[{"name": "v", "emptyDir": {}}]), pod_spec(volumes=[{"name": "v", "configMap": {"name": "c"}}]), pod_spec(volumes=[{"name": "v", "emptyDir": {}}]), pod_spec(volumes=[{"name": "v", "configMap": {"name": "c"}}])),
    ("a null removes", service(type="NodePort"), service(type=None), service(type="NodePort"), service()),
    ("nothing known of the last state", {}, service(selector={"a": "2"}), service(selector={"b": "1"}), service(selector={"a": "2", "b": "1"})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("last", "new", "current", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_merge(
    last: dict[str, Any], new: dict[str, Any], current: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert merge(last, new, current) == expected
    assert merge(new, new, expected) == expected


def test_finalizers_are_a_set() -> None:
    def with_finalizers(*names: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"finalizers": list(names)}}

    merged = merge(
        with_finalizers("a/a", "b/b"), with_finalizers("a/a"), with_finalizers("b/b", "c/c", "a/a")
    )
    assert merged["metadata"]["finalizers"] == ["a/a", "c/c"]


def test_custom_resources_merge_as_json() -> None:
    def thing(**spec: Any) -> dict[str, Any]:
        return {"apiVersion": "example.com/v1", "kind": "Thing", "spec": spec}

    merged = merge(thing(a=1, l=[1]), thing(l=[2]), thing(a=1, b=2, l=[1, 3]))
    assert merged == thing(b=2, l=[2])
