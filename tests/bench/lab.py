"""How long labs take to come and go, and what they weigh."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from podlane.lab import cgroups

PODLANE = str(Path(sys.executable).with_name("podlane"))
ROOT = Path(__file__).parents[2]
LAB = "bench"

MANY = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 200
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


def podlane(*arguments: str) -> tuple[float, str]:
    """(seconds, stdout)"""
    started_s = time.perf_counter()
    done = subprocess.run([PODLANE, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    elapsed_s = time.perf_counter() - started_s
    if done.returncode:
        raise SystemExit(f"podlane {' '.join(arguments)}: {done.stderr}\n{done.stdout[-2000:]}")
    return elapsed_s, done.stdout


def pss_kib(pid: int) -> int:
    """Proportional set size: shared pages are counted once over all their holders."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)


def weigh(lab: str) -> tuple[float, float, int]:
    """(MiB of all the lab's processes, MiB of the heaviest agent, number of processes)"""
    record = json.loads(Path("/run/podlane/labs", lab, "lab.json").read_text())
    pids = cgroups.processes(cgroups.lab_cgroup(lab))
    agents = [agent_pss(lab, node["name"]) for node in record["nodes"]]
    return sum(map(pss_kib, pids)) / 1024, max(agents) / 1024, len(pids)


def agent_pss(lab: str, node: str) -> int:
    from podlane.lab.paths import LabPaths
    from podlane.lab.supervisor.client import Supervisor

    with Supervisor(LabPaths(lab).supervisor_socket) as supervisor:
        return max(
            pss_kib(p.pid) for p in supervisor.list() if p.name == f"agent/{node}" and p.exit_status is None
        )


def measure() -> dict[str, object]:
    podlane("down", LAB)
    ups, downs = [], []
    for _ in range(5):
        ups.append(podlane("up", LAB, "--nodes", "3", "-f", "examples/")[0])
        total, agent, processes = weigh(LAB)
        downs.append(podlane("down", LAB)[0])
    results: dict[str, object] = {
        "up, 3 nodes with the examples, median of 5": f"{statistics.median(ups):.2f} s (at most 4 s)",
        "down, median of 5": f"{statistics.median(downs):.2f} s (at most 2 s)",
        "3 nodes: memory in all (PSS)": f"{total:.0f} MiB in {processes} processes",
        "3 nodes: heaviest agent (PSS)": f"{agent:.1f} MiB (goal 40 MiB)",
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "many.yaml").write_text(MANY)
        results["up, 20 nodes with 200 pods"] = (
            f"{podlane('up', LAB, '--nodes', '20', '-f', folder, '--timeout', '180s')[0]:.2f} s"
        )
    elapsed_s, answer = podlane("check", LAB, "-o", "json")
    matrix = json.loads(answer)
    results["check, 20 nodes with 200 pods"] = (
        f"{elapsed_s:.2f} s: {matrix['passed']} passed, {matrix['failed']} failed"
    )
    total, agent, processes = weigh(LAB)
    results["20 nodes, 200 pods: memory in all (PSS)"] = (
        f"{total:.0f} MiB in {processes} processes (at most 3072)"
    )
    results["20 nodes, 200 pods: heaviest agent (PSS)"] = f"{agent:.1f} MiB"
    results["down, 20 nodes with 200 pods"] = f"{podlane('down', LAB)[0]:.2f} s"
    return results
