"""From JSON to a kind's own form, as a Go decoder would: types checked, unknown fields found and left out.

What remains has no nulls, no unknown fields and no empty optional lists or maps, as an object that went
through the real API server. A wrong type is a 400 that names the field in the decoder's words; unknown
fields are for the caller to refuse or warn about (fieldValidation=Strict or Warn).
"""

from __future__ import annotations

import binascii
import re
from typing import Any

from podlane.errors import ApiError
from podlane.lab.api import schema
from podlane.lab.api.schema import Form, Type
from podlane.lab.client import Obj

_INTEGERS = {"int32": 1 << 31, "int64": 1 << 63}
_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_ZERO = {"string": "", "boolean": False, "number": 0, "int32": 0, "int64": 0, "bytes": ""}


class BadRequestError(ApiError):
    """400: the body is not an object of the kind."""

    code, reason = 400, "BadRequest"


def decode(obj: Obj) -> tuple[Obj, list[str]]:
    """(obj in its kind's form, paths of fields the kind does not have).

    obj names its apiVersion and kind; a kind without a built-in schema is returned as it is.
    Raises BadRequestError on a wrong type.
    """
    api_version, kind = obj.get("apiVersion", ""), obj.get("kind", "")
    root = schema.type_of(api_version, kind)
    if root is None:
        return obj, []
    unknown: list[str] = []
    try:
        return _struct(obj, root, kind, (), "", unknown), unknown
    except _Mismatch as mismatch:
        raise BadRequestError(_refusal(obj, str(mismatch))) from None


def unknown_fields(obj: Obj) -> list[str]:
    """Paths of fields obj's kind does not have, as "spec.ports[0].prot"."""
    return decode(obj)[1]


def strict_error(obj: Obj, unknown: list[str]) -> BadRequestError:
    """What fieldValidation=Strict answers."""
    return BadRequestError(_refusal(obj, f"strict decoding error: {', '.join(warnings(unknown))}"))


def _refusal(obj: Obj, why: str) -> str:
    kind, version = obj.get("kind", ""), obj.get("apiVersion", "").rpartition("/")[2]
    return f'{kind} in version "{version}" cannot be handled as a {kind}: {why}'


def warnings(unknown: list[str]) -> list[str]:
    """What fieldValidation=Warn puts into Warning headers, one each."""
    return [f'unknown field "{path}"' for path in unknown]


class _Mismatch(Exception):
    pass


def _struct(
    value: Any, kind: Type, go_name: str, way: tuple[str, ...], path: str, unknown: list[str]
) -> dict[str, Any]:
    """way: field names from the root, as Go reports; path: with indices, as strict errors report."""
    out: dict[str, Any] = {}
    fields = kind.fields
    for key, item in value.items():
        here = f"{path}.{key}" if path else key
        field = fields.get(key)
        if field is None:
            unknown.append(here)
        elif item is not None:
            decoded = _value(item, field, go_name, (*way, key), here, unknown)
            if decoded or field.required or field.form not in ("list", "map"):
                out[key] = decoded
        elif field.required and field.form in _ZERO:
            out[key] = _ZERO[field.form]
    return out


def _value(value: Any, form: Form, struct: str, way: tuple[str, ...], path: str, unknown: list[str]) -> Any:
    match form.form:
        case "string":
            if not isinstance(value, str):
                raise _mismatch(value, form, struct, way)
        case "ref":
            if not isinstance(value, dict):
                raise _mismatch(value, form, struct, way)
            name = str(form.of)
            return _struct(value, schema.type_named(name), name.rpartition(".")[2], way, path, unknown)
        case "list":
            if not isinstance(value, list):
                raise _mismatch(value, form, struct, way)
            element = form.element
            return [
                _value(_present(v, element), element, struct, way, f"{path}[{i}]", unknown)
                for i, v in enumerate(value)
            ]
        case "map":
            if not isinstance(value, dict):
                raise _mismatch(value, form, struct, way)
            element = form.element
            return {
                k: _value(_present(v, element), element, struct, way, f"{path}.{k}", unknown)
                for k, v in value.items()
            }
        case "boolean":
            if not isinstance(value, bool):
                raise _mismatch(value, form, struct, way)
        case "int32" | "int64":
            if isinstance(value, bool) or not isinstance(value, int):
                raise _mismatch(value, form, struct, way)
            if not -_INTEGERS[form.form] <= value < _INTEGERS[form.form]:
                raise _mismatch(value, form, struct, way)
        case "number":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise _mismatch(value, form, struct, way)
        case "int-or-string":
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise _Mismatch(f"json: cannot unmarshal {_word(value)} into Go value of type int32")
            if isinstance(value, int) and not -(1 << 31) <= value < 1 << 31:
                raise _Mismatch(f"json: cannot unmarshal number {value} into Go value of type int32")
        case "quantity":
            return _quantity(value)
        case "time" | "microtime":
            if not isinstance(value, str):
                raise _mismatch(value, Form("string"), struct, way)
            if not _TIME.fullmatch(value):
                raise _Mismatch(
                    f'parsing time "{value}" as "2006-01-02T15:04:05Z07:00": cannot parse "{value}" ({path})'
                )
        case "bytes":
            if not isinstance(value, str):
                raise _mismatch(value, form, struct, way)
            try:
                binascii.a2b_base64(value.replace("\n", "").replace("\r", ""), strict_mode=True)
            except (binascii.Error, ValueError):
                raise _Mismatch(f"illegal base64 data in {path}") from None
    return value


def _present(value: Any, element: Form) -> Any:
    """A null element of a list or map is the zero value, as in Go."""
    if value is not None:
        return value
    return {} if element.form in ("ref", "map") else [] if element.form == "list" else _ZERO.get(element.form)


def _quantity(value: Any) -> Any:
    """Numbers become strings, as the API server writes them."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise _Mismatch(
            "quantities must match the regular expression "
            f"'^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$': {value!r}"
        )
    return value


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int | float):
        return "number"
    return "array" if isinstance(value, list) else "object"


def _mismatch(value: Any, form: Form, struct: str, way: tuple[str, ...]) -> _Mismatch:
    word = _word(value)
    if word == "number" and form.form in _INTEGERS:
        word = f"number {value}"
    return _Mismatch(
        f"json: cannot unmarshal {word} into Go struct field {struct}.{'.'.join(way)} of type {form.go}"
    )


__all__ = ["BadRequestError", "decode", "strict_error", "unknown_fields", "warnings"]
