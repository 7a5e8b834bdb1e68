"""JSON patch (RFC 6902) and JSON merge patch (RFC 7396). Pure: what is given is never changed.

Strategic merge patch, which needs the kinds' schemas, is strategic.py.
"""

from __future__ import annotations

from typing import Any

from podlane.errors import ApiError
from podlane.lab.api.status import bad_request
from podlane.lab.api.store import copied


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902. Raises ApiError: 400 for what is no patch, 422 for what does not apply."""
    if not isinstance(operations, list) or not all(isinstance(o, dict) for o in operations):
        raise bad_request("error decoding patch: a JSON patch is an array of operations")
    holder = copied({"": target})
    for operation in operations:
        _apply(holder, operation)
    return holder[""]


def _apply(holder: Any, operation: dict[str, Any]) -> None:
    op = operation.get("op")
    path = operation.get("path")
    if op not in ("add", "remove", "replace", "move", "copy", "test") or not isinstance(path, str):
        raise bad_request(f"error decoding patch: not an operation: {operation!r}")
    if op in ("add", "replace", "test") and "value" not in operation:
        raise bad_request(f"error decoding patch: {op} {path!r} needs a value")
    match op:
        case "add":
            _insert(holder, path, operation["value"])
        case "remove":
            _take(holder, path)
        case "replace":
            if path == "":
                holder[""] = operation["value"]
                return
            parent, key = _parent(holder, path)
            _child(parent, key, path)
            parent[key] = operation["value"]
        case "test":
            if _value(holder, path) != operation["value"]:
                raise _failed(f"testing value {path} failed")
        case _:
            source = operation.get("from")
            if not isinstance(source, str):
                raise bad_request(f"error decoding patch: {op} {path!r} needs from")
            if op == "move" and path.startswith(source + "/"):
                raise _failed(f"cannot move {source} into itself")
            value = _take(holder, source) if op == "move" else copied({"": _value(holder, source)})[""]
            _insert(holder, path, value)


def _failed(why: str) -> ApiError:
    return ApiError(
        f"the server rejected our request due to an error in our request: {why}", code=422, reason="Invalid"
    )


def _tokens(path: str) -> list[str]:
    if path and not path.startswith("/"):
        raise bad_request(f"error decoding patch: {path!r} is not a JSON pointer")
    return [token.replace("~1", "/").replace("~0", "~") for token in path.split("/")]


def _index(parent: list[Any], token: str, path: str) -> int:
    if not (token.isascii() and token.isdigit()) or (token != "0" and token.startswith("0")):
        raise _failed(f"{token!r} is not an index: {path}")
    return int(token)


def _child(parent: Any, key: Any, path: str) -> Any:
    try:
        return parent[key]
    except (KeyError, IndexError, TypeError):
        raise _failed(f"there is nothing at {path}") from None


def _parent(holder: Any, path: str) -> tuple[Any, Any]:
    """(container, key or index) of a path; the index of "-" is the length."""
    tokens = _tokens(path)
    current = holder
    for i, token in enumerate(tokens):
        key: Any = token
        if isinstance(current, list):
            key = len(current) if token == "-" else _index(current, token, path)
        elif not isinstance(current, dict):
            raise _failed(f"there is nothing at {path}")
        if i == len(tokens) - 1:
            return current, key
        current = _child(current, key, path)
    raise AssertionError("a path has at least one token")


def _value(holder: Any, path: str) -> Any:
    parent, key = _parent(holder, path)
    return _child(parent, key, path)


def _insert(holder: Any, path: str, value: Any) -> None:
    parent, key = _parent(holder, path)
    if isinstance(parent, list):
        if key > len(parent):
            raise _failed(f"index {key} is beyond the end: {path}")
        parent.insert(key, value)
    else:
        parent[key] = value


def _take(holder: Any, path: str) -> Any:
    parent, key = _parent(holder, path)
    value = _child(parent, key, path)
    del parent[key]
    return value
