"""What a service proxy tells Prometheus, under kube-proxy's names, so that its dashboards and alerts go on.

Durations are histograms with kube-proxy's own buckets. One transaction serves both families: its sample is
counted for each of them. Source: kube-proxy v1.36, pkg/proxy/metrics/metrics.go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from podlane.compile.tables import FrontendClass, Table
from podlane.model.addresses import Family, family_of
from podlane.model.objects import EndpointSlice
from podlane.observe.exposition import Histogram, Labels, Metric, V, exposition

TRIGGER_TIME: Final = "endpoints.kubernetes.io/last-change-trigger-time"

SYNC_BUCKETS_S: Final = tuple(0.001 * 2**n for n in range(15))
PROGRAMMING_BUCKETS_S: Final = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))


class ProxyMetrics:
    """Filled in by the daemon; `text` is what /metrics adds. Times are Unix seconds."""

    def __init__(self, families: Iterable[Family]) -> None:
        self.families = list(families)
        self.sync, self.full, self.partial = (Histogram(SYNC_BUCKETS_S) for _ in range(3))
        self.programming = Histogram(PROGRAMMING_BUCKETS_S)
        self.sweeps = Histogram(SYNC_BUCKETS_S)
        self.last_s = self.last_queued_s = 0.0
        self.sync_failures = self.swept = 0
        self._failed = False
        self.total = {"Service": 0, "EndpointSlice": 0}
        self.pending = {"Service": 0, "EndpointSlice": 0}
        self._triggers: deque[tuple[int, float]] = deque()

    def told(self, kind: str, objects: int, now_s: float) -> None:
        """News of the API of so many objects, to be applied."""
        if kind in self.total:
            self.total[kind] += objects
            self.pending[kind] += objects
            self.last_queued_s = now_s

    def changed(self, piece: EndpointSlice, submission: int) -> None:
        """A slice that may say when what it tells happened; it was submitted under that number."""
        text = piece.metadata.annotations.get(TRIGGER_TIME)
        if text:
            with suppress(ValueError):  # written by somebody else
                self._triggers.append((submission, datetime.fromisoformat(text).timestamp()))

    def synced(self, seconds: float, *, full: bool, failed: bool, now_s: float) -> None:
        """One generation, or one comparison (full), of the services' driver."""
        self.sync.observe(seconds)
        (self.full if full else self.partial).observe(seconds)
        self._failed = failed
        if failed:
            self.sync_failures += 1
            return
        self.last_s = now_s
        self.pending = dict.fromkeys(self.pending, 0)

    def applied(self, submission: int, now_s: float) -> None:
        """Everything up to that number is in the kernel, unless the driver was refused: then it waits."""
        while self._triggers and self._triggers[0][0] <= submission and not self._failed:
            self.programming.observe(max(0.0, now_s - self._triggers.popleft()[1]))

    def text(
        self,
        tables: Mapping[Table, Mapping[Any, Any]],
        healthz: Mapping[int, int],
        livez: Mapping[int, int],
    ) -> str:
        return exposition("kubeproxy_", self._metrics(tables, healthz, livez))

    def _metrics(
        self,
        tables: Mapping[Table, Mapping[Any, Any]],
        healthz: Mapping[int, int],
        livez: Mapping[int, int],
    ) -> Iterator[Metric]:
        def each_family(value: V) -> list[tuple[Labels, V]]:
            return [({"ip_family": family}, value) for family in self.families]

        for name, found, help_ in (
            ("sync_proxy_rules_duration_seconds", self.sync, "Time of changes of the rules."),
            ("sync_full_proxy_rules_duration_seconds", self.full, "Time of comparisons of all rules."),
            ("sync_partial_proxy_rules_duration_seconds", self.partial, "Time of what changed only."),
            ("network_programming_duration_seconds", self.programming, "From a change to its rules."),
            ("conntrack_reconciler_sync_duration_seconds", self.sweeps, "Time of looks for stale flows."),
        ):
            yield Metric(name, "histogram", help_, each_family(found))
        name = "sync_proxy_rules_last_timestamp_seconds"
        yield Metric(name, "gauge", "When the rules were last changed.", each_family(self.last_s))
        name = "sync_proxy_rules_last_queued_timestamp_seconds"
        yield Metric(name, "gauge", "When a change last came in.", each_family(self.last_queued_s))
        for kind, word in (("EndpointSlice", "endpoint"), ("Service", "service")):
            name = f"sync_proxy_rules_{word}_changes_pending"
            yield Metric(name, "gauge", "Changes not applied yet.", each_family(self.pending[kind]))
            name = f"sync_proxy_rules_{word}_changes_total"
            yield Metric(name, "counter", "Changes that came in.", each_family(self.total[kind]))
        lonely = without_local_endpoints(tables)
        yield Metric(
            "sync_proxy_rules_no_local_endpoints_total",
            "gauge",
            "Service ports of policy Local that have endpoints, but none here.",
            [
                ({"traffic_policy": policy, "ip_family": family}, lonely.get((policy, family), 0))
                for policy in ("external", "internal")
                for family in self.families
            ],
        )
        name = "sync_proxy_rules_nftables_sync_failures_total"
        yield Metric(name, "counter", "Changes that were refused.", each_family(self.sync_failures))
        name = "sync_proxy_rules_nftables_cleanup_failures_total"
        yield Metric(name, "counter", "There is nothing that needs a later clean-up.", each_family(0))
        name = "conntrack_reconciler_deleted_entries_total"
        yield Metric(name, "counter", "Stale flows that were ended.", each_family(self.swept))
        for word, codes in (("healthz", healthz), ("livez", livez)):
            samples = [({"code": str(code)}, n) for code, n in sorted({200: 0, 503: 0, **codes}.items())]
            yield Metric(f"proxy_{word}_total", "counter", f"Answers of /{word}.", samples)


def without_local_endpoints(tables: Mapping[Table, Mapping[Any, Any]]) -> dict[tuple[str, Family], int]:
    """(traffic policy, family) -> service ports that drop what comes by it, for want of an endpoint here."""
    external: set[Any] = set()
    internal = {Family.IPV4: 0, Family.IPV6: 0}
    lists = tables[Table.BACKENDS]
    for table in (Table.FRONTENDS, Table.NODE_PORTS):
        for key, row in tables[table].items():
            if row.kind is FrontendClass.EXTERNAL_LOCAL and not lists[row.backends].backends:
                external.add(row.backends)
            elif row.kind is FrontendClass.DROP:
                internal[family_of(key.address)] += 1  # ClusterIPs only
    found = {("internal", family): count for family, count in internal.items()}
    for family in Family:
        found["external", family] = sum(1 for each in external if each.family is family)
    return found
