"""ADD and DEL of the same conflist by podlane's plugins and by the reference ones, in the same run.

bridge + host-local + portmap with one hostPort, and bridge + host-local alone. Each plugin process is
started inside a node namespace of its own, as a runtime would, its start included.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.bench.lab import pss_kib

ROOT = Path(__file__).parents[2]
PODLANE = str(Path(sys.executable).with_name("podlane"))
REFERENCE = Path("/usr/lib/cni")
ROUNDS, TOGETHER = 30, 110

Plugin = dict[str, Any]


def conflist(folder: str) -> list[Plugin]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": f"{folder}/networks",
            "ranges": [[{"subnet": "10.22.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return [bridge, {"type": "portmap", "backend": "iptables", "capabilities": {"portMappings": True}}]


class Runtime:
    """What a container runtime does: the chain of plugins in order for ADD, in reverse for DEL."""

    def __init__(self, node: int, binaries: Path, plugins: list[Plugin], environment: dict[str, str]) -> None:
        self.node, self.binaries, self.plugins = node, binaries, plugins
        self.environment = os.environ | environment | {"CNI_PATH": str(binaries)}

    def call(self, verb: str, number: int, pod: int, previous: Plugin | None) -> Plugin | None:
        plugins = self.plugins if verb == "ADD" else list(reversed(self.plugins))
        for plugin in plugins:
            config = {"cniVersion": "1.0.0", "name": "bench", **plugin}
            if plugin["type"] == "portmap":
                ports = [{"hostPort": 20000 + number, "containerPort": 80, "protocol": "tcp"}]
                config["runtimeConfig"] = {"portMappings": ports}
            if previous is not None:
                config["prevResult"] = previous
            environment = self.environment | {
                "CNI_COMMAND": verb,
                "CNI_CONTAINERID": f"bench-{number}",
                "CNI_NETNS": f"/proc/{os.getpid()}/fd/{pod}",
                "CNI_IFNAME": "eth0",
            }
            done = self._run(plugin["type"], json.dumps(config).encode(), environment)
            if done.returncode:
                raise SystemExit(f"{self.binaries}/{plugin['type']} {verb}: {done.stdout!r} {done.stderr!r}")
            if verb == "ADD":
                previous = json.loads(done.stdout)
        return previous

    def _run(self, kind: str, stdin: bytes, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
        def execute() -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                [str(self.binaries / kind)], input=stdin, env=env, capture_output=True, check=False
            )

        return netns.inside(self.node, execute)


@contextmanager
def agent(node: int, folder: str) -> Iterator[tuple[Path, dict[str, str], int]]:
    """A standalone agent in namespace node: (plugin folder, environment of the shim, its pid)."""
    socket = f"{folder}/cni.sock"
    command = [PODLANE, "agent", "--standalone", "--node-name", "bench", "--state-dir", f"{folder}/state"]
    command += ["--cni-socket", socket, "--cni-bin-dir", f"{folder}/bin"]
    command += ["--cni-conf-dir", f"{folder}/conf", "--agent-socket", f"{folder}/agent.sock"]
    process = netns.inside(node, lambda: subprocess.Popen(command, cwd=ROOT))
    try:
        deadline_s = time.monotonic() + 20
        while not (Path(socket).exists() and Path(folder, "bin", "portmap").exists()):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit("the standalone agent does not come up")
            time.sleep(0.02)
        yield Path(folder, "bin"), {"PODLANE_CNI_SOCKET": socket}, process.pid
    finally:
        process.terminate()
        process.wait(10)


def timed(function: Callable[[], object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1000


def one_by_one(*runtimes: Runtime) -> list[tuple[float, float]]:
    """Medians of (ADD, DEL) in ms of each. They take turns, so that what else runs here meets all alike."""
    taken: list[tuple[list[float], list[float]]] = [([], []) for _ in runtimes]
    for number in range(1, ROUNDS + 1):
        for runtime, (adds, deletes) in zip(runtimes, taken, strict=True):
            pod = netns.new()
            kept: list[Plugin | None] = []
            adds.append(timed(lambda r=runtime, n=number, p=pod, k=kept: k.append(r.call("ADD", n, p, None))))  # type: ignore[misc]
            deletes.append(timed(lambda r=runtime, n=number, p=pod, k=kept: r.call("DEL", n, p, k[0])))  # type: ignore[misc]
            os.close(pod)
    return [(statistics.median(adds), statistics.median(deletes)) for adds, deletes in taken]


def together(runtime: Runtime) -> tuple[float, float]:
    """Milliseconds until (all are added, all are deleted); every pod has an address of its own."""
    pods = [netns.new() for _ in range(TOGETHER)]
    try:
        with ThreadPoolExecutor(TOGETHER) as threads:
            results: list[Plugin | None] = []
            add_ms = timed(
                lambda: results.extend(
                    threads.map(lambda n: runtime.call("ADD", n, pods[n], None), range(TOGETHER))
                )
            )
            addresses = {r["ips"][0]["address"] for r in results if r is not None}
            if len(addresses) != TOGETHER:
                raise SystemExit(f"{TOGETHER} pods share {len(addresses)} addresses")
            delete_ms = timed(
                lambda: list(
                    threads.map(lambda n: runtime.call("DEL", n, pods[n], results[n]), range(TOGETHER))
                )
            )
        return add_ms, delete_ms
    finally:
        for fd in pods:
            os.close(fd)


def measure() -> dict[str, object]:
    if not (REFERENCE / "bridge").exists():
        return {"left out": "the reference plugins are not installed (package containernetworking-plugins)"}
    results: dict[str, object] = {}
    nodes = [netns.new(), netns.new()]
    try:
        for node in nodes:
            with Rtnl(node) as rtnl:
                rtnl.set_up("lo")
        with tempfile.TemporaryDirectory() as folder, agent(nodes[0], folder) as (binaries, environment, pid):
            for name, plugins in (("plain", 1), ("with portmap", 2)):
                ours = Runtime(nodes[0], binaries, conflist(folder)[:plugins], environment)
                theirs = Runtime(nodes[1], REFERENCE, conflist(f"{folder}/reference")[:plugins], {})
                (add, delete), (their_add, their_delete) = one_by_one(ours, theirs)
                results[f"ADD, bridge and host-local, {name}"] = ratio(add, their_add)
                results[f"DEL, bridge and host-local, {name}"] = ratio(delete, their_delete)
                if plugins == 1:
                    before_kib = pss_kib(pid)
                    (add, delete), (their_add, their_delete) = together(ours), together(theirs)
                    results[f"{TOGETHER} ADDs at once"] = ratio(add, their_add)
                    results[f"{TOGETHER} DELs at once"] = ratio(delete, their_delete)
                    after_kib = pss_kib(pid)
                    grown = f"{(after_kib - before_kib) / 1024:+.1f} MiB"
                    results[f"agent after {TOGETHER} pods (PSS)"] = (
                        f"{grown}, {after_kib / 1024:.0f} MiB in all"
                    )
    finally:
        for fd in nodes:
            os.close(fd)
    return results


def ratio(ours_ms: float, theirs_ms: float) -> str:
    return f"{ours_ms:.1f} ms, {ours_ms / theirs_ms:.2f} of the reference's {theirs_ms:.1f} ms"
