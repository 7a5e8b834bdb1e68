"""Any process may die at any moment: packets flow on, and it finds everything when it is back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import PODLANE, Lab, until

STREAM = """
import socket, sys, time
# A numbered datagram every 2 ms, each way: what is lost shows as a number that never came back.
target = (sys.argv[1], 8080)
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1.0)
sent = answered = 0
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    s.sendto(b"%d" % sent, target)
    sent += 1
    try:
        s.recv(4096)
        answered += 1
    except TimeoutError:
        pass
    time.sleep(0.002)
print(sent, answered)
"""

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: near}}
spec:
  nodeName: node-1
  containers: [{name: c, image: absent, ports: [{containerPort: 8080, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: far}}
spec:
  nodeName: node-2
  containers: [{name: c, image: absent, ports: [{containerPort: 8080, protocol: UDP}, {containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {selector: {app: far}, ports: [{name: udp, port: 8080, protocol: UDP}, {name: http, port: 80}]}
"""


def service_pid(lab: Lab, name: str) -> int:
    pid = lab.running_pid(name)
    assert pid, f"{name} does not run"
    return pid


@pytest.fixture
def pair(lab: Lab, tmp_path: Path) -> Lab:
    (tmp_path / "pods.yaml").write_text(PODS)
    lab.up("--nodes", "2", "-f", str(tmp_path / "pods.yaml"))
    return lab


def start_stream(lab: Lab, target: str, seconds: float) -> Any:
    return subprocess.Popen(
        [
            str(PODLANE),
            "exec",
            "--lab",
            lab.name,
            "near",
            "--",
            "python3",
            "-c",
            STREAM,
            target,
            str(seconds),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("through", ["pod", "service"])
def test_agents_killed_lose_no_packet_of_a_stream(pair: Lab, family: int, through: str) -> None:
    if through == "pod":
        target = pair.get("pod", "far")["status"]["podIPs"][family]["ip"]
    else:
        addresses = pair.get("service", "far")["spec"]["clusterIPs"]
        if len(addresses) <= family:
            pair.kubectl("patch", "service", "far", "-p", '{"spec":{"ipFamilyPolicy":"PreferDualStack"}}')
            addresses = pair.get("service", "far")["spec"]["clusterIPs"]
            time.sleep(0.5)
        target = addresses[family]
    stream = start_stream(pair, target, 6.0)
    time.sleep(1.0)
    for _ in range(3):
        for node in ("node-1", "node-2"):
            old = service_pid(pair, f"agent/{node}")
            os.kill(old, signal.SIGKILL)
        time.sleep(1.0)
    output, _ = stream.communicate(timeout=30)
    sent, answered = map(int, output.split())
    assert sent > 500
    assert answered == sent

    def settled() -> bool:
        status = json.loads(pair.podlane("status", pair.name, "-o", "json", check=False).stdout)
        return all(n["agent"].get("ready") and not n["agent"]["failures"] for n in status["nodes"])

    until(settled)
    status = json.loads(pair.podlane("status", pair.name, "-o", "json").stdout)
    assert [n["agent"]["operations"] for n in status["nodes"]] == [0, 0], (
        "a started agent finds nothing to repair"
    )
    pair.check()


def test_a_killed_control_process_comes_back_with_everything(pair: Lab) -> None:
    before = {p["metadata"]["name"]: p["status"] for p in pair.get("pods")["items"]}
    os.kill(service_pid(pair, "control"), signal.SIGKILL)
    # Nobody is refused meanwhile: the supervisor holds the listening socket, so the first request waits.
    after = {p["metadata"]["name"]: p["status"] for p in pair.get("pods")["items"]}
    for name, status in before.items():
        assert after[name]["podIPs"] == status["podIPs"]
        assert [c["containerID"] for c in after[name]["containerStatuses"]] == [
            c["containerID"] for c in status["containerStatuses"]
        ]
        assert [c["restartCount"] for c in after[name]["containerStatuses"]] == [0]
    pair.kubectl("create", "deployment", "late", "--image=absent", "--replicas=2", "--port=80")
    pair.kubectl("rollout", "status", "deployment/late", "--timeout=30s")
    pair.check()


CONNECTIONS = """
import socket, sys, time
# One new connection after another.
tried = made = 0
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    tried += 1
    try:
        socket.create_connection((sys.argv[1], 80), 2).close()
        made += 1
    except OSError:
        pass
    time.sleep(0.005)
print(tried, made)
"""


def test_everything_killed_at_once_refuses_no_new_connection(pair: Lab) -> None:
    """A control process that begins again must not take the pods it finds out of their services."""
    address = pair.get("service", "far")["spec"]["clusterIP"]
    script = ["exec", "--lab", pair.name, "near", "--", "python3", "-c", CONNECTIONS, address, "5"]
    stream = subprocess.Popen([str(PODLANE), *script], stdout=subprocess.PIPE, text=True)
    time.sleep(0.7)
    for _ in range(3):
        for name in ("agent/node-1", "agent/node-2", "control"):
            os.kill(until(lambda name=name: pair.running_pid(name)), signal.SIGKILL)
        until(lambda: pair.kubectl("get", "pods", check=False).returncode == 0)
    tried, made = map(int, stream.communicate(timeout=30)[0].split())
    assert tried > 100
    assert made == tried
    pair.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=20s")


def test_a_device_deleted_by_hand_is_made_again(pair: Lab) -> None:
    target = pair.get("pod", "far")["status"]["podIPs"][0]["ip"]
    pair.node("node-1", "ip", "link", "del", "plvxlan")
    until(
        lambda: (
            pair.exec("near", "curl", "-s", "-m1", f"http://{target}/hostname", check=False).stdout == "far"
        )
    )
    pair.check()


def test_a_pod_deleted_and_made_again_is_reached_again(pair: Lab) -> None:
    for _ in range(3):
        pair.kubectl("delete", "pod", "far")
        pair.podlane("apply", "--lab", pair.name, "-f", "-", input=PODS)
        pair.kubectl("wait", "--for=condition=Ready", "pod/far", "--timeout=20s")
        address = pair.get("service", "far")["spec"]["clusterIP"]
        until(
            lambda address=address: (
                pair.exec("near", "curl", "-s", "-m1", f"http://{address}/hostname", check=False).stdout
                == "far"
            )
        )
    pair.check()
