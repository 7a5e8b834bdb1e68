"""Objects as Go clients send them: Kubernetes' protobuf envelope, decoded into what JSON would have said.

    "k8s\\0" runtime.Unknown{typeMeta{apiVersion, kind}, raw}        raw: the message of that kind

Answers are always JSON: clients that speak protobuf accept both. The numbers and forms of fields are in
protobuf_fields.json (scripts/extract_protobuf_fields.py); forms are

    string bytes boolean int double          scalars
    time microtime int-or-string quantity raw (bytes that hold JSON)
    [form] {form}                            list; map from strings
    wrapped [form]                           a list inside a message of its own
    io.k8s....                               a message

Go writes fields that are no pointers even when they are empty; those are absent here, as omitempty has it.
"""

from __future__ import annotations

import base64
import functools
import math
import struct
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from podlane.lab.api import schema
from podlane.lab.api.status import bad_request
from podlane.lab.client import Obj

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_DEPTH_LIMIT = 100
"""Messages inside one another: a deep but real schema of a custom resource has about 40."""
_EPOCH = datetime(1970, 1, 1)
_DELETE_OPTIONS = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
Wire = int | bytes


class _Field(NamedTuple):
    """omitted: absent when empty. inline: its fields are the owner's. value: sent even when nobody set it."""

    name: str
    form: str
    omitted: bool
    inline: bool
    value: bool


@functools.cache
def _messages() -> dict[str, list[tuple[str, int, str, str]]]:
    path = Path(__file__).with_name("protobuf_fields.json")
    return msgspec.json.decode(path.read_bytes(), type=dict[str, list[tuple[str, int, str, str]]])


@functools.cache
def _fields(message: str) -> dict[int, _Field]:
    return {
        number: _Field(name, form, "o" in flags, "i" in flags, "v" in flags)
        for name, number, form, flags in _messages()[message]
    }


def decode(body: bytes) -> Obj:
    """Raises ApiError(400) for what is no envelope, or of a kind that is not known."""
    # OverflowError: times no calendar has. RecursionError: of JSON. msgspec.DecodeError is a ValueError.
    if not body.startswith(_MAGIC):
        raise bad_request("couldn't decode the body as protobuf: it does not begin with the magic number")
    try:
        envelope = dict(_walk(body[len(_MAGIC) :]))
        type_meta = dict(_walk(_bytes(envelope.get(1, b""))))
        api_version, kind = (_bytes(type_meta.get(n, b"")).decode() for n in (1, 2))
        raw = _bytes(envelope.get(2, b""))
        encoding, content = (_bytes(envelope.get(n, b"")).decode() for n in (3, 4))
        if encoding or content not in ("", "application/json", MEDIA_TYPE):
            raise ValueError(f"unknown content {content!r} in encoding {encoding!r}")
        if content == "application/json":
            found = msgspec.json.decode(raw, type=dict[str, Any])
        else:
            name = _DELETE_OPTIONS if kind == "DeleteOptions" else schema.type_name(api_version, kind)
            if name is None or name not in _messages():
                raise bad_request(f"no kind {kind!r} is registered for version {api_version!r}")
            found = _message(raw, name, 0)
    except RecursionError:
        raise bad_request("couldn't decode the body as protobuf: it is nested too deeply") from None
    except (ValueError, IndexError, OverflowError, struct.error) as error:
        raise bad_request(f"couldn't decode the body as protobuf: {error}") from None
    return {"apiVersion": api_version, "kind": kind, **found}


# --- wire -----------------------------------------------------------------------------------------


def _walk(data: bytes) -> Iterator[tuple[int, Wire]]:
    """(field number, value) in order. Raises ValueError, IndexError."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                value, at = _varint(data, at)
                yield key >> 3, value
            case 2:
                size, at = _varint(data, at)
                if at + size > end:
                    raise ValueError("unexpected end")
                yield key >> 3, data[at : at + size]
                at += size
            case 1 | 5 as wire:
                size = 8 if wire == _FIXED64 else 4
                if at + size > end:
                    raise ValueError("unexpected end")
                yield key >> 3, data[at : at + size]
                at += size
            case wire:
                raise ValueError(f"unknown wire type {wire}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")


def _bytes(value: Wire) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes were expected")  # noqa: TRY004 all faults of the wire are one
    return value


def _integer(value: Wire) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number was expected")  # noqa: TRY004
    return value - (1 << 64) if value >= 1 << 63 else value & (1 << 64) - 1


# --- messages -------------------------------------------------------------------------------------


def _message(data: bytes, name: str, depth: int) -> Any:
    """depth: of messages around this one. Raises ValueError beyond _DEPTH_LIMIT."""
    if depth > _DEPTH_LIMIT:
        raise ValueError("it is nested too deeply")
    union = _UNIONS.get(name.rpartition(".")[2])
    if union is not None:
        return union(data, name, depth + 1)
    fields = _fields(name)
    out: Obj = {}
    for number, wire in _walk(data):
        field = fields.get(number)
        if field is None:
            continue
        form = field.form
        if form.startswith("["):
            out.setdefault(field.name, []).extend(_elements(wire, form[1:-1], depth + 1))
        elif form.startswith("{"):
            key, value = _entry(_bytes(wire), form[1:-1], depth + 1)
            out.setdefault(field.name, {})[key] = value
        else:
            value = _value(wire, form, depth + 1)
            if field.inline:
                out.update(value)
            elif value is not None and not (field.value and _unset(value, field)):
                out[field.name] = value
    return out


def _unset(value: Any, field: _Field) -> bool:
    """The zero of a field that is no pointer. Structs are shown even when empty, as in Go's JSON."""
    return field.omitted and not isinstance(value, dict) and not value


def _elements(wire: Wire, form: str, depth: int) -> list[Any]:
    if form in ("int", "boolean") and isinstance(wire, bytes):  # packed
        found, at = [], 0
        while at < len(wire):
            number, at = _varint(wire, at)
            found.append(_value(number, form, depth))
        return found
    return [_value(wire, form, depth)]


def _entry(data: bytes, form: str, depth: int) -> tuple[str, Any]:
    pair = dict(_walk(data))
    key = _bytes(pair.get(1, b"")).decode()
    return key, _value(pair.get(2, b""), form, depth)


def _value(wire: Wire, form: str, depth: int) -> Any:
    match form:
        case "string":
            return _bytes(wire).decode()
        case "int":
            return _integer(wire)
        case "boolean":
            return bool(_integer(wire))
        case "bytes":
            return base64.b64encode(_bytes(wire)).decode()
        case "double":
            return _double(_bytes(wire))
        case "time" | "microtime":
            return _time(_bytes(wire), micro=form == "microtime")
        case "quantity":
            return _bytes(dict(_walk(_bytes(wire))).get(1, b"0")).decode() or "0"
        case "int-or-string":
            parts = dict(_walk(_bytes(wire)))
            is_text = _integer(parts.get(1, 0)) == 1
            return _bytes(parts.get(3, b"")).decode() if is_text else _integer(parts.get(2, 0))
        case "raw":
            text = _bytes(dict(_walk(_bytes(wire))).get(1, b""))
            return msgspec.json.decode(text) if text else None
    if form.startswith("wrapped "):
        element = form.removeprefix("wrapped [")[:-1]
        return [_value(item, element, depth) for number, item in _walk(_bytes(wire)) if number == 1]
    return _message(_bytes(wire), form, depth)


def _double(data: bytes) -> float:
    number: float = struct.unpack("<d", data)[0]
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a number of JSON")
    return number


def _time(data: bytes, *, micro: bool) -> str | None:
    """RFC 3339; None for Go's zero time, an empty message. Raises OverflowError, ValueError."""
    if not data:
        return None
    parts = dict(_walk(data))
    seconds, nanos = _integer(parts.get(1, 0)), _integer(parts.get(2, 0))
    if not 0 <= nanos < 1_000_000_000:
        raise ValueError(f"{nanos} nanoseconds")
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    return f"{text}.{nanos // 1000:06d}Z" if micro else f"{text}Z"


# --- unions of apiextensions ----------------------------------------------------------------------


def _schema(wire: Wire | None, name: str, depth: int) -> Any:
    if wire is None:
        return None
    return _message(_bytes(wire), name.rpartition(".")[0] + ".JSONSchemaProps", depth)


def _or_bool(data: bytes, name: str, depth: int) -> Any:
    parts = dict(_walk(data))
    return _schema(parts[2], name, depth) if 2 in parts else bool(_integer(parts.get(1, 0)))


def _or_array(data: bytes, name: str, depth: int) -> Any:
    parts = list(_walk(data))
    many = [_schema(value, name, depth) for number, value in parts if number == 2]
    return many or _schema(dict(parts).get(1), name, depth)


def _or_strings(data: bytes, name: str, depth: int) -> Any:
    parts = list(_walk(data))
    strings = [_bytes(value).decode() for number, value in parts if number == 2]
    return strings or _schema(dict(parts).get(1), name, depth)


_UNIONS = {
    "JSONSchemaPropsOrArray": _or_array,
    "JSONSchemaPropsOrBool": _or_bool,
    "JSONSchemaPropsOrStringArray": _or_strings,
}
