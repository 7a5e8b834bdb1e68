"""`podlane status` of a cluster, for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from podlane.model.agents import NETWORK_UNAVAILABLE
from podlane.observe.cluster_status import ClusterStatus, NodeStatus

_HEAD: Final = ("NODE", "ADDRESSES", "POD CIDRS", "AGENT", "VERSION", "BACKEND", "CONFIG", "NETWORK")
MOST_NODES: Final = 50


def lines(status: ClusterStatus) -> Iterator[str]:
    """Nodes that have no problem are told up to MOST_NODES; those that have one always."""
    yield f"cluster {status.server}: {_count(len(status.nodes), 'node')}"
    shown = [n for i, n in enumerate(status.nodes) if i < MOST_NODES or n.problems]
    yield from _table([_HEAD, *map(_cells, shown)])
    if len(shown) < len(status.nodes):
        yield f"and {len(status.nodes) - len(shown)} more that have no problem"
    controller = status.controller
    if controller.leader:
        ago = "" if controller.renewed_ago_s is None else f", renewed {controller.renewed_ago_s:.0f} s ago"
        yield f"controller: {controller.leader} leads{ago}"
    else:
        yield "controller: nobody leads"
    for pool in status.pools:
        each = pool.available
        use = ", ".join(f"{f} {n} assigned, {each.get(f, 0)} left" for f, n in pool.assigned.items())
        yield f"pool {pool.name}: {use or 'not used yet'}"
    if status.here is not None and not status.here.get("error"):
        here = status.here
        yield (
            f"agent here ({here['node']}): generation {here['generation']}, {here['pending']} pending, "
            f"{_count(here['attachments'], 'pod')}"
        )
    yield from (f"- {line}" for line in status.notes)
    yield from (f"! {line}" for line in status.problems)


def _cells(node: NodeStatus) -> tuple[str, ...]:
    agent = node.agent
    state = node.state or ("there" if agent else "none")
    restarts = f" ({_count(node.restarts, 'restart')})" if node.restarts else ""
    bad = [each.reason or each.type for each in node.conditions if each.bad]
    good = "ok" if any(c.type == NETWORK_UNAVAILABLE for c in node.conditions) else "-"
    return (
        node.name,
        ", ".join(node.addresses),
        ", ".join(node.pod_cidrs),
        state + restarts,
        agent.version if agent else "",
        agent.backend if agent else "",
        agent.config if agent else "",
        ", ".join(bad) or good,
    )


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
