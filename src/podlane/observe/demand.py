"""Metrics that cost something, and so are made when somebody asks for them: by service, by policy. Pure.

Of services: the connections that are tracked at this moment. They are gauges: what has ended is not in them.
Of policies: the counters of the rules that let pass. A pod with very many peers has them looked up together
(kernel/nft/policy_profiles.py), and then no single policy's counter tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from podlane.compile.tables import FrontendKey, ListKey, NodePortKey, Table
from podlane.kernel.conntrack.codec import Entry
from podlane.kernel.nft.counters import Counted
from podlane.model.addresses import Protocol, family_of
from podlane.observe.exposition import Metric, labelled
from podlane.observe.flows import ENDED

_PROTOCOLS: Final = {protocol.number: protocol for protocol in Protocol}
_SERVICE: Final = ("namespace", "service", "port", "protocol", "ip_family")
_POLICY: Final = ("namespace", "policy", "direction", "rule")
_RULE: Final = re.compile(
    r"(?P<namespace>[^/ ]+)/(?P<policy>\S+) (?P<direction>ingress|egress)\[(?P<rule>\d+)\]"
)
_TOGETHER: Final = re.compile(r"\d+ kinds of peers")

Tables = Mapping[Table, Mapping[Any, Any]]


def service_metrics(entries: Iterable[Entry], tables: Tables, namespace: str = "") -> Iterator[Metric]:
    """namespace: only services of this one; "": all. Those without connections have zeros."""
    connections: dict[tuple[str, ...], float] = {}
    endpoints: dict[tuple[str, ...], float] = {}
    for key, row in tables[Table.BACKENDS].items():
        if namespace in ("", key.namespace):
            labels = _labels(key)
            connections.setdefault(labels, 0)
            endpoints[labels] = max(endpoints.get(labels, 0), len(row.backends))
    sums = [dict.fromkeys(connections, 0.0) for _ in range(4)]
    for entry in entries:
        found = _list_of(entry, tables)
        if found is None or (labels := _labels(found)) not in connections:
            continue
        connections[labels] += entry.state not in ENDED
        for total, value in zip(sums, (*entry.sent, *entry.answered), strict=True):
            total[labels] += value
    yield Metric(
        "connections", "gauge", "Connections tracked that have not ended.", labelled(_SERVICE, connections)
    )
    yield Metric("endpoints", "gauge", "Endpoints that this node may choose.", labelled(_SERVICE, endpoints))
    words = ("sent_packets", "sent_bytes", "answered_packets", "answered_bytes")
    for word, total in zip(words, sums, strict=True):
        help_ = f"{word.replace('_', ' ').capitalize()} of the connections tracked."
        yield Metric(f"connections_{word}", "gauge", help_, labelled(_SERVICE, total))


def _list_of(entry: Entry, tables: Tables) -> ListKey | None:
    """The endpoint list of the service that a connection was made to."""
    way = entry.original
    protocol = _PROTOCOLS.get(way.protocol)
    if protocol is None or not entry.mark:
        return None
    row = tables[Table.FRONTENDS].get(FrontendKey(way.destination, protocol, way.destination_port))
    if row is None:
        key = NodePortKey(family_of(way.destination), protocol, way.destination_port)
        row = tables[Table.NODE_PORTS].get(key)
    return row.backends if row is not None else None


def _labels(key: ListKey) -> tuple[str, ...]:
    return key.namespace, key.service, key.port, key.protocol.value, key.family.value


def _rule_of(counted: Counted) -> tuple[str, ...]:
    """Values of _POLICY; () for a rule that drops."""
    if found := _RULE.fullmatch(counted.comment):
        return found.groups()
    if _TOGETHER.fullmatch(counted.comment):
        return "", "several", counted.chain.split("-")[1], ""
    return ()


def policy_metrics(counted: Iterable[Counted], namespace: str = "") -> Iterator[Metric]:
    """namespace: only policies of this one; "": all, and what was dropped."""
    allowed: dict[tuple[str, ...], list[float]] = {}
    dropped: dict[tuple[str, ...], list[float]] = {}
    for each in counted:
        into, key = allowed, _rule_of(each)
        if not key:
            into, key = dropped, (each.comment,)
        elif namespace not in ("", key[0]):
            continue
        sums = into.setdefault(key, [0, 0])
        sums[0] += each.packets
        sums[1] += each.octets
    for place, word in enumerate(("packets", "bytes")):
        samples = labelled(_POLICY, {key: sums[place] for key, sums in allowed.items()})
        help_ = f"{word.capitalize()} that began a flow and were let pass by a rule."
        yield Metric(f"allowed_{word}_total", "counter", help_, samples)
    if not namespace:
        for place, word in enumerate(("packets", "bytes")):
            samples = labelled(("reason",), {key: sums[place] for key, sums in dropped.items()})
            yield Metric(f"dropped_{word}_total", "counter", f"{word.capitalize()} dropped.", samples)
