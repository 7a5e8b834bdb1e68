"""Strategic merge patch: a merge patch that knows the elements of lists apart by the kind's merge keys.

Directives of a patch (k8s.io/apimachinery pkg/util/strategicpatch):

    $patch: replace | delete | merge      of an object, or of an element of a list
    $retainKeys: [a, b]                   of an object: every other field goes
    $setElementOrder/FIELD: [...]         the order of a list, of values or of {mergeKey: value}
    $deleteFromPrimitiveList/FIELD: [...] values to take out of a list

Pure: what is given is never changed. Raises ApiError(400) on a patch that makes no sense.
"""

from __future__ import annotations

from typing import Any

from podlane.lab.api.schema import Field, Type
from podlane.lab.api.status import bad_request

_PATCH = "$patch"
_RETAIN = "$retainKeys"
_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"

Object = dict[str, Any]


def merge(original: Object, patch: Object, kind: Type | None) -> Object:
    """kind: the type of original; None where nothing is known, then lists replace lists."""
    directive = patch.get(_PATCH)
    if directive is not None:
        if directive == "replace":
            return dict(_plain(patch))
        if directive == "delete":
            return {}
        if directive != "merge":
            raise _bad(f"unknown patch type {directive!r}: use replace, delete or merge")
    result = dict(original)
    if _RETAIN in patch:
        _retain(result, patch)
    fields = kind.fields if kind else {}
    ordered = _ordered(result, patch, fields)
    for key, value in patch.items():
        if key in (_PATCH, _RETAIN) or key in ordered or key.startswith(_ORDER):
            continue
        if key.startswith(_DELETE):
            _delete_values(result, key.removeprefix(_DELETE), value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = _value(result.get(key), value, fields.get(key), key)
    return result


def _value(original: Any, value: Any, field: Field | None, name: str) -> Any:
    replaces = field is not None and "replace" in (field.strategy or "")
    if isinstance(value, dict):
        if not isinstance(original, dict) or replaces:
            return _plain(value)
        if field is not None and field.form == "map":
            return _map(original, value, field.child)
        return merge(original, value, field.child if field else None)
    if isinstance(value, list):
        if isinstance(original, list) and _merges(field):
            return _list(original, value, field, name)
        return _plain(value)
    return value


def _map(original: Object, patch: Object, child: Type | None) -> Object:
    """A map from any name to values of one type: merged by name."""
    if _PATCH in patch:
        return merge(original, patch, None)
    result = dict(original)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value, child)
        else:
            result[key] = _plain(value)
    return result


def _merges(field: Field | None) -> bool:
    return field is not None and "merge" in (field.strategy or "").split(",")


def _retain(result: Object, patch: Object) -> None:
    keys = patch[_RETAIN]
    if not isinstance(keys, list):
        raise _bad(f"{_RETAIN} is not a list")
    given = {k for k, v in patch.items() if not k.startswith("$") and v is not None}
    if not given <= set(keys):
        raise _bad(f"{_RETAIN} does not list {', '.join(sorted(given - set(keys)))}, which the patch sets")
    for key in set(result) - set(keys):
        del result[key]


# --- lists ----------------------------------------------------------------------------------------


def _list(original: list[Any], patch: list[Any], field: Field | None, name: str) -> list[Any]:
    """Elements that are equal by merge key (or by value) are merged; the patch's order wins."""
    if not any(isinstance(v, dict) for v in (*original, *patch)):
        merged = list(original)
        merged += [v for i, v in enumerate(patch) if v not in original and v not in patch[:i]]
        return _arranged(merged, patch, original, "")
    key = field.merge_key if field else None
    if not key:
        raise _bad(f"cannot merge lists without merge key for {name}")
    original, patch = _directives(original, patch, key)
    merged = list(original)
    child = field.child if field else None
    for element in patch:
        wanted = _key_of(element, key, name)
        at = next((i for i, v in enumerate(merged) if isinstance(v, dict) and v.get(key) == wanted), None)
        if at is None:
            merged.append(_plain(element))
        else:
            merged[at] = merge(merged[at], element, child)
    return _arranged(merged, patch, original, key)


def _directives(original: list[Any], patch: list[Any], key: str) -> tuple[list[Any], list[Any]]:
    """Elements that carry $patch: replace makes the rest of the patch the list, delete takes one out."""
    rest, replaces = [], False
    for element in patch:
        directive = element.get(_PATCH) if isinstance(element, dict) else None
        if directive is None:
            rest.append(element)
        elif directive == "replace":
            replaces = True
        elif directive == "delete":
            wanted = _key_of(element, key, "the element to delete")
            original = [v for v in original if v.get(key) != wanted]
        elif directive == "merge":
            raise _bad("merging a list is what happens anyway: $patch: merge has no place in a list")
        else:
            raise _bad(f"unknown patch type {directive!r}: use replace or delete")
    return ([_plain(v) for v in rest], []) if replaces else (original, rest)


def _ordered(result: Object, patch: Object, fields: dict[str, Field]) -> set[str]:
    """Lists with a $setElementOrder, done in place; their names."""
    done = set()
    for directive, order in patch.items():
        if not directive.startswith(_ORDER):
            continue
        name = directive.removeprefix(_ORDER)
        field = fields.get(name)
        key = (field.merge_key if field else None) or ""
        if not isinstance(order, list):
            raise _bad(f"{directive} is not a list")
        if name in patch and patch[name] is None:
            continue
        original, given = result.get(name), patch.get(name)
        if given is not None and not isinstance(given, list):
            raise _bad(f"{name} is not a list")
        if original is None and given is None:
            continue
        deleted = _DELETE + name
        if isinstance(original, list) and deleted in patch:
            original = [v for v in original if v not in patch[deleted]]
        if given is None:
            merged = list(original or ())
        elif isinstance(original, list):
            merged = _list(original, given, field, name)
        else:
            merged = _list([], given, field, name)
        result[name] = _arranged(merged, order, list(original or ()), key)
        done |= {name, deleted}
    return done


def _identity(element: Any, key: str) -> Any:
    return element.get(key) if key and isinstance(element, dict) else element


def _place(element: Any, order: list[Any], key: str) -> int:
    """Index in an order, -1 when it is not there."""
    wanted = _identity(element, key)
    return next((i for i, v in enumerate(order) if _identity(v, key) == wanted), -1)


def _arranged(merged: list[Any], order: list[Any], server: list[Any], key: str) -> list[Any]:
    """What the patch names in the patch's order, the rest where the server has it (normalizeElementOrder)."""
    named = sorted((v for v in merged if _place(v, order, key) >= 0), key=lambda v: _place(v, order, key))
    others = [v for v in merged if _place(v, order, key) < 0]
    others.sort(key=lambda v: _place(v, server, key))
    result = []
    while named and others:
        left, right = _place(others[0], server, key), _place(named[0], server, key)
        result.append(others.pop(0) if 0 <= left < right else named.pop(0))
    return result + others + named


def _delete_values(result: Object, name: str, values: Any) -> None:
    if not isinstance(values, list):
        raise _bad(f"{_DELETE}{name} is not a list")
    if isinstance(result.get(name), list):
        result[name] = [v for v in result[name] if v not in values]


def _key_of(element: Any, key: str, name: str) -> Any:
    if not isinstance(element, dict) or element.get(key) is None:
        raise _bad(f"map: {element} does not contain declared merge key: {key} ({name})")
    return element[key]


def _plain(value: Any) -> Any:
    """A patch's value where there was none before: without directives and nulls."""
    if isinstance(value, dict):
        if value.get(_PATCH) == "delete":
            return {}
        return {
            k: _plain(v)
            for k, v in value.items()
            if v is not None and k not in (_PATCH, _RETAIN) and not k.startswith((_ORDER, _DELETE))
        }
    if isinstance(value, list):
        return [_plain(v) for v in value if not (isinstance(v, dict) and _PATCH in v)]
    return value


def _bad(why: str) -> Exception:
    return bad_request(f"invalid strategic merge patch: {why}")
