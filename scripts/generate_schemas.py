#!/usr/bin/env python3
"""Writes what the lab's API knows of Kubernetes' types: `generate_schemas.py OUTDIR`.

Source: the OpenAPI definitions of Kubernetes v1.36 in the hash-pinned package kubernetes-validate
(kubernetes-json-schema/v1.36.0-local/_definitions.json). Nothing of a type is typed by hand, but for
the defaults that stand in the API server's code alone (schema_defaults.py, each with its source).

    OUTDIR/types.json                 the kinds served and their types: read at every start, so it is small
    OUTDIR/openapi/v2.json            /openapi/v2, with descriptions (read when somebody asks)
    OUTDIR/openapi/v3/api__v1.json    /openapi/v3/api/v1, one file a group and version ("/" written "__")

types.json is {"kinds": {"v1/Pod": type name}, "types": {name: {"fields": {field: [form, type, default,
merge key, strategy, list keys, required]}}}}, rows cut after the last value; podlane.lab.api.schema reads it.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

SOURCE_VERSION = "v1.36.0-local"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from podlane.lab.api.resources import BUILTIN, Resource  # noqa: E402
from schema_defaults import DEFAULTS, DESCRIBED  # noqa: E402

Schema = dict[str, Any]
META = "io.k8s.apimachinery.pkg.apis.meta.v1."

# Kinds that no resource stores but that have a schema: bodies of requests and of subresources.
BODIES = (
    ("v1", "Binding"),
    ("autoscaling/v1", "Scale"),
    ("policy/v1", "Eviction"),
    ("authentication.k8s.io/v1", "TokenRequest"),
    ("v1", "DeleteOptions"),
    ("v1", "Status"),
)
# Subresources that speak another kind than their resource: the kind, as clients look it up.
SUBRESOURCE_KINDS = {
    "scale": ("autoscaling/v1", "Scale"),
    "eviction": ("policy/v1", "Eviction"),
    "binding": ("v1", "Binding"),
    "token": ("authentication.k8s.io/v1", "TokenRequest"),
    "exec": ("v1", "PodExecOptions"),
    "attach": ("v1", "PodAttachOptions"),
    "portforward": ("v1", "PodPortForwardOptions"),
}
SUBRESOURCE_VERBS = {
    "status": ("get", "update", "patch"),
    "scale": ("get", "update", "patch"),
    "ephemeralcontainers": ("get", "update", "patch"),
    "resize": ("get", "update", "patch"),
    "log": ("get",),
    "exec": ("get", "create"),
    "attach": ("get", "create"),
    "portforward": ("get", "create"),
    "binding": ("create",),
    "eviction": ("create",),
    "token": ("create",),
    "finalize": ("update",),
}

_DEFAULT_SENTENCES = [
    re.compile(pattern)
    for pattern in (
        r"(?:Defaults?|defaults) to (?:the )?(?:empty )?[\"']?(?P<value>[\w/.%-]+)",
        r"[Dd]efault(?: value)? is [\"']?(?P<value>[\w/.%-]+)",
        r"[Dd]efault (?P<value>\d+)",
        r"The default type is '(?P<value>\w+)'",
        r"default policy is `(?P<value>\w+)`",
        r"default policy of `(?P<value>\w+)`",
        r"[`\"](?P<value>\w+)[`\"] \(default\)",
        r"The default (?:value )?[\w ]*is [\"'`]?(?P<value>[\w/.%-]+)",
        r"(?P<value>[A-Z]\w+) means .*\(default\)",
        r"Can be \"\w+\" or \"\w+\". Default is (?P<value>\w+)",
    )
]


def described_default(schema: Schema) -> object:
    """The default a description names, as the field's type. Raises ValueError when it names none."""
    text = schema.get("description", "")
    form = plain_type(schema)
    if "$ref" in schema and schema["$ref"].endswith("IntOrString"):
        form = "int-or-string"
    for pattern in _DEFAULT_SENTENCES:
        for match in pattern.finditer(text):
            value = match["value"].rstrip(".")
            if form == "integer":
                number = re.fullmatch(r"(\d+)s?", value)  # "Defaults to 600s."
                if number and text[match.end() :].startswith(" hour"):
                    return int(number[1]) * 3600
                if number:  # a leading zero is octal: file modes
                    return int(number[1], 8 if number[1].startswith("0") else 10)
            elif form == "boolean":
                if value in ("true", "false"):
                    return value == "true"
            elif form == "int-or-string":
                if re.fullmatch(r"\d+%?", value):
                    return value if value.endswith("%") else int(value)
            elif form == "object" or "$ref" in schema:
                if "Defaults to empty" in text:
                    return {}
            elif value == "empty":
                return ""
            elif value:
                return value
    if form == "string" and 'Defaults to ""' in text:
        return ""
    raise ValueError(f"no default in {text!r}")


def plain_type(schema: Schema) -> str | None:
    """The package widens every optional type with null: ["string", "null"] is string."""
    kind = schema.get("type")
    if isinstance(kind, list):
        return next(k for k in kind if k != "null")
    return kind


def short_ref(ref: str) -> str:
    return ref.rpartition("/")[2]


# --- types.json -----------------------------------------------------------------------------------

_SPECIAL = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "int-or-string",
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    META + "Time": "time",
    META + "MicroTime": "microtime",
    META + "FieldsV1": "any",
    META + "Patch": "any",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "any",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON": "any",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray": "any",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool": "any",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray": "any",
}


def form_of(schema: Schema) -> list[Any]:
    """[form, type]: type is a type's name for "ref", and the element's [form, type] for "list" and "map"."""
    if "$ref" in schema:
        name = short_ref(schema["$ref"])
        return [_SPECIAL[name], None] if name in _SPECIAL else ["ref", name]
    kind = plain_type(schema)
    if kind == "array":
        return ["list", form_of(schema["items"])]
    if kind == "object":
        values = schema.get("additionalProperties")
        return ["map", form_of(values)] if isinstance(values, dict) else ["any", None]
    if kind in ("string", "boolean", "number"):
        return ["bytes" if schema.get("format") == "byte" else kind, None]
    if kind == "integer":
        return [schema.get("format", "int64"), None]
    if kind is None:
        return ["any", None]
    raise ValueError(f"unknown form: {schema}")


_problems: list[str] = []


def compact_type(name: str, schema: Schema) -> Schema:
    defaults = DEFAULTS.get(name, {})
    required = set(schema.get("required", []))
    fields = {}
    for field, sub in schema.get("properties", {}).items():
        value = defaults.get(field)
        if value is DESCRIBED:
            try:
                value = described_default(sub)
            except ValueError as error:
                _problems.append(f"{name}.{field}: {error}")
                value = None
        row = [
            *form_of(sub),
            value,
            sub.get("x-kubernetes-patch-merge-key"),
            sub.get("x-kubernetes-patch-strategy"),
            sub.get("x-kubernetes-list-map-keys"),
            True if field in required else None,
        ]
        while row[-1] is None:
            row.pop()
        fields[field] = row
    _problems.extend(f"{name} has no field {field}" for field in sorted(set(defaults) - set(fields)))
    return {"fields": fields}


def closure(definitions: dict[str, Schema], roots: list[str]) -> list[str]:
    """Names of roots and of every type they lead to, sorted."""
    seen: set[str] = set()
    queue = list(roots)
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        queue += [short_ref(r) for r in re.findall(r'"\$ref": "([^"]+)"', json.dumps(definitions[name]))]
    return sorted(seen)


# --- OpenAPI --------------------------------------------------------------------------------------

_V2 = {"int-or-string": {"type": "string", "format": "int-or-string"}, "quantity": {"type": "string"}}
_V3 = {
    "int-or-string": {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
    "quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]},
}


def openapi_schema(schema: Schema, *, version: int) -> Schema:
    """A definition as the API server serves it: without the nulls and enums the package added."""
    out: Schema = {}
    for key, value in schema.items():
        if key == "type":
            out["type"] = plain_type(schema)
        elif key == "properties":
            out["properties"] = {
                name: {k: v for k, v in openapi_schema(sub, version=version).items() if k != "enum"}
                if name in ("apiVersion", "kind")
                else openapi_schema(sub, version=version)
                for name, sub in value.items()
            }
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            out[key] = openapi_schema(value, version=version)
        elif key == "$ref":
            if version == 2:
                out["$ref"] = "#/definitions/" + short_ref(value)
            else:
                out["allOf"] = [{"$ref": "#/components/schemas/" + short_ref(value)}]
        elif key != "additionalProperties" or value is not False:
            out[key] = value
    return out


def openapi_definition(name: str, schema: Schema, *, version: int) -> Schema:
    special = (_V2 if version == 2 else _V3).get(_SPECIAL.get(name, ""))
    if special:
        return {**special, **({"description": schema["description"]} if "description" in schema else {})}
    return openapi_schema(schema, version=version)


_QUERY = {
    "list": ("allowWatchBookmarks", "continue", "fieldSelector", "labelSelector", "limit", "resourceVersion"),
    "post": ("dryRun", "fieldManager", "fieldValidation"),
    "put": ("dryRun", "fieldManager", "fieldValidation"),
    "patch": ("dryRun", "fieldManager", "fieldValidation", "force"),
    "delete": ("dryRun", "gracePeriodSeconds", "propagationPolicy"),
}
_METHOD = {"get": "get", "update": "put", "patch": "patch", "delete": "delete"}


def operation(action: str, resource: Resource, kind_ref: str, *, version: int) -> Schema:
    """One method of one path: what clients look for is the kind, the action and the query parameters."""
    names = _QUERY.get(action, ())
    group = resource.group.partition(".")[0].title() or "Core"
    string: Schema = {"type": "string"}
    parameters = [
        {"name": n, "in": "query", **(string if version == 2 else {"schema": string})} for n in names
    ]
    if version == 2:
        answer: Schema = {"description": "OK", "schema": {"$ref": "#/definitions/" + kind_ref}}
    else:
        content = {"schema": {"$ref": "#/components/schemas/" + kind_ref}}
        answer = {"description": "OK", "content": {"application/json": content}}
    return {
        "operationId": f"{action}{group}{resource.version.title()}{resource.kind}",
        "parameters": parameters,
        "responses": {"200": answer},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {
            "group": resource.group,
            "version": resource.version,
            "kind": resource.kind,
        },
    }


def paths_of(resource: Resource, ref: str, list_ref: str, *, version: int) -> Schema:
    base = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    scope = "/namespaces/{namespace}" if resource.namespaced else ""
    collection, item = f"{base}{scope}/{resource.plural}", f"{base}{scope}/{resource.plural}/{{name}}"

    def op(action: str, kind_ref: str = ref) -> Schema:
        return operation(action, resource, kind_ref, version=version)

    text = {"required": True, **({"type": "string"} if version == 2 else {"schema": {"type": "string"}})}
    in_path = [{"name": "namespace", "in": "path", **text}] if resource.namespaced else []
    named = [*in_path, {"name": "name", "in": "path", **text}]
    paths: Schema = {collection: {"parameters": in_path}}
    if "list" in resource.verbs:
        paths[collection]["get"] = op("list", list_ref)
        if resource.namespaced:
            paths[f"{base}/{resource.plural}"] = {"get": op("list", list_ref)}
    if "create" in resource.verbs:
        paths[collection]["post"] = op("post")
    methods = {_METHOD[v]: op(_METHOD[v]) for v in resource.verbs if v in _METHOD}
    if methods:
        paths[item] = {**methods, "parameters": named}
    for subresource in resource.subresources:
        names = (_METHOD.get(v, "post") for v in SUBRESOURCE_VERBS[subresource])
        methods = {name: op(name) for name in names}
        if subresource in SUBRESOURCE_KINDS:
            api_version, kind = SUBRESOURCE_KINDS[subresource]
            group, _, version_name = api_version.rpartition("/")
            for method in methods.values():
                method["x-kubernetes-group-version-kind"] = {
                    "group": group,
                    "version": version_name,
                    "kind": kind,
                }
        paths[f"{item}/{subresource}"] = {**methods, "parameters": named}
    return paths


# --- main -----------------------------------------------------------------------------------------


def load_definitions() -> dict[str, Schema]:
    spec = importlib.util.find_spec("kubernetes_validate")
    if spec is None or spec.origin is None:
        raise SystemExit("generate_schemas: the package kubernetes-validate is not installed")
    path = Path(spec.origin).parent / "kubernetes-json-schema" / SOURCE_VERSION / "_definitions.json"
    definitions: dict[str, Schema] = json.loads(path.read_text())["$defs"]
    return definitions


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True))
    temporary.replace(path)


def main(out: Path) -> None:
    definitions = load_definitions()
    by_kind: dict[tuple[str, str], str] = {}
    for name, schema in definitions.items():
        for gvk in schema.get("x-kubernetes-group-version-kind", []):
            api_version = f"{gvk['group']}/{gvk['version']}" if gvk["group"] else gvk["version"]
            by_kind[api_version, gvk["kind"]] = name

    groups: dict[str, list[Resource]] = {}
    kinds: dict[str, str] = {}
    for resource in BUILTIN:
        groups.setdefault(resource.api_version, []).append(resource)
        kinds[f"{resource.api_version}/{resource.kind}"] = by_kind[resource.api_version, resource.kind]
    for api_version, kind in BODIES:
        kinds[f"{api_version}/{kind}"] = by_kind[api_version, kind]
    types = {
        name: compact_type(name, definitions[name])
        for name in closure(definitions, list(kinds.values()))
        if name not in _SPECIAL
    }
    missing = set(DEFAULTS) - set(types)
    _problems.extend(f"defaults for a type that is not served: {name}" for name in sorted(missing))
    if _problems:
        raise SystemExit("generate_schemas:\n  " + "\n  ".join(_problems))
    write(out / "types.json", {"kinds": kinds, "types": types})

    lists = {key: by_kind.get((key.rpartition("/")[0], key.rpartition("/")[2] + "List")) for key in kinds}
    for version in (2, 3):
        documents: Schema = {}
        for api_version, resources in groups.items():
            paths: Schema = {}
            roots = [META + "Status", META + "DeleteOptions"]
            for resource in resources:
                key = f"{api_version}/{resource.kind}"
                ref, list_ref = kinds[key], lists[key] or kinds[key]
                roots += [ref, list_ref]
                paths |= paths_of(resource, ref, list_ref, version=version)
            roots += [
                name for (body, _), name in by_kind.items() if (body, _) in BODIES and body == api_version
            ]
            schemas = {
                name: openapi_definition(name, definitions[name], version=version)
                for name in closure(definitions, roots)
            }
            path = ("apis/" if "/" in api_version else "api/") + api_version
            documents[path] = {"paths": paths, "schemas": schemas}
        info = {"title": "Kubernetes", "version": SOURCE_VERSION.partition("-")[0]}
        if version == 2:
            merged: Schema = {"swagger": "2.0", "info": info, "paths": {}, "definitions": {}}
            for document in documents.values():
                merged["paths"] |= document["paths"]
                merged["definitions"] |= document["schemas"]
            write(out / "openapi" / "v2.json", merged)
            continue
        for path, document in documents.items():
            write(
                out / "openapi" / "v3" / f"{path.replace('/', '__')}.json",
                {
                    "openapi": "3.0.0",
                    "info": info,
                    "paths": document["paths"],
                    "components": {"schemas": document["schemas"]},
                },
            )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
