"""What the agent tells of itself: /status and /tables as JSON, /metrics as Prometheus text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from podlane.agent.reconciler import Counts
from podlane.compile.tables import Backend, Table
from podlane.kernel.driver import Failure
from podlane.observe.conflicts import KINDS, Conflict
from podlane.observe.exposition import Metric, counter, gauge
from podlane.observe.exposition import exposition as exposition_of

API_VERSION = "podlane.dev/v1alpha1"


class State(NamedTuple):
    """Everything that is told.

    blockers: what the first resync waits for, as sentences; refused: objects that could not be compiled
    or lost a contradiction; applied: kind -> resourceVersion that the node holds; away: kind -> why the
    API could not be asked, for the kinds it could not be asked for; announced: load-balancer addresses
    that this node answers for; conflicts: what else on the node works against podlane; waiting_s: for how
    long the oldest change that is pending has waited.
    """

    node: str
    ready: bool
    blockers: list[str]
    counts: Counts
    pending: int
    failures: list[Failure]
    refused: list[str]
    applied: Mapping[str, str]
    away: Mapping[str, str]
    tables: Mapping[Table, Mapping[Any, Any]]
    units_compiled: int
    rows_compared: int
    attachments: int
    announced: tuple[str, ...] = ()
    waiting_s: float = 0.0
    conflicts: tuple[Conflict, ...] = ()


def status(state: State) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "AgentStatus",
        "node": state.node,
        "ready": state.ready,
        "blockers": state.blockers,
        "generation": state.counts.generation,
        "applied": dict(state.applied),
        "pending": state.pending,
        "failures": [
            {"table": str(f.table), "key": words(f.key), "error": str(f.error)} for f in state.failures
        ],
        "refused": state.refused,
        "conflicts": [msgspec.to_builtins(each) for each in state.conflicts],
        "apiAway": dict(state.away),
        "attachments": state.attachments,
        "announced": list(state.announced),
        "tables": {str(table): len(rows) for table, rows in state.tables.items()},
        "operations": state.counts.operations,
        "resyncs": state.counts.resyncs,
    }


def tables(node: str, rows: Mapping[Table, Mapping[Any, Any]]) -> dict[str, Any]:
    """Every desired row, each with its key."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Tables",
        "node": node,
        "tables": {
            str(table): [{"key": plain(key), "row": plain(row)} for key, row in held.items()]
            for table, held in rows.items()
        },
    }


def plain(value: Any) -> Any:
    """Rows and keys as JSON has them: named fields as objects, addresses and prefixes as text."""
    if isinstance(value, Backend):
        return {"address": str(value.address), "port": value.port}
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(each) for name, each in zip(value._fields, value, strict=True)}
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)


def words(key: Any) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def metrics(state: State) -> str:
    """Prometheus text exposition format 0.0.4."""
    counts = state.counts
    failed: dict[str, int] = {str(table): 0 for table in state.tables}
    for failure in state.failures:
        failed[str(failure.table)] = failed.get(str(failure.table), 0) + 1
    found = [
        gauge("ready", "Whether the node holds what the API says.", int(state.ready)),
        gauge("generation", "The number of the last generation applied.", counts.generation),
        counter("generations_total", "Generations applied.", counts.generation),
        counter("generation_seconds_total", "Time spent on generations.", counts.busy_s),
        counter("resyncs_total", "Comparisons of a driver's kernel state.", counts.resyncs),
        counter("operations_total", "Changes sent to the kernel.", counts.operations),
        gauge("pending", "Changes not applied yet.", state.pending),
        gauge("pending_oldest_seconds", "For how long the oldest of them has waited.", state.waiting_s),
        counter("units_compiled_total", "Units compiled.", state.units_compiled),
        counter("rows_compared_total", "Rows compared.", state.rows_compared),
        gauge("attachments", "Pod interfaces on this node.", state.attachments),
        gauge("announced_addresses", "Load-balancer addresses this node answers for.", len(state.announced)),
        gauge("refused", "Objects that could not be compiled.", len(state.refused)),
        Metric(
            "conflicts",
            "gauge",
            "Who or what else on the node works against podlane.",
            [({"kind": kind}, sum(c.kind == kind for c in state.conflicts)) for kind in KINDS],
        ),
        Metric(
            "table_rows",
            "gauge",
            "Desired rows.",
            [({"table": str(table)}, len(rows)) for table, rows in state.tables.items()],
        ),
        Metric(
            "failed_rows",
            "gauge",
            "Rows the kernel refuses.",
            [({"table": table}, number) for table, number in failed.items()],
        ),
        Metric(
            "api_away",
            "gauge",
            "Whether the API cannot be asked for a kind.",
            [({"kind": kind}, int(bool(why))) for kind, why in state.away.items()],
        ),
    ]
    return exposition(*found)


def exposition(*found: Metric) -> str:
    return exposition_of("podlane_agent_", found)
