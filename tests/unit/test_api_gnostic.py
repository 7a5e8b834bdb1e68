"""openapi.v2.Document as a reader of gnostic's protobuf finds it: the reader knows nothing of the encoder."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from podlane.lab.api import crd_openapi, gnostic, schema
from podlane.lab.api.resources import resource

# Field numbers of OpenAPIv2.proto, only those looked at.
PATHS, DEFINITIONS = 8, 9
NAME, VALUE = 1, 2
REF, DESCRIPTION, DEFAULT, MAXIMUM, MIN_LENGTH = 1, 4, 5, 7, 12
REQUIRED, ADDITIONAL, TYPE, ITEMS, PROPERTIES, READ_ONLY, EXTENSIONS = 19, 21, 22, 23, 25, 27, 31
PATCH, PARAMETERS, RESPONSES, OPERATION_EXTENSIONS = 8, 8, 9, 13

Fields = dict[int, list[Any]]


def number(data: bytes) -> tuple[int, bytes]:
    """A varint, and what follows it."""
    size = next(i for i, byte in enumerate(data) if byte < 128) + 1
    return sum((byte & 127) << 7 * i for i, byte in enumerate(data[:size])), data[size:]


def read(data: bytes) -> Fields:
    found: Fields = {}
    while data:
        key, data = number(data)
        value: Any
        if key & 7 == 0:
            value, data = number(data)
        elif key & 7 == 1:
            (value,), data = struct.unpack("<d", data[:8]), data[8:]
        else:
            assert key & 7 == 2, key
            size, data = number(data)
            assert size <= len(data)
            value, data = data[:size], data[size:]
        found.setdefault(key >> 3, []).append(value)
    return found


def named(entries: list[bytes]) -> dict[str, Fields]:
    """Of repeated Named…{name, value}."""
    pairs = [read(entry) for entry in entries]
    assert all(sorted(pair) == [NAME, VALUE] for pair in pairs)
    found = {pair[NAME][0].decode(): read(pair[VALUE][0]) for pair in pairs}
    assert len(found) == len(pairs)
    return found


def text(fields: Fields, of: int) -> str:
    """The only value of a string."""
    (value,) = fields[of]
    found: str = value.decode()
    return found


def extensions(entries: list[bytes]) -> dict[str, Any]:
    return {name: yaml.safe_load(text(value, 2)) for name, value in named(entries).items()}


def said(fields: Fields) -> Any:
    """A Schema as JSON would say it, as far as Kubernetes uses schemas."""
    found: dict[str, Any] = {}
    for of, key in (
        (REF, "$ref"),
        (2, "format"),
        (3, "title"),
        (DESCRIPTION, "description"),
        (13, "pattern"),
    ):
        if of in fields:
            found[key] = text(fields, of)
    for of, key in (
        (6, "multipleOf"),
        (MAXIMUM, "maximum"),
        (9, "minimum"),
        (11, "maxLength"),
        (12, "minLength"),
    ):
        if of in fields:
            (found[key],) = fields[of]
    if READ_ONLY in fields:
        found["readOnly"] = bool(fields[READ_ONLY][0])
    if DEFAULT in fields:
        found["default"] = yaml.safe_load(text(read(fields[DEFAULT][0]), 2))
    if 20 in fields:
        found["enum"] = [yaml.safe_load(text(read(item), 2)) for item in fields[20]]
    if REQUIRED in fields:
        found["required"] = [name.decode() for name in fields[REQUIRED]]
    if TYPE in fields:
        found["type"] = text(read(fields[TYPE][0]), 1)
    if ITEMS in fields:
        (item,) = read(fields[ITEMS][0])[1]
        found["items"] = said(read(item))
    if ADDITIONAL in fields:
        choice = read(fields[ADDITIONAL][0])
        found["additionalProperties"] = said(read(choice[1][0])) if 1 in choice else bool(choice[2][0])
    if PROPERTIES in fields:
        entries = named(read(fields[PROPERTIES][0]).get(1, []))
        found["properties"] = {name: said(sub) for name, sub in entries.items()}
    return found | extensions(fields.get(EXTENSIONS, []))


@pytest.fixture(scope="module")
def document() -> Any:
    return msgspec.json.decode(schema.openapi_v2())


@pytest.fixture(scope="module")
def encoded(document: Any) -> Fields:
    return read(gnostic.encode(document))


def definitions(encoded: Fields) -> dict[str, Fields]:
    """Messages that occur more than once are one: their repeated fields follow one another."""
    return named([entry for part in encoded[DEFINITIONS] for entry in read(part).get(1, [])])


def test_every_definition_says_what_json_says(document: Any, encoded: Fields) -> None:
    assert text(encoded, 1) == "2.0"
    info = read(encoded[2][0])
    assert (text(info, 1), text(info, 2)) == (document["info"]["title"], document["info"]["version"])
    found = definitions(encoded)
    assert list(found) == list(document["definitions"])
    for name, fields in found.items():
        assert said(fields) == document["definitions"][name], name


def test_what_kubectl_merges_by(encoded: Fields) -> None:
    found = {name.removeprefix("io.k8s.api."): said(fields) for name, fields in definitions(encoded).items()}
    pod = found["core.v1.Pod"]
    assert pod["x-kubernetes-group-version-kind"] == [{"group": "", "kind": "Pod", "version": "v1"}]
    assert pod["properties"]["spec"]["$ref"] == "#/definitions/io.k8s.api.core.v1.PodSpec"
    containers = found["core.v1.PodSpec"]["properties"]["containers"]
    assert containers["type"] == "array"
    assert containers["items"]["$ref"] == "#/definitions/io.k8s.api.core.v1.Container"
    assert containers["x-kubernetes-patch-merge-key"] == "name"
    assert containers["x-kubernetes-patch-strategy"] == "merge"
    ports = found["core.v1.ServiceSpec"]["properties"]["ports"]
    assert ports["x-kubernetes-patch-merge-key"] == "port"
    assert ports["x-kubernetes-list-map-keys"] == ["port", "protocol"]
    selector = found["core.v1.ServiceSpec"]["properties"]["selector"]
    assert (selector["type"], selector["additionalProperties"]) == ("object", {"type": "string"})
    deployment = found["apps.v1.DeploymentSpec"]
    assert deployment["required"] == ["selector", "template"]
    assert deployment["properties"]["replicas"]["format"] == "int32"


def test_operations_tell_what_they_take(document: Any, encoded: Fields) -> None:
    paths = named(read(encoded[PATHS][0])[2])
    assert list(paths) == list(document["paths"])
    path = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}"
    patch = read(paths[path][PATCH][0])
    names = set()
    for item in patch[PARAMETERS]:
        query = read(read(read(read(item)[1][0])[2][0])[3][0])  # parameter, not of the body, of the query
        assert text(query, 2) == "query"
        names.add(text(query, 4))
    assert names >= {"dryRun", "fieldManager", "fieldValidation"}
    assert extensions(patch[OPERATION_EXTENSIONS])["x-kubernetes-group-version-kind"] == {
        "group": "apps", "version": "v1", "kind": "Deployment",
    }  # fmt: skip
    responses = named(read(patch[RESPONSES][0])[1])
    answer = read(read(responses["200"][1][0])[2][0])  # response, its schema
    assert said(read(answer[1][0])) == {"$ref": "#/definitions/io.k8s.api.apps.v1.Deployment"}


TIMER = resource("example.com/v1", "Timer", custom=True)
"""Every keyword a schema of a definition may have, and names that look like something else."""
SCHEMA: Any = {
    "type": "object",
    "required": ["spec", "left"],
    "x-kubernetes-validations": [{"rule": "self.spec.at != ''", "message": "wann? \U0001f552\x7f"}],
    "properties": {
        "spec": {
            "type": "object",
            "title": "Spec",
            "externalDocs": {"url": "https://example.com", "description": "more"},
            "properties": {
                "at": {"type": "string", "minLength": 1, "maxLength": 9, "pattern": "^.", "default": "n\nö"},
                "every": {"type": "number", "minimum": -1, "maximum": 1.5, "multipleOf": 0.5},
                "days": {"type": "array", "items": {"type": "string", "enum": ["mon", 2]}, "maxItems": 7},
                "x-port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}]},
                "*": {"type": "object", "additionalProperties": {"type": "string", "not": {}}},
                "free": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": True,
                    "properties": {"a": {}},
                },
                "any": {"type": "object", "additionalProperties": True, "properties": {}},
                "odd": {"$ref": "#/nowhere", "type": "object", "additionalProperties": "no"},
            },
        },
        "left": {"type": "array", "nullable": True, "items": {"type": "string"}},
    },
}


def test_definitions_of_custom_resources_are_lowered(encoded: Fields) -> None:
    added = crd_openapi.document_v2([(TIMER, SCHEMA)])
    whole = read(gnostic.encode({"definitions": {"a.B": {"type": "string"}}}) + gnostic.encode(added))
    found = {name: said(fields) for name, fields in definitions(whole).items()}
    assert list(found) == ["a.B", "com.example.v1.Timer"]
    timer = found["com.example.v1.Timer"]
    assert timer["x-kubernetes-group-version-kind"] == [
        {"group": "example.com", "version": "v1", "kind": "Timer"}
    ]
    assert timer["x-kubernetes-validations"] == SCHEMA["x-kubernetes-validations"]
    metadata = timer["properties"]["metadata"]["$ref"]
    assert metadata.removeprefix("#/definitions/") in definitions(encoded)
    assert timer["required"] == ["spec"]
    assert timer["properties"]["left"] == {}
    spec = timer["properties"]["spec"]["properties"]
    given_properties = SCHEMA["properties"]["spec"]["properties"]
    assert spec["at"] == given_properties["at"]
    assert spec["every"] == given_properties["every"]
    assert spec["days"]["items"] == given_properties["days"]["items"]
    assert spec["x-port"] == {"x-kubernetes-int-or-string": True}
    assert spec["*"] == {"type": "object", "additionalProperties": {"type": "string"}}
    assert spec["free"] == {"x-kubernetes-preserve-unknown-fields": True}
    assert spec["odd"] == {"type": "object"}
    assert spec["any"] == {"type": "object", "additionalProperties": True}


def test_what_openapi_v2_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="Schema has no field 'oneOf'"):
        gnostic.encode({"definitions": {"a": {"oneOf": []}}})


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_varints(value: int) -> None:
    data = gnostic.varint(value)
    assert number(data + b"rest") == (value % (1 << 64), b"rest")
    assert len(data) == max(1, -(-(value % (1 << 64)).bit_length() // 7))


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1])
def test_no_varint_beyond_64_bits(value: int) -> None:
    with pytest.raises(OverflowError):
        gnostic.varint(value)


@given(st.integers(1, (1 << 29) - 1), st.binary(max_size=300))
def test_sized_fields(field: int, data: bytes) -> None:
    assert read(gnostic.sized(field, data)) == {field: [data]}


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)
# PyYAML takes 1e+16 for a string, as YAML 1.1 wants a dot there.
FLOATS = st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda f: "e" not in repr(f) or "." in repr(f)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


@given(JSON)
def test_yaml_reads_the_json_of_extensions(value: Any) -> None:
    written = gnostic.yaml_text(value)
    assert written.isascii()
    assert written.isprintable()
    assert yaml.safe_load(written) == value
