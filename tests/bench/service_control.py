"""The control path of services: how long until the kernel holds them, measured in a process of its own.

    python -m tests.bench.service_control SERVICES ENDPOINTS        prints one JSON object

Everything is the agent's: reflectors decode what an API server writes, the reconciler compiles it and the
driver brings it into a network namespace; only the sockets to the API are left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from podlane.agent import collector
from podlane.agent.reconciler import Reconciler
from podlane.compile.engine import Compiler, capabilities, changes_of
from podlane.compile.tables import Table
from podlane.compile.view import Change
from podlane.kernel import netns
from podlane.kernel.nft.services import TABLES, ServicesDriver
from podlane.model.config import NetworkConfig
from podlane.model.objects import Object
from podlane.watch.reflector import Reflector, Upsert
from tests.bench.lab import pss_kib
from tests.bench.service_objects import Cluster, endpoint, endpoints_of, modified, piece

CONFIG = NetworkConfig()
EVENTS = 500
ROLLED_SERVICES = 100

Result = dict[str, Any]


class Run:
    """One node's control path in a namespace of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.fd = cluster, netns.new()
        only = [c for c in capabilities() if c.name in ("node", "services")]
        self.compiler = Compiler("node-1", CONFIG, only)
        self.driver = ServicesDriver(CONFIG, self.fd)
        self.reconciler = Reconciler(self.compiler, [self.driver])
        self.slices: Reflector[Object]
        self.result: Result = {}

    async def measure(self) -> Result:
        await self.load()
        await self.one_more()
        await self.roll()
        self.start_again()
        return self.result

    async def load(self) -> None:
        """From objects in memory to the kernel."""
        began_s = time.perf_counter()
        _, nodes = self.cluster.objects("Node")
        _, services = self.cluster.objects("Service")
        self.slices, slices = self.cluster.objects("EndpointSlice")
        self.result["decode_s"] = time.perf_counter() - began_s
        began_s, began_cpu_s = time.perf_counter(), cpu_s()
        for objects in (nodes, services, slices):
            self.reconciler.submit(changes_of(objects))
        del nodes, services, slices, objects
        self.reconciler.allow_sync()
        await self.reconciler.generation()
        self.result["load_s"] = time.perf_counter() - began_s
        self.result["load_cpu_s"] = cpu_s() - began_cpu_s
        assert not self.reconciler.failures, self.reconciler.failures
        collector.settle()
        self.result["pss_mib"] = pss_kib(os.getpid()) / 1024

    async def one_more(self) -> None:
        """One endpoint comes or goes, of services all over the cluster."""
        for turn in range(20):
            await self.event(0, EVENTS + turn)
        units, rows = self.compiler.units_compiled, self.compiler.rows_compared
        times_ms = [
            await self.event(number * 7919 % self.cluster.services, number) for number in range(EVENTS)
        ]
        self.result["event_ms"] = centiles(times_ms)
        self.result["event_units"] = (self.compiler.units_compiled - units) / EVENTS
        self.result["event_rows"] = (self.compiler.rows_compared - rows) / EVENTS

    async def event(self, number: int, turn: int) -> float:
        """Milliseconds from the watch's line to the kernel's answer."""
        ends = [
            *endpoints_of(number, self.cluster.endpoints),
            endpoint(number, f"10.200.{turn >> 8}.{turn & 255}"),
        ]
        operations = self.reconciler.counts.operations
        took_ms = await self.deliver([modified(piece(number, ends, 2_000_000 + turn))])
        assert self.reconciler.counts.operations > operations, "nothing was changed"
        return took_ms

    async def deliver(self, lines: list[bytes]) -> float:
        began_s = time.perf_counter()
        for line in lines:
            news = self.slices.event(line)
            assert isinstance(news, Upsert)
            self.reconciler.submit([Change("EndpointSlice", None, news.object)])
        await self.reconciler.generation()
        return (time.perf_counter() - began_s) * 1000

    async def roll(self) -> None:
        """Endpoints are replaced one by one, first each as a generation of its own, then ten in one."""
        for name, together in (("rolled_one_by_one", 1), ("rolled_ten_by_ten", 10)):
            lines = list(self.rolling(f"{together}"))
            began_cpu_s, began_s = cpu_s(), time.perf_counter()
            for start in range(0, len(lines), together):
                await self.deliver(lines[start : start + together])
            self.result[name] = {
                "endpoints": len(lines),
                "cpu_s": cpu_s() - began_cpu_s,
                "wall_s": time.perf_counter() - began_s,
            }

    def rolling(self, octet: str) -> Iterator[bytes]:
        """A line for each endpoint that another takes the place of."""
        for number in range(min(ROLLED_SERVICES, self.cluster.services)):
            ends = endpoints_of(number, self.cluster.endpoints)
            for place in range(len(ends)):
                new = number * len(ends) + place
                ends[place] = endpoint(new, f"10.21{octet[0]}.{new >> 8 & 255}.{new & 255}")
                yield modified(piece(number, ends, 3_000_000 + new))

    def start_again(self) -> None:
        """A new driver reads the kernel back and finds nothing to do."""
        tables = {table: self.compiler.tables[table] for table in TABLES}
        again = ServicesDriver(CONFIG, self.fd)
        began_s = time.perf_counter()
        report = again.resync(tables)
        self.result["restart_s"] = time.perf_counter() - began_s
        assert report.operations == 0, report
        again.close()
        self.result["elements"] = sum(
            len(self.compiler.tables[table]) for table in (Table.FRONTENDS, Table.SETS)
        ) + sum(len(row.backends) for row in self.compiler.tables[Table.BACKENDS].values())

    def close(self) -> None:
        self.driver.close()
        os.close(self.fd)


def cpu_s() -> float:
    """Of all threads; the kernel's work for them is part of it."""
    return time.process_time()


def centiles(times_ms: list[float]) -> dict[str, float]:
    parts = statistics.quantiles(times_ms, n=100)
    return {"p50": statistics.median(times_ms), "p99": parts[98], "most": max(times_ms)}


def measured(services: int, endpoints: int) -> Result:
    """In a child: what this process holds is in no one's way there."""
    command = [sys.executable, "-m", "tests.bench.service_control", str(services), str(endpoints)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parents[2])
    result: Result = json.loads(done.stdout)
    return result


def main() -> None:
    services, endpoints = map(int, sys.argv[1:])
    collector.relax()
    run = Run(Cluster(services, endpoints))
    try:
        print(json.dumps(asyncio.run(run.measure())))
    finally:
        run.close()


if __name__ == "__main__":
    main()
