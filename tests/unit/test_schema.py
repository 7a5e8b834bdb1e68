"""The generated types and OpenAPI documents: complete, and true to what Kubernetes says of itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from podlane.errors import LabError
from podlane.lab.api import schema, validation
from podlane.lab.api.resources import BUILTIN
from podlane.lab.api.schema import Field


def field(api_version: str, kind: str, path: str) -> Field:
    known = schema.type_of(api_version, kind)
    *way, last = path.split(".")
    for step in way:
        assert known is not None
        known = known.fields[step].child
    assert known is not None
    return known.fields[last]


def test_every_resource_has_a_type() -> None:
    assert [r.id for r in BUILTIN if schema.type_of(r.api_version, r.kind) is None] == []
    assert schema.type_of("v1", "Gadget") is None


@pytest.mark.parametrize(
    ("api_version", "kind", "path", "merge_key", "strategy"),
    [
        ("v1", "Service", "spec.ports", "port", "merge"),
        ("v1", "Pod", "spec.containers", "name", "merge"),
        ("v1", "Pod", "spec.containers.ports", "containerPort", "merge"),
        ("v1", "Pod", "spec.containers.env", "name", "merge"),
        ("v1", "Pod", "spec.volumes", "name", "merge,retainKeys"),
        ("v1", "Pod", "metadata.finalizers", None, "merge"),
        ("apps/v1", "Deployment", "spec.strategy", None, "retainKeys"),
        ("apps/v1", "Deployment", "spec.template.spec.containers", "name", "merge"),
        ("discovery.k8s.io/v1", "EndpointSlice", "ports", None, None),
    ],
)
def test_merge_keys(
    api_version: str, kind: str, path: str, merge_key: str | None, strategy: str | None
) -> None:
    found = field(api_version, kind, path)
    assert (found.merge_key, found.strategy) == (merge_key, strategy)


@pytest.mark.parametrize(
    ("path", "go"),
    [
        ("metadata.labels", "map[string]string"),
        ("spec.containers", "[]v1.Container"),
        ("spec.terminationGracePeriodSeconds", "int64"),
        ("spec.hostNetwork", "bool"),
        ("spec.securityContext", "v1.PodSecurityContext"),
        ("spec.containers.readinessProbe.httpGet.port", "intstr.IntOrString"),
    ],
)
def test_names_of_types_are_those_of_go(path: str, go: str) -> None:
    assert field("v1", "Pod", path).go == go


def test_rules_are_of_types_and_fields_that_exist() -> None:
    """A typing error in a table would be a rule that never runs."""
    for table in (validation.RULES, validation.REQUIRED):
        for name, fields in table.items():
            assert set(fields) <= set(schema.type_named(name).fields), name
    for name in validation.CHECKS:
        schema.type_named(name)
    kinds = {r.kind for r in BUILTIN}
    assert {*validation.NAMES, *validation.UPDATES} <= kinds


def references(document: Any) -> set[str]:
    return set(re.findall(r'"\$ref":"([^"]+)"', msgspec.json.encode(document).decode()))


def test_openapi_documents_resolve() -> None:
    v2 = msgspec.json.decode(schema.openapi_v2())
    assert {r.rpartition("/")[2] for r in references(v2)} <= v2["definitions"].keys()
    paths = list(schema.openapi_v3_paths())
    assert {"api/v1", "apis/apps/v1", "apis/networking.k8s.io/v1"} <= set(paths)
    for path in paths:
        document = msgspec.json.decode(schema.openapi_v3(path))
        known = document["components"]["schemas"].keys()
        assert {r.rpartition("/")[2] for r in references(document)} <= known
        assert all(p.startswith(f"/{path}/") for p in document["paths"])
        # The package writes optional types as ["string", "null"], which OpenAPI 3.0 has not.
        assert not re.search(rb'"type":\[', schema.openapi_v3(path))


def test_openapi_tells_kubectl_that_fields_are_validated() -> None:
    """kubectl looks for the query parameter at the PATCH of the kind."""
    document = msgspec.json.decode(schema.openapi_v3("apis/apps/v1"))
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert patch["x-kubernetes-group-version-kind"] == {
        "group": "apps",
        "version": "v1",
        "kind": "Deployment",
    }
    assert "fieldValidation" in {p["name"] for p in patch["parameters"]}


def test_missing_schemas_say_what_makes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(schema, "GENERATED", tmp_path)
    with pytest.raises(LabError, match="make setup"):
        schema._load.__wrapped__()
