"""Explanations, traces and checks for people. Pure."""

from __future__ import annotations

import ipaddress
import statistics
from collections.abc import Iterator
from typing import Final

from podlane.observe.check import Check, Report
from podlane.observe.explanation import Explanation, Row, end
from podlane.observe.hops import Hop
from podlane.observe.trace import Trace

_MANY: Final = 10


def explanation_lines(told: Explanation) -> Iterator[str]:
    """Stage by stage, the rows it rests on below it."""
    port = f"/{told.protocol}" if told.port else ""
    where = _address(told.address, told.port)
    yield f"{told.source} -> {told.destination} ({where}{port}), {told.family}"
    yield ""
    nodes = max((len(s.node) for s in told.stages), default=0)
    for number, stage in enumerate(told.stages, 1):
        yield f"{number:>3} {stage.stage:<14} {stage.node or '-':<{nodes}}  {stage.detail}".rstrip()
        for text in _few(stage.rows):
            yield f"{'':>18} {'':<{nodes}}    {text}"
    yield ""
    yield f"{told.verdict}: {told.why}"


def _few(rows: list[Row]) -> Iterator[str]:
    """All rows, but of many endpoints those that may be chosen first, and the others as a number."""
    many = [row for row in rows if row.table == "endpoints"]
    yield from (row.text for row in rows if row.table != "endpoints")
    if len(many) > _MANY:
        many.sort(key=lambda row: not row.row["chosen"])
    yield from (row.text for row in many[:_MANY])
    if len(many) > _MANY:
        yield f"and {len(many) - _MANY} other endpoints (all of them with -o json)"


def trace_lines(told: Trace) -> Iterator[str]:
    """A line a link; what changed since the line before stands below it."""
    where = _address(told.address, told.port)
    yield f"{told.source} -> {told.destination} ({where}/{told.protocol}), {told.family}"
    places = max((len(h.place) for h in told.hops), default=0)
    links = max((len(h.link) for h in told.hops), default=0)
    leg = ""
    for hop in told.hops:
        if hop.leg != leg:
            leg = hop.leg
            yield ""
            yield leg
        margin = f"{'':>12}  {'':<{places}}  {'':<{links}}  {'':<3}"
        for change in hop.changes:
            if not change.startswith(("ttl", "outer ttl")):
                yield f"{margin}    * {change}"
        spot = f"{hop.place:<{places}}  {hop.link:<{links}}  {hop.way:<3}"
        yield f"{hop.time_us:>9.1f} us  {spot}  {_packet(hop)}"
    yield ""
    if told.lost:
        yield f"{told.lost} packets were not captured, for want of buffer: links may be missing"
    yield f"{told.verdict}: {told.why}"


def _packet(hop: Hop) -> str:
    inner = f"{hop.source} -> {hop.destination} {hop.what} ttl {hop.ttl}"
    if hop.outer is None:
        return inner
    name = f"VXLAN {hop.outer.vni}" if hop.outer.vni else "IP in IP"
    return f"{hop.outer.source} -> {hop.outer.destination} {name} [{inner}]"


def _address(text: str, port: int) -> str:
    return end(ipaddress.ip_address(text), port)


def report_lines(report: Report, hint: str = "podlane explain") -> Iterator[str]:
    """What failed first, each with how to look further; then a line a kind."""
    failed = [c for c in report.checks if not c.ok]
    for each in failed:
        yield f"FAILED {each.kind}: {each.source} -> {each.target}"
        yield f"       {each.detail}"
        if not each.kind.startswith("container-"):
            yield f"       try: {hint} {each.source} {each.target}"
    if failed:
        yield ""
    by_kind: dict[str, list[Check]] = {}
    for each in report.checks:
        by_kind.setdefault(each.kind, []).append(each)
    width = max(map(len, by_kind), default=0)
    for kind, checks in by_kind.items():
        good = [c.ms for c in checks if c.ok]
        times = f"median {statistics.median(good):.1f} ms, at most {max(good):.1f} ms" if good else ""
        mark = "ok    " if len(good) == len(checks) else "FAILED"
        yield f"{mark} {kind:<{width}} {len(good):>5} of {len(checks):<5} {times}".rstrip()
    yield ""
    yield f"{report.passed} passed, {report.failed} failed" if report.checks else "nothing to check"
