"""Controllers over one client, as one thing to start and stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from podlane.controller.client import ApiClient
from podlane.controller.context import Context, Runnable
from podlane.model.config import NetworkConfig


class Manager:
    """Runs what `make` makes, over one client. Stopped or killed at any point, it may be run again.

    ca_pem: the certificate authority of the API, for the ConfigMap kube-root-ca.crt of each namespace.
    """

    def __init__(
        self,
        client: ApiClient,
        config: NetworkConfig,
        *,
        make: Callable[[Context], list[Runnable]],
        ca_pem: str = "",
        now: Callable[[], float] = time.time,
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
    def controllers(self) -> list[Runnable]:
        """Those at work; none before everything has been listed."""
        return self._running

    @property
    def synced(self) -> bool:
        """It runs, and everything it reads has been listed."""
        return bool(self._running)

    @property
    def idle(self) -> bool:
        """It runs, and no object waits to be looked at (those that wait for a time of day aside)."""
        return bool(self._running) and all(c.idle for c in self._running)
