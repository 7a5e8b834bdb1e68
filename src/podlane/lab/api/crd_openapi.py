"""OpenAPI documents of custom resources: what `kubectl explain` reads.

v3: one document a group and version. v2: one for all, which refers to definitions of the built-in one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from podlane.lab.api import gnostic
from podlane.lab.api import schema as builtin
from podlane.lab.api.resources import Resource
from podlane.lab.api.store import copied, decode
from podlane.lab.api.structural import EMBEDDED, PRESERVE, Schema
from podlane.lab.client import Obj

_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_ACTIONS = {"get": "get", "put": "put", "patch": "patch", "delete": "delete"}


def documents(versions: Iterable[tuple[Resource, Schema]]) -> dict[str, Obj]:
    """By path, as "apis/example.com/v1"."""
    found: dict[str, Obj] = {}
    for row, schema in versions:
        path = f"apis/{row.api_version}"
        document = found.setdefault(
            path,
            {
                "openapi": "3.0.0",
                "info": {"title": "Kubernetes CRD Swagger", "version": "v0.1.0"},
                "paths": {},
                "components": {"schemas": dict(_metadata_schemas())},
            },
        )
        name = schema_name(row)
        document["components"]["schemas"][name] = _published(row, schema)
        document["paths"] |= _paths(row, name)
    return found


def document_v2(versions: Iterable[tuple[Resource, Schema]]) -> Obj:
    """`definitions` and `paths` to be added to those of the built-in kinds."""
    found: Obj = {"definitions": {}, "paths": {}}
    for row, schema in versions:
        name = schema_name(row)
        found["definitions"][name] = _published_v2(row, schema)
        for path, methods in _paths(row, name).items():
            found["paths"][path] = {method: _operation_v2(o) for method, o in methods.items()}
    return found


def schema_name(row: Resource) -> str:
    return ".".join([*reversed(row.group.split(".")), row.version, row.kind])


def _gvk(row: Resource) -> Obj:
    return {"group": row.group, "version": row.version, "kind": row.kind}


def _published(row: Resource, schema: Schema) -> Obj:
    found = copied(schema)
    found.pop("oneOf", None)
    properties = found.setdefault("properties", {})
    if not found.get(PRESERVE) or EMBEDDED in found:
        found["type"] = "object"
    properties["apiVersion"] = {"type": "string", "description": "APIVersion of this representation."}
    properties["kind"] = {"type": "string", "description": "Kind of the resource this object represents."}
    reference = {"$ref": f"#/components/schemas/{_META}ObjectMeta"}
    properties["metadata"] = {"allOf": [reference], "description": "Standard object's metadata."}
    found["x-kubernetes-group-version-kind"] = [_gvk(row)]
    return found


def _published_v2(row: Resource, schema: Schema) -> Obj:
    found = _lowered(schema)
    if "properties" in found or not schema.get(PRESERVE):
        found["type"] = "object"
        published = _published(row, schema)["properties"]
        metadata = {
            "description": published["metadata"]["description"],
            "$ref": f"#/definitions/{_META}ObjectMeta",
        }
        found["properties"] = {
            **found.get("properties", {}),
            "apiVersion": published["apiVersion"],
            "kind": published["kind"],
            "metadata": metadata,
        }
    found["x-kubernetes-group-version-kind"] = [_gvk(row)]
    return found


def _lowered(schema: Schema) -> Schema:
    """A schema as OpenAPI v2 can say it, in a form that no kubectl stumbles over.

    What may be null, or hold unknown fields, has neither type nor parts (the rules are those of
    ToStructuralOpenAPIV2 in apiextensions-apiserver v0.28).
    """
    known = gnostic.schema_fields() - {"$ref", "allOf"}
    found = {k: v for k, v in schema.items() if v is not None and (k in known or k.startswith("x-"))}
    if schema.get("nullable") or schema.get(PRESERVE):
        found.pop("items", None)
        found.pop("properties", None)
        if schema.get("nullable") or schema.get("type") == "object":
            found.pop("type", None)
    if "items" not in found and found.get("type") == "array":
        del found["type"]
    if not found.get("properties"):
        found.pop("properties", None)
    else:
        found["properties"] = {name: _lowered(sub) for name, sub in found["properties"].items()}
        nullable = {name for name, sub in schema["properties"].items() if sub.get("nullable")}
        if nullable & set(found.get("required", ())):
            found["required"] = [name for name in found["required"] if name not in nullable]
    for part in ("items", "additionalProperties"):
        if isinstance(found.get(part), dict):
            found[part] = _lowered(found[part])
        elif not isinstance(found.get(part), bool):
            found.pop(part, None)
    return found


def _operation_v2(operation: Obj) -> Obj:
    parameters = [
        {"name": p["name"], "in": p["in"], "type": p["schema"]["type"]} for p in operation["parameters"]
    ]
    reference = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    schema = {"$ref": reference.replace("#/components/schemas/", "#/definitions/")}
    return {
        **operation,
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "schema": schema}},
    }


@cache
def _metadata_schemas() -> dict[str, Any]:
    """ObjectMeta and what it refers to, from a built-in document."""
    schemas = decode(builtin.openapi_v3("apis/coordination.k8s.io/v1"))["components"]["schemas"]
    names = ("ObjectMeta", "ManagedFieldsEntry", "OwnerReference", "Time", "FieldsV1", "DeleteOptions")
    return {_META + n: schemas[_META + n] for n in names if _META + n in schemas}


def _paths(row: Resource, name: str) -> Obj:
    base = f"/apis/{row.api_version}"
    scope = f"{base}/namespaces/{{namespace}}" if row.namespaced else base
    reference = {"schema": {"$ref": f"#/components/schemas/{name}"}}
    query = [
        {"name": n, "in": "query", "schema": {"type": "string"}}
        for n in ("dryRun", "fieldManager", "fieldValidation")
    ]

    def operation(action: str) -> Obj:
        return {
            "operationId": f"{action}{row.version.title()}{row.kind}",
            "parameters": query,
            "responses": {"200": {"description": "OK", "content": {"application/json": reference}}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": _gvk(row),
        }

    return {
        f"{scope}/{row.plural}": {"get": operation("list"), "post": operation("post")},
        f"{scope}/{row.plural}/{{name}}": {m: operation(a) for m, a in _ACTIONS.items()},
    }
