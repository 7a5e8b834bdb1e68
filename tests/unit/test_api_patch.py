from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.errors import ApiError
from podlane.lab.api import patch, schema, strategic

POD = schema.type_of("v1", "Pod")
SERVICE = schema.type_of("v1", "Service")
DEPLOYMENT = schema.type_of("apps/v1", "Deployment")


@pytest.mark.parametrize(
    ("target", "change", "result"),
    [  # RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, change: Any, result: Any) -> None:
    before = copy.deepcopy(target)
    assert patch.merge(target, change) == result
    assert target == before


@pytest.mark.parametrize(
    ("target", "operations", "result"),
    [  # RFC 6902, appendix A
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "q"}], {"foo": "bar", "baz": "q"}),
        ({"foo": [1, 3]}, [{"op": "add", "path": "/foo/1", "value": 2}], {"foo": [1, 2, 3]}),
        ({"foo": [1]}, [{"op": "add", "path": "/foo/-", "value": 2}], {"foo": [1, 2]}),
        ({"foo": [1, 2]}, [{"op": "remove", "path": "/foo/0"}], {"foo": [2]}),
        ({"a": 1}, [{"op": "replace", "path": "/a", "value": 2}], {"a": 2}),
        (
            {"a": {"b": 1}, "c": {}},
            [{"op": "move", "from": "/a/b", "path": "/c/d"}],
            {"a": {}, "c": {"d": 1}},
        ),
        ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1], "b": [1]}),
        ({"a/b": 1, "m~n": 2}, [{"op": "test", "path": "/a~1b", "value": 1}], {"a/b": 1, "m~n": 2}),
        ({"m~n": 2}, [{"op": "remove", "path": "/m~0n"}], {}),
        ({"a": 1}, [{"op": "replace", "path": "", "value": {"b": 2}}], {"b": 2}),
    ],
)
def test_json_patch(target: Any, operations: Any, result: Any) -> None:
    before = copy.deepcopy(target)
    assert patch.json_patch(target, operations) == result
    assert target == before


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        ({"op": "add"}, 400),
        ([{"op": "grow", "path": "/a"}], 400),
        ([{"op": "add", "path": "/a"}], 400),
        ([{"op": "add", "path": "a", "value": 1}], 400),
        ([{"op": "remove", "path": "/none"}], 422),
        ([{"op": "replace", "path": "/none", "value": 1}], 422),
        ([{"op": "test", "path": "/a", "value": 2}], 422),
        ([{"op": "add", "path": "/l/5", "value": 1}], 422),
        ([{"op": "add", "path": "/l/01", "value": 1}], 422),
        ([{"op": "add", "path": "/a/b", "value": 1}], 422),
    ],
)
def test_json_patch_refused(operations: Any, code: int) -> None:
    with pytest.raises(ApiError) as caught:
        patch.json_patch({"a": 1, "l": [1]}, operations)
    assert caught.value.code == code


def containers(*items: Any) -> Any:
    return {"spec": {"containers": list(items)}}


@pytest.mark.parametrize(
    ("kind", "original", "change", "result"),
    [
        pytest.param(
            POD,
            containers({"name": "a", "image": "1"}, {"name": "b"}),
            containers({"name": "a", "image": "2"}),
            containers({"name": "a", "image": "2"}, {"name": "b"}),
            id="an element is merged by its key",
        ),
        pytest.param(
            POD,
            containers({"name": "a"}),
            containers({"name": "b"}),
            containers({"name": "b"}, {"name": "a"}),
            id="the patch's elements come first, as kube-apiserver has it",
        ),
        pytest.param(
            POD,
            containers({"name": "a"}, {"name": "b"}),
            containers({"name": "a", "$patch": "delete"}),
            containers({"name": "b"}),
            id="an element is deleted",
        ),
        pytest.param(
            POD,
            containers({"name": "a"}, {"name": "b"}),
            containers({"$patch": "replace"}, {"name": "c"}),
            containers({"name": "c"}),
            id="a list is replaced",
        ),
        pytest.param(
            POD,
            containers({"name": "a"}, {"name": "b"}, {"name": "c"}),
            {"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}},
            containers({"name": "c"}, {"name": "a"}, {"name": "b"}),
            id="the order alone is changed",
        ),
        pytest.param(
            POD,
            containers({"name": "a"}, {"name": "server"}, {"name": "b"}),
            {
                "spec": {
                    "$setElementOrder/containers": [{"name": "b"}, {"name": "new"}, {"name": "a"}],
                    "containers": [{"name": "new"}],
                }
            },
            containers({"name": "server"}, {"name": "b"}, {"name": "new"}, {"name": "a"}),
            id="what only the server has keeps its place",
        ),
        pytest.param(
            POD,
            {"metadata": {"finalizers": ["a", "b"]}},
            {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}},
            {"metadata": {"finalizers": ["b"]}},
            id="a value is taken out",
        ),
        pytest.param(
            POD,
            {"metadata": {"finalizers": ["a", "b"]}},
            {
                "metadata": {
                    "$deleteFromPrimitiveList/finalizers": ["b"],
                    "$setElementOrder/finalizers": ["c", "a"],
                    "finalizers": ["c"],
                }
            },
            {"metadata": {"finalizers": ["c", "a"]}},
            id="values are taken out, added and ordered",
        ),
        pytest.param(
            POD,
            {"metadata": {"labels": {"a": "1", "b": "2"}}},
            {"metadata": {"labels": {"a": None, "c": "3"}}},
            {"metadata": {"labels": {"b": "2", "c": "3"}}},
            id="maps merge, null removes",
        ),
        pytest.param(
            POD,
            {"metadata": {"labels": {"a": "1"}}},
            {"metadata": {"labels": {"$patch": "replace", "b": "2"}}},
            {"metadata": {"labels": {"b": "2"}}},
            id="a map is replaced",
        ),
        pytest.param(
            POD,
            containers({"name": "a", "command": ["x", "y"]}),
            containers({"name": "a", "command": ["z"]}),
            containers({"name": "a", "command": ["z"]}),
            id="a list without a key is replaced",
        ),
        pytest.param(
            POD,
            {"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}},
            {
                "spec": {
                    "volumes": [
                        {"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}
                    ]
                }
            },
            {"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}},
            id="a union keeps what is retained",
        ),
        pytest.param(
            SERVICE,
            {"spec": {"ports": [{"port": 80, "name": "http", "nodePort": 30080}]}},
            {"spec": {"ports": [{"port": 80, "name": "web"}, {"port": 443}]}},
            {"spec": {"ports": [{"port": 80, "name": "web", "nodePort": 30080}, {"port": 443}]}},
            id="service ports are told apart by port",
        ),
        pytest.param(
            DEPLOYMENT,
            {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}},
            {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}},
            {"spec": {"strategy": {"type": "Recreate"}}},
            id="strategy of a deployment",
        ),
        pytest.param(
            POD,
            {},
            containers({"name": "a", "$patch": "delete"}, {"name": "b", "env": None}),
            containers({"name": "b"}),
            id="directives do not survive where nothing was",
        ),
        pytest.param(
            None,
            {"spec": {"list": [{"name": "a"}]}},
            {"spec": {"list": [{"name": "b"}]}},
            {"spec": {"list": [{"name": "b"}]}},
            id="without a schema lists are replaced",
        ),
    ],
)
def test_strategic_merge(kind: Any, original: Any, change: Any, result: Any) -> None:
    before = copy.deepcopy(original)
    assert strategic.merge(original, change, kind) == result
    assert original == before


@pytest.mark.parametrize(
    "change",
    [
        containers({"image": "no name"}),
        containers({"name": "a", "$patch": "grow"}),
        {"spec": {"$setElementOrder/containers": "a"}},
        {"spec": {"$retainKeys": ["hostNetwork"], "nodeName": "n"}},
        {"$patch": "grow"},
    ],
)
def test_strategic_merge_refused(change: Any) -> None:
    with pytest.raises(ApiError) as caught:
        strategic.merge(containers({"name": "a"}), change, POD)
    assert caught.value.code == 400


_names = st.lists(st.sampled_from("abcdef"), unique=True)


@given(server=_names, wanted=_names)
def test_an_ordered_patch_has_every_element_once_and_in_order(server: list[str], wanted: list[str]) -> None:
    change = {
        "$setElementOrder/containers": [{"name": n} for n in wanted],
        "containers": [{"name": n, "image": "new"} for n in wanted],
    }
    merged = strategic.merge(containers(*({"name": n} for n in server)), {"spec": change}, POD)
    names = [c["name"] for c in merged["spec"]["containers"]]
    assert sorted(names) == sorted({*server, *wanted})
    assert [n for n in names if n in wanted] == wanted
    assert [n for n in names if n not in wanted] == [n for n in server if n not in wanted]
