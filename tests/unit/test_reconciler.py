"""Generations: what reaches the drivers, when, and in which order. Drivers are in-memory tables."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from podlane.agent import reconciler
from podlane.agent import reconciler as module
from podlane.agent.reconciler import EVERY_ROW, Reconciler
from podlane.compile import node, peers, pods, vxlan
from podlane.compile.engine import Compiler
from podlane.compile.tables import Route, Table
from podlane.compile.view import ATTACHMENT, UNDERLAY, Change
from podlane.delta import Delta, delta
from podlane.errors import KernelBusyError
from podlane.kernel.driver import Failure, Report
from podlane.kernel.rtnl.fake import FakeRtnlDriver
from podlane.model.config import NetworkConfig
from podlane.model.local import Attachment, Underlay
from podlane.model.objects import Node, NodeAddress, NodeSpec, NodeStatus, ObjectMeta

Log = list[tuple[str, str]]


class Sets:
    """A driver of SETS that remembers; log: what it was asked, in order, shared among drivers."""

    def __init__(self, log: Log) -> None:
        self.rows: dict[Any, Any] = {}
        self.log = log
        self.broken = 0  # calls still to be refused as a whole

    @property
    def tables(self) -> tuple[Table, ...]:
        return (Table.SETS,)

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        self.log.append(("sets", "resync"))
        self._refuse()
        operations = len(delta(desired[Table.SETS], self.rows))
        self.rows = dict(desired[Table.SETS])
        return Report(operations)

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        change = changes[Table.SETS]
        self.log.append(("sets", shape(change)))
        self._refuse()
        self.rows |= change.added
        for key in change.removed:
            del self.rows[key]
        return Report(len(change))

    def _refuse(self) -> None:
        if self.broken:
            self.broken -= 1
            raise KernelBusyError.of(16, "transaction")


class Links(FakeRtnlDriver):
    def __init__(self, log: Log) -> None:
        super().__init__(["eth0", "plpod"])
        self.log = log

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        self.log.append(("links", "resync"))
        return super().apply({t: delta(desired[t], self.actual()[t]) for t in self.tables})

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        self.log.append(("links", "/".join(sorted({shape(d) for d in changes.values()}))))
        return super().apply(changes)


def shape(change: Delta[Any, Any]) -> str:
    return "+" * bool(change.added) + "~" * bool(change.changed) + "-" * bool(change.removed)


def a_node(number: int) -> Node:
    return Node(
        metadata=ObjectMeta(name=f"n{number}"),
        spec=NodeSpec(pod_cidrs=[f"10.244.{number}.0/24"]),
        status=NodeStatus(addresses=[NodeAddress("InternalIP", f"172.30.1.{number}")]),
    )


BASE = [Change("Node", None, a_node(1)), Change(UNDERLAY, None, Underlay("eth0", 1500))]
PEER = Change("Node", None, a_node(2))
POD = Attachment("c", "eth0", "plpod", "02:00:00:00:00:01", (ip_address("10.244.1.5"),))
ATTACH = Change(ATTACHMENT, None, POD)
OTHER = Change(ATTACHMENT, None, Attachment("d", "eth0", "plother", POD.mac, (ip_address("10.244.1.6"),)))


class Bench:
    def __init__(self) -> None:
        self.log: Log = []
        self.links, self.sets = Links(self.log), Sets(self.log)
        only = [node.CAPABILITY, pods.CAPABILITY, peers.CAPABILITY]
        self.compiler = Compiler("n1", NetworkConfig(), only)
        self.reconciler = Reconciler(self.compiler, [self.links, self.sets], rng=random.Random(1))

    async def started(self) -> None:
        self.reconciler.submit(BASE)
        self.reconciler.allow_sync()
        await self.reconciler.generation()
        self.log.clear()

    def routes(self) -> set[str]:
        return {str(key) for key in self.links.actual()[Table.ROUTES]}


def run(work: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench()
        task = asyncio.create_task(bench.reconciler.run())
        task.cancel()
        try:
            await work(bench)
        finally:
            await asyncio.gather(task, return_exceptions=True)
            for queue in bench.reconciler._queues:
                queue.close()

    asyncio.run(main())


def test_before_everything_is_listed_only_new_pods_get_their_rows() -> None:
    async def work(bench: Bench) -> None:
        stale = ip_network("10.244.9.0/24")
        bench.links._rows[Table.ROUTES][stale] = Route(stale, None, "eth0")
        bench.reconciler.submit([*BASE, PEER, OTHER])
        commit = asyncio.create_task(bench.reconciler.commit([ATTACH], "plpod"))
        await asyncio.sleep(0)
        await bench.reconciler.generation()
        await commit
        assert bench.routes() == {str(stale), "10.244.1.5/32"}
        assert bench.links.actual()[Table.LINKS] == {}
        assert bench.sets.rows == {}
        assert not bench.reconciler.synced

    run(work)


def test_the_first_resync_brings_everything_and_removes_what_is_stale() -> None:
    async def work(bench: Bench) -> None:
        stale = ip_network("10.244.9.0/24")
        bench.links._rows[Table.ROUTES][stale] = Route(stale, None, "eth0")
        bench.reconciler.submit([*BASE, PEER, ATTACH])
        bench.reconciler.allow_sync()
        await bench.reconciler.generation()
        assert bench.log == [("links", "resync"), ("sets", "resync")]
        assert bench.routes() == {"10.244.2.0/24", "10.244.1.5/32"}
        assert bench.links.actual() == {t: dict(bench.compiler.tables[t]) for t in bench.links.tables}
        assert bench.sets.rows == bench.compiler.tables[Table.SETS]

    run(work)


def test_a_start_that_finds_all_right_sends_nothing() -> None:
    async def work(bench: Bench) -> None:
        await bench.started()
        again = Reconciler(
            Compiler("n1", NetworkConfig(), bench.compiler.capabilities), [bench.links, bench.sets]
        )
        again.submit(BASE)
        again.allow_sync()
        await again.generation()
        assert again.counts.operations == 0
        for queue in again._queues:
            queue.close()

    run(work)


def test_additions_go_down_the_drivers_and_removals_up() -> None:
    async def work(bench: Bench) -> None:
        await bench.started()
        bench.reconciler.submit([PEER])
        await bench.reconciler.generation()
        assert bench.log == [("links", "+"), ("sets", "+")]
        bench.log.clear()
        bench.reconciler.submit([Change("Node", PEER.new, None)])
        await bench.reconciler.generation()
        assert bench.log == [("sets", "-"), ("links", "-")]

    run(work)


def test_a_generation_that_changes_no_row_asks_no_driver_but_counts_as_applied() -> None:
    async def work(bench: Bench) -> None:
        await bench.started()
        number = bench.reconciler.submit(BASE)
        assert bench.reconciler.pending == 1
        await bench.reconciler.generation()
        assert bench.log == []
        assert (bench.reconciler.applied, bench.reconciler.pending) == (number, 0)

    run(work)


def test_refused_rows_are_told_and_tried_again_by_comparing() -> None:
    async def work(bench: Bench) -> None:
        await bench.started()
        bench.links.refused.add((Table.FDB, ("plvxlan", vxlan.vtep_mac("n2"))))
        bench.reconciler.submit([PEER])
        await bench.reconciler.generation()
        (failure,) = bench.reconciler.failures
        assert (failure.table, failure.key) == (Table.FDB, ("plvxlan", vxlan.vtep_mac("n2")))
        assert "10.244.2.0/24" in bench.routes()  # the others stand
        # Another change meanwhile neither repairs nor forgets it.
        bench.reconciler.submit([ATTACH])
        await bench.reconciler.generation()
        assert bench.reconciler.failures == [failure]
        bench.links.refused.clear()
        bench.log.clear()
        await asyncio.sleep(bench.reconciler._queues[0].retry_s - module.time.monotonic())  # type: ignore[operator]
        await bench.reconciler.generation()
        assert bench.log == [("links", "resync")]
        assert bench.reconciler.failures == []

    run(work)


def test_a_refused_row_that_is_no_longer_wanted_is_no_failure() -> None:
    async def work(bench: Bench) -> None:
        await bench.started()
        bench.links.refused.add((Table.FDB, ("plvxlan", vxlan.vtep_mac("n2"))))
        bench.reconciler.submit([PEER])
        await bench.reconciler.generation()
        assert bench.reconciler.failures
        bench.reconciler.submit([Change("Node", PEER.new, None)])
        await bench.reconciler.generation()
        assert bench.reconciler.failures == []

    run(work)


def test_a_driver_that_is_refused_as_a_whole_fails_and_recovers_without_touching_the_others() -> None:
    async def work(bench: Bench) -> None:
        await bench.started()
        bench.sets.broken = 1
        bench.reconciler.submit([PEER])
        await bench.reconciler.generation()
        (failure,) = bench.reconciler.failures
        assert isinstance(failure, Failure)
        assert (failure.table, failure.key) == (Table.SETS, EVERY_ROW)
        assert "10.244.2.0/24" in bench.routes()
        await asyncio.sleep(bench.reconciler._queues[1].retry_s - module.time.monotonic())  # type: ignore[operator]
        await bench.reconciler.generation()
        assert bench.reconciler.failures == []
        assert bench.sets.rows == bench.compiler.tables[Table.SETS]

    run(work)


def test_a_resync_on_demand_concerns_only_the_driver_of_the_table() -> None:
    async def work(bench: Bench) -> None:
        await bench.started()
        bench.links.lose("plvxlan")
        bench.reconciler.request_resync(Table.LINKS)
        await bench.reconciler.generation()
        assert bench.log == [("links", "resync")]
        assert "plvxlan" in bench.links.actual()[Table.LINKS]

    run(work)


def test_changes_of_one_generation_are_applied_once_and_generators_run_in_their_turn() -> None:
    async def work(bench: Bench) -> None:
        await bench.started()
        seen: list[bool] = []

        def later() -> Any:
            seen.append("n2" in bench.compiler.view.nodes)
            yield Change("Node", None, a_node(3))

        bench.reconciler.submit([PEER])
        bench.reconciler.submit(later())
        assert seen == []
        await bench.reconciler.generation()
        assert seen == [True]
        assert bench.log == [("links", "+"), ("sets", "+")]

    run(work)


@pytest.mark.parametrize(("share", "again"), [(1e9, [("links", "resync"), ("sets", "resync")]), (1e-9, [])])
def test_what_takes_long_to_compare_is_compared_less_often(
    monkeypatch: pytest.MonkeyPatch, share: float, again: Log
) -> None:
    monkeypatch.setattr(reconciler, "RESYNC_S", 0.0)
    monkeypatch.setattr(reconciler, "RESYNC_SHARE", share)

    async def work(bench: Bench) -> None:
        await bench.started()
        await asyncio.sleep(0.001)
        await bench.reconciler.generation()
        assert bench.log == again

    run(work)


def test_after_a_long_generation_more_is_collected_but_nobody_is_kept_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconciler, "COLLECT_SHARE", 1e9)
    monkeypatch.setattr(reconciler, "COLLECT_MOST_S", 600.0)

    async def work(bench: Bench) -> None:
        await bench.started()
        loop = asyncio.create_task(bench.reconciler.run())
        try:
            bench.reconciler.submit([PEER])
            await asyncio.sleep(0.05)
            assert bench.reconciler.pending == 1
            async with asyncio.timeout(30):
                await bench.reconciler.commit([ATTACH])
            assert bench.reconciler.pending == 0
            assert bench.routes() == {"10.244.2.0/24", "10.244.1.5/32"}
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

    run(work)
