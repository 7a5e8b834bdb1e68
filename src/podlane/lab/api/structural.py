"""Structural schemas of custom resources: pruning and defaulting (KEP-2337 and its kin).

A schema is the openAPIV3Schema of a CustomResourceDefinition's version, as JSON. Objects change in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from podlane.lab.api.status import Problem, required
from podlane.lab.api.store import copied

Schema = dict[str, Any]

PRESERVE = "x-kubernetes-preserve-unknown-fields"
EMBEDDED = "x-kubernetes-embedded-resource"
INT_OR_STRING = "x-kubernetes-int-or-string"
_OBJECT_FIELDS = ("apiVersion", "kind", "metadata")


def prune(value: Any, schema: Schema, *, root: bool = True) -> list[str]:
    """Drop the fields the schema does not have; their paths."""
    dropped: list[str] = []
    _prune(value, schema, "", root, dropped)
    return dropped


def _prune(value: Any, schema: Schema, path: str, is_object: bool, dropped: list[str]) -> None:
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        others = schema.get("additionalProperties")
        keep = bool(schema.get(PRESERVE))
        is_object = is_object or bool(schema.get(EMBEDDED))
        for key in list(value):
            here = f"{path}.{key}" if path else key
            if is_object and key in _OBJECT_FIELDS:
                continue
            if key in properties:
                _prune(value[key], properties[key], here, False, dropped)
            elif isinstance(others, dict):
                _prune(value[key], others, here, False, dropped)
            elif not keep and others is not True:
                del value[key]
                dropped.append(here)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for i, element in enumerate(value):
            _prune(element, schema["items"], f"{path}[{i}]", False, dropped)


def default(value: Any, schema: Schema) -> None:
    """Fill in defaults; a null where none is allowed makes room for one."""
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        for key, sub in properties.items():
            if key in value and value[key] is None and not sub.get("nullable") and "default" in sub:
                del value[key]
            if key not in value and "default" in sub:
                value[key] = copied({"": sub["default"]})[""]
            if key in value:
                default(value[key], sub)
        others = schema.get("additionalProperties")
        if isinstance(others, dict):
            for key in value.keys() - properties.keys():
                default(value[key], others)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for element in value:
            default(element, schema["items"])


def faults(schema: Any, path: str, *, root: bool = True) -> Iterator[Problem]:
    """Why a schema is not structural: the faults people make."""
    if not isinstance(schema, dict):
        yield required(path, "must be an object")
        return
    free = schema.get(INT_OR_STRING) or schema.get(PRESERVE)
    if not schema.get("type") and not free:
        yield required(f"{path}.type", "must not be empty for specified " + _sort_of(path, root))
    if root and schema.get("type") not in (None, "object"):
        yield Problem(
            f"{path}.type",
            "FieldValueInvalid",
            f'Invalid value: "{schema["type"]}": must be object at the root',
        )
    if schema.get("type") == "array" and not isinstance(schema.get("items"), dict):
        yield required(f"{path}.items", "must be specified")
    if "properties" in schema and isinstance(schema.get("additionalProperties"), dict):
        yield Problem(
            f"{path}.additionalProperties",
            "FieldValueForbidden",
            "Forbidden: additionalProperties and properties are mutual exclusive",
        )
    for key, sub in (schema.get("properties") or {}).items():
        if root and key == "metadata":
            continue
        yield from faults(sub, f"{path}.properties[{key}]", root=False)
    if isinstance(schema.get("items"), dict):
        yield from faults(schema["items"], f"{path}.items", root=False)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from faults(schema["additionalProperties"], f"{path}.additionalProperties", root=False)


def _sort_of(path: str, root: bool) -> str:
    if root:
        return "root"
    return "array items" if path.endswith(".items") else "object fields"


def uses(value: Any, keyword: str) -> bool:
    """A keyword occurs anywhere in a schema."""
    if isinstance(value, dict):
        return keyword in value or any(uses(v, keyword) for v in value.values())
    return isinstance(value, list) and any(uses(v, keyword) for v in value)
