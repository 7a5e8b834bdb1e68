"""Kubernetes' types as data: fields, their forms, defaults and merge keys, from generated/types.json.

The file is written by scripts/generate_schemas.py at build time and read once, on first use (a few ms).
Which resources are served is resources.py's; descriptions are only in the OpenAPI documents, read when
somebody asks for them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from podlane.errors import LabError

GENERATED = Path(__file__).parent / "generated"


class Form(Struct, array_like=True, frozen=True):
    """The shape of a value.

    form: string, bytes, boolean, number, int32, int64, time, microtime, int-or-string, quantity, any
    (whatever JSON holds), ref (of: a type's name), list and map (of: the form of an element).
    """

    form: str
    of: str | Form | None = None

    @property
    def go(self) -> str:
        """The type's name in messages, as Go prints it."""
        if self.form == "list":
            return "[]" + self.element.go
        if self.form == "map":
            return "map[string]" + self.element.go
        if self.form == "ref":
            return ".".join(str(self.of).rsplit(".", 2)[-2:])
        return _GO.get(self.form, self.form)

    @property
    def element(self) -> Form:
        """Of a list or map."""
        assert isinstance(self.of, Form)
        return self.of


_GO = {
    "boolean": "bool",
    "bytes": "[]uint8",
    "number": "float64",
    "time": "v1.Time",
    "microtime": "v1.MicroTime",
    "int-or-string": "intstr.IntOrString",
    "quantity": "resource.Quantity",
    "any": "interface {}",
}


class Field(Form, array_like=True, frozen=True):
    """One field of a type.

    default: what the API server fills in, None for nothing. strategy: of a strategic merge patch
    ("merge", "replace", "retainKeys", "merge,retainKeys"), merge_key: what tells list elements apart
    there. list_keys: the same for server-side apply.
    """

    default: Any = None
    merge_key: str | None = None
    strategy: str | None = None
    list_keys: list[str] | None = None
    required: bool = False

    @property
    def child(self) -> Type | None:
        """The type of the field's value, or of the elements of its list or map; None when it is plain."""
        form: Form = self
        while isinstance(form.of, Form):
            form = form.of
        return type_named(form.of) if form.form == "ref" and form.of is not None else None


class Type(Struct, frozen=True):
    fields: dict[str, Field]


class _Types(Struct, frozen=True):
    kinds: dict[str, str]
    types: dict[str, Type]


@functools.cache
def _load() -> _Types:
    path = GENERATED / "types.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Types)
    except FileNotFoundError:
        raise LabError(
            f"{path} is missing: `scripts/setup.sh` (or `make setup`) generates Kubernetes' schemas"
        ) from None


def type_named(name: str) -> Type:
    """By the name the OpenAPI documents use, as io.k8s.api.core.v1.ServicePort."""
    return _load().types[name]


def type_name(api_version: str, kind: str) -> str | None:
    """The type's name of a built-in kind; None for any other."""
    return _load().kinds.get(f"{api_version}/{kind}")


def type_of(api_version: str, kind: str) -> Type | None:
    """The type of a built-in kind; None for any other (custom resources have schemas of their own)."""
    name = type_name(api_version, kind)
    return None if name is None else type_named(name)


def openapi_v2() -> bytes:
    """The body of /openapi/v2: definitions and paths of the built-in kinds."""
    return (GENERATED / "openapi" / "v2.json").read_bytes()


def openapi_v3(path: str) -> bytes:
    """The body of /openapi/v3/PATH for a path of openapi_v3_paths, as "apis/apps/v1"."""
    return (GENERATED / "openapi" / "v3" / f"{path.replace('/', '__')}.json").read_bytes()


def openapi_v3_paths() -> Iterator[str]:
    """ "api/v1", "apis/apps/v1", ... of the built-in kinds."""
    for file in sorted((GENERATED / "openapi" / "v3").glob("*.json")):
        yield file.stem.replace("__", "/")
