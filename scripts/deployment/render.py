"""Writes what is in deploy/ (`make manifests`); a test holds that what is committed is what this writes.

    podlane.yaml     one `kubectl apply`
    uninstall.yaml   leaves the nodes as they were
    crds/            podlane's own kinds
    kustomize/       a base: its ConfigMap's name changes with its content
    chart/           Helm: the same objects with a chart's words in the places of values.py

A word is `{{ .Values.image.tag }}` for what is text or a number, and a block (toYaml) for what is neither.
While the objects are YAML they stand there as marks, which are text that YAML leaves alone.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from scripts.deployment import objects
from scripts.deployment.values import COMMENTS, DEFAULTS, VERSION

from podlane.controller import definitions

ROOT = Path(__file__).parents[2]
CHECKSUM = "podlane.dev/config-checksum"
Object = dict[str, Any]

_HEAD = "# Made by `make manifests` from scripts/deployment/: change it there.\n"
_MARK = re.compile(r"<<([a-z]+) ([\w.]+)>>")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def document(obj: Object) -> str:
    return str(yaml.dump(obj, Dumper=_Dumper, sort_keys=False, width=110))


def documents(found: Iterable[Object]) -> str:
    return _HEAD + "---\n".join(document(obj) for obj in found)


# --- plain manifests ---


def config_text(values: Object = DEFAULTS) -> str:
    """As a chart's toYaml writes it: keys in order."""
    return str(yaml.safe_dump(values["config"], sort_keys=True, default_flow_style=False))


def checksum(text: str) -> str:
    """As a chart's `toYaml | sha256sum`: toYaml leaves the last newline out."""
    return hashlib.sha256(text.rstrip("\n").encode()).hexdigest()


def everything(values: Object = DEFAULTS) -> Iterator[Object]:
    """What podlane.yaml holds, in the order in which it is to be made."""
    text = config_text(values)
    annotations = {CHECKSUM: checksum(text)}
    yield objects.namespace(values)
    yield from definitions.ALL
    yield from objects.accounts(values)
    yield objects.config_map(values, text, {})
    yield objects.controller(values, annotations)
    yield objects.budget(values)
    yield objects.agent(values, annotations)


# --- Helm ---


def marked(value: Any, path: str = "") -> Any:
    """The values, each leaf replaced by its mark. A mapping is no leaf, but for `config` and resources."""
    if path in ("config", "agent.resources", "controller.resources") or isinstance(value, list):
        return f"<<block {path}>>"
    if isinstance(value, dict):
        return {key: marked(each, f"{path}.{key}".strip(".")) for key, each in value.items()}
    return f"<<{'plain' if isinstance(value, (bool, int)) else 'text'} {path}>>"


def chart_values() -> Object:
    return {key: value for key, value in DEFAULTS.items() if key != "namespace"}


def template(obj: Object) -> str:
    """Marks become words of a template."""
    return "\n".join(_line(line) for line in document(obj).splitlines()) + "\n"


def _line(line: str) -> str:
    indent = len(line) - len(line.lstrip())
    marks = _MARK.findall(line)
    if not marks:
        return line
    kind, path = marks[0]
    start, pad = line[: line.index("<<")], " " * indent
    if kind == "block" and start.strip() == "-":  # items of a list: they stand where the one item stood
        lines = [f"with {_word(path)}", f"toYaml . | nindent {indent}", "end"]
        return "\n".join(f"{pad}{{{{- {each} }}}}" for each in lines)
    if kind == "block":
        return f"{start.rstrip()}\n{pad}  {{{{- toYaml {_word(path)} | nindent {indent + 2} }}}}"
    if kind == "checksum":
        return f"{start}{{{{ toYaml {_word(path)} | sha256sum }}}}"
    if kind == "text" and line == f"{start}<<{kind} {path}>>" and start.endswith(": "):
        return f"{start}{{{{ {_word(path)} | quote }}}}"
    return _MARK.sub(lambda mark: f"{{{{ {_word(mark[2])} }}}}", line)


def _word(path: str) -> str:
    return ".Release.Namespace" if path == "namespace" else f".Values.{path}"


def chart() -> dict[str, str]:
    """path below deploy/chart -> content."""
    words = marked(DEFAULTS)
    annotations = {CHECKSUM: "<<checksum config>>"}
    files = {
        "Chart.yaml": _HEAD
        + document(
            {
                "apiVersion": "v2",
                "name": "podlane",
                "description": "The whole Kubernetes network: pods, services and policy",
                "type": "application",
                "version": VERSION,
                "appVersion": VERSION,
                "kubeVersion": ">=1.27.0-0",
            }
        ),
        "values.yaml": _HEAD
        + "\n".join(f"# {COMMENTS[key]}\n{document({key: value})}" for key, value in chart_values().items()),
        "templates/rbac.yaml": "---\n".join(template(obj) for obj in objects.accounts(words)),
        "templates/config.yaml": template(objects.config_map(words, "<<config>>", {})).replace(
            "  config.yaml: <<config>>\n",
            "  config.yaml: |\n    {{- toYaml .Values.config | nindent 4 }}\n"
            "  {{- with .Values.apiServer.host }}\n  api-host: {{ . | quote }}\n  {{- end }}\n"
            "  {{- with .Values.apiServer.port }}\n  api-port: {{ . | toString | quote }}\n  {{- end }}\n",
        ),
        "templates/controller.yaml": template(objects.controller(words, annotations))
        + "---\n"
        + template(objects.budget(words)),
        "templates/agent.yaml": template(objects.agent(words, annotations)),
    }
    for definition in definitions.ALL:
        files[f"crds/{definition['spec']['names']['plural']}.yaml"] = document(definition)
    return files


# --- Kustomize ---


def kustomize() -> dict[str, str]:
    """path below deploy/kustomize -> content."""
    agent, controller = objects.agent(DEFAULTS, {}), objects.controller(DEFAULTS, {})
    del controller["spec"]["template"]["metadata"]["annotations"]
    return {
        "kustomization.yaml": _HEAD
        + document(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "namespace": DEFAULTS["namespace"],
                "resources": ["../crds", "namespace.yaml", "rbac.yaml", "controller.yaml", "agent.yaml"],
                "configMapGenerator": [{"name": objects.CONFIG_MAP, "files": [objects.CONFIG_KEY]}],
            }
        ),
        "namespace.yaml": documents([objects.namespace(DEFAULTS)]),
        "rbac.yaml": documents(objects.accounts(DEFAULTS)),
        "controller.yaml": documents([controller, objects.budget(DEFAULTS)]),
        "agent.yaml": documents([agent]),
        objects.CONFIG_KEY: config_text(),
    }


# --- all of it ---


def files() -> dict[str, str]:
    """path below deploy/ -> content."""
    found = {
        "podlane.yaml": documents(everything()),
        "uninstall.yaml": documents([objects.namespace(DEFAULTS), objects.uninstall(DEFAULTS)]),
    }
    names = []
    for definition in definitions.ALL:
        name = f"{definition['spec']['names']['plural']}.yaml"
        names.append(name)
        found[f"crds/{name}"] = f"# kubectl apply -f deploy/crds/{name}\n{document(definition)}"
    found["crds/kustomization.yaml"] = _HEAD + document(
        {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": names}
    )
    found |= {f"kustomize/{name}": text for name, text in kustomize().items()}
    return found | {f"chart/{name}": text for name, text in chart().items()}


def main() -> None:
    for name, text in files().items():
        path = ROOT / "deploy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"deploy/{name}", file=sys.stderr)


if __name__ == "__main__":
    main()
