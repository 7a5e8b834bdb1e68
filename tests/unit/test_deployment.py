"""deploy/: what is committed is what is made, its three forms say the same, and the API takes it strictly."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts.deployment import render
from scripts.deployment.values import DEFAULTS

from podlane.cli import agent, controller
from podlane.controller import rights
from podlane.lab.api.registry import WriteOptions
from podlane.model import config
from tests.cluster.conftest import kubectl_minor
from tests.unit.api_lab import registry

Obj = dict[str, Any]
DEPLOY = Path(__file__).parents[2] / "deploy"


def loaded(name: str) -> list[Obj]:
    return [obj for obj in yaml.safe_load_all((DEPLOY / name).read_text()) if obj]


def by_name(found: list[Obj]) -> dict[tuple[str, str], Obj]:
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in found}


def the(kind: str, name: str, file: str = "podlane.yaml") -> Obj:
    return by_name(loaded(file))[kind, name]


def test_what_is_committed_is_what_is_made() -> None:
    made = render.files()
    assert {name for name, text in made.items() if (DEPLOY / name).read_text() != text} == set(), (
        "make manifests"
    )
    ours = ("kustomize", "chart", "crds")
    there = {str(p.relative_to(DEPLOY)) for o in ours for p in (DEPLOY / o).rglob("*") if p.is_file()}
    assert there - made.keys() == set()


# --- Helm, read by the few words that our templates have ---


def helm(values: Obj, namespace: str = "podlane-system") -> list[Obj]:
    """deploy/chart with these values, as `helm template --include-crds` makes it."""
    found = []
    for path in sorted((DEPLOY / "chart/templates").iterdir()):
        text = "\n".join(rendered(path.read_text().splitlines(), values, namespace))
        assert "{{" not in text
        found += [obj for obj in yaml.safe_load_all(text) if obj]
    return found + [yaml.safe_load(path.read_text()) for path in (DEPLOY / "chart/crds").iterdir()]


def rendered(lines: list[str], values: Obj, namespace: str) -> Iterator[str]:
    dot: Any = None
    skipping = False

    def of(path: str) -> Any:
        if path == ".":
            return dot
        if path == ".Release.Namespace":
            return namespace
        found: Any = {"Values": values}
        for part in path.strip(".").split("."):
            found = found[part]
        return found

    def words(match: re.Match[str]) -> str:
        first, *filters = [part.strip() for part in match[1].split("|")]
        value = of(first.removeprefix("toYaml "))
        text = (
            yaml.safe_dump(value, default_flow_style=False).rstrip("\n") if "toYaml" in first else str(value)
        )
        if isinstance(value, bool) and "toYaml" not in first:
            text = text.lower()
        for each in filters:
            name, _, number = each.partition(" ")
            if name == "nindent":
                text = "\n" + "\n".join(" " * int(number) + line for line in text.splitlines())
            else:
                quick = {"quote": lambda t: f'"{t}"', "toString": str, "sha256sum": _sha256}
                text = quick[name](text)
        return text

    for line in lines:
        if block := re.match(r"\s*\{\{- with (\S+) \}\}$", line):
            dot = of(block[1])
            skipping = not dot
        elif re.match(r"\s*\{\{- end \}\}$", line):
            skipping = False
        elif not skipping:
            line = re.sub(r"^\s*\{\{-", "{{", line)
            yield re.sub(r"\{\{ (.+?) \}\}", words, line).lstrip("\n")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def chart_values() -> Obj:
    return yaml.safe_load((DEPLOY / "chart/values.yaml").read_text())


def test_the_chart_makes_what_podlane_yaml_holds() -> None:
    plain = by_name(loaded("podlane.yaml"))
    del plain["Namespace", "podlane-system"]  # Helm makes it, or it is there
    made = by_name(helm(chart_values()))
    text = made["ConfigMap", "podlane"]["data"]
    text["config.yaml"] = text["config.yaml"].lstrip("\n") + "\n"  # a template ends its last line
    assert made == plain


def test_the_chart_follows_its_values() -> None:
    values = chart_values()
    values["config"]["backend"]["type"] = "host-gw"
    values["apiServer"] = {"host": "192.0.2.10", "port": 6443}
    values["agent"] |= {"hostPID": True, "extraArgs": ["--dns=off"], "services": "off"}
    values["image"] |= {"repository": "registry.example/podlane", "tag": "1"}
    made, usual = by_name(helm(values, "net")), by_name(helm(chart_values()))
    data = made["ConfigMap", "podlane"]["data"]
    assert (data["api-host"], data["api-port"]) == ("192.0.2.10", "6443")
    assert yaml.safe_load(data["config.yaml"])["backend"] == {"type": "host-gw"}
    template = made["DaemonSet", "podlane-agent"]["spec"]["template"]
    before = usual["DaemonSet", "podlane-agent"]["spec"]["template"]
    assert template["metadata"]["annotations"] != before["metadata"]["annotations"], "the agents roll"
    assert template["spec"]["hostPID"] is True
    container = template["spec"]["containers"][0]
    assert container["image"] == "registry.example/podlane:1"
    assert {"--dns=off", "--services=off"} <= set(container["args"])
    spaces = {obj["metadata"].get("namespace") for obj in made.values()}
    assert spaces == {"net", None}
    subjects = [s["namespace"] for obj in made.values() for s in obj.get("subjects") or ()]
    assert set(subjects) == {"net"}


# --- Kustomize ---


def test_the_base_makes_what_podlane_yaml_holds() -> None:
    [base] = loaded("kustomize/kustomization.yaml")
    found = []
    for name in base["resources"]:
        if name == "../crds":
            [crds] = loaded("crds/kustomization.yaml")
            found += [obj for each in crds["resources"] for obj in loaded(f"crds/{each}")]
        else:
            found += loaded(f"kustomize/{name}")
    [generated] = base["configMapGenerator"]
    data = {name: (DEPLOY / "kustomize" / name).read_text() for name in generated["files"]}
    meta = {"name": generated["name"], "namespace": base["namespace"]}
    found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})
    assert without_checksums(found) == without_checksums(loaded("podlane.yaml"))


@pytest.mark.skipif(kubectl_minor() < 21, reason="kustomize 4 is in kubectl since 1.21")
def test_kustomize_names_the_config_map_by_its_content() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kustomize")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    maps = [o for o in yaml.safe_load_all(done.stdout) if o and o["kind"] == "ConfigMap"]
    [name] = [obj["metadata"]["name"] for obj in maps]
    assert re.fullmatch(r"podlane-[0-9a-z]{10}", name)
    found = [obj for obj in yaml.safe_load_all(done.stdout.replace(name, "podlane")) if obj]
    assert without_checksums(found) == without_checksums(loaded("podlane.yaml"))


def without_checksums(found: list[Obj]) -> dict[tuple[str, str], Obj]:
    """Kustomize rolls the pods by the ConfigMap's name, the others by an annotation."""
    for obj in found:
        meta = (obj["spec"].get("template") or {}).get("metadata") if "spec" in obj else None
        if meta and "annotations" in meta:
            meta["annotations"].pop(render.CHECKSUM, None)
            if not meta["annotations"]:
                del meta["annotations"]
        if obj["kind"] == "ConfigMap":
            obj["metadata"].pop("labels", None)
    return by_name(found)


# --- what it says ---


def test_the_api_takes_every_object_strictly() -> None:
    strict = WriteOptions(field_validation="Strict", warnings=[])
    made: set[tuple[str, str]] = set()
    with registry() as api:
        for name in ("podlane.yaml", "uninstall.yaml"):
            for obj in loaded(name):
                row = api.catalog.of_kind(obj["apiVersion"], obj["kind"])
                assert row is not None, obj["kind"]
                namespace = obj["metadata"].get("namespace", "") if row.namespaced else ""
                if (row.id, obj["metadata"]["name"]) not in made:  # both have the namespace
                    api.create(row, namespace, obj, strict)
                made.add((row.id, obj["metadata"]["name"]))
    assert strict.warnings == []


def test_the_configuration_is_one() -> None:
    found = config.parse(yaml.safe_load(the("ConfigMap", "podlane")["data"]["config.yaml"]))
    assert [str(p) for p in found.pods.values()] == DEFAULTS["config"]["podCIDRs"]


@pytest.mark.parametrize("kind", ["DaemonSet", "Deployment"])
def test_the_daemons_know_their_arguments(kind: str) -> None:
    [workload] = [obj for obj in loaded("podlane.yaml") if obj["kind"] == kind]
    container = workload["spec"]["template"]["spec"]["containers"][0]
    command = {"agent": agent, "controller": controller}[container["args"][0]].command
    context = command.make_context("podlane", list(container["args"][1:]))
    assert context.params["metrics_address"].endswith(str(container["ports"][0]["containerPort"]))
    pages = {probe["httpGet"]["path"] for key, probe in container.items() if key.endswith("Probe")}
    assert pages <= {"/livez", "/readyz"}


def test_the_agents_reach_every_node_and_roll_one_by_one() -> None:
    spec = the("DaemonSet", "podlane-agent")["spec"]
    pod = spec["template"]["spec"]
    assert spec["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert (pod["hostNetwork"], pod["priorityClassName"]) == (True, "system-node-critical")
    security = pod["containers"][0]["securityContext"]
    assert security["privileged"] is False
    assert security["capabilities"]["drop"] == ["ALL"]
    assert "preStop" not in str(pod), "an agent that goes leaves its node's network alone"


def test_the_controller_has_no_privilege() -> None:
    pod = the("Deployment", "podlane-controller")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    security = pod["containers"][0]["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["readOnlyRootFilesystem"] is True


def test_no_rule_reads_secrets_or_is_a_wildcard() -> None:
    for obj in loaded("podlane.yaml"):
        for rule in obj.get("rules") or ():
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not {"secrets", "configmaps"} & set(rule["resources"])
    assert the("ClusterRole", rights.AGENT)["rules"] == list(rights.AGENT_RULES)
