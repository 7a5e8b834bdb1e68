"""A node of a large cluster: one real agent process against a synthetic API server, in a namespace.

5,000 nodes, 50,000 pods, 10,000 services with 100,000 endpoints, 200 policies; a tenth of it beside, for what
grows. The API server has a processor of its own, the agent the other one. What is measured of the agent is
also told in CPU time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import json
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from podlane.kernel.netlink import NETLINK_NETFILTER
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.rtnl.routes import PROTOCOL
from tests.bench.cluster_objects import POD_CIDRS, Size
from tests.bench.lab import pss_kib
from tests.bench.service_agent import _cpu_s, _status
from tests.netns.agent_nodes import TestNode, join

STARTS = 3
RATE, CHURN_S, LATENCY_S = 100, 30.0, 10.0
READY_S = 180.0
_TABLES_GROUP = 7  # NFNLGRP_NFTABLES
_NEW = re.compile(rb"\x0a([\xc8-\xcf])(..)", re.DOTALL)  # 10.200.0.0 and up: only new endpoints are there

Result = dict[str, Any]


class Api:
    """The server's process."""

    def __init__(self, fd: int, size: Size, processors: set[int]) -> None:
        command = [sys.executable, "-m", "tests.bench.cluster_api", str(fd), *map(str, size[:4])]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[fd],
            cwd=Path(__file__).parents[2],
            preexec_fn=lambda: os.sched_setaffinity(0, processors),
        )
        self._answer()

    def ask(self, *words: object) -> Result:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Result:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the API server of the benchmark has ended")
        found: Result = json.loads(line)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def site(size: Size, processors: tuple[set[int], set[int]], **config: Any) -> Iterator[tuple[TestNode, Api]]:
    """A node whose agent is not started yet. processors: of the agent, and of all else."""
    with tempfile.TemporaryDirectory() as folder:
        extra = {"podCIDRs": list(POD_CIDRS), **config}
        nodes = [TestNode(number, ["IPv4", "IPv6"], Path(folder), extra) for number in (1, 2)]
        api = None
        try:
            join(*nodes)
            listener = nodes[0].listener()
            with listener:
                api = Api(listener.fileno(), size, processors[1])
            yield nodes[0], api
        finally:
            for node in nodes:
                node.close()
            if api is not None:
                api.close()


def halves() -> tuple[set[int], set[int]]:
    """One processor for the agent, the others for who serves and measures; with a single one it is shared."""
    every = sorted(os.sched_getaffinity(0))
    return {every[0]}, set(every[1:]) or {every[0]}


def start(node: TestNode, processors: set[int]) -> Result:
    """Until everything is programmed."""
    before = os.sched_getaffinity(0)
    began_s = time.perf_counter()
    os.sched_setaffinity(0, processors)
    try:
        node.start()
    finally:
        os.sched_setaffinity(0, before)
    assert node.process is not None
    while node.get("/readyz")[0] != 200:
        time.sleep(0.05)
        if node.process.poll() is not None or time.perf_counter() - began_s > READY_S:
            raise SystemExit(f"the agent does not get ready: {node.log()[-2000:]}")
    took_s, pid = time.perf_counter() - began_s, node.process.pid
    cpu_s = _cpu_s(pid)
    time.sleep(2.0)
    return {
        "start_s": took_s,
        "start_cpu_s": cpu_s,
        "pss_mib": pss_kib(pid) / 1024,
        "most_mib": _status(pid, "VmHWM") / 1024,
    }


def measure_one(size: Size, *, starts: int, churn_s: float = CHURN_S) -> Result:
    processors = halves()
    with site(size, processors) as (node, api):
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, processors[1])
        try:
            runs = []
            for turn in range(starts):
                if turn:
                    node.stop(9)
                    wipe(node)
                runs.append(start(node, processors[0]))
            result: Result = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            result["starts"] = runs
            result["served_mib"] = api.ask("served")["bytes"] / starts / 2**20
            result["programmed"] = programmed(node, size)
            for way in ("endpoints", "pods", "heartbeats"):
                result[way] = churn(node, api, way, churn_s if way == "endpoints" else churn_s / 2)
            result["latency_ms"] = latencies(node, api, LATENCY_S)
            result["after_mib"] = pss_kib(node.process.pid) / 1024  # type: ignore[union-attr]
            node.stop(9)
            result["restart"] = start(node, processors[0])
            return result
        finally:
            os.sched_setaffinity(0, before)


def wipe(node: TestNode) -> None:
    """As after a boot: the next start finds nothing of the one before."""
    enter = ["nsenter", f"--net=/proc/self/fd/{node.fd}"]

    def run(*command: str) -> None:
        subprocess.run([*enter, *command], check=True, pass_fds=[node.fd])

    run("nft", "flush", "ruleset")
    run("ip", "link", "delete", "plvxlan")


def programmed(node: TestNode, size: Size) -> str:
    """What the kernel holds, counted there."""
    with Rtnl(node.fd) as rt:
        tunnel = rt.link("plvxlan").index
        routes = [each for each in rt.routes(protocol=PROTOCOL) if each.link == tunnel]
    assert len(routes) == 2 * (size.nodes - 1), f"{len(routes)} routes for {size.nodes} nodes"
    status = node.status()
    assert not status["failures"], status["failures"]
    return f"{len(routes)} routes, tables {status['tables']}"


def churn(node: TestNode, api: Api, way: str, seconds: float) -> Result:
    """RATE changes a second; the agent's CPU and work for them."""
    assert node.process is not None
    before, cpu_before_s = counts(node), _cpu_s(node.process.pid)
    began_s = time.monotonic()
    sent = api.ask("churn", RATE, seconds, way)["sent"]
    time.sleep(0.5)
    took_s, cpu_s = time.monotonic() - began_s, _cpu_s(node.process.pid) - cpu_before_s
    after = counts(node)
    late_s = max(b - a for a, b in pairwise(sent))
    events = len(sent)
    return {
        "share": cpu_s / (events / RATE),
        "cpu_us": cpu_s / events * 1e6,
        "units": (after["units_compiled"] - before["units_compiled"]) / events,
        "rows": (after["rows_compared"] - before["rows_compared"]) / events,
        "operations": (after["operations"] - before["operations"]) / events,
        "generations": (after["generations"] - before["generations"]) / events,
        "resyncs": after["resyncs"] - before["resyncs"],
        "took_s": took_s,
        "late_s": late_s,
    }


def counts(node: TestNode) -> dict[str, float]:
    """The agent's counters, by the middle of their names."""
    text = node.get("/metrics")[1].decode()
    return {
        name: float(value) for name, value in re.findall(r"^podlane_agent_(\w+)_total (\S+)$", text, re.M)
    }


def latencies(node: TestNode, api: Api, seconds: float) -> dict[str, float]:
    """From the moment a change is sent until the kernel's notice of the new endpoint's element."""
    seen: dict[tuple[int, int], float] = {}
    done = threading.Event()
    netlink = Netlink(NETLINK_NETFILTER, node.fd, groups=(_TABLES_GROUP,))

    def listen() -> None:
        while not done.is_set():
            if select.select([netlink], [], [], 0.2)[0]:
                for message in netlink.receive():
                    now_s = time.monotonic()
                    for found in _NEW.finditer(message.body):
                        key = found[1][0] - 200, int.from_bytes(found[2], "big")
                        seen.setdefault(key, now_s)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        answer = api.ask("churn", RATE, seconds, "endpoints")
        time.sleep(1.0)
    finally:
        done.set()
        thread.join()
        netlink.close()
    times_ms = []
    for turn, at_s in enumerate(answer["sent"], answer["first"]):
        key = turn >> 16, turn & 0xFFFF
        assert key in seen, f"change {turn} did not get to the kernel"
        times_ms.append((seen[key] - at_s) * 1000)
    parts = statistics.quantiles(times_ms, n=100)
    return {"p50": statistics.median(times_ms), "p99": parts[98], "most": max(times_ms)}


def measure(scale: float = 1.0) -> dict[str, object]:
    load = os.getloadavg()[0]
    full, tenth = Size.of(scale), Size.of(scale / 10)
    large, small = measure_one(full, starts=STARTS), measure_one(tenth, starts=1)
    starts = ", ".join(f"{run['start_s']:.1f}" for run in large["starts"])
    return {
        "this machine": f"{os.cpu_count()} processors, load {load:.1f} before this part began",
        "the cluster": f"{full.nodes} nodes, {full.pods} pods, {full.services} services, "
        f"{full.services * 10} endpoints, {full.policies} policies; {large['served_mib']:.0f} MiB of lists",
        "start to everything programmed": f"{large['start_s']:.1f} s (at most 10 s), median of {starts}; "
        f"{large['start_cpu_s']:.1f} s of CPU",
        "start again over what is programmed": f"{large['restart']['start_s']:.1f} s; "
        f"{large['restart']['start_cpu_s']:.1f} s of CPU",
        "memory (PSS) then": f"{large['pss_mib']:.0f} MiB (at most 250), "
        f"{large['most_mib']:.0f} at most (RSS), {large['after_mib']:.0f} after all changes",
        "a tenth of the cluster: start and memory": f"{small['start_s']:.1f} s, {small['pss_mib']:.0f} MiB",
        f"{RATE} endpoint changes a second": f"{large['endpoints']['share']:.1%} of a processor "
        f"(at most 15 %); a tenth: {small['endpoints']['share']:.1%}",
        "  with their pods' changes, four each": f"{large['pods']['share']:.1%}; "
        f"a tenth: {small['pods']['share']:.1%}",
        f"  and {RATE} heartbeats of nodes instead": f"{large['heartbeats']['share']:.1%}; "
        f"a tenth: {small['heartbeats']['share']:.1%}",
        "work for one endpoint change": f"{_work(large['endpoints'])}; a tenth: {_work(small['endpoints'])}",
        "work with its pod's changes": f"{_work(large['pods'])}; a tenth: {_work(small['pods'])}",
        "an endpoint, from change to kernel": f"p50 {large['latency_ms']['p50']:.1f} ms, "
        f"p99 {large['latency_ms']['p99']:.1f} ms; a tenth: p50 {small['latency_ms']['p50']:.1f}, "
        f"p99 {small['latency_ms']['p99']:.1f} ms",
    }


def _work(found: Result) -> str:
    return (
        f"{found['units']:.2f} units, {found['rows']:.1f} rows, {found['operations']:.1f} operations, "
        f"{found['cpu_us']:.0f} µs of CPU"
    )


if __name__ == "__main__":
    print(json.dumps(measure_one(Size.of(float(sys.argv[1])), starts=int(sys.argv[2])), indent=1))
