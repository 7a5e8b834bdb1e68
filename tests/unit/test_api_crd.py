from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from podlane.errors import ConfigError, InvalidError, NotFoundError
from podlane.lab.api import jsonpath, structural, structural_validation
from podlane.lab.api.crd import Definitions, priority
from podlane.lab.api.deletion import DeleteOptions
from podlane.lab.api.registry import Registry
from podlane.lab.api.sqlite_store import SqliteStore
from podlane.lab.api.store import copied
from tests.unit.api_lab import make

Obj = dict[str, Any]

SCHEMA: Obj = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 9},
                "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
                "name": {"type": "string", "pattern": "^x", "maxLength": 3, "minLength": 2},
                "when": {"type": "string", "format": "date-time"},
                "port": {"x-kubernetes-int-or-string": True},
                "gone": {"type": "string", "nullable": True},
                "list": {"type": "array", "items": {"type": "string"}, "maxItems": 2, "minItems": 1},
                "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                "map": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["k"],
                    "items": {
                        "type": "object",
                        "properties": {"k": {"type": "string"}, "d": {"type": "integer", "default": 5}},
                    },
                },
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "either": {
                    "type": "object",
                    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                    "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
                },
            },
        },
        "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
    },
}


def definition(**version: Any) -> Obj:
    return {
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": copy.deepcopy(SCHEMA)},
                    "subresources": {"status": {}},
                    **version,
                },
                {
                    "name": "v1beta1",
                    "served": True,
                    "storage": False,
                    "schema": {"openAPIV3Schema": copy.deepcopy(SCHEMA)},
                },
            ],
        },
    }


def api(path: Path | str = ":memory:") -> Registry:
    found = Registry(SqliteStore(path))
    found.custom = Definitions(found)
    return found


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "spec.size: Required value"),
        (
            {"size": "1"},
            'spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"',
        ),
        ({"size": 0}, "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"),
        ({"size": 10}, "spec.size: Invalid value: 10: spec.size in body should be less than or equal to 9"),
        ({"size": 1, "mode": "c"}, 'spec.mode: Unsupported value: "c": supported values: "a", "b"'),
        ({"size": 1, "name": "yy"}, "spec.name: Invalid value: \"yy\": spec.name in body should match '^x'"),
        ({"size": 1, "name": "xxxx"}, "spec.name: Too long: may not be more than 3 bytes"),
        (
            {"size": 1, "name": "x"},
            'spec.name: Invalid value: "x": spec.name in body should be at least 2 chars long',
        ),
        ({"size": 1, "when": "now"}, 'spec.when in body must be of type date-time: "now"'),
        ({"size": 1, "port": 1.5}, "spec.port in body must be of type integer,string"),
        ({"size": 1, "mode": None}, "spec.mode in body must be of type string"),
        ({"size": 1, "list": []}, "spec.list in body should have at least 1 items"),
        ({"size": 1, "list": ["a", "b", "c"]}, "spec.list: Too many: 3: must have at most 2 items"),
        ({"size": 1, "set": ["a", "a"]}, 'spec.set[1]: Duplicate value: "a"'),
        ({"size": 1, "map": [{"k": "a"}, {"k": "a"}]}, 'spec.map[1]: Duplicate value: {"k":"a"}'),
        ({"size": 1, "labels": {"a": 1}}, "spec.labels.a in body must be of type string"),
        (
            {"size": 1, "either": {}},
            '"spec.either" must validate one and only one schema (oneOf). Found none valid',
        ),
        ({"size": 1, "either": {"a": 1, "b": 1}}, "(oneOf). Found 2 valid alternatives"),
        ([], "spec in body must be of type object"),
    ],
)
def test_faults_by_the_schema(spec: Any, message: str) -> None:
    found = [f"{p.path}: {p.message}" for p in structural_validation.validate({"spec": spec}, SCHEMA)]
    assert len(found) == 1
    assert message in found[0]


def test_what_is_right_passes() -> None:
    spec = {
        "size": 9,
        "mode": "b",
        "name": "xyz",
        "when": "2024-01-01T00:00:00Z",
        "port": "http",
        "gone": None,
        "list": ["a"],
        "map": [{"k": "a"}, {"k": "b"}],
        "free": {"a": [1, {"b": None}]},
        "either": {"b": 1},
    }
    assert list(structural_validation.validate({"spec": spec, "metadata": {}}, SCHEMA)) == []


def test_unknown_fields_are_pruned_and_defaults_filled_in() -> None:
    obj: Obj = {
        "apiVersion": "example.com/v1",
        "metadata": {"name": "a"},
        "other": 1,
        "spec": {"size": 1, "typo": 1, "free": {"any": 1}, "map": [{"k": "a", "x": 1}], "labels": {"l": "m"}},
    }
    assert sorted(structural.prune(obj, SCHEMA)) == ["other", "spec.map[0].x", "spec.typo"]
    structural.default(obj, SCHEMA)
    assert obj["spec"] == {
        "size": 1,
        "mode": "a",
        "free": {"any": 1},
        "map": [{"k": "a", "d": 5}],
        "labels": {"l": "m"},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["metadata"].update(name="thing.example.com"),
            'must be spec.names.plural+"."+spec.group',
        ),
        (lambda d: d["spec"].update(scope="Village"), "spec.scope: Unsupported value"),
        (lambda d: d["spec"].update(group="example"), "should be a domain with at least one dot"),
        (lambda d: d["spec"]["versions"][1].update(storage=True), "exactly one version marked as storage"),
        (lambda d: d["spec"]["versions"][1].update(name="v1"), "must contain unique version names"),
        (lambda d: d["spec"]["versions"][0].pop("schema"), "schemas are required"),
        (
            lambda d: d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].pop("type"),
            "openAPIV3Schema.properties[spec].type: Required value",
        ),
        (lambda d: d["spec"]["names"].update(plural="Things"), "spec.names.plural"),
        (lambda d: d["spec"].update(conversion={"strategy": "Webhook"}), "converts by name only"),
    ],
)
def test_definitions_that_are_refused(change: Any, message: str) -> None:
    registry = api()
    wrong = definition()
    change(wrong)
    with pytest.raises(InvalidError) as caught:
        make(registry, "customresourcedefinitions.apiextensions.k8s.io", wrong)
    assert message in str(caught.value)
    registry.store.close()


def test_a_definition_is_served_until_it_goes_with_its_objects(tmp_path: Path) -> None:
    registry = api(tmp_path / "api.sqlite")
    make(registry, "namespaces", {"metadata": {"name": "default"}})
    with pytest.raises(NotFoundError):
        registry.catalog.named("things.example.com")
    made = make(registry, "customresourcedefinitions.apiextensions.k8s.io", definition())
    assert {c["type"]: c["status"] for c in made["status"]["conditions"]} == {
        "NamesAccepted": "True",
        "Established": "True",
    }
    make(
        registry,
        "things.example.com",
        {"metadata": {"name": "a", "finalizers": ["x.io/y"]}, "spec": {"size": 1}},
    )
    make(registry, "things.example.com", {"metadata": {"name": "b"}, "spec": {"size": 2}})
    registry.store.close()

    again = api(tmp_path / "api.sqlite")
    row = again.catalog.named("things.example.com")
    assert row.version == "v1"
    beta = again.catalog.at("example.com", "v1beta1", "things")
    assert again.get(beta, "default", "b").obj["spec"] == {"size": 2, "mode": "a"}
    kinds = again.catalog.named("customresourcedefinitions.apiextensions.k8s.io")
    _, gone = again.delete(kinds, "", "things.example.com")
    assert not gone
    assert [r.name for r in again.store.records("things.example.com")] == ["a"]
    held = copied(again.get(row, "default", "a").obj)
    held["metadata"]["finalizers"] = []
    again.update(row, "default", "a", held)
    assert again.store.records("things.example.com") == []
    assert again.store.records(kinds.storage) == []
    with pytest.raises(NotFoundError):
        again.catalog.named("things.example.com")
    again.store.close()


def test_a_definition_may_grow_but_not_move() -> None:
    registry = api()
    kinds = registry.catalog.named("customresourcedefinitions.apiextensions.k8s.io")
    made = make(registry, kinds.id, definition())
    grown = copied(made)
    schema = grown["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["size"]["maximum"] = 99
    registry.update(kinds, "", "things.example.com", copied(grown))
    make(registry, "namespaces", {"metadata": {"name": "default"}})
    make(registry, "things.example.com", {"metadata": {"name": "big"}, "spec": {"size": 50}})
    moved = copied(registry.get(kinds, "", "things.example.com").obj)
    moved["spec"]["scope"] = "Cluster"
    with pytest.raises(InvalidError, match="field is immutable"):
        registry.update(kinds, "", "things.example.com", moved)
    assert registry.get(kinds, "", "things.example.com").obj["metadata"]["generation"] == 2
    registry.store.close()


def test_delete_all_objects_of_a_kind_one_by_one() -> None:
    registry = api()
    make(registry, "customresourcedefinitions.apiextensions.k8s.io", definition())
    make(registry, "namespaces", {"metadata": {"name": "default"}})
    for name in "abc":
        make(registry, "things.example.com", {"metadata": {"name": name}, "spec": {"size": 1}})
    row = registry.catalog.named("things.example.com")
    registry.delete_all(row, registry.scope(row, "default", "", "metadata.name!=b"), DeleteOptions())
    assert [r.name for r in registry.store.records("things.example.com")] == ["b"]
    registry.store.close()


def test_versions_in_order() -> None:
    names = ["foo10", "v1", "v11alpha2", "v10", "v3beta1", "v2", "v12alpha1", "foo1", "v10beta3", "v11beta2"]
    assert sorted(names, key=priority, reverse=True) == [
        "v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v12alpha1", "v11alpha2", "foo10", "foo1",
    ]  # fmt: skip


DOCUMENT = {
    "spec": {"size": 3, "a.b": {"c": "dot"}, "list": [{"n": 1}, {"n": 2}]},
    "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".spec.size", [3]),
        ("$.spec.size", [3]),
        ("{.spec.size}", [3]),
        (".spec['a.b'].c", ["dot"]),
        (r".spec.a\.b.c", ["dot"]),
        (".spec.list[0].n", [1]),
        (".spec.list[-1].n", [2]),
        (".spec.list[*].n", [1, 2]),
        ('.status.conditions[?(@.type=="Ready")].status', ["True"]),
        (".status.conditions[?(@.type!='Ready')].status", ["False"]),
        (".spec.list[5].n", []),
        (".none.at.all", []),
    ],
)
def test_json_paths(path: str, found: list[Any]) -> None:
    assert jsonpath.find(DOCUMENT, path) == found


@pytest.mark.parametrize("path", [".spec[", ".a[?(x)]", ".a..b"])
def test_json_paths_that_cannot_be_read(path: str) -> None:
    with pytest.raises(ConfigError, match="JSONPath"):
        jsonpath.find(DOCUMENT, path)
