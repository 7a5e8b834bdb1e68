"""Labs whose API keeps its objects in etcd: members of the lab's own, and one that was there before."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from podlane.kernel import netns
from podlane.lab import record as records
from podlane.lab.etcd import command, service
from podlane.model.stores import CLIENT_PORT
from tests.cluster.conftest import Lab, until

KUBECTL = ("kubectl", "--kubeconfig")
PODS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
           labelSelector: {matchLabels: {app: web}}}
      containers: [{name: c, image: absent, ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""


def member_status(lab: Lab, member: int) -> dict[str, object]:
    """{} when it does not answer. Asked inside the lab's namespace `control`."""
    namespace = netns.open_pid(records.load(lab.name).pids["control"])
    question = b"POST /v3/maintenance/status HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}"
    try:
        with netns.socket_in(namespace, socket.AF_INET, socket.SOCK_STREAM) as door:
            door.settimeout(2)
            door.connect(("127.0.0.1", CLIENT_PORT + 10 * member))
            door.sendall(question)
            answer = b""
            while chunk := door.recv(65536):
                answer += chunk
        found: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return found
    except (OSError, ValueError):
        return {}
    finally:
        os.close(namespace)


def leader(lab: Lab) -> int:
    def find() -> list[int]:
        found = []
        for member in range(3):
            status = member_status(lab, member)
            if status.get("leader") and status["leader"] == status["header"]["member_id"]:  # type: ignore[index]
                found.append(member)
        return found

    return until(find)[0]


class Watched:
    """A kubectl that watches ConfigMaps; the names it was shown."""

    def __init__(self, lab: Lab, path: Path) -> None:
        self.path = path
        with path.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    "kubectl",
                    "--kubeconfig",
                    lab.kubeconfig,
                    "get",
                    "configmaps",
                    "-l",
                    "seen",
                    "-w",
                    "-o",
                    "name",
                ],
                stdout=output,
                stderr=subprocess.DEVNULL,
            )

    def names(self) -> list[str]:
        return [line.rpartition("/")[2] for line in self.path.read_text().split()]

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def make(lab: Lab, name: str) -> None:
    lab.kubectl(
        "create",
        "-f",
        "-",
        input=json.dumps(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"seen": "yes"}}}
        ),
    )


def test_a_lab_on_three_members_survives_the_death_of_any(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "pods.yaml").write_text(PODS)
    lab.up("--nodes", "2", "--store", "etcd://local?members=3", "-f", str(tmp_path / "pods.yaml"))
    with Watched(lab, tmp_path / "names") as watched:
        make(lab, "first")
        until(lambda: watched.names() == ["first"])
        victim = leader(lab)
        killed = lab.running_pid(service(victim))
        os.kill(killed, signal.SIGKILL)
        for i in range(3):
            make(lab, f"after-{i}")
        until(lambda: watched.names() == ["first", "after-0", "after-1", "after-2"])
        until(lambda: lab.running_pid(service(victim)) not in (0, killed))
        until(lambda: member_status(lab, victim).get("leader"))
    # The control process dies too, and one member with it: what was stored is there.
    os.kill(lab.running_pid("control"), signal.SIGKILL)
    os.kill(lab.running_pid(service((victim + 1) % 3)), signal.SIGKILL)
    shown = [item["metadata"]["name"] for item in lab.get("configmaps", "-l", "seen")["items"]]
    assert shown == ["after-0", "after-1", "after-2", "first"]
    lab.kubectl("scale", "deployment/web", "--replicas=3")
    lab.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    assert {"pod-pod-cross-node", "pod-service", "no-nat"} <= {c["kind"] for c in lab.check()["checks"]}
    assert not (Path("/var/lib/podlane/labs") / lab.name / "api.sqlite").exists()


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[int]:
    """The port on 127.0.0.1 of an etcd that is no lab's."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, peer = one.getsockname()[1], two.getsockname()[1]
    mine, others = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    urls = [f"--listen-client-urls={mine}", f"--advertise-client-urls={mine}"]
    peers = [f"--listen-peer-urls={others}", f"--initial-advertise-peer-urls={others}"]
    process = subprocess.Popen(
        [*command(tmp_path, 0, 1), *urls, *peers, f"--initial-cluster=0={others}"],
        stderr=subprocess.DEVNULL,
    )
    yield port
    process.kill()
    process.wait()


def keys(port: int) -> list[str]:
    question = b'{"key":"AA==","range_end":"AA==","keys_only":true}'
    import base64
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v3/kv/range", question, timeout=5) as answer:
        return [base64.b64decode(kv["key"]).decode() for kv in json.loads(answer.read()).get("kvs", [])]


def test_a_lab_on_an_etcd_that_was_there_leaves_nothing_in_it(lab: Lab, foreign: int) -> None:
    until(lambda: _answers(foreign))
    store = f"etcd://127.0.0.1:{foreign}/labs/one"
    lab.up("--nodes", "1", "--set", f"store={store}")
    stored = keys(foreign)
    assert "/labs/one/objects/nodes//node-1" in stored
    assert all(key.startswith("/labs/one/") for key in stored)
    refused = lab.podlane("up", f"{lab.name}b", "--store", store, check=False)
    assert refused.returncode == 1
    assert f"etcd at 127.0.0.1:{foreign} has keys below /labs/one/ already" in refused.stderr
    lab.down()
    assert keys(foreign) == []


def test_a_store_that_does_not_answer_is_refused_before_anything_is_made(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    refused = lab.up("--store", f"etcd://127.0.0.1:{port}", check=False)
    assert refused.returncode == 1
    assert f"etcd at 127.0.0.1:{port}: " in refused.stderr
    assert "Connection refused" in refused.stderr
    assert not (Path("/run/podlane/labs") / lab.name).exists()


def _answers(port: int) -> bool:
    try:
        keys(port)
    except OSError:
        return False
    return True
