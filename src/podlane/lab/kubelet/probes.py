"""When a container counts as started, ready and alive: the state of one probe. Pure.

Kubernetes, "Configure Liveness, Readiness and Startup Probes". One deviation: until a container has first
been ready (or started), it is asked again after a fraction of the period, so that a lab need not wait ten
seconds for a program that takes a tenth; such early failures do not count.
"""

from __future__ import annotations

import enum
from typing import Any

from msgspec import Struct

Obj = dict[str, Any]
FIRST_AGAIN_S = 0.1
_ROUNDING_S = 1e-6


class Kind(enum.StrEnum):
    STARTUP = "Startup"
    READINESS = "Readiness"
    LIVENESS = "Liveness"


KEYS = {
    Kind.STARTUP: "startupProbe",
    Kind.READINESS: "readinessProbe",
    Kind.LIVENESS: "livenessProbe",
}


class Probe(Struct, frozen=True):
    """The timing of one probe; action is the API's object with exec, httpGet, tcpSocket or grpc."""

    kind: Kind
    action: Obj
    initial_delay_s: float = 0.0
    period_s: float = 10.0
    timeout_s: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3
    grace_period_s: int | None = None


def parse(container: Obj, kind: Kind) -> Probe | None:
    found = container.get(KEYS[kind])
    if not found:
        return None
    return Probe(
        kind,
        found,
        float(found.get("initialDelaySeconds") or 0),
        float(found.get("periodSeconds") or 10),
        float(found.get("timeoutSeconds") or 1),
        int(found.get("successThreshold") or 1),
        int(found.get("failureThreshold") or 3),
        found.get("terminationGracePeriodSeconds"),
    )


class Machine:
    """Counts results. `record` returns the new verdict when it changes: True for good, False for bad.

    verdict: None until enough results came. next_s: seconds until the probe is to be asked again.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._last: bool | None = None
        self._run = 0
        self._early_s = FIRST_AGAIN_S
        self._waited_s = probe.period_s  # the first result counts
        self.verdict: bool | None = None
        self.next_s = probe.initial_delay_s

    def record(self, ok: bool) -> bool | None:
        probe = self._probe
        hurried = probe.kind is not Kind.LIVENESS and self.verdict is not True
        counts = ok or not hurried or self._waited_s >= probe.period_s - _ROUNDING_S
        if counts:
            self._run = self._run + 1 if ok is self._last else 1
            self._last = ok
        if hurried and not ok:
            self._waited_s = 0.0 if counts else self._waited_s
            left_s = probe.period_s - self._waited_s
            self.next_s = min(self._early_s, left_s)
            self._waited_s += self.next_s
            self._early_s = min(2 * self._early_s, probe.period_s)
        else:
            self.next_s = probe.period_s
            self._waited_s = probe.period_s
        if not counts:
            return None
        threshold = probe.success_threshold if ok else probe.failure_threshold
        if self._run < threshold or self.verdict is ok:
            return None
        self.verdict = ok
        return ok
