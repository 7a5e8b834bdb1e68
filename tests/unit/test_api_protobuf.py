"""Bodies of Go clients. The encoder here writes what Go's would: it reads the same table backwards."""

from __future__ import annotations

import base64
import json
import struct
from contextlib import suppress
from datetime import datetime
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


def without_empty(value: Any) -> Any:
    """Messages that are no pointers are there even when empty; that is no difference here."""
    if isinstance(value, dict):
        found = {k: without_empty(v) for k, v in value.items()}
        return {k: v for k, v in found.items() if v not in ({}, [])}
    return [without_empty(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("obj", [POD, DEFINITION, EVENT, SECRET], ids=lambda o: o["kind"])
def test_objects_arrive_as_json_would_have_said(obj: Any) -> None:
    assert without_empty(protobuf.decode(envelope(obj))) == without_empty(obj)


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
        (envelope(POD)[:-40], "couldn't decode the body as protobuf"),
    ],
)
def test_bodies_that_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        protobuf.decode(body)
    assert caught.value.code == 400


@given(st.integers(0, len(envelope(POD)) - 1), st.binary(max_size=8))
def test_a_damaged_body_is_refused_or_read_but_never_a_crash(at: int, noise: bytes) -> None:
    whole = envelope(POD)
    damaged = whole[:4] + (whole[:at] + noise + whole[at + len(noise) :])[4:]
    with suppress(ApiError):
        assert protobuf.decode(damaged)["kind"]
