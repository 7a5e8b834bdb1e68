"""How much one TCP stream between pods of two nodes carries by each backend, against the same made by hand.

One lab a backend, all of them up at once, and rounds that are interleaved: what the machine does meanwhile
touches all alike. Sender, receiver and every hop share the machine's cores, so that ratios are what counts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from podlane.kernel import netns
from podlane.lab import rest
from podlane.lab.paths import LabPaths
from tests.bench.lab import podlane
from tests.bench.path import by_hand, pod_namespaces

BACKENDS = {  # and what each is measured against
    "vxlan": "vxlan by hand",
    "host-gw": "routes by hand",
    "bgp": "routes by hand",
    "ipip": "vxlan by hand",
    "wireguard": "vxlan by hand",
    "udp": "vxlan by hand",
}
ROUNDS, SECONDS, PORT = 5, 2, 5201

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: near}
spec: {nodeName: node-1, containers: [{name: c, image: absent, command: [sleep, "3600"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far}
spec: {nodeName: node-2, containers: [{name: c, image: absent, command: [sleep, "3600"]}]}
"""


@contextmanager
def server(namespace: int) -> Iterator[None]:
    process = subprocess.Popen(
        ["iperf3", "--server", "--port", str(PORT)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: netns.setns(namespace),
    )
    try:
        time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def gbit_per_second(namespace: int, address: str) -> float:
    done = subprocess.run(
        ["iperf3", "--client", address, "--port", str(PORT), "--time", str(SECONDS), "--json"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: netns.setns(namespace),
    )
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise SystemExit(f"iperf3 to {address}: {answer['error']}")
    return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


@contextmanager
def lab(backend: str) -> Iterator[dict[int, Callable[[], float]]]:
    """What measures it, by IP version."""
    name = f"bench-{backend}"
    podlane("down", name)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pods.yaml").write_text(PODS)
        podlane("up", name, "--nodes", "2", "--set", f"backend.type={backend}", "-f", folder)
    found = pod_namespaces(name)
    try:
        with rest.Client.from_kubeconfig(LabPaths(name).kubeconfig) as client, server(found["far"]):
            addresses = [each["ip"] for each in client.get("pods", "far", "default")["status"]["podIPs"]]

            def to(address: str) -> Callable[[], float]:
                return lambda: gbit_per_second(found["near"], address)

            yield {6 if ":" in address else 4: to(address) for address in addresses}
    finally:
        for fd in found.values():
            os.close(fd)
        podlane("down", name)


def measure() -> dict[str, object]:
    with ExitStack() as stack:
        runs: dict[tuple[str, int], Callable[[], float]] = {}
        for name, tunnel in (("vxlan by hand", True), ("routes by hand", False)):
            near, far = stack.enter_context(by_hand(tunnel=tunnel))
            stack.enter_context(server(far))
            runs[name, 4] = lambda near=near: gbit_per_second(near, "10.9.2.2")  # type: ignore[misc]
        for backend in BACKENDS:
            for version, run in stack.enter_context(lab(backend)).items():
                runs[backend, version] = run
        rounds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
        for _ in range(ROUNDS):
            for key, run in runs.items():
                rounds[key].append(run())
    middle = {key: statistics.median(values) for key, values in rounds.items()}
    results: dict[str, object] = {
        floor: f"{middle[floor, 4]:.1f} Gbit/s" for floor in ("vxlan by hand", "routes by hand")
    }
    for backend, floor in BACKENDS.items():
        ratios = [mine / bare for mine, bare in zip(rounds[backend, 4], rounds[floor, 4], strict=True)]
        results[backend] = (
            f"{statistics.median(ratios):.2f} of {floor}: {middle[backend, 4]:.1f} Gbit/s, "
            f"IPv6 {middle[backend, 6]:.1f} Gbit/s"
        )
    return results
