"""From news to the kernel: changes are collected, compiled and applied as one generation.

    submit ──at most a few ms──> compile -> deltas -> drivers, each on a worker thread of its own

Generations follow one another; what is submitted meanwhile waits for the next. Within one, drivers add
and change in their order and remove in reverse, so that nothing leads to what is not there yet, or is
there no more. A driver whose rows were refused reads its part of the kernel back and repairs the
difference, after a pause that doubles: that is the only place where something is tried again.

Until every kind that capabilities read has been listed, and the node knows its uplink, nothing is
removed and no device is touched: new pods get their rows (`commit`), all else stays as it was found.
Then the first resync brings the kernel to the tables by difference; what agrees is not touched.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

from podlane.agent.pace import Pace
from podlane.compile.engine import Compiler
from podlane.compile.tables import Guard, Table
from podlane.compile.view import Change
from podlane.delta import Delta
from podlane.errors import KernelError
from podlane.kernel.driver import Driver, Failure, Report

log = logging.getLogger(__name__)

COLLECT_S = 0.003
# After a generation that was much work (a service of a thousand endpoints takes 6 ms) more is collected for
# the next: so many times as long, if nobody waits for it.
COLLECT_SHARE, COLLECT_MOST_S = 4, 0.05
# Changes that keep coming are collected: waking up for each of them costs more than compiling it. Single
# ones, and the first of many, are still applied at once.
GENERATIONS_PER_S, GENERATIONS_AT_ONCE = 20.0, 20
RESYNC_S = 300.0
RESYNC_SHARE = 1 / 300  # of the time, at most: nothing else is applied meanwhile, and the kernel's dump of
# fifty thousand services takes ten seconds
RETRY_FIRST_S, RETRY_MOST_S = 0.1, 30.0

# Rows of these tables may be added before the first resync: the way to a pod that CNI attaches.
# (Of guards those of links that are no pod's of Kubernetes: of others policy may have something to say.)
EARLY_TABLES = (Table.GUARDS, Table.PORTS, Table.NEIGHBOURS, Table.ROUTES)
EVERY_ROW = "every row"

Deltas = Mapping[Table, Delta[Any, Any]]


class Counts(NamedTuple):
    """generation: how many were applied; operations: sent to kernel and engines since the start."""

    generation: int = 0
    operations: int = 0
    resyncs: int = 0
    busy_s: float = 0.0


class Observation(NamedTuple):
    """full: the kernel was read and compared."""

    driver: Driver
    seconds: float
    full: bool
    report: Report


class Reconciler:
    """Lives on one event loop; only the drivers' work leaves it.

    drivers: in the order in which a generation is applied. changed(): called after every generation.
    observed(): called after each piece of a driver's work.
    """

    def __init__(
        self,
        compiler: Compiler,
        drivers: Sequence[Driver],
        *,
        changed: Callable[[], None] = lambda: None,
        observed: Callable[[Observation], None] = lambda _: None,
        rng: random.Random | None = None,
    ) -> None:
        self.compiler = compiler
        self.counts = Counts()
        self.synced = False  # the first resync is through
        self._queues = [_Queue(driver, observed) for driver in drivers]
        self._changed = changed
        self._rng = rng or random.Random()
        self._pending: list[Iterable[Change]] = []
        self._submitted = self._applied = 0
        self._waiting_since_s: float | None = None  # the oldest submission that no generation has taken up
        self._working_since_s: float | None = None  # the oldest one that the current generation has
        self._may_sync = False
        self._early_devices: set[str] = set()
        self._wake, self._awaited = asyncio.Event(), asyncio.Event()
        self._done = asyncio.Condition()
        self._next_resync_s = self._quiet_since_s = self._collect_s = 0.0
        self._pace = Pace(GENERATIONS_PER_S, GENERATIONS_AT_ONCE)

    # --- what is known ---

    @property
    def failures(self) -> list[Failure]:
        """Rows that kernel or engines refuse at present."""
        return [failure for queue in self._queues for failure in queue.failures]

    @property
    def pending(self) -> int:
        """Submissions that no generation has applied yet."""
        return self._submitted - self._applied

    @property
    def waiting_s(self) -> float:
        """For how long the oldest submission has waited; or the oldest refusal of a whole driver."""
        since = [s for s in (self._waiting_since_s, self._working_since_s) if s is not None]
        since += [queue.refused_since_s for queue in self._queues if queue.refused_since_s is not None]
        return time.monotonic() - min(since) if since else 0.0

    @property
    def taken_in(self) -> bool:
        """All that was submitted has been compiled: the view holds it."""
        return not self._pending

    @property
    def submitted(self) -> int:
        return self._submitted

    @property
    def applied(self) -> int:
        """The number of the last submission that the drivers have been given."""
        return self._applied

    # --- what comes in ---

    def submit(self, changes: Iterable[Change]) -> int:
        """Queue changes. A generator is run when its turn comes, after all that was submitted before.

        Returns the submission's number, to compare with `applied`.
        """
        self._pending.append(changes)
        self._submitted += 1
        if self._waiting_since_s is None:
            self._waiting_since_s = time.monotonic()
        self._wake.set()
        return self._submitted

    async def commit(self, changes: Iterable[Change], *devices: str) -> None:
        """Submit, and wait until the generation that holds the changes has been applied.

        devices: links whose rows may be added even before the first resync.
        """
        if not self._may_sync:
            self._early_devices.update(devices)
        number = self.submit(changes)
        self._awaited.set()
        async with self._done:
            await self._done.wait_for(lambda: self._applied >= number)

    async def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Until condition() holds after a generation; False if it does not in time."""
        try:
            async with asyncio.timeout(timeout_s), self._done:
                await self._done.wait_for(condition)
        except TimeoutError:
            return False
        return True

    def allow_sync(self) -> None:
        """Everything that the capabilities read has been listed: bring the kernel to the tables."""
        if not self._may_sync:
            self._may_sync = True
            self._wake.set()

    def request_resync(self, *tables: Table) -> None:
        """The kernel may have been changed by others: compare what holds these tables (none given: all)."""
        for queue in self._queues:
            if not tables or any(table in queue.driver.tables for table in tables):
                queue.stale = True
        self._wake.set()

    # --- the loop ---

    async def run(self) -> None:
        """Without end. Cancelled, it leaves everything in place."""
        try:
            while True:
                await self._sleep()
                await self.generation()
        finally:
            for queue in self._queues:
                queue.close()

    async def _sleep(self) -> None:
        """Until there is something to do. What comes after a quiet moment is done at once; what follows on
        its heels waits out the rest of a moment, for what belongs together, and longer if it goes on."""
        due_s = [queue.retry_s for queue in self._queues if queue.retry_s is not None]
        if self.synced:
            due_s.append(self._next_resync_s)
        try:
            timeout_s = max(0.0, min(due_s) - time.monotonic()) if due_s else None
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return
        pause_s = self._quiet_since_s + COLLECT_S - time.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        pause_s = max(self._quiet_since_s + self._collect_s, self._pace.due_s()) - time.monotonic()
        if pause_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._awaited.wait()

    async def generation(self) -> None:
        """One round: everything submitted until now."""
        self._wake.clear()
        self._awaited.clear()
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        self._pace.spend(began_s)
        batch, self._pending = self._pending, []
        self._working_since_s, self._waiting_since_s = self._waiting_since_s, None
        upto = self._submitted
        deltas = self.compiler.apply(_flat(batch))
        if not self._may_sync:
            await self._stage(self._early(deltas), self._queues)
        else:
            everything = not self.synced or began_s >= self._next_resync_s
            if everything:
                for queue in self._queues:
                    queue.stale = True
            await self._apply(deltas)
            if everything:
                now_s = time.monotonic()
                pause_s = max(RESYNC_S, (now_s - began_s) / RESYNC_SHARE)
                self._next_resync_s = now_s + pause_s * self._rng.uniform(0.8, 1.2)
            self.synced = True
        self._applied, self._working_since_s = upto, None
        if batch:
            self.counts = self.counts._replace(generation=self.counts.generation + 1)
        self._quiet_since_s = time.monotonic()
        self._collect_s = min(COLLECT_SHARE * (time.process_time() - began_cpu_s), COLLECT_MOST_S)
        self.counts = self.counts._replace(busy_s=self.counts.busy_s + self._quiet_since_s - began_s)
        async with self._done:
            self._done.notify_all()
        self._changed()

    async def _apply(self, deltas: Deltas) -> None:
        """Additions in the drivers' order, removals in reverse; who asks for it gets both at once."""
        now_s = time.monotonic()
        current: list[_Queue] = []
        for queue in self._queues:
            if queue.stale or (queue.retry_s is not None and queue.retry_s <= now_s):
                # A resync reads the tables as they are now, and so contains every delta.
                tables = {table: dict(self.compiler.tables[table]) for table in queue.driver.tables}
                self._took(await queue.resync(tables, self._rng), resyncs=1)
            else:
                await self._stage(deltas if queue.at_once else _additions(deltas), [queue])
                current.append(queue)
        await self._stage(_removals(deltas), [q for q in reversed(current) if not q.at_once])

    async def _stage(self, deltas: Deltas, queues: Iterable[_Queue]) -> None:
        for queue in queues:
            part = {table: deltas[table] for table in queue.driver.tables if deltas.get(table)}
            if part:
                self._took(await queue.apply(part, self._rng))

    def _early(self, deltas: Deltas) -> Deltas:
        """The rows of new pods' links only; all else waits for the first resync."""

        def ours(rows: dict[Any, Any]) -> dict[Any, Any]:
            return {
                key: row
                for key, row in rows.items()
                if row.device in self._early_devices and not (isinstance(row, Guard) and row.pod.name)
            }

        return {t: Delta(ours(deltas[t].added), {}, {}) for t in EARLY_TABLES if t in deltas}

    def _took(self, report: Report, resyncs: int = 0) -> None:
        self.counts = self.counts._replace(
            operations=self.counts.operations + report.operations, resyncs=self.counts.resyncs + resyncs
        )


class _Queue:
    """One driver, its thread, and what it could not do.

    stale: the kernel must be read before anything else. retry_s: when to try again, None if all is well.
    refused_since_s: since when not single rows but everything is refused; None if it is not.
    """

    def __init__(self, driver: Driver, observed: Callable[[Observation], None]) -> None:
        self.driver = driver
        self.refused_since_s: float | None = None
        self._observed = observed
        self.failures: tuple[Failure, ...] = ()
        self.stale = False
        self.retry_s: float | None = None
        self._pause_s = RETRY_FIRST_S
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=type(driver).__name__)

    @property
    def at_once(self) -> bool:
        """The driver has an order of its own, or a transaction."""
        return bool(getattr(self.driver, "at_once", False))

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    async def resync(self, tables: Mapping[Table, Mapping[Any, Any]], rng: random.Random) -> Report:
        self.stale = False
        report = await self._run(self.driver.resync, tables)
        self._judge(report.failures, rng)
        return report

    async def apply(self, part: Deltas, rng: random.Random) -> Report:
        report = await self._run(self.driver.apply, part)
        # What this generation says nothing about stays refused.
        again = [f for f in self.failures if not (f.table in part and _mentions(part[f.table], f.key))]
        self._judge((*again, *report.failures), rng)
        return report

    async def _run(self, work: Callable[[Any], Report], argument: Any) -> Report:
        began_s = time.monotonic()
        try:
            report = await asyncio.get_running_loop().run_in_executor(self._thread, work, argument)
            self.refused_since_s = None
        except KernelError as error:
            # Not one row but the whole was refused (a dump, a transaction): the retry compares it all.
            report = Report(0, (Failure(self.driver.tables[0], EVERY_ROW, error),))
            if self.refused_since_s is None:
                self.refused_since_s = began_s
        full = work == self.driver.resync
        self._observed(Observation(self.driver, time.monotonic() - began_s, full, report))
        return report

    def _judge(self, failures: tuple[Failure, ...], rng: random.Random) -> None:
        known = {(f.table, f.key) for f in self.failures}
        for failure in failures:
            if (failure.table, failure.key) not in known:
                what = {"object": f"{failure.table} {failure.key}", "error": failure.error}
                log.warning("%s %s: %s", failure.table, failure.key, failure.error, extra=what)
        if not failures:
            if self.failures:
                log.info("%s: everything refused before is in place now", type(self.driver).__name__)
            self.retry_s, self._pause_s = None, RETRY_FIRST_S
        else:
            self.retry_s = time.monotonic() + self._pause_s * rng.uniform(1.0, 1.3)
            self._pause_s = min(self._pause_s * 2, RETRY_MOST_S)
        self.failures = failures


def _flat(batch: Iterable[Iterable[Change]]) -> Iterator[Change]:
    for changes in batch:
        yield from changes


def _mentions(delta: Delta[Any, Any], key: Any) -> bool:
    return key in delta.added or key in delta.changed or key in delta.removed


def _additions(deltas: Deltas) -> Deltas:
    return {t: Delta(d.added, d.changed, {}) for t, d in deltas.items() if d.added or d.changed}


def _removals(deltas: Deltas) -> Deltas:
    return {t: Delta({}, {}, d.removed) for t, d in deltas.items() if d.removed}
