"""What a service proxy tells Prometheus, under kube-proxy's names, so that its dashboards and alerts go on.

Durations are histograms with kube-proxy's own buckets. One transaction serves both families: its sample is
counted for each of them. Source: kube-proxy v1.36, pkg/proxy/metrics/metrics.go.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from podlane.compile.tables import FrontendClass, Table
from podlane.model.addresses import Family, family_of
from podlane.model.objects import EndpointSlice

TRIGGER_TIME: Final = "endpoints.kubernetes.io/last-change-trigger-time"

SYNC_BUCKETS_S: Final = tuple(0.001 * 2**n for n in range(15))
PROGRAMMING_BUCKETS_S: Final = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))


class Histogram:
    """Prometheus' cumulative histogram. buckets: upper bounds, rising."""

    def __init__(self, buckets: Sequence[float]) -> None:
        self._buckets = tuple(buckets)
        self._counts = [0] * (len(self._buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._buckets, value)] += 1
        self._sum += value

    def lines(self, name: str, label: str = "") -> Iterator[str]:
        running = 0
        for bound, count in zip((*self._buckets, "+Inf"), self._counts, strict=True):
            running += count
            text = bound if isinstance(bound, str) else f"{bound:g}"
            yield f"{name}_bucket{{{','.join(filter(None, (label, f'le={_quoted(text)}')))}}} {running}"
        braced = f"{{{label}}}" if label else ""
        yield f"{name}_sum{braced} {self._sum:.17g}"
        yield f"{name}_count{braced} {running}"


class ProxyMetrics:
    """Filled in by the daemon; `text` is what /metrics adds. Times are Unix seconds."""

    def __init__(self, families: Iterable[Family]) -> None:
        self.families = list(families)
        self.sync, self.full, self.partial = (Histogram(SYNC_BUCKETS_S) for _ in range(3))
        self.programming = Histogram(PROGRAMMING_BUCKETS_S)
        self.sweeps = Histogram(SYNC_BUCKETS_S)
        self.last_s = self.last_queued_s = 0.0
        self.sync_failures = self.swept = 0
        self.total = {"Service": 0, "EndpointSlice": 0}
        self.pending = {"Service": 0, "EndpointSlice": 0}
        self._triggers: list[float] = []

    def told(self, kind: str, objects: int, now_s: float) -> None:
        """News of the API of so many objects, to be applied."""
        if kind in self.total:
            self.total[kind] += objects
            self.pending[kind] += objects
            self.last_queued_s = now_s

    def changed(self, piece: EndpointSlice) -> None:
        """A slice that says when what it tells happened."""
        text = piece.metadata.annotations.get(TRIGGER_TIME)
        if text:
            with suppress(ValueError):  # written by somebody else
                self._triggers.append(datetime.fromisoformat(text).timestamp())

    def synced(self, seconds: float, *, full: bool, failed: bool, now_s: float) -> None:
        """One generation, or one comparison (full), of the services' driver."""
        self.sync.observe(seconds)
        (self.full if full else self.partial).observe(seconds)
        if failed:
            self.sync_failures += 1
            return
        self.last_s = now_s
        self.pending = dict.fromkeys(self.pending, 0)
        for trigger_s in self._triggers:
            self.programming.observe(max(0.0, now_s - trigger_s))
        self._triggers.clear()

    def text(
        self,
        tables: Mapping[Table, Mapping[Any, Any]],
        healthz: Mapping[int, int],
        livez: Mapping[int, int],
    ) -> str:
        lines: list[str] = []

        def metric(name: str, kind: str, help_: str, samples: Iterable[str]) -> None:
            lines.extend((f"# HELP kubeproxy_{name} {help_}", f"# TYPE kubeproxy_{name} {kind}", *samples))

        def value(name: str, number: float, **labels: str) -> str:
            inner = ",".join(f"{key}={_quoted(text)}" for key, text in labels.items())
            return f"kubeproxy_{name}{{{inner}}} {number:.17g}"

        def each_family(name: str, number: float) -> list[str]:
            return [value(name, number, ip_family=f) for f in self.families]

        def histogram(name: str, found: Histogram) -> Iterator[str]:
            for family in self.families:
                yield from found.lines(f"kubeproxy_{name}", f"ip_family={_quoted(family)}")

        for name, found, help_ in (
            ("sync_proxy_rules_duration_seconds", self.sync, "Time of changes of the rules."),
            ("sync_full_proxy_rules_duration_seconds", self.full, "Time of comparisons of all rules."),
            ("sync_partial_proxy_rules_duration_seconds", self.partial, "Time of what changed only."),
            ("network_programming_duration_seconds", self.programming, "From a change to its rules."),
        ):
            metric(name, "histogram", help_, histogram(name, found))
        name = "sync_proxy_rules_last_timestamp_seconds"
        metric(name, "gauge", "When the rules were last changed.", each_family(name, self.last_s))
        name = "sync_proxy_rules_last_queued_timestamp_seconds"
        metric(name, "gauge", "When a change last came in.", each_family(name, self.last_queued_s))
        for kind, word in (("EndpointSlice", "endpoint"), ("Service", "service")):
            name = f"sync_proxy_rules_{word}_changes_pending"
            metric(name, "gauge", "Changes not applied yet.", each_family(name, self.pending[kind]))
            name = f"sync_proxy_rules_{word}_changes_total"
            metric(name, "counter", "Changes that came in.", each_family(name, self.total[kind]))
        name = "sync_proxy_rules_no_local_endpoints_total"
        lonely = without_local_endpoints(tables)
        metric(
            name,
            "gauge",
            "Service ports of policy Local that have endpoints, but none here.",
            [
                value(name, lonely.get((policy, family), 0), traffic_policy=policy, ip_family=family)
                for policy in ("external", "internal")
                for family in self.families
            ],
        )
        name = "sync_proxy_rules_nftables_sync_failures_total"
        metric(name, "counter", "Changes that were refused.", each_family(name, self.sync_failures))
        name = "sync_proxy_rules_nftables_cleanup_failures_total"
        metric(name, "counter", "There is nothing that needs a later clean-up.", each_family(name, 0))
        name = "conntrack_reconciler_sync_duration_seconds"
        metric(name, "histogram", "Time of looks for stale flows.", histogram(name, self.sweeps))
        name = "conntrack_reconciler_deleted_entries_total"
        metric(name, "counter", "Stale flows that were ended.", each_family(name, self.swept))
        for word, codes in (("healthz", healthz), ("livez", livez)):
            name = f"proxy_{word}_total"
            found_codes = {200: 0, 503: 0, **codes}
            metric(
                name,
                "counter",
                f"Answers of /{word}.",
                [value(name, count, code=str(code)) for code, count in sorted(found_codes.items())],
            )
        return "\n".join(lines) + "\n"


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


def _quoted(text: str) -> str:
    return f'"{text}"'
