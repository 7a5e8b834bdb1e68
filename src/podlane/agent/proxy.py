"""The agent as a service proxy: what it tells of itself in kube-proxy's words (health, metrics)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from podlane.agent import http
from podlane.agent.health_checks import HealthChecks
from podlane.agent.proxy_health import ProxyHealth
from podlane.agent.proxy_metrics import ProxyMetrics
from podlane.agent.reconciler import Observation, Reconciler
from podlane.compile.engine import Compiler
from podlane.compile.tables import Table
from podlane.kernel.driver import Driver
from podlane.model.objects import EndpointSlice, Object
from podlane.watch.reflector import Delete, News, Part, Replace, Upsert


class Proxy:
    def __init__(self, compiler: Compiler, reconciler: Reconciler, drivers: Sequence[Driver]) -> None:
        self._compiler, self._reconciler = compiler, reconciler
        families = compiler.view.config.ip_families
        self.metrics = ProxyMetrics(families)
        self.health = ProxyHealth(
            families, lambda: self._reconciler.waiting_s, lambda: self._compiler.view.me.node
        )
        for driver in drivers:
            if isinstance(driver, HealthChecks):
                driver.healthy = lambda: self.health.healthy
        self.pages: dict[str, http.Page] = {"/healthz": self.health.healthz, "/livez": self.health.livez}

    def told(self, kind: str, news: News[Object], submission: int) -> None:
        """News of the API, as they come in, submitted under that number."""
        self.metrics.told(kind, len(news.objects) if isinstance(news, (Part, Replace)) else 1, time.time())
        if isinstance(news, Upsert) and isinstance(news.object, EndpointSlice) and self._reconciler.synced:
            self.metrics.changed(news.object, submission)
        mine = self._compiler.view.me.name
        if kind == "Node" and isinstance(news, Delete) and news.key[1] == mine:
            self.health.node_gone = True
        elif kind == "Node" and isinstance(news, Upsert) and news.object.name == mine:
            self.health.node_gone = False
        elif kind == "Node" and isinstance(news, Replace):
            self.health.node_gone = all(name != mine for _, name in news.keys)

    def applied(self, submission: int) -> None:
        """Everything up to that number has been given to the drivers."""
        self.metrics.applied(submission, time.time())

    def observed(self, observation: Observation) -> None:
        """A piece of a driver's work."""
        if Table.FRONTENDS not in observation.driver.tables:
            return
        failed = bool(observation.report.failures)
        self.metrics.synced(observation.seconds, full=observation.full, failed=failed, now_s=time.time())
        if not failed:
            self.health.updated()
        sweeper: Any = getattr(observation.driver, "sweeper", None)
        if sweeper is not None:
            self.metrics.swept = sweeper.deleted
            for seconds in sweeper.take_durations_s():
                self.metrics.sweeps.observe(seconds)

    def text(self) -> str:
        """What /metrics has beside the agent's own."""
        health = self.health
        return self.metrics.text(self._compiler.tables, health.healthz_codes, health.livez_codes)
