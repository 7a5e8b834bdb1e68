#!/usr/bin/env python3
"""Writes src/podlane/lab/api/protobuf_fields.json: `extract_protobuf_fields.py DIR`.

Go clients of Kubernetes (kubectl 1.32 among them) send objects as protobuf. The numbers of the fields are in
no OpenAPI document, only in the Go sources: in the tags of the structs. DIR holds the modules k8s.io/api,
k8s.io/apimachinery and k8s.io/apiextensions-apiserver (Apache-2.0) at one version, by these names:

    for m in api apimachinery apiextensions-apiserver; do
        git clone -q --depth 1 -b v0.36.0 https://github.com/kubernetes/$m DIR/$m
    done

The file is committed, since numbers never change once given; it is made again when the served kinds follow a
newer Kubernetes. {type name: [[JSON name, number, form, flags]]}, type names as in OpenAPI. Forms are those
of podlane/lab/api/protobuf.py; flags: "o" omitted when empty (omitempty), "i" inline, "v" a value and no
pointer: its zero is sent although nobody set it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from podlane.lab.api import schema  # noqa: E402
from podlane.lab.api.resources import BUILTIN  # noqa: E402

PACKAGES = {
    "api/{}": "io.k8s.api.{}",
    "apimachinery/pkg/apis/meta/v1": "io.k8s.apimachinery.pkg.apis.meta.v1",
    "apimachinery/pkg/types": "io.k8s.apimachinery.pkg.types",
    "apiextensions-apiserver/pkg/apis/apiextensions/v1": (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1"
    ),
}
META = "io.k8s.apimachinery.pkg.apis.meta.v1."
SPECIAL = {
    META + "Time": "time",
    META + "MicroTime": "microtime",
    META + "Duration": "duration",
    META + "FieldsV1": "raw",
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "int-or-string",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "raw",
    PACKAGES["apiextensions-apiserver/pkg/apis/apiextensions/v1"] + ".JSON": "raw",
}
SCALARS = {
    "string": "string",
    "bool": "boolean",
    "int32": "int",
    "int64": "int",
    "int": "int",
    "float64": "double",
    "byte": "byte",
}
STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
EMPTY = re.compile(r"^type (\w+) struct *\{ *\}", re.MULTILINE)
ALIAS = re.compile(r"^type (\w+) ([\w.\[\]*]+)$", re.MULTILINE)
FIELD = re.compile(r"^\t(?:(\w+)[ \t]+)?([*\w.\[\]]+)[ \t]+`([^`]*)`", re.MULTILINE)
IMPORT = re.compile(r'^\t(?:(\w+) )?"k8s\.io/([^"]+)"$', re.MULTILINE)


class Package:
    def __init__(self, root: Path, directory: str, name: str) -> None:
        self.name = name
        text = "\n".join(
            f.read_text()
            for f in sorted((root / directory).glob("*.go"))
            if not f.name.endswith(("_test.go", ".pb.go")) and not f.name.startswith("zz_")
        )
        self.structs = {m[1]: m[2] for m in STRUCT.finditer(text)} | dict.fromkeys(EMPTY.findall(text), "")
        self.aliases = {m[1]: m[2] for m in ALIAS.finditer(text)}
        self.imports = {}
        for found in IMPORT.finditer(text):
            path = found[2]
            self.imports[found[1] or path.rpartition("/")[2]] = "io.k8s." + path.replace("/", ".")


def main(root: Path) -> None:
    packages: dict[str, Package] = {}
    for directory, name in PACKAGES.items():
        if "{}" not in directory:
            packages[name] = Package(root, directory, name)
            continue
        for found in sorted((root / "api").glob("*/v*")):
            package = Package(root, str(found.relative_to(root)), name.format(".".join(found.parts[-2:])))
            packages[package.name] = package

    def form(text: str, package: Package) -> str:
        text = text.removeprefix("*")
        if text.startswith("[]"):
            element = form(text[2:], package)
            return "bytes" if element == "byte" else f"[{element}]"
        if text.startswith("map["):
            return f"{{{form(text.partition(']')[2], package)}}}"
        if text in SCALARS:
            return SCALARS[text]
        owner = package
        name = text
        if "." in text:
            prefix, _, name = text.partition(".")
            path = package.imports[prefix]
            full = f"{path}.{name}"
            if full in SPECIAL:
                return SPECIAL[full]
            owner = packages[path]
        full = f"{owner.name}.{name}"
        if full in SPECIAL:
            return SPECIAL[full]
        if name in owner.structs:
            return full
        alias = form(owner.aliases[name], owner)
        # Lists and maps with a name of their own are messages with the one field `items`.
        return f"wrapped {alias}" if alias.startswith("[") and name in ("ExtraValue", "Verbs") else alias

    table: dict[str, list[list[object]]] = {}
    wanted = [META + "DeleteOptions"]
    kinds = {(r.api_version, r.kind) for r in BUILTIN}
    kinds |= {("v1", "Binding"), ("autoscaling/v1", "Scale"), ("policy/v1", "Eviction")}
    kinds |= {("authentication.k8s.io/v1", "TokenRequest")}
    wanted += [name for name in (schema.type_name(*k) for k in sorted(kinds)) if name]
    while wanted:
        full = wanted.pop()
        if full in table:
            continue
        path, _, name = full.rpartition(".")
        package, rows = packages[path], []
        for go_name, go_type, tags in FIELD.findall(package.structs[name]):
            tag = dict(re.findall(r'(\w+):"([^"]*)"', tags))
            parts = tag.get("protobuf", "-").split(",")
            if len(parts) < 2:
                continue  # TypeMeta: it is in the envelope
            json_name, _, options = tag.get("json", "").partition(",")
            flags = ("o" if "omitempty" in options else "") + ("i" if "inline" in options else "")
            if not go_type.startswith(("*", "[]", "map[")) or "i" in flags:
                flags += "v"
            found = form(go_type, package)
            proto_name = dict(p.partition("=")[::2] for p in parts).get("name", go_name)
            rows.append([json_name or proto_name, int(parts[1]), found, flags])
            inner = re.sub(r"^wrapped |[\[\]{}]", "", found)
            if inner.startswith("io."):
                wanted.append(inner)
        table[full] = rows
    target = ROOT / "src/podlane/lab/api/protobuf_fields.json"
    lines = (f"{json.dumps(name)}:{json.dumps(table[name], separators=(',', ':'))}" for name in sorted(table))
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
