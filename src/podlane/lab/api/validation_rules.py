"""Rules for values of fields, made to be put in tables: RULES[type][field] = rule. Pure.

A rule gets a value that is there (neither missing nor an empty string) and its path, and yields FieldErrors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from podlane.lab.api import validation_field as field
from podlane.lab.api import validation_names as names
from podlane.lab.api.validation_field import FieldError
from podlane.lab.api.validation_names import Check

Errors = Iterator[FieldError]
Rule = Callable[[Any, str], Errors]
PORT_RANGE = "must be between 1 and 65535, inclusive"
NOT_NEGATIVE = "must be greater than or equal to 0"


def text(check: Check) -> Rule:
    """Every complaint of a check of validation_names."""

    def rule(value: Any, path: str) -> Errors:
        for why in check(value):
            yield field.invalid(path, value, why)

    return rule


def one_of(*allowed: str) -> Rule:
    def rule(value: Any, path: str) -> Errors:
        if value not in allowed:
            yield field.not_supported(path, value, allowed)

    return rule


def between(low: int, high: int, detail: str = "") -> Rule:
    words = detail or f"must be between {low} and {high}, inclusive"

    def rule(value: Any, path: str) -> Errors:
        if not low <= value <= high:
            yield field.invalid(path, value, words)

    return rule


def at_least(low: int, detail: str) -> Rule:
    return between(low, 1 << 63, detail)


not_negative = at_least(0, NOT_NEGATIVE)
port = between(1, 65535, PORT_RANGE)
file_mode = between(0, 0o777, "must be a number between 0 and 0777 (octal), both inclusive")


def port_or_name(value: Any, path: str) -> Errors:
    """A number, or the name of a container's port."""
    yield from (port if isinstance(value, int) else text(names.port_name))(value, path)


def amount_or_percent(value: Any, path: str) -> Errors:
    """5 or "25%", as rolling updates have it."""
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]+%", value):
            yield field.invalid(
                path,
                value,
                "a valid percent string must be a numeric string followed by "
                + ("an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"),
            )
    else:
        yield from not_negative(value, path)


def each(rule: Rule) -> Rule:
    """Of a list."""

    def of_list(value: Any, path: str) -> Errors:
        for i, item in enumerate(value):
            yield from rule(item, f"{path}[{i}]")

    return of_list


def unique(key: str = "") -> Rule:
    """No two elements of a list are the same, or have the same `key`."""

    def rule(value: Any, path: str) -> Errors:
        seen = set()
        for i, item in enumerate(value):
            found = item.get(key) if key else item
            if not found:
                continue
            if found in seen:
                yield field.duplicate(f"{path}[{i}].{key}" if key else f"{path}[{i}]", found)
            seen.add(found)

    return rule


def both(*rules: Rule) -> Rule:
    def rule(value: Any, path: str) -> Errors:
        for part in rules:
            yield from part(value, path)

    return rule


def immutable(value: Any, old: Any, path: str) -> Errors:
    if value != old:
        yield field.invalid(path, value, "field is immutable")


def labels(value: Any, path: str) -> Errors:
    for key, item in value.items():
        yield from text(names.qualified_name)(key, path)
        yield from text(names.label_value)(item, path)


def annotation_map(value: Any, path: str) -> Errors:
    for key in value:
        for why in names.qualified_name(key.lower()):
            yield field.invalid(path, key, why)
    if sum(len(k.encode()) + len(v.encode()) for k, v in value.items()) > 256 << 10:
        yield field.too_long(path, 256 << 10)


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def exactly_one(value: dict[str, Any], path: str, keys: Iterable[str], missing: str, many: str) -> Errors:
    """Of a union: the first that is set stands, the others are at fault."""
    found = [k for k in keys if value.get(k) is not None]
    if not found:
        yield field.required(path, missing)
    for extra in found[1:]:
        yield field.forbidden(join(path, extra), many)
