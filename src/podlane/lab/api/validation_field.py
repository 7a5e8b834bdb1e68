"""A field at fault, in the words of k8s.io/apimachinery pkg/util/validation/field.

spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive
^ path              ^ type         ^ value ^ detail
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from podlane.errors import InvalidError


class ErrorType(enum.Enum):
    """(how it is shown, reason in a metav1.StatusCause, whether the value is shown)"""

    NOT_FOUND = ("Not found", "FieldValueNotFound", True)
    REQUIRED = ("Required value", "FieldValueRequired", False)
    DUPLICATE = ("Duplicate value", "FieldValueDuplicate", True)
    INVALID = ("Invalid value", "FieldValueInvalid", True)
    NOT_SUPPORTED = ("Unsupported value", "FieldValueNotSupported", True)
    FORBIDDEN = ("Forbidden", "FieldValueForbidden", False)
    TOO_LONG = ("Too long", "FieldValueTooLong", False)
    TOO_MANY = ("Too many", "FieldValueTooMany", True)


class FieldError(NamedTuple):
    path: str
    error: ErrorType
    value: Any
    detail: str

    @property
    def type(self) -> str:
        """The reason in a metav1.StatusCause."""
        return self.error.value[1]

    @property
    def message(self) -> str:
        """All but the path."""
        text, _, shows_value = self.error.value
        if shows_value:
            shown = json.dumps(self.value, ensure_ascii=False, separators=(",", ":"))
            text = f"{text}: {shown}"
        return f"{text}: {self.detail}" if self.detail else text

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def required(path: str, detail: str = "") -> FieldError:
    return FieldError(path, ErrorType.REQUIRED, "", detail)


def invalid(path: str, value: Any, detail: str) -> FieldError:
    return FieldError(path, ErrorType.INVALID, value, detail)


def forbidden(path: str, detail: str) -> FieldError:
    return FieldError(path, ErrorType.FORBIDDEN, "", detail)


def duplicate(path: str, value: Any) -> FieldError:
    return FieldError(path, ErrorType.DUPLICATE, value, "")


def not_found(path: str, value: Any) -> FieldError:
    return FieldError(path, ErrorType.NOT_FOUND, value, "")


def not_supported(path: str, value: Any, supported: Iterable[str]) -> FieldError:
    listed = ", ".join(json.dumps(s) for s in sorted(supported))
    return FieldError(path, ErrorType.NOT_SUPPORTED, value, f"supported values: {listed}")


def too_long(path: str, limit_bytes: int) -> FieldError:
    return FieldError(path, ErrorType.TOO_LONG, "", f"may not be more than {limit_bytes} bytes")


def too_many(path: str, count: int, limit: int) -> FieldError:
    return FieldError(path, ErrorType.TOO_MANY, count, f"must have at most {limit} items")


def invalid_error(api_version: str, kind: str, name: str, errors: Sequence[FieldError]) -> InvalidError:
    """`Service "web" is invalid: ...`: one error as it is, several in brackets."""
    group = api_version.rpartition("/")[0]
    texts = list(dict.fromkeys(map(str, errors)))
    shown = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details: dict[str, object] = {
        "name": name,
        "kind": kind,
        "causes": [{"reason": e.type, "message": e.message, "field": e.path} for e in errors],
    }
    if group:
        details["group"] = group
    return InvalidError(f'{kind}{"." if group else ""}{group} "{name}" is invalid: {shown}', details=details)
