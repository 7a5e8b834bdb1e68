"""What it costs to be observed: /metrics at two sizes, the pages on demand, counting, a log line."""

from __future__ import annotations

import asyncio
import io
import logging
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from podlane import logs
from podlane.agent.metrics import AgentMetrics
from podlane.agent.metrics_page import MetricsPage
from podlane.agent.proxy_metrics import ProxyMetrics
from podlane.agent.reconciler import Counts
from podlane.agent.report import State
from podlane.compile.engine import Compiler, changes_of
from podlane.model import config
from tests.bench.service_objects import Cluster

SIZES, ENDPOINTS, ROUNDS, EVENTS = (100, 10_000), 10, 20, 100_000


def measure(scale: float = 1.0) -> dict[str, object]:
    found: dict[str, object] = {}
    for size in SIZES:
        services = max(10, int(size * scale))
        compiler = _compiler(services)
        page, proxy = _page(compiler), ProxyMetrics(config.DEFAULT.ip_families)
        whole_ms = _median_ms(
            lambda page=page, proxy=proxy, tables=compiler.tables: (
                asyncio.run(page.page()),
                proxy.text(tables, {}, {}),
            )
        )
        found[f"/metrics, {services} services"] = f"{whole_ms:.1f} ms"
        asked_ms = _median_ms(lambda page=page: asyncio.run(page.asked["/metrics/services"]({})), 3)
        found[f"/metrics/services, {services} services"] = f"{asked_ms:.0f} ms, of another thread"
    found["an event counted on its way to the kernel"] = f"{_event_us():.2f} us"
    found["a log line as JSON, without secrets"] = f"{_line_us():.0f} us"
    return found


def _compiler(services: int) -> Compiler:
    made, cluster = Compiler("node-1", config.DEFAULT), Cluster(services, ENDPOINTS)
    for kind in ("Node", "Service", "EndpointSlice"):
        made.apply(changes_of(cluster.objects(kind)[1]))
    return made


def _page(compiler: Compiler) -> MetricsPage:
    def state() -> State:
        known: dict[str, Any] = {"node": "node-1", "ready": True, "blockers": [], "counts": Counts()}
        known |= {"pending": 0, "failures": [], "refused": [], "applied": {}, "away": {}, "attachments": 110}
        work = {"units_compiled": compiler.units_compiled, "rows_compared": compiler.rows_compared}
        return State(**known, **work, tables=compiler.tables)

    counted = AgentMetrics()
    return MetricsPage(compiler, counted, state=state, use=dict, requests={}, proxy=None, sockets=None)


def _median_ms(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    took = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        work()
        took.append(time.perf_counter() - began_s)
    return statistics.median(took) * 1000


def _event_us() -> float:
    counted = AgentMetrics()
    began_s = time.perf_counter()
    for number in range(EVENTS):
        counted.told("EndpointSlice", number, 0.0)
        counted.applied(number, 0.001)
    return (time.perf_counter() - began_s) / EVENTS * 1e6


def _line_us() -> float:
    record = SimpleNamespace(object="routes 10.244.7.0/24", error="Network is unreachable")
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logs.formatter("json"))
    log = logging.getLogger("podlane.bench")
    log.addHandler(handler)
    log.propagate = False
    try:
        began_s = time.perf_counter()
        for number in range(1000):
            log.warning("routes 10.244.%d.0/24 via 172.30.1.2: %s", number, "set", extra=vars(record))
        return (time.perf_counter() - began_s) / 1000 * 1e6
    finally:
        log.removeHandler(handler)
        log.propagate = True
