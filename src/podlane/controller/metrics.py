"""What the controller tells Prometheus. Work queues have client-go's names behind the prefix.

While another leads, only the names are there: what is counted is the leader's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from podlane.controller.context import Controller, Runnable
from podlane.controller.load_balancers import LoadBalancers
from podlane.controller.node_prefixes import NodePrefixes
from podlane.model.addresses import Family
from podlane.observe import process
from podlane.observe.exposition import Histogram, Labels, Metric, exposition, gauge, labelled

Samples = list[tuple[Labels, float]]

_POOLS: Final = {"assigned": "Addresses given to services, by pool.", "available": "Addresses left, by pool."}


class Seen(NamedTuple):
    """running: the controllers at work. requests: of the API, by (verb, resource, code)."""

    leading: bool
    balancers: LoadBalancers | None
    prefixes: NodePrefixes | None
    running: Iterable[Runnable]
    requests: Mapping[tuple[str, ...], int]


def text(seen: Seen) -> str:
    metrics = [gauge("leading", "Whether this process leads.", seen.leading)]
    api = labelled(("verb", "resource", "code"), dict(seen.requests))
    metrics.append(
        Metric("api_requests_total", "counter", "Requests of the API, by the answer's status.", api)
    )
    metrics += _queues([each for each in seen.running if isinstance(each, Controller)])
    metrics += _pools(seen.balancers if seen.leading else None)
    metrics += _prefixes(seen.prefixes if seen.leading else None)
    return exposition("podlane_controller_", metrics) + process.text("controller")


def _queues(controllers: list[Controller]) -> Iterator[Metric]:
    queues = [({"name": type(each).__name__}, each.queue) for each in controllers]
    depth: Samples = [(name, queue.depth) for name, queue in queues]
    added: Samples = [(name, queue.added) for name, queue in queues]
    retried: Samples = [(name, queue.retried) for name, queue in queues]
    took: list[tuple[Labels, float | Histogram]] = [(name, queue.took) for name, queue in queues]
    yield Metric("workqueue_depth", "gauge", "Objects that wait to be looked at.", depth)
    yield Metric("workqueue_adds_total", "counter", "Objects that were to be looked at.", added)
    yield Metric("workqueue_retries_total", "counter", "Looks that failed and are repeated.", retried)
    yield Metric("workqueue_work_duration_seconds", "histogram", "Time of one look at an object.", took)


def _pools(balancers: LoadBalancers | None) -> Iterator[Metric]:
    uses = {}
    if balancers is not None:
        uses = {
            (pool.name, str(family)): balancers.addresses.use(pool, family)
            for pool in balancers.addresses.pools.values()
            for family in Family
        }
    for what, help_ in _POOLS.items():
        values: dict[tuple[str, ...], float] = {key: float(getattr(use, what)) for key, use in uses.items()}
        yield Metric(f"pool_addresses_{what}", "gauge", help_, labelled(("pool", "family"), values))
    waiting: Samples = []
    refused: Samples = []
    if balancers is not None:
        waiting = [({}, balancers.waiting)]
        refused = [({}, len(balancers.faults) + len(balancers.addresses.refused))]
    yield Metric("services_waiting", "gauge", "Services that no address could be given.", waiting)
    yield Metric("pools_refused", "gauge", "Pools that cannot be used.", refused)


def _prefixes(prefixes: NodePrefixes | None) -> Iterator[Metric]:
    use = prefixes.cidrs.use() if prefixes is not None else {}
    for at, what in enumerate(("assigned", "available")):
        values: dict[tuple[str, ...], float] = {(str(family),): float(n[at]) for family, n in use.items()}
        help_ = f"Parts of podCIDRs {what}, by family."
        yield Metric(f"node_cidrs_{what}", "gauge", help_, labelled(("family",), values))
    without: Samples = [({}, prefixes.without)] if prefixes is not None else []
    yield Metric("nodes_without_cidrs", "gauge", "Nodes that no prefix could be given.", without)
