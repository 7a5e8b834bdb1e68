"""Services at scale: the control path, an agent's memory, the reference's layout beside it, and packets.

scale: of the number of services; 1 is 10,000 and 50,000, which takes two to three minutes.
"""

from __future__ import annotations

import os
from typing import Any

from tests.bench import service_agent, service_path, service_reference
from tests.bench.service_control import measured

ENDPOINTS = 10
SMALL, LARGE, HUGE = 100, 10_000, 50_000
REFERENCE = (1_000, 5_000)

Result = dict[str, object]


def measure(scale: float = 1.0) -> Result:
    load, processors = os.getloadavg()[0], os.cpu_count()
    small, large, huge = (max(20, round(number * scale)) for number in (SMALL, LARGE, HUGE))
    reference = [max(20, round(number * scale)) for number in REFERENCE]
    runs = {number: measured(number, ENDPOINTS) for number in dict.fromkeys((small, *reference, large, huge))}
    results: Result = {"this machine": f"{processors} processors, load {load:.1f} before this part began"}
    results |= _loads(runs, large, huge)
    results |= _beside(runs, reference)
    results |= _changes(runs, small, huge)
    results |= _agent(large)
    results |= _packets(SMALL // 10, huge)
    return results


def _loads(runs: dict[int, Any], large: int, huge: int) -> Result:
    found: Result = {}
    for number, target in ((large, "at most 2 s"), (huge, "at most 10 s")):
        run = runs[number]
        found[f"{_size(number)}: cold load"] = (
            f"{run['load_s']:.2f} s ({target}), {run['load_cpu_s']:.2f} s of CPU"
        )
        found[f"{_size(number)}: a new agent finds all in place in"] = f"{run['restart_s']:.2f} s"
    return found


def _beside(runs: dict[int, Any], sizes: list[int]) -> Result:
    """The same services in the layout of the reference, by `nft`, in the same run."""
    found: Result = {}
    for number in sizes:
        theirs = service_reference.measure(number, ENDPOINTS)
        ours_s, ours_ms = runs[number]["load_s"], runs[number]["event_ms"]["p50"]
        found[f"{_size(number)}: cold load beside the reference's layout"] = (
            f"{ours_s:.2f} s, {ours_s / theirs['load_s']:.2f} of its {theirs['load_s']:.2f} s"
        )
        found[f"{_size(number)}: one endpoint more beside it"] = (
            f"{ours_ms:.2f} ms, {ours_ms / theirs['event_ms']:.4f} of its {theirs['event_ms']:.0f} ms"
        )
    return found


def _changes(runs: dict[int, Any], small: int, huge: int) -> Result:
    found: Result = {}
    for number in (small, huge):
        run, times = runs[number], runs[number]["event_ms"]
        found[f"{_size(number)}: one endpoint more, event to kernel"] = (
            f"p50 {times['p50']:.2f} ms (at most 1), p99 {times['p99']:.2f} ms (at most 5); "
            f"{run['event_units']:g} unit, {run['event_rows']:.1f} rows"
        )
        for way, words in (("one_by_one", "one by one"), ("ten_by_ten", "ten in a generation")):
            rolled = run[f"rolled_{way}"]
            found[f"{_size(number)}: {rolled['endpoints']} endpoints rolled, {words}"] = (
                f"{rolled['cpu_s']:.2f} s of CPU (at most 0.5 s)"
            )
    return found


def _agent(services: int) -> Result:
    run = service_agent.measure(services, ENDPOINTS)
    times = run["event_ms"]
    where = f"agent process, {_size(services)}"
    return {
        f"{where}: memory (PSS)": f"{run['pss_mib']:.0f} MiB (at most 120), once {run['most_mib']:.0f}",
        f"{where}: start to ready": f"{run['start_s']:.1f} s, after kill -9 {run['restart_s']:.1f} s",
        f"{where}: event on the wire to kernel": f"p50 {times['p50']:.2f} ms, p99 {times['p99']:.2f} ms",
        f"{where}: 1000 endpoints rolled, 1 a ms": (
            f"{run['rolled_cpu_s']:.2f} s of CPU (at most 0.5 s), {run['rolled_generations']} generations"
        ),
    }


def _packets(few: int, many: int) -> Result:
    run = service_path.measure(few, many)
    bare, direct = run["bare"], run["direct"]
    found: Result = {
        "packets: direct through the node, round trip": (
            f"{direct[0]:.1f} µs, first packet {direct[1]:.1f} µs; without conntrack "
            f"{bare[0]:.1f} and {bare[1]:.1f} µs"
        )
    }
    for number in (few, many):
        established, first = run[str(number)]
        found[f"packets: {number} services, first packet"] = (
            f"{first - direct[1]:+.1f} µs over direct (at most 3); without conntrack {first - bare[1]:+.1f}"
        )
        found[f"packets: {number} services, established"] = (
            f"{established - direct[0]:+.1f} µs over direct (at most 1); "
            f"without conntrack {established - bare[0]:+.1f}"
        )
    found[f"packets: {sum(run['spread'])} flows over {len(run['spread'])} endpoints"] = (
        f"{service_path.sigmas(run['spread']):.1f} sigma from uniform (at most 3)"
    )
    return found


def _size(services: int) -> str:
    return f"{services}x{ENDPOINTS}"
