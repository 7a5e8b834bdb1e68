"""What services are to each node, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from podlane.observe.flows import size
from podlane.observe.services import Choice, End, Entry, ServiceList, ServiceReport

_MANY: Final = 10


def list_lines(told: ServiceList) -> Iterator[str]:
    """One line a service."""
    rows = [("SERVICE", "TYPE", "READY", "WAYS IN")]
    for each in told.items:
        ready = sum(e.state == "ready" for e in each.endpoints)
        ways = ", ".join(map(_way_in, each.entries)) or each.note
        name = f"{each.namespace}/{each.name}"
        rows.append((name, each.type, f"{ready}/{len(each.endpoints)}", ways))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])


def _from_pool(entry: Entry) -> str:
    """Who makes an address of a pool known."""
    if not entry.pool:
        return ""
    telling = f"{len(entry.told_by)} nodes" if len(entry.told_by) > 3 else ", ".join(entry.told_by)
    by_bgp = f"routers are told by {telling}" if telling else ""
    answers = f"{entry.announced_by or 'no node'} answers for it" if entry.announced_by or not by_bgp else ""
    return ", ".join(["", f"pool {entry.pool}", *filter(None, (answers, by_bgp))])


def report_lines(told: ServiceReport) -> Iterator[str]:
    yield f"{told.namespace}/{told.name}, {told.type}" + (f": {told.note}" if told.note else "")
    for entry in told.entries:
        only = "" if entry.sources is None else f", only from {', '.join(entry.sources) or 'nobody'}"
        where = f"{entry.kind:<14} {_way_in(entry)}"
        yield f"  {where}{_from_pool(entry)}{only}"
    yield "endpoints" if told.endpoints else "no endpoints"
    places = [
        (f"{_where(e.address, e.port)}/{e.protocol}", e.state, e.node or "no node", e.zone or "-", _load(e))
        for e in told.endpoints
    ]
    widths = [max((len(row[i]) for row in places), default=0) for i in range(5)]
    for row, each in zip(places, told.endpoints, strict=True):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width)
        yield "  " + "  ".join([*cells, each.target or "no pod"])
    for choice in told.choices:
        port = f"{choice.port_name}/{choice.protocol}" if choice.port_name else choice.protocol
        yield f"{port} {choice.family}, {' and '.join(choice.used_by)}: {', '.join(choice.nodes)}"
        yield f"  {_few(choice)}"
        yield f"  {choice.why}"
        if len(choice.chosen) > 1 and choice.balancing:
            yield f"  {choice.balancing}"
        if choice.at_socket:
            yield f"  {choice.at_socket}"
    for problem in told.problems:
        yield f"! {problem}"


def _load(each: End) -> str:
    if each.flows is None:
        return ""
    return f"{each.flows} open, {size(each.bytes_in or 0)} in, {size(each.bytes_out or 0)} out"


def _way_in(entry: Entry) -> str:
    return f"{_where(entry.address or '*', entry.port)}/{entry.protocol}"


def _where(text: str, port: int) -> str:
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def _few(choice: Choice) -> str:
    if choice.verdict != "translate":
        return "dropped" if choice.verdict == "drop" else "refused"
    more = len(choice.chosen) - _MANY
    weights = [f"*{n}" for n in choice.weights] or [""] * len(choice.chosen)
    shown = [f"{where}{weight}" for where, weight in zip(choice.chosen, weights, strict=True)]
    return " ".join(shown[:_MANY]) + (f" and {more} more (-o json has all)" if more > 0 else "")
