"""Labs come up whole, stand side by side, and go without a trace, also after kill -9."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import ROOT, Lab, run, traces_of

KINDS = {
    "container-localhost",
    "pod-pod-same-node",
    "pod-pod-cross-node",
    "pod-node",
    "node-pod",
    "pod-service",
    "node-service",
    "outside-nodeport",
    "outside-loadbalancer",
    "no-nat",
    "path-mtu",
}


def root_network() -> str:
    """What must not change: links, addresses, routes and rules of the machine's own namespace."""
    parts = [run("ip", "-o", what, "show").stdout for what in ("link", "route", "rule")]
    parts += [run("ip", "-6", "-o", "route", "show").stdout, run("nft", "list", "tables").stdout]
    parts.append(
        "\n".join(line.split("valid_lft")[0] for line in run("ip", "-o", "addr").stdout.splitlines())
    )
    return "\n".join(parts)


def test_three_nodes_with_the_examples_pass_every_kind_of_check(lab: Lab) -> None:
    before = root_network()
    lab.up("--nodes", "3", "-f", "examples/")
    matrix = lab.check()
    assert {c["kind"] for c in matrix["checks"]} >= KINDS
    assert root_network() == before
    lab.down()
    assert traces_of(lab.name) == []
    assert root_network() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nodes", "1"],
        ["--nodes", "3", "--set", "fabric.racks=2"],
        ["--nodes", "2", "--set", "ipFamilies=IPv4"],
        ["--nodes", "2", "--set", "ipFamilies=IPv6"],
        ["--nodes", "2", "--set", "ipFamilies=IPv6,IPv4"],
        ["--nodes", "2", "--set", "link.mode=bridge"],
    ],
    ids=["one-node", "two-racks", "IPv4-only", "IPv6-only", "IPv6-first", "bridge"],
)
def test_other_shapes_pass_too(lab: Lab, arguments: list[str]) -> None:
    lab.up(*arguments, "-f", "examples/")
    lab.check()


def test_twenty_nodes(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text(
        """
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 60
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec: {containers: [{name: web, image: absent/web, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: many}
spec: {selector: {app: many}, ports: [{port: 80}]}
"""
    )
    lab.up("--nodes", "20", "-f", str(tmp_path), "--timeout", "120s")
    matrix = lab.check()
    pairs = {(c["from"], c["to"]) for c in matrix["checks"] if c["kind"] == "pod-pod-cross-node"}
    assert len(pairs) >= 20 * 19


def test_two_labs_at_once_do_not_meet(lab: Lab) -> None:
    other = Lab(f"{lab.name}-b")
    try:
        lab.up("--nodes", "2", "-f", "examples/web.yaml", "-f", "examples/client.yaml")
        other.up("--nodes", "2", "-f", "examples/web.yaml", "-f", "examples/client.yaml")
        listed = {i["name"]: i for i in json.loads(lab.podlane("list", "-o", "json").stdout)["items"]}
        assert listed[lab.name]["running"]
        assert listed[other.name]["running"]
        lab.check()
        other.check()
        other.down()
        assert traces_of(other.name) == []
        lab.check()
    finally:
        other.down()


def test_a_killed_supervisor_leaves_a_lab_that_down_removes(lab: Lab) -> None:
    lab.up("--nodes", "2", "-f", "examples/web.yaml")
    record = json.loads(Path("/run/podlane/labs", lab.name, "lab.json").read_text())
    os.kill(record["supervisor"]["pid"], signal.SIGKILL)
    refused = lab.podlane("status", lab.name, check=False)
    assert refused.returncode == 1
    assert "podlane down" in refused.stderr
    lab.down()
    assert traces_of(lab.name) == []


def test_interrupted_up_leaves_nothing(lab: Lab) -> None:
    import subprocess

    from tests.cluster.conftest import PODLANE

    for delay_s in (0.3, 0.6, 0.9, 1.3):
        process = subprocess.Popen(
            [str(PODLANE), "up", lab.name, "-f", "examples/"], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        process.wait(30)
        if process.returncode == 0:  # it was quicker
            lab.down()
        assert traces_of(lab.name) == []


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("kind: Pod\napiVersion: v1\nmetadata: {name: x}\nspec: {container: []}\n", ["x", "spec.container"]),
        (
            "kind: Service\napiVersion: v1\nmetadata: {name: s}\nspec: {ports: [{port: 70000}]}\n",
            ["spec.ports[0].port"],
        ),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: x}\nspec: {containers: abc}\n", ["spec.containers"]),
        ("a: [1\n", ["YAML"]),
        ("kind: Pod\n", ["apiVersion"]),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {selector: {matchExpressions: "
            "[{key: a, operator: Like, values: [b]}]}, template: {metadata: {labels: {a: b}}, "
            "spec: {containers: [{name: c, image: i}]}}}\n",
            ["d", "operator"],
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n---\n"
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n",
            ["ConfigMap", "c"],
        ),
    ],
    ids=["unknown-field", "port", "wrong-type", "not-yaml", "no-version", "bad-operator", "two-of-one-name"],
)
def test_a_bad_manifest_is_refused_by_name_and_leaves_nothing(
    lab: Lab, tmp_path: Path, manifest: str, words: list[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(manifest)
    refused = lab.up("--nodes", "1", "-f", str(file), check=False)
    assert refused.returncode == 2, refused.stderr
    for word in ["bad.yaml", *words]:
        assert word in refused.stderr
    assert traces_of(lab.name) == []


def test_what_cannot_be_is_refused_before_anything_is_made(lab: Lab, tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    big.write_text(
        "kind: ConfigMap\napiVersion: v1\nmetadata: {name: big}\ndata: {a: '" + "x" * 10_000_000 + "'}\n"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            (["-f", "/nowhere.yaml"], 2, "/nowhere.yaml"),
            (["-f", str(big)], 2, "big.yaml"),
            (["--set", "podCIDRs=10.96.0.0/16,fd00:10:244::/56"], 2, "overlaps"),
            (["--set", "backend.type=geneve"], 2, "geneve"),
            (["--nodes", "0"], 2, "1 to 240"),
            (["--timeout", "soon"], 2, "duration"),
            (["--api-port", port], 1, port),
        ]
        for arguments, status, word in cases:
            refused = lab.up(*arguments, check=False)
            assert (refused.returncode, word in refused.stderr) == (status, True), (arguments, refused)
            assert traces_of(lab.name) == []


def test_a_name_in_use_is_refused_and_that_lab_goes_on(lab: Lab) -> None:
    lab.up("--nodes", "1")
    refused = lab.up(check=False)
    assert refused.returncode == 1
    assert "exists already" in refused.stderr
    assert json.loads(lab.podlane("status", lab.name, "-o", "json").stdout)["ready"]
