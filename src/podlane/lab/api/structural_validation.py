"""Validation of custom resources against their OpenAPI v3 schemas, in the words of kube-openapi.

x-kubernetes-validations (CEL) is not evaluated; the definition's author is warned.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from uuid import UUID

from podlane.lab.api.status import Problem, required, shown
from podlane.lab.api.structural import INT_OR_STRING, Schema

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: isinstance(v, int | float) and not isinstance(v, bool) and float(v).is_integer(),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
}


def validate(value: Any, schema: Schema, path: str = "") -> Iterator[Problem]:
    """Every fault of a value. path "": the whole object."""
    if value is None:
        if not schema.get("nullable") and path:
            yield _wrong_type(path, schema, "null")
        return
    if schema.get(INT_OR_STRING):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield _wrong_type(path, {"type": "integer,string"}, _type_name(value))
        return
    type_ = schema.get("type")
    if type_ in _TYPES and not _TYPES[type_](value):
        yield _wrong_type(path, schema, _type_name(value))
        return
    if "enum" in schema and value not in schema["enum"]:
        supported = ", ".join(map(shown, schema["enum"]))
        text = f"Unsupported value: {shown(value)}: supported values: {supported}"
        yield Problem(path, "FieldValueNotSupported", text)
    if isinstance(value, str):
        yield from _string(value, schema, path)
    elif isinstance(value, dict):
        yield from _object(value, schema, path)
    elif isinstance(value, list):
        yield from _array(value, schema, path)
    elif not isinstance(value, bool):
        yield from _number(value, schema, path)
    yield from _combined(value, schema, path)


def _bad(path: str, value: Any, why: str) -> Problem:
    where = path or "<nil>"
    return Problem(where, "FieldValueInvalid", f"Invalid value: {shown(value)}: {path} in body {why}")


def _type_name(value: Any) -> str:
    if isinstance(value, float):
        return "number"
    return next((name for name, fits in _TYPES.items() if fits(value)), "null")


def _wrong_type(path: str, schema: Schema, found: str) -> Problem:
    text = f'{path} in body must be of type {schema.get("type", "object")}: "{found}"'
    return Problem(path or "<nil>", "FieldValueTypeInvalid", f'Invalid value: "{found}": {text}')


def _string(value: str, schema: Schema, path: str) -> Iterator[Problem]:
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        text = f"Too long: may not be more than {schema['maxLength']} bytes"
        yield Problem(path, "FieldValueTooLong", text)
    if "minLength" in schema and len(value) < schema["minLength"]:
        yield _bad(path, value, f"should be at least {schema['minLength']} chars long")
    if "pattern" in schema and not _pattern(schema["pattern"]).search(value):
        yield _bad(path, value, f"should match '{schema['pattern']}'")
    fits = _FORMATS.get(schema.get("format", ""))
    if fits is not None and not _reads(fits, value):
        yield _bad(path, value, f'must be of type {schema["format"]}: "{value}"')


@cache
def _pattern(text: str) -> re.Pattern[str]:
    """Go's RE2 is near enough to Python's; what Python cannot read matches everything."""
    try:
        return re.compile(text.replace("\\z", "\\Z").replace("[[:alnum:]]", "[A-Za-z0-9]"))
    except re.error:
        return re.compile("")


def _reads(parse: Callable[[str], Any], value: str) -> bool:
    try:
        parse(value)
    except (ValueError, binascii.Error):
        return False
    return True


def _duration(value: str) -> None:
    if not re.fullmatch(r"[+-]?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+|0", value):
        raise ValueError(value)


def _date_time(value: str) -> datetime.datetime:
    if "T" not in value.upper():
        raise ValueError(value)
    return datetime.datetime.fromisoformat(value)


_FORMATS: dict[str, Callable[[str], Any]] = {
    "byte": lambda v: base64.b64decode(v, validate=True),
    "cidr": lambda v: ipaddress.ip_interface(v) if "/" in v else int(v),
    "date": datetime.date.fromisoformat,
    "date-time": _date_time,
    "datetime": _date_time,
    "duration": _duration,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": UUID,
}
_INTEGERS = {"int32": 1 << 31, "int64": 1 << 63}


def _number(value: float, schema: Schema, path: str) -> Iterator[Problem]:
    bound = _INTEGERS.get(schema.get("format", ""))
    if bound is not None and not -bound <= value < bound:
        yield _bad(path, value, f"must be of type {schema['format']}")
    if "maximum" in schema:
        most, strict = schema["maximum"], schema.get("exclusiveMaximum")
        if value > most or (strict and value == most):
            yield _bad(path, value, f"should be less than {'' if strict else 'or equal to '}{most}")
    if "minimum" in schema:
        least, strict = schema["minimum"], schema.get("exclusiveMinimum")
        if value < least or (strict and value == least):
            yield _bad(path, value, f"should be greater than {'' if strict else 'or equal to '}{least}")
    step = schema.get("multipleOf")
    if step and abs(value / step - round(value / step)) > 1e-9:
        yield _bad(path, value, f"should be a multiple of {step}")


def _object(value: dict[str, Any], schema: Schema, path: str) -> Iterator[Problem]:
    prefix = f"{path}." if path else ""
    for key in schema.get("required") or ():
        if key not in value:
            yield required(f"{prefix}{key}")
    if "maxProperties" in schema and len(value) > schema["maxProperties"]:
        limit = schema["maxProperties"]
        yield Problem(path, "FieldValueTooMany", f"Too many: {len(value)}: must have at most {limit} items")
    if "minProperties" in schema and len(value) < schema["minProperties"]:
        yield _bad(path, len(value), f"should have at least {schema['minProperties']} properties")
    properties = schema.get("properties") or {}
    others = schema.get("additionalProperties")
    for key, item in value.items():
        if not path and key in ("metadata", "apiVersion", "kind"):
            continue
        if key in properties:
            yield from validate(item, properties[key], f"{prefix}{key}")
        elif isinstance(others, dict):
            yield from validate(item, others, f"{prefix}{key}")


def _array(value: list[Any], schema: Schema, path: str) -> Iterator[Problem]:
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        text = f"Too many: {len(value)}: must have at most {schema['maxItems']} items"
        yield Problem(path, "FieldValueTooMany", text)
    if "minItems" in schema and len(value) < schema["minItems"]:
        yield _bad(path, len(value), f"should have at least {schema['minItems']} items")
    if isinstance(schema.get("items"), dict):
        for i, element in enumerate(value):
            yield from validate(element, schema["items"], f"{path}[{i}]")
    list_type = schema.get("x-kubernetes-list-type")
    keys = schema.get("x-kubernetes-list-map-keys") or ()
    if list_type not in ("set", "map") and not schema.get("uniqueItems"):
        return
    seen: list[Any] = []
    for i, element in enumerate(value):
        identity = element
        if list_type == "map" and isinstance(element, dict):
            identity = {k: element.get(k) for k in keys}
        if identity in seen:
            text = f"Duplicate value: {shown(identity)}"
            yield Problem(f"{path}[{i}]", "FieldValueDuplicate", text)
        seen.append(identity)


def _fits(value: Any, schema: Schema, path: str) -> bool:
    return next(validate(value, schema, path), None) is None


def _combined(value: Any, schema: Schema, path: str) -> Iterator[Problem]:
    """allOf, anyOf, oneOf, not: value validations only, as structural schemas have it."""
    for sub in schema.get("allOf") or ():
        yield from validate(value, sub, path)
    where = f'"{path}"'
    if schema.get("anyOf") and not any(_fits(value, s, path) for s in schema["anyOf"]):
        yield Problem(
            path or "<nil>",
            "FieldValueInvalid",
            f"Invalid value: {shown(value)}: {where} must validate at least one schema (anyOf)",
        )
    if schema.get("oneOf"):
        fitting = sum(_fits(value, s, path) for s in schema["oneOf"])
        if fitting != 1:
            found = "none valid" if not fitting else f"{fitting} valid alternatives"
            text = f"{where} must validate one and only one schema (oneOf). Found {found}"
            yield Problem(path or "<nil>", "FieldValueInvalid", f"Invalid value: {shown(value)}: {text}")
    if isinstance(schema.get("not"), dict) and _fits(value, schema["not"], path):
        text = f"{where} must not validate the schema (not)"
        yield Problem(path or "<nil>", "FieldValueInvalid", f"Invalid value: {shown(value)}: {text}")
