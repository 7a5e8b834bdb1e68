"""Finds, without a server, what the API would refuse about manifests: so that no lab is begun in vain. Pure.

The rules are the API server's own (lab/api/validation*.py). What depends on what is there already (taken
addresses, names, namespaces) only the server can tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from podlane.controller import definitions
from podlane.errors import ApiError, ConfigError
from podlane.lab.api import (
    allocation_fields,
    defaults,
    schema,
    structural_validation,
    validation,
    validation_decode,
)
from podlane.lab.api.resources import Catalog
from podlane.lab.api.validation_field import invalid_error
from podlane.lab.client import Obj
from podlane.model import pools
from podlane.model.config import API_VERSION


def problems(objects: Sequence[Obj]) -> Iterator[tuple[int, str]]:
    """(index of the object, what the API would say of it)"""
    catalog = Catalog()
    defined = set(_defined([*definitions.ALL, *objects]))
    for i, obj in enumerate(objects):
        key = obj["apiVersion"], obj["kind"]
        if catalog.of_kind(*key) is None:
            if key not in defined:
                known = ", ".join(sorted(r.api_version for r in catalog if r.kind == obj["kind"]))
                hint = f"; {obj['kind']} is served as {known}" if known else ""
                yield i, f'no matches for kind "{obj["kind"]}" in version "{obj["apiVersion"]}"{hint}'
            elif key == (API_VERSION, pools.KIND) and (why := _pool_problem(obj)):
                yield i, why
        elif schema.type_name(*key) is not None:
            try:
                _check(obj)
            except ApiError as error:
                yield i, str(error)


def _check(obj: Obj) -> None:
    """Raises ApiError."""
    decoded, unknown = validation_decode.decode(obj)
    if unknown:
        raise validation_decode.strict_error(obj, unknown)
    defaults.apply(decoded)
    if decoded["kind"] == "Service":
        allocation_fields.prepare_create(decoded)
    meta = decoded["metadata"]
    # A generated name is the server's; its prefix is what can be wrong.
    name = meta.setdefault("name", f"{meta.get('generateName', '')}x")
    if errors := validation.validate_create(decoded):
        raise invalid_error(obj["apiVersion"], obj["kind"], name, errors)


def _pool_problem(obj: Obj) -> str:
    """What the schema says of a LoadBalancerPool, or else what the controller would; "" for nothing."""
    own = definitions.LOAD_BALANCER_POOL["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for problem in structural_validation.validate(obj, own):
        return f"{problem.path}: {problem.message}"
    try:
        pools.parse(obj)
    except ConfigError as error:
        return str(error)
    return ""


def _defined(objects: Sequence[Obj]) -> Iterator[tuple[str, str]]:
    """apiVersion and kind of the custom resources these objects define."""
    for obj in objects:
        if obj["kind"] != "CustomResourceDefinition":
            continue
        try:
            spec = validation_decode.decode(obj)[0].get("spec", {})
        except ApiError:
            continue  # told by _check
        for version in spec.get("versions", []):
            yield f"{spec.get('group')}/{version.get('name')}", spec.get("names", {}).get("kind", "")
