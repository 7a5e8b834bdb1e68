"""Bodies of Go clients. The encoder here writes what Go's would: it reads the same table backwards."""

from __future__ import annotations

import base64
import json
import struct
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.errors import ApiError
from podlane.lab.api import protobuf, schema
from podlane.lab.api.resources import BUILTIN


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def block(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def field(number: int, value: Any, form: str) -> bytes:
    if form in ("int", "boolean"):
        return varint(number << 3) + varint(int(value))
    if form == "double":
        return varint(number << 3 | 1) + struct.pack("<d", value)
    return block(number, encoded(value, form))


def encoded(value: Any, form: str) -> bytes:
    if form == "string":
        return str(value).encode()
    if form == "bytes":
        return base64.b64decode(value)
    if form == "quantity":
        return block(1, value.encode())
    if form == "raw":
        return block(1, json.dumps(value).encode())
    if form == "int-or-string":
        if isinstance(value, str):
            return field(1, 1, "int") + block(3, value.encode())
        return field(1, 0, "int") + field(2, value, "int")
    if form in ("time", "microtime"):
        moment = datetime.fromisoformat(value)
        return field(1, int(moment.timestamp()), "int") + field(2, moment.microsecond * 1000, "int")
    if form.startswith("wrapped"):
        return b"".join(block(1, v.encode()) for v in value)
    return message(value, form)


def message(obj: Any, name: str) -> bytes:
    owner, _, kind = name.rpartition(".")
    if kind == "JSONSchemaPropsOrBool":
        if isinstance(obj, bool):
            return field(1, obj, "boolean")
        return field(1, True, "boolean") + block(2, message(obj, f"{owner}.JSONSchemaProps"))
    if kind == "JSONSchemaPropsOrArray":
        return block(1, message(obj, f"{owner}.JSONSchemaProps"))
    out = b""
    for key, number, form, flags in protobuf._messages()[name]:
        if "i" in flags:
            out += block(number, message(obj, form))
        elif key not in obj:
            if "v" in flags and form in ("string", "int", "boolean"):
                out += field(number, 0 if form != "string" else "", form)  # Go writes what nobody set
            elif "v" in flags and form == "time":
                out += block(number, b"")
        elif form.startswith("["):
            out += b"".join(field(number, v, form[1:-1]) for v in obj[key])
        elif form.startswith("{"):
            for k, v in obj[key].items():
                out += block(number, field(1, k, "string") + field(2, v, form[1:-1]))
        else:
            out += field(number, obj[key], form)
    return out


def envelope(obj: Any, name: str = "") -> bytes:
    api_version, kind = obj["apiVersion"], obj["kind"]
    name = name or str(schema.type_name(api_version, kind))
    type_meta = block(1, api_version.encode()) + block(2, kind.encode())
    return b"k8s\0" + block(1, type_meta) + block(2, message(obj, name)) + block(3, b"") + block(4, b"")


POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "labels": {"a": "b", "empty": ""}, "finalizers": ["x"]},
    "spec": {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "hostNetwork": True,
        "containers": [
            {
                "name": "c",
                "image": "nginx",
                "command": ["sh", ""],
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "env": [{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}],
                "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}},
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3},
                "livenessProbe": {"tcpSocket": {"port": 80}},
                "securityContext": {"runAsUser": 0, "privileged": False},
            }
        ],
        "volumes": [
            {"name": "v", "emptyDir": {"sizeLimit": "1Mi"}},
            {"name": "h", "hostPath": {"path": "/x"}},
        ],
        "tolerations": [{"operator": "Exists", "tolerationSeconds": -1}],
    },
    "status": {"startTime": "2024-05-06T07:08:09Z"},
}
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
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
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "list": {"type": "array", "items": {"type": "string", "enum": ["a", 1]}},
                            "map": {"type": "object", "additionalProperties": {"type": "string"}},
                            "free": {"x-kubernetes-preserve-unknown-fields": True, "default": {"a": [1]}},
                            "any": {"type": "object", "additionalProperties": True},
                            "number": {"type": "number", "minimum": -1.5, "maxLength": 0},
                        },
                    }
                },
            }
        ],
    },
    "status": {"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []},
}
EVENT = {
    "apiVersion": "events.k8s.io/v1",
    "kind": "Event",
    "metadata": {"name": "e"},
    "eventTime": "2024-05-06T07:08:09.123456Z",
    "regarding": {"kind": "Pod"},
    "note": "übrigens",
}
SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "AAEC/w=="}}


RECORDED = json.loads(Path(__file__).with_name("kubectl_bodies.json").read_text())
"""What kubectl 1.32 posted, in base64, and what it prints with `-o json --dry-run=client`, nulls left out."""


def without_empty(value: Any) -> Any:
    """Messages that are no pointers are there even when empty; that is no difference here."""
    if isinstance(value, dict):
        found = {k: without_empty(v) for k, v in value.items()}
        return {k: v for k, v in found.items() if v not in ({}, [])}
    return [without_empty(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("obj", [POD, DEFINITION, EVENT, SECRET], ids=lambda o: o["kind"])
def test_objects_arrive_as_json_would_have_said(obj: Any) -> None:
    assert without_empty(protobuf.decode(envelope(obj))) == without_empty(obj)


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda r: r["command"])
def test_kubectl_means_what_it_prints(recorded: Any) -> None:
    found = protobuf.decode(base64.b64decode(recorded["body"]))
    assert without_null(found) == recorded["object"]


def without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_null(v) for k, v in value.items() if v is not None}
    return [without_null(v) for v in value] if isinstance(value, list) else value


def test_what_nobody_set_is_absent_and_what_was_set_to_zero_is_there() -> None:
    container = protobuf.decode(envelope(POD))["spec"]["containers"][0]
    assert "workingDir" not in container
    assert "stdin" not in container
    assert container["securityContext"] == {"runAsUser": 0, "privileged": False}
    assert protobuf.decode(envelope(POD))["spec"]["terminationGracePeriodSeconds"] == 0


def test_every_served_kind_has_the_fields_of_its_schema() -> None:
    for row in BUILTIN:
        name = schema.type_name(row.api_version, row.kind)
        assert name is not None
        pending, done = [name], set()
        while pending:
            name = pending.pop()
            if name in done or name not in protobuf._messages():
                continue
            done.add(name)
            if name.rpartition(".")[2] in protobuf._UNIONS:
                continue
            found: set[str] = set()
            for key, _, form, flags in protobuf._messages()[name]:
                rows = protobuf._messages()[form] if "i" in flags else [(key, 0, form, "")]
                found |= {k for k, *_ in rows}
                pending += [f.strip("[]{}") for _, _, f, _ in rows]
            wanted = schema.type_named(name).fields.keys() - {"apiVersion", "kind"}
            assert wanted <= found, name
        assert done


def moment(data: bytes) -> Any:
    """A creationTimestamp as it is decoded."""
    type_meta = block(1, b"v1") + block(2, b"Pod")
    body = b"k8s\0" + block(1, type_meta) + block(2, block(1, block(8, data)))
    return protobuf.decode(body)["metadata"].get("creationTimestamp")


def test_times() -> None:
    assert moment(b"") is None
    assert moment(field(1, 0, "int") + field(2, 0, "int")) == "1970-01-01T00:00:00Z"
    assert moment(field(1, -62135596800, "int")) == "0001-01-01T00:00:00Z"
    for wrong in (field(1, 1 << 40, "int"), field(1, -1 << 62, "int"), field(2, -1, "int")):
        with pytest.raises(ApiError, match="couldn't decode the body as protobuf"):
            moment(wrong)


def test_schemas_that_say_nothing_are_null() -> None:
    owner = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
    numbers = {key: number for key, number, _, _ in protobuf._messages()[owner]}
    data = block(numbers["items"], b"") + block(numbers["additionalProperties"], b"")
    assert protobuf._message(data, owner, 0) == {"additionalProperties": False}


def test_messages_nest_only_so_deep() -> None:
    owner = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
    number = next(number for key, number, _, _ in protobuf._messages()[owner] if key == "not")
    data = b""
    for _ in range(50):
        data = block(number, data)
    found, levels = protobuf._message(data, owner, 0), 0
    while found:
        found, levels = found["not"], levels + 1
    assert levels == 50
    for _ in range(5000):
        data = block(number, data)
    with pytest.raises(ValueError, match="nested too deeply"):
        protobuf._message(data, owner, 0)


def test_options_of_a_deletion() -> None:
    options = {"apiVersion": "policy/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
    body = envelope(options, "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
    assert protobuf.decode(body) == options


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", "does not begin with the magic number"),
        (b"k8s\0\x0a\xff", "couldn't decode the body as protobuf"),
        (
            b"k8s\0" + block(1, block(1, b"v9") + block(2, b"Pod")),
            "no kind 'Pod' is registered for version 'v9'",
        ),
        (b"k8s\0" + block(3, b"gzip"), "unknown content '' in encoding 'gzip'"),
        (
            b"k8s\0" + block(2, b'{"a":' * 50_000 + b"1" + b"}" * 50_000) + block(4, b"application/json"),
            "nested too deeply",
        ),
        (envelope(POD)[:-40], "couldn't decode the body as protobuf"),
    ],
)
def test_bodies_that_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        protobuf.decode(body)
    assert caught.value.code == 400


BODIES = [envelope(o) for o in (POD, DEFINITION, EVENT)] + [base64.b64decode(r["body"]) for r in RECORDED]


def read_or_refused(body: bytes) -> Any:
    """None: refused with 400. Anything else that is raised is a fault of the decoder."""
    try:
        return protobuf.decode(body)
    except ApiError as error:
        if error.code != 400:
            raise
        return None


@given(st.sampled_from(BODIES), st.data())
def test_a_damaged_body_is_refused_or_read_but_never_a_crash(whole: bytes, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, len(damaged)))
        gone = data.draw(st.integers(0, 4))
        damaged[at : at + gone] = data.draw(st.binary(max_size=8))
    found = read_or_refused(bytes(damaged))
    assert json.loads(json.dumps(found)) == found


@given(st.sampled_from(BODIES), st.data())
def test_a_cut_body_is_refused_or_read_but_never_a_crash(whole: bytes, data: st.DataObject) -> None:
    found = read_or_refused(whole[: data.draw(st.integers(4, len(whole)))])
    assert found is None or "kind" in found


@given(st.sampled_from(sorted(protobuf._messages())), st.binary(max_size=64))
def test_any_bytes_as_any_message(name: str, noise: bytes) -> None:
    kinds = {v: k for k, v in schema._load().kinds.items()}
    if name not in kinds:
        with suppress(ValueError, IndexError, OverflowError, struct.error):
            protobuf._message(noise, name, 0)
        return
    api_version, _, kind = kinds[name].rpartition("/")
    body = b"k8s\0" + block(1, block(1, api_version.encode()) + block(2, kind.encode())) + block(2, noise)
    found = read_or_refused(body)
    assert found is None or found["kind"] == kind
