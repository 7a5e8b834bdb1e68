from __future__ import annotations

import pytest

from podlane.lab.kubelet.probes import Kind, Machine, Probe, parse


def machine(kind: Kind, **fields: object) -> Machine:
    return Machine(Probe(kind, {}, **fields))  # type: ignore[arg-type]


def test_defaults_are_the_apis():
    probe = parse({"readinessProbe": {"tcpSocket": {"port": 80}}}, Kind.READINESS)
    assert probe is not None
    assert (probe.period_s, probe.timeout_s, probe.success_threshold, probe.failure_threshold) == (
        10,
        1,
        1,
        3,
    )
    assert parse({}, Kind.LIVENESS) is None


def test_first_success_is_ready_at_once():
    ready = machine(Kind.READINESS, initial_delay_s=2.0)
    assert ready.next_s == 2.0
    assert ready.record(True) is True
    assert ready.next_s == 10.0
    assert ready.record(True) is None


def test_until_ready_it_is_asked_sooner_and_early_failures_do_not_count():
    ready = machine(Kind.READINESS, failure_threshold=2)
    waits = []
    verdicts = []
    for _ in range(9):
        verdicts.append(ready.record(False))
        waits.append(ready.next_s)
    # 0.1 + 0.2 + ... fill the first period; its end is the second failure that counts.
    assert waits[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    assert sum(waits[:7]) == pytest.approx(10.0)
    assert verdicts == [None] * 7 + [False] + [None]


def test_ready_container_fails_after_its_threshold():
    ready = machine(Kind.READINESS)
    ready.record(True)
    assert [ready.record(ok) for ok in (False, False, True, False, False, False)] == [None] * 5 + [False]
    assert ready.record(True) is True


def test_liveness_counts_every_failure():
    live = machine(Kind.LIVENESS, period_s=1.0)
    assert [live.record(False) for _ in range(3)] == [None, None, False]
    assert live.next_s == 1.0


def test_success_threshold():
    ready = machine(Kind.READINESS, success_threshold=2)
    assert [ready.record(ok) for ok in (True, False, True, True)] == [None, None, None, True]
