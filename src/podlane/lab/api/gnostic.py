"""OpenAPI v2 in the protobuf form of gnostic: what kubectl 1.28 and older read of /openapi/v2.

The message is openapi.v2.Document of openapiv2/OpenAPIv2.proto, github.com/google/gnostic-models v0.7.1.
It says what the JSON document says, with these turns:

    a map                       repeated Named…{name = 1, value = 2}
    a choice (a oneof)          a message of its own around the chosen one
    extensions (x-…), defaults  Any{yaml = 2}: text, here JSON's, which YAML can read

Messages may be concatenated: encode(a) + encode(b) is the document with the definitions and paths of both.
"""

from __future__ import annotations

import functools
import json
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from podlane.lab.client import Obj

MEDIA_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
MEDIA_TYPES = (MEDIA_TYPE, "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")
"""The second, which is no well-formed media type, is what clients ask for."""
_PATTERNS = ("x-", "/", "*")

_VARINT, _FIXED64, _BYTES = 0, 1, 2

_RULES = (
    "maximum=double exclusiveMaximum=bool minimum=double exclusiveMinimum=bool maxLength=int minLength=int "
    "pattern=string maxItems=int minItems=int uniqueItems=bool enum=[Any] multipleOf=double"
)
_PARAMETER = "required=bool in=string description=string name=string"
_ITEMS = "type=string format=string items=PrimitivesItems collectionFormat=string default=Any"

_MESSAGES = {
    # Fields in the order of their numbers, which begin with 1 and leave none out: JSON's name = form, where a
    # form is string, bool, int (int64), double, a message, [repeated] or {Named…}. x-: all extensions.
    # /: all names that begin so. *: all names left. A form "-" is never written.
    "AdditionalPropertiesItem": "schema=Schema boolean=bool",
    "Any": "value=- yaml=string",
    "BodyParameter": "description=string name=string in=string required=bool schema=Schema x-={Any}",
    "Contact": "name=string url=string email=string x-={Any}",
    "Definitions": "*={Schema}",
    "Document": "swagger=string info=Info host=string basePath=string schemes=[string] consumes=[string] "
    "produces=[string] paths=Paths definitions=Definitions parameters=ParameterDefinitions "
    "responses=ResponseDefinitions security=[SecurityRequirement] securityDefinitions=- tags=[Tag] "
    "externalDocs=ExternalDocs x-={Any}",
    "Examples": "*={Any}",
    "ExternalDocs": "description=string url=string x-={Any}",
    "FileSchema": "format=string title=string description=string default=Any required=[string] type=string "
    "readOnly=bool externalDocs=ExternalDocs example=Any x-={Any}",
    "FormDataParameterSubSchema": f"{_PARAMETER} allowEmptyValue=bool {_ITEMS} {_RULES} x-={{Any}}",
    "Header": f"{_ITEMS} {_RULES} description=string x-={{Any}}",
    "HeaderParameterSubSchema": f"{_PARAMETER} {_ITEMS} {_RULES} x-={{Any}}",
    "Headers": "*={Header}",
    "Info": "title=string version=string description=string termsOfService=string contact=Contact "
    "license=License x-={Any}",
    "ItemsItem": "schema=[Schema]",
    "JsonReference": "$ref=string description=string",
    "License": "name=string url=string x-={Any}",
    "NonBodyParameter": "header=HeaderParameterSubSchema formData=FormDataParameterSubSchema "
    "query=QueryParameterSubSchema path=PathParameterSubSchema",
    "Operation": "tags=[string] summary=string description=string externalDocs=ExternalDocs "
    "operationId=string produces=[string] consumes=[string] parameters=[ParametersItem] responses=Responses "
    "schemes=[string] deprecated=bool security=[SecurityRequirement] x-={Any}",
    "Parameter": "body=BodyParameter other=NonBodyParameter",
    "ParameterDefinitions": "*={Parameter}",
    "ParametersItem": "parameter=Parameter reference=JsonReference",
    "PathItem": "$ref=string get=Operation put=Operation post=Operation delete=Operation options=Operation "
    "head=Operation patch=Operation parameters=[ParametersItem] x-={Any}",
    "PathParameterSubSchema": f"{_PARAMETER} {_ITEMS} {_RULES} x-={{Any}}",
    "Paths": "x-={Any} /={PathItem}",
    "PrimitivesItems": f"{_ITEMS} {_RULES} x-={{Any}}",
    "Properties": "*={Schema}",
    "QueryParameterSubSchema": f"{_PARAMETER} allowEmptyValue=bool {_ITEMS} {_RULES} x-={{Any}}",
    "Response": "description=string schema=SchemaItem headers=Headers examples=Examples x-={Any}",
    "ResponseDefinitions": "*={Response}",
    "ResponseValue": "response=Response reference=JsonReference",
    "Responses": "*={ResponseValue} x-={Any}",
    "Schema": "$ref=string format=string title=string description=string default=Any multipleOf=double "
    "maximum=double exclusiveMaximum=bool minimum=double exclusiveMinimum=bool maxLength=int minLength=int "
    "pattern=string maxItems=int minItems=int uniqueItems=bool maxProperties=int minProperties=int "
    "required=[string] enum=[Any] additionalProperties=AdditionalPropertiesItem type=TypeItem "
    "items=ItemsItem allOf=[Schema] properties=Properties discriminator=string readOnly=bool xml=Xml "
    "externalDocs=ExternalDocs example=Any x-={Any}",
    "SchemaItem": "schema=Schema file=FileSchema",
    "SecurityRequirement": "*={StringArray}",
    "StringArray": "value=[string]",
    "Tag": "name=string description=string externalDocs=ExternalDocs x-={Any}",
    "TypeItem": "value=[string]",
    "Xml": "name=string namespace=string prefix=string attribute=bool wrapped=bool x-={Any}",
}


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _reference_or(name: str) -> Callable[[Any], Obj]:
    return lambda value: {"reference" if "$ref" in value else name: value}


_TURNED: dict[str, Callable[[Any], Obj]] = {
    # Messages that JSON does not have: its value as their fields.
    "AdditionalPropertiesItem": lambda value: {"boolean" if isinstance(value, bool) else "schema": value},
    "Any": lambda value: {"yaml": yaml_text(value)},
    "ItemsItem": lambda value: {"schema": _many(value)},
    "NonBodyParameter": lambda value: {value["in"]: value},
    "Parameter": lambda value: {"body" if value["in"] == "body" else "other": value},
    "ParametersItem": _reference_or("parameter"),
    "ResponseValue": _reference_or("response"),
    "SchemaItem": lambda value: {"file" if value.get("type") == "file" else "schema": value},
    "StringArray": lambda value: {"value": value},
    "TypeItem": lambda value: {"value": _many(value)},
}


class _Field(NamedTuple):
    """number: of the message's. sort: "" for one value, "[" for several, "{" for a map."""

    number: int
    sort: str
    form: str


@functools.cache
def _fields(message: str) -> dict[str, _Field]:
    found = {}
    for number, row in enumerate(_MESSAGES[message].split(), 1):
        name, _, form = row.partition("=")
        sort = form[0] if form[0] in "[{" else ""
        if form != "-":
            found[name] = _Field(number, sort, form[1:-1] if sort else form)
    return found


def schema_fields() -> frozenset[str]:
    """What a schema of OpenAPI v2 may say, extensions apart."""
    return frozenset(_fields("Schema")) - {"x-"}


def encode(document: Obj) -> bytes:
    """Of a whole document or a part of one. Raises ValueError for a field OpenAPI v2 does not have."""
    return _message(document, "Document")


def _message(value: Any, name: str) -> bytes:
    turned = _TURNED.get(name)
    fields = _fields(name)
    out = bytearray()
    for key, item in (turned(value) if turned else value).items():
        field = fields.get(key) if key not in _PATTERNS else None
        if field is None:
            field = fields.get("x-" if key.startswith("x-") else key[:1]) or fields.get("*")
            if field is None:
                raise ValueError(f"{name} has no field {key!r}")
            item = {key: item}
        out += _value(field, item)
    return bytes(out)


def _value(field: _Field, value: Any) -> bytes:
    if field.sort == "[":
        return b"".join(_one(field.number, field.form, v) for v in value)
    if field.sort == "{":
        return b"".join(sized(field.number, pair) for pair in _pairs(field.form, value))
    return _one(field.number, field.form, value)


def _pairs(form: str, value: Obj) -> Iterator[bytes]:
    for key, item in value.items():
        yield sized(1, key.encode()) + _one(2, form, item)


def _one(number: int, form: str, value: Any) -> bytes:
    match form:
        case "string":
            return sized(number, value.encode())
        case "bool":
            return _key(number, _VARINT) + varint(int(value))
        case "int":
            return _key(number, _VARINT) + varint(int(value))
        case "double":
            return _key(number, _FIXED64) + struct.pack("<d", value)
    return sized(number, _message(value, form))


# --- wire -----------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    """Of an int64: negative numbers take ten bytes. Raises OverflowError."""
    if not -(1 << 63) <= number < 1 << 63:
        raise OverflowError(f"{number} is no int64")
    rest = number & (1 << 64) - 1
    out = bytearray()
    while rest >= 0x80:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


@functools.cache
def _key(number: int, wire: int) -> bytes:
    return varint(number << 3 | wire)


def sized(number: int, data: bytes) -> bytes:
    """A field that holds a string or a message."""
    return _key(number, _BYTES) + varint(len(data)) + data


_BEYOND_ASCII = re.compile(r"[^\x00-\x7e]")


def yaml_text(value: Any) -> str:
    """JSON that YAML 1.1 reads as the same: beyond ASCII it knows escapes of 32 bits, but no surrogates."""
    text = json.dumps(value, ensure_ascii=False)
    return _BEYOND_ASCII.sub(lambda found: f"\\U{ord(found.group()):08x}", text)
