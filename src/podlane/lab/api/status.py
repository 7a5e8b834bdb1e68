"""Refusals in the words of kube-apiserver, and metav1.Status, the form in which clients get them.

The forms are those of k8s.io/apimachinery pkg/api/errors; kubectl and client libraries show and parse them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol

from podlane.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    InvalidError,
    NotFoundError,
)
from podlane.lab.api.resources import Resource
from podlane.lab.client import Obj

MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


class FieldProblem(Protocol):
    """A field at fault: type is a FieldValueInvalid-like reason, text the message without the path."""

    @property
    def path(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def message(self) -> str: ...


def _details(resource: Resource, name: str) -> dict[str, object]:
    details: dict[str, object] = {"name": name, "kind": resource.plural}
    if resource.group:
        details["group"] = resource.group
    return details


def not_found(resource: Resource, name: str) -> ApiError:
    return NotFoundError(f'{resource.id} "{name}" not found', details=_details(resource, name))


def already_exists(resource: Resource, name: str) -> ApiError:
    return AlreadyExistsError(f'{resource.id} "{name}" already exists', details=_details(resource, name))


def conflict(resource: Resource, name: str, why: str = MODIFIED) -> ApiError:
    message = f'Operation cannot be fulfilled on {resource.id} "{name}": {why}'
    return ConflictError(message, details=_details(resource, name))


def bad_request(message: str) -> ApiError:
    return ApiError(message, code=400, reason="BadRequest")


def forbidden(resource: Resource, name: str, why: str, *, causes: list[Obj] | None = None) -> ApiError:
    details = _details(resource, name)
    if causes:
        details["causes"] = causes
    return ApiError(
        f'{resource.id} "{name}" is forbidden: {why}', code=403, reason="Forbidden", details=details
    )


def method_not_allowed() -> ApiError:
    message = "the server does not allow this method on the requested resource"
    return ApiError(message, code=405, reason="MethodNotAllowed")


def unsupported_media(message: str) -> ApiError:
    return ApiError(message, code=415, reason="UnsupportedMediaType")


def too_large(limit_bytes: int) -> ApiError:
    message = f"Request entity too large: limit is {limit_bytes}"
    return ApiError(message, code=413, reason="RequestEntityTooLarge")


def invalid(resource: Resource, name: str, problems: Iterable[FieldProblem]) -> ApiError:
    """`Service "x" is invalid: spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535`."""
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    found = list(problems)
    texts = list(dict.fromkeys(f"{p.path}: {p.message}" for p in found))
    shown = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details = {**_details(resource, name), "kind": resource.kind}
    details["causes"] = [{"reason": p.type, "message": p.message, "field": p.path} for p in found]
    return InvalidError(f'{kind} "{name}" is invalid: {shown}', details=details)


class Problem:
    """A field at fault, found by the API server itself rather than by a schema."""

    def __init__(self, path: str, type_: str, message: str) -> None:
        self.path, self.type, self.message = path, type_, message


def required(path: str, detail: str = "") -> Problem:
    return Problem(path, "FieldValueRequired", "Required value" + (f": {detail}" if detail else ""))


def invalid_value(path: str, value: Any, detail: str) -> Problem:
    return Problem(path, "FieldValueInvalid", f"Invalid value: {shown(value)}: {detail}")


def shown(value: Any) -> str:
    """A value as Go prints it in field errors."""
    if value is None:
        return "null"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def of(error: ApiError) -> Obj:
    """The metav1.Status of an error."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": str(error),
        "reason": error.reason,
        "details": error.details,  # even when empty: kubectl reads into it without asking
        "code": error.code,
    }


def success(resource: Resource, name: str, uid: str) -> Obj:
    """The answer to a deletion that is complete."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {**_details(resource, name), "uid": uid},
    }
