"""What the agent counts of its own work, for /metrics (agent/metrics_page.py). No input or output.

Times are of a clock that only runs forward, in seconds, but for `heard_s`, which is seconds since 1970.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from podlane.agent.on_demand import OnDemand
from podlane.agent.reconciler import EVERY_ROW, Observation
from podlane.observe.exposition import WORK_BUCKETS_S, Histograms, Metric, labelled
from podlane.watch.reflector import Reflector


class AgentMetrics:
    """reflectors, heard_s: by kind: the watch itself, and when it last said anything."""

    def __init__(self) -> None:
        self.programming = Histograms(WORK_BUCKETS_S, "kind")
        self.work = Histograms(WORK_BUCKETS_S, "driver", "mode")
        self.errors: Counter[tuple[str, ...]] = Counter()
        self.repairs: Counter[tuple[str, ...]] = Counter()
        self.cni = Histograms(WORK_BUCKETS_S, "verb")
        self.cni_answers: Counter[tuple[str, ...]] = Counter()
        self.reflectors: dict[str, Reflector[Any]] = {}
        self.heard_s: dict[str, float] = {}
        self._compared: set[str] = set()
        self._waiting: deque[tuple[int, str, float]] = deque()

    # --- what happens ---

    def told(self, kind: str, submission: int, now_s: float) -> None:
        """News of a kind came in, and were submitted under that number."""
        self._waiting.append((submission, kind, now_s))

    def applied(self, submission: int, now_s: float) -> None:
        """Everything up to that number has been given to the drivers."""
        while self._waiting and self._waiting[0][0] <= submission:
            _, kind, told_s = self._waiting.popleft()
            self.programming.of(kind).observe(now_s - told_s)

    def observed(self, observation: Observation) -> None:
        """A piece of a driver's work. Its first comparison takes over what is there; later ones repair."""
        name = driver_name(observation.driver)
        if not name:
            return  # nobody wants it here: there was nothing to do
        self.work.of(name, "full" if observation.full else "partial").observe(observation.seconds)
        if observation.full:
            if name in self._compared:
                # What was refused again is no repair.
                report = observation.report
                self.repairs[(name,)] += max(0, report.operations - len(report.failures))
            elif not any(failure.key == EVERY_ROW for failure in observation.report.failures):
                self._compared.add(name)
                self.repairs[(name,)] += 0
        for failure in observation.report.failures:
            word = errno.errorcode.get(failure.error.errno, "other")
            self.errors[name, str(failure.table), word] += 1

    def answered(self, verb: str, code: int, seconds: float) -> None:
        """CNI: code is the specification's, 0 for success."""
        self.cni.of(verb).observe(seconds)
        self.cni_answers[verb, str(code)] += 1

    def heard(self, reflector: Reflector[Any], now_s: float) -> None:
        self.reflectors[reflector.source.kind] = reflector
        self.heard_s[reflector.source.kind] = now_s

    # --- what is told of it ---

    def of_cni(self) -> Iterator[Metric]:
        yield Metric("cni_duration_seconds", "histogram", "Time of CNI requests.", self.cni.samples)
        answers = labelled(("verb", "code"), self.cni_answers)
        yield Metric("cni_requests_total", "counter", "CNI requests, by the answer's code.", answers)

    def metrics(self) -> Iterator[Metric]:
        yield from self.of_cni()
        help_ = "From news of the API or of CNI to the kernel."
        yield Metric("programming_duration_seconds", "histogram", help_, self.programming.samples)
        help_ = "Time of a driver's part of a generation."
        yield Metric("driver_work_duration_seconds", "histogram", help_, self.work.samples)
        errors = labelled(("driver", "table", "error"), self.errors)
        yield Metric("driver_errors_total", "counter", "Rows refused, each try counted.", errors)
        repairs = labelled(("driver",), self.repairs)
        help_ = "Changes that comparisons with the kernel made."
        yield Metric("driver_repairs_total", "counter", help_, repairs)
        watched = sorted(self.reflectors.items())
        for name, help_, of in (
            ("watch_lists_total", "Whole lists taken over.", "lists"),
            ("watch_requests_total", "Watches begun.", "watches"),
            ("watch_pauses_total", "Tries that were put off.", "pauses"),
            ("watch_paused_seconds_total", "Time that tries were put off for.", "paused_s"),
        ):
            samples = [({"kind": kind}, float(getattr(each, of))) for kind, each in watched]
            yield Metric(name, "counter", help_, samples)
        yield Metric(
            "watch_unreadable_objects",
            "gauge",
            "Objects that could not be read.",
            [({"kind": kind}, len(each.malformed)) for kind, each in watched],
        )
        yield Metric(
            "watch_last_heard_timestamp_seconds",
            "gauge",
            "When the API last said anything of a kind, bookmarks included.",
            [({"kind": kind}, seconds) for kind, seconds in sorted(self.heard_s.items())],
        )


def driver_name(driver: Any) -> str:
    """rtnl, services, policy, bird, ...; "" for one that is made on demand, and is not there."""
    if isinstance(driver, OnDemand):
        driver = driver.driver
        if driver is None:
            return ""
    return type(driver).__name__.removesuffix("Driver").lower()
