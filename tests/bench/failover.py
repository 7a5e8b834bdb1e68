"""How long nobody answers for a pool's address, when a node is cut off and when an agent is killed.

The service has no endpoints: whichever node has the address refuses, and that is an answer. A connection is
tried every 10 ms from outside.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from podlane.lab.paths import LabPaths
from podlane.lab.supervisor.client import Supervisor
from tests.bench.lab import PODLANE, podlane

LAB = "bench-failover"
MANIFEST = """
apiVersion: podlane.dev/v1alpha1
kind: LoadBalancerPool
metadata: {name: public}
spec: {addresses: [172.30.240.10, "fd00:172:30::f0:10"]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}
"""
PROBE = """
import socket, sys, time
where, end, last, worst = sys.argv[1], time.monotonic() + float(sys.argv[2]), time.monotonic(), 0.0
while time.monotonic() < end:
    with socket.socket(socket.AF_INET6 if ":" in where else socket.AF_INET) as s:
        s.settimeout(0.1)
        try:
            s.connect((where, 80))
        except ConnectionRefusedError:
            now = time.monotonic()
            worst, last = max(worst, now - last), now
        except OSError:
            pass
    time.sleep(0.01)
print(worst if time.monotonic() - last < 0.5 else 99)
"""
GATEWAYS = {"-4": "172.30.1.1", "-6": "fd00:172:30::1:1"}


def speaker(where: str) -> str:
    """Waits until somebody says so."""
    while True:
        told = json.loads(podlane("services", "web", "--lab", LAB, "-o", "json")[1])
        for entry in told["items"][0]["entries"]:
            if entry["address"] == where and entry["announcedBy"]:
                return str(entry["announcedBy"])
        time.sleep(0.2)


def gap_s(where: str, node: str, seconds: float, what: Callable[[str], None]) -> float:
    """The longest time without an answer, while what(node) is done."""
    command = [PODLANE, "outside", "--lab", LAB, "--", "python3", "-c", PROBE, where, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as probe:
        time.sleep(0.7)
        what(node)
        return float(probe.communicate()[0])


def cut_off(node: str) -> None:
    podlane("node", "--lab", LAB, node, "--", "ip", "link", "set", "eth0", "down")


def put_back(node: str) -> None:
    podlane("node", "--lab", LAB, node, "--", "ip", "link", "set", "eth0", "up")
    for family, gateway in GATEWAYS.items():
        words = ["ip", family, "route", "replace", "default", "via", gateway]
        podlane("node", "--lab", LAB, node, "--", *words)


def kill(node: str) -> None:
    with Supervisor(LabPaths(LAB).supervisor_socket) as supervisor:
        pid = next(p.pid for p in supervisor.list() if p.name == f"agent/{node}" and p.exit_status is None)
    os.kill(pid, signal.SIGKILL)


def measure(rounds: int = 3) -> dict[str, object]:
    podlane("down", LAB)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pool.yaml").write_text(MANIFEST)
        podlane("up", LAB, "--nodes", "3", "-f", folder)
    results: dict[str, object] = {}
    try:
        for name, where in (("IPv4", "172.30.240.10"), ("IPv6", "fd00:172:30::f0:10")):
            gaps = []
            for _ in range(rounds):
                node = speaker(where)
                gaps.append(gap_s(where, node, 5, cut_off))
                put_back(node)
                time.sleep(5)  # it gets its address back
            text = f"{statistics.median(gaps):.2f} s, at most {max(gaps):.2f} s (at most 3 s)"
            results[f"{name}: a node is cut off, nobody answers for"] = text
            killed = max(gap_s(where, speaker(where), 3, kill) for _ in range(2))
            results[f"{name}: an agent is killed, nobody answers for"] = f"{killed * 1000:.0f} ms"
    finally:
        podlane("down", LAB)
    return results
