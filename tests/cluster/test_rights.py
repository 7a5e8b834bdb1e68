"""A lab's agents live by the rights of deploy/podlane.yaml: they suffice, and they may be taken away.

(Every other lab of these tests runs so too; what a daemon may not do is refused there with 403.)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from podlane.controller import rights
from podlane.watch import kubeconfig
from tests.cluster.conftest import ROOT, Lab, traces_of, until
from tests.cluster.test_restarts import PODS, service_pid, start_stream

MANIFEST = ROOT / "deploy" / "podlane.yaml"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab(f"rights{os.getpid()}")
    try:
        made.up("--nodes", "2", "-f", "-", input=PODS)
        yield made
    finally:
        made.down()
        assert traces_of(made.name) == []


def agent_token(lab: Lab) -> str:
    """What the agent of node-1 bears."""
    return kubeconfig.parse([Path(f"/run/podlane/labs/{lab.name}/nodes/node-1/kubeconfig")]).token


def as_agent(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return lab.kubectl("--token", agent_token(lab), *arguments, check=False)


def agents(lab: Lab) -> list[dict[str, Any]]:
    status = json.loads(lab.podlane("status", lab.name, "-o", "json", check=False).stdout)
    return [node["agent"] for node in status["nodes"]]


def test_the_manifests_are_taken_as_they_are(lab: Lab) -> None:
    taken = lab.podlane("apply", "--lab", lab.name, "-f", str(MANIFEST))  # with fieldValidation=Strict
    assert "DaemonSet podlane-system/podlane-agent created" in taken.stdout + taken.stderr
    again = lab.kubectl("apply", "--validate=false", "-f", str(MANIFEST)).stdout
    assert "daemonset.apps/podlane-agent" in again
    # A lab has agents of its own: the manifest's would need the host's directories, which no pod gets.
    lab.kubectl("-n", rights.NAMESPACE, "delete", "daemonset,deployment", "--all")


def test_an_agents_token_reads_no_secret(lab: Lab) -> None:
    lab.kubectl("create", "secret", "generic", "s", "--from-literal=a=b")
    for what in (("secret", "s"), ("secrets", "-A"), ("-n", "kube-system", "secrets")):
        done = as_agent(lab, "get", *what)
        assert done.returncode != 0
        assert "Forbidden" in done.stderr
        assert f"system:serviceaccount:{rights.NAMESPACE}:{rights.AGENT}" in done.stderr
    raw = as_agent(lab, "get", "--raw", "/api/v1/namespaces/default/secrets/s")
    assert 'cannot get resource "secrets"' in raw.stderr
    assert "items" in as_agent(lab, "get", "--raw", "/api/v1/pods").stdout
    assert as_agent(lab, "delete", "pod", "far").returncode != 0


def test_rights_that_are_taken_away_cost_no_packet_and_come_back(lab: Lab) -> None:
    target = lab.get("service", "far")["spec"]["clusterIP"]
    stream = start_stream(lab, target, 9.0)
    time.sleep(0.5)
    lab.kubectl("delete", "clusterrolebinding", rights.AGENT)
    os.kill(service_pid(lab, "control"), signal.SIGKILL)  # watches that are open go on otherwise

    def why(agent: dict[str, Any]) -> str:
        return str(agent.get("apiAway", {}).get("Service", ""))

    until(lambda: all("is forbidden" in why(agent) for agent in agents(lab)), 30)
    assert agents(lab)[0]["ready"] is True, "what it holds, it holds"
    who = f"system:serviceaccount:{rights.NAMESPACE}:{rights.AGENT}"
    assert f'services is forbidden: User "{who}" cannot' in why(agents(lab)[0])
    assert "is forbidden" in Path(f"/run/podlane/labs/{lab.name}/nodes/node-1/agent.log").read_text()
    # One that starts now knows nothing of the cluster: it removes nothing, and says what it waits for.
    os.kill(service_pid(lab, "agent/node-2"), signal.SIGKILL)
    until(lambda: any("is forbidden" in each for each in agents(lab)[1].get("blockers", ())))
    [binding] = [
        obj
        for obj in yaml.safe_load_all(MANIFEST.read_text())
        if (obj["kind"], obj["metadata"]["name"]) == ("ClusterRoleBinding", rights.AGENT)
    ]
    lab.podlane("apply", "--lab", lab.name, "-f", "-", input=json.dumps(binding))
    until(lambda: all(agent.get("ready") and not agent["apiAway"] for agent in agents(lab)), 40)
    sent, answered = map(int, stream.communicate(timeout=60)[0].split())
    assert answered == sent > 500
    lab.check()
