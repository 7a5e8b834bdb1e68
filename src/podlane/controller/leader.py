"""Of several controllers one leads: whoever holds the Lease and renews it (client-go tools/leaderelection).

    free, or not renewed for as long as it was taken for ──> take it with the resourceVersion that was read
    ours ──> renew it every few seconds; not done for most of its time ──> stop what leading means, at once
    told to stop ──> stop, then give it back, so that another need not wait

What leading means writes through controller/fence.py: a process that was stopped and goes on writes nothing.

Clocks of different machines are never compared: a lease is old if this process has seen it unchanged for
its whole duration. Of two that take it at once the API lets one; the other gets a ConflictError.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from podlane.controller.client import ApiClient, Obj
from podlane.controller.context import Context, Runnable
from podlane.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError

log = logging.getLogger(__name__)

LEASES: Final = "leases.coordination.k8s.io"
DURATION_S: Final = 15
NAMESPACE: Final = "kube-system"
NAME: Final = "podlane-controller"
RENEW_DEADLINE: Final = 2 / 3  # of the duration
RETRY: Final = 2 / 15


def running_s() -> float:
    """Seconds that go on while the process is stopped, or the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaderElection:
    """identity: this process among all that ever asked. now: a clock that only runs forward, in seconds."""

    def __init__(
        self,
        client: ApiClient,
        identity: str,
        *,
        name: str = NAME,
        namespace: str = NAMESPACE,
        duration_s: int = DURATION_S,
        now: Callable[[], float] = running_s,
    ) -> None:
        self._client, self.identity, self._now = client, identity, now
        self._name, self._namespace, self._duration_s = name, namespace, duration_s
        self._seen: Any = None
        self._seen_s = self._renewed_s = 0.0
        self.leader = ""
        """Who leads, as far as is known."""

    @property
    def lease(self) -> str:
        return f"{self._namespace}/{self._name}"

    @property
    def leading(self) -> bool:
        return self.leader == self.identity

    def holds(self) -> bool:
        """Whether this process may act as leader at this moment: another begins later than this ends."""
        return self.leading and self._now() - self._renewed_s < self._duration_s * RENEW_DEADLINE

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """lead() while this process leads; it is cancelled when that is over. Without end; what lead()
        raises ends it."""
        try:
            while True:
                if await self._try():
                    log.info("%s leads", self.identity)
                    await self._lead(lead)
                    log.warning("%s does not lead any more", self.identity)
                    self.leader = "" if self.leading else self.leader
                await asyncio.sleep(self._duration_s * RETRY)
        finally:
            if self.leading:
                await asyncio.shield(self._release())

    async def _lead(self, lead: Callable[[], Awaitable[None]]) -> None:
        work = asyncio.ensure_future(lead())
        try:
            while self.holds():
                done, _ = await asyncio.wait({work}, timeout=self._duration_s * RETRY)
                if done:
                    work.result()
                    return
                await self._try()
        finally:
            work.cancel()
            await asyncio.wait({work})

    async def _try(self) -> bool:
        """Takes or renews the lease. False also if the API does not answer."""
        try:
            began_s = self._now()
            async with asyncio.timeout(self._duration_s * RENEW_DEADLINE / 2):
                if await self._ask():
                    self._renewed_s = began_s
                    return True
        except (ConflictError, AlreadyExistsError):
            self.leader = ""  # another was quicker
        except (ApiError, TimeoutError) as error:
            log.info("the lease %s/%s: %s", self._namespace, self._name, error)
        return False

    async def _ask(self) -> bool:
        try:
            lease = await self._client.get(LEASES, self._name, self._namespace)
        except NotFoundError:
            meta = {"name": self._name, "namespace": self._namespace}
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta}
            await self._client.create(LEASES, lease | {"spec": self._spec({})}, self._namespace)
            self.leader = self.identity
            return True
        spec = lease.get("spec") or {}
        self.leader = spec.get("holderIdentity") or ""
        if self.leader not in ("", self.identity) and not self._old(spec):
            return False
        await self._client.update(LEASES, {**lease, "spec": self._spec(spec)})
        self.leader = self.identity
        return True

    def _old(self, spec: Obj) -> bool:
        if spec != self._seen:
            self._seen, self._seen_s = spec, self._now()
        return self._now() - self._seen_s >= float(spec.get("leaseDurationSeconds") or self._duration_s)

    def _spec(self, old: Obj) -> Obj:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = old.get("holderIdentity") == self.identity
        return {
            **old,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._duration_s,
            "acquireTime": old.get("acquireTime") if mine else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (bool(old) and not mine),
        }

    async def _release(self) -> None:
        try:
            lease = await self._client.get(LEASES, self._name, self._namespace)
            if lease["spec"].get("holderIdentity") == self.identity:
                spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._client.update(LEASES, {**lease, "spec": spec})
        except ApiError as error:
            log.info("the lease could not be given back: %s", error)
        self.leader = ""


class Led:
    """A Runnable: controllers that run only while this process leads, beside others that always do.

    make: called each time it begins to lead, so that they begin afresh from what the API says.
    """

    def __init__(
        self, context: Context, election: LeaderElection, make: Callable[[Context], list[Runnable]]
    ) -> None:
        self._context, self._election, self._make = context, election, make
        self._running: list[Runnable] = []

    async def run(self) -> None:
        await self._election.run(self._lead)

    async def _lead(self) -> None:
        controllers = self._make(self._context)
        await self._context.informers.synced()
        self._running = controllers
        try:
            async with asyncio.TaskGroup() as group:
                for each in controllers:
                    group.create_task(each.run(), name=type(each).__name__)
        finally:
            self._running = []

    @property
    def idle(self) -> bool:
        """It is known who leads, and if it is this process, nothing waits to be looked at."""
        if not self._election.leading:
            return bool(self._election.leader)
        return bool(self._running) and all(each.idle for each in self._running)
