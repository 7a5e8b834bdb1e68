"""The service stage of an explanation: which frontend, and every endpoint with its state and why. Pure.

What the tables decide comes from compile/services_sim.py; here it is put into words, together with the
endpoints that were left out, of which the tables no longer know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from podlane.compile.balancing import weighed, weight, wish_of
from podlane.compile.endpoints import Known, endpoints
from podlane.compile.services import LOCAL
from podlane.compile.services_sim import Action, Flow, Verdict
from podlane.compile.tables import Backend, BackendList, FrontendKey, ListKey, Table
from podlane.model.addresses import family_of
from podlane.model.config import Balancing, Services
from podlane.model.objects import Service
from podlane.observe.cluster import Cluster
from podlane.observe.explanation import Row, Stage, Tables, end, table_row


def service_stage(
    cluster: Cluster, node: str, tables: Tables, flow: Flow, verdict: Verdict, meant: Service | None
) -> Stage:
    """meant: the service that was named; None: found by the list the tables chose."""
    if verdict.action is Action.PASS:
        return Stage("service", node, f"{flow.destination} is no service address: nothing is translated")
    service = meant
    if service is None and verdict.list is not None:
        service = cluster.services.get((verdict.list.namespace, verdict.list.service))
    rows = [*_frontend_rows(tables, verdict)]
    if service is not None and verdict.frontend is not None:
        rows += _endpoint_rows(cluster, node, tables, flow, verdict, service)
    return Stage("service", node, _words(flow, verdict, _chosen_from(tables, verdict)), rows)


def _chosen_from(tables: Tables, verdict: Verdict) -> BackendList:
    lists: Mapping[ListKey, BackendList] = tables.get(Table.BACKENDS, {})
    return lists.get(verdict.list, _NONE) if verdict.list is not None else _NONE


def _words(flow: Flow, verdict: Verdict, found: BackendList) -> str:
    node_port = "" if isinstance(verdict.frontend, FrontendKey | None) else "node port, "
    text = f"{end(flow.destination, flow.port)}/{flow.protocol}: {node_port}{verdict.why}"
    if verdict.action is Action.TRANSLATE:
        count = len(verdict.backends)
        text += "; connected to " if verdict.at_socket else "; DNAT to "
        text += f"one of {count} endpoints {balancing_words(found)}" if count > 1 else "its one endpoint"
        text += ", source masqueraded" if verdict.masquerade else ", source kept"
    if verdict.affinity_timeout_s:
        text += f"; a client stays with its choice for {verdict.affinity_timeout_s} s"
    return text


def _frontend_rows(tables: Tables, verdict: Verdict) -> Iterator[Row]:
    key = verdict.frontend
    if key is not None:
        table = Table.FRONTENDS if isinstance(key, FrontendKey) else Table.NODE_PORTS
        row = tables[table][key]
        answers = f", answered by the {verdict.list.scope} list" if verdict.list else ""
        yield table_row(table, key, row, f"{table} row: {row.kind}{answers}")


def _endpoint_rows(
    cluster: Cluster, node: str, tables: Tables, flow: Flow, verdict: Verdict, service: Service
) -> Iterator[Row]:
    family = family_of(flow.destination)
    name = verdict.list.port if verdict.list else None
    wish, found = wish_of(service, Services()), _chosen_from(tables, verdict)
    every = weighed(wish, service, endpoints(cluster.slices_of(service)), cluster.pods_at)
    for (port_name, protocol, its_family), known in every.items():
        if protocol == flow.protocol and its_family is family and name in (None, port_name):
            for each in sorted(known.values(), key=lambda k: (int(k.address), k.port)):
                idle = weight(wish, each) == 0
                yield _endpoint_row(cluster, each, node, verdict, found, idle)


def _endpoint_row(
    cluster: Cluster, each: Known, node: str, verdict: Verdict, found: BackendList, idle: bool
) -> Row:
    state = "ready" if each.ready else "terminating, serving" if each.draining else "not ready"
    chosen = each.backend in verdict.backends
    if chosen:
        why = "may be chosen"
        if verdict.hashed is not None and len(verdict.backends) > 1:
            why = "the hash of the client's address falls here"
            if verdict.hashed != each.backend:
                why = "for other clients"
        if share := share_words(found, each.backend):
            why += f", {share}"
        if each.backend in verdict.hairpin:
            why += ", then masqueraded: it is the sender"
    elif each.ready and idle:
        why = "left out: its weight is 0"
    elif verdict.list is not None and verdict.list.scope == LOCAL and each.node != node:
        why = f"left out: not on {node}, and the traffic policy is Local"
    elif each.ready and verdict.action is Action.TRANSLATE:
        why = "left out by its topology hints"
    else:
        why = "left out"
    who = cluster.name_of(each.address)
    where = end(each.address, each.port)
    text = f"{where}  {who or 'no pod'} on {each.node or 'no node'}  {state}: {why}"
    row = {
        "address": str(each.address),
        "port": each.port,
        "node": each.node,
        "target": who,
        "state": state,
        "chosen": chosen,
        "why": why,
    }
    return Row(text, "endpoints", row)


_BALANCING: Final = {
    Balancing.RANDOM: "by chance",
    Balancing.LEAST_CONNECTIONS: "by chance, fewer connections weighing more",
    Balancing.SOURCE_HASH: "by source hash of its client's {}",
    Balancing.MAGLEV: "by maglev of its client's {}",
}


def balancing_words(found: BackendList) -> str:
    """How a list is chosen from."""
    return _BALANCING[found.balancing].format("address and port" if found.by_port else "address")


def share_words(found: BackendList, backend: Backend) -> str:
    """An endpoint's part of the new flows, "" where all have the same."""
    counts = Counter(found.backends)
    if len(set(counts.values())) < 2:
        return ""
    return f"weight {counts[backend]} of {len(found.backends)}"


_NONE: Final = BackendList(())
