"""All controllers of the lab, as one thing to start and stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from podlane.controller import load_balancers
from podlane.lab.client import ApiClient
from podlane.lab.controllers.context import Context, Runnable
from podlane.lab.controllers.cronjob import CronJobs
from podlane.lab.controllers.daemonset import DaemonSets
from podlane.lab.controllers.deployment import Deployments
from podlane.lab.controllers.endpoints import EndpointsController
from podlane.lab.controllers.endpointslice import EndpointSlices
from podlane.lab.controllers.everything import Everything
from podlane.lab.controllers.garbage import GarbageCollector
from podlane.lab.controllers.job import Jobs
from podlane.lab.controllers.loadbalancers import LoadBalancers
from podlane.lab.controllers.mirroring import Mirroring
from podlane.lab.controllers.namespaces import Namespaces
from podlane.lab.controllers.nodes import LostPods, NodePrefixes
from podlane.lab.controllers.replicaset import ReplicaSets, ReplicationControllers
from podlane.lab.controllers.scheduler import Scheduler
from podlane.lab.controllers.statefulset import StatefulSets
from podlane.model.config import NetworkConfig


def make_all(context: Context) -> list[Runnable]:
    """In no order that matters: all of them only react to what the API says."""
    everything = Everything(context)
    return [
        NodePrefixes(context),
        Scheduler(context),
        Deployments(context),
        ReplicaSets(context),
        ReplicationControllers(context),
        DaemonSets(context),
        StatefulSets(context),
        Jobs(context),
        CronJobs(context),
        EndpointSlices(context),
        EndpointsController(context),
        Mirroring(context),
        *load_balancers.make(context),
        LoadBalancers(context),
        Namespaces(context, everything),
        GarbageCollector(context, everything),
        LostPods(context),
    ]


class ControllerManager:
    """Runs every controller over one client. Stopped or killed at any point, it may be run again.

    ca_pem: the certificate authority of the API, for the ConfigMap kube-root-ca.crt of each namespace.
    """

    def __init__(
        self,
        client: ApiClient,
        config: NetworkConfig,
        *,
        ca_pem: str = "",
        now: Callable[[], float] = time.time,
        make: Callable[[Context], list[Runnable]] = make_all,
    ) -> None:
        self._client, self._config, self._ca_pem, self._now, self._make = client, config, ca_pem, now, make
        self._running: list[Runnable] = []
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until `stop` or cancellation. Begins afresh from what the API says."""
        task = self._task = asyncio.ensure_future(self._run())
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            await asyncio.wait({task})
            if self._task is task:
                self._task = None
        if not task.cancelled():
            task.result()

    async def _run(self) -> None:
        context = Context(self._client, self._config, now=self._now, ca_pem=self._ca_pem)
        controllers = self._make(context)
        try:
            async with asyncio.TaskGroup() as group:
                context.informers.start(group)
                group.create_task(context.events.run(), name="events")
                await context.informers.synced()
                self._running = controllers
                for controller in controllers:
                    group.create_task(controller.run(), name=type(controller).__name__)
        finally:
            self._running = []

    async def stop(self) -> None:
        """Ends `run` and waits for it. Nothing happens when it does not run."""
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.wait({task})

    @property
    def idle(self) -> bool:
        """It runs, and no object waits to be looked at (those that wait for a time of day aside)."""
        return bool(self._running) and all(c.idle for c in self._running)
