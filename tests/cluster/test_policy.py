"""NetworkPolicy in a whole lab: enforced, explained, checked and shown, and changed with kubectl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import Lab, until

MANIFESTS = """
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: node-1
  containers: [{name: c, image: absent, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: server}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, labels: {role: friend}}
spec: {nodeName: node-2, containers: [{name: c, image: absent, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec: {nodeName: node-1, containers: [{name: c, image: absent, ports: [{containerPort: 8080}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{podSelector: {matchLabels: {role: friend}}}]
    ports: [{port: http}]
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    file: Path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    file.write_text(MANIFESTS)
    found = Lab(f"tpol-{file.stat().st_ino % 10000}")
    try:
        found.up("--nodes", "2", "-f", str(file))
        yield found
    finally:
        found.down()


YES, NO = [True, True], [False, False]


def asks(lab: Lab, pod: str) -> list[bool]:
    """Whether it gets an answer through the service, in each family."""
    spec = lab.get("service", "server")["spec"]
    codes = []
    for ip in spec["clusterIPs"]:
        where = f"http://[{ip}]/hostname" if ":" in ip else f"http://{ip}/hostname"
        codes.append(lab.exec(pod, "curl", "-s", "-m", "1", where, check=False).returncode)
    return [code == 0 for code in codes]


def told(lab: Lab, *words: str) -> Any:
    return json.loads(lab.podlane(*words, "--lab", lab.name, "-o", "json", check=False).stdout)


def test_what_is_enforced_is_what_is_told(lab: Lab) -> None:
    assert (asks(lab, "friend"), asks(lab, "stranger")) == (YES, NO)
    assert told(lab, "explain", "pod/friend", "svc/server")["denied"] == "no"
    denied = told(lab, "explain", "pod/stranger", "svc/server")
    assert denied["denied"] == "yes"
    assert "label role=friend on default/pod/stranger" in denied["why"]
    pairs = told(lab, "matrix")["pairs"]
    assert {p["from"] for p in pairs if p["to"] == "default/server" and p["allowed"]} == {"default/friend"}
    assert told(lab, "lint")["findings"] == []


def test_a_check_passes_and_says_what_is_denied(lab: Lab) -> None:
    checks = lab.check()["checks"]
    assert any("as it should be: NetworkPolicy denies it" in each["detail"] for each in checks)


def test_changes_by_kubectl_count(lab: Lab) -> None:
    lab.kubectl("label", "pod", "stranger", "role=friend")
    until(lambda: asks(lab, "stranger") == YES)
    lab.kubectl("label", "pod", "stranger", "role-")
    until(lambda: asks(lab, "stranger") == NO)
    lab.kubectl("delete", "networkpolicy", "friends")
    until(lambda: asks(lab, "stranger") == YES)
