"""`podlane controller`: what a cluster needs done once, by one of several processes.

The same controllers run in a lab's control process (lab/controllers/manager.py), without election.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable

from msgspec import Struct

from podlane.controller import load_balancers, metrics
from podlane.controller.context import Context, Runnable
from podlane.controller.fence import Fenced
from podlane.controller.leader import DURATION_S, NAMESPACE, LeaderElection
from podlane.controller.load_balancers import LoadBalancers
from podlane.controller.manager import Manager
from podlane.controller.node_claims import NodeClaims
from podlane.controller.node_prefixes import NodePrefixes
from podlane.controller.release import release
from podlane.controller.remote import HttpClient
from podlane.model.config import NetworkConfig
from podlane.observe import window
from podlane.observe.exposition import CONTENT_TYPE
from podlane.watch import configuration, kubeconfig
from podlane.watch.configuration import CONFIG_PATH
from podlane.watch.http import ApiHttp


class ControllerOptions(Struct, frozen=True, kw_only=True):
    """kubeconfig: "" as kubectl finds it. lease_duration_s: after how long of silence another leads.
    lease_namespace: where the Lease is."""

    kubeconfig: str = ""
    context: str = ""
    api_servers: tuple[str, ...] = ()
    config: str = CONFIG_PATH
    metrics_address: str = ""
    lease_duration_s: int = DURATION_S
    lease_namespace: str = NAMESPACE


class Daemon:
    def __init__(self, options: ControllerOptions, config: NetworkConfig, client: HttpClient) -> None:
        self._options, self._config, self._client = options, config, client
        self._balancers: LoadBalancers | None = None
        self._prefixes: NodePrefixes | None = None
        identity = f"{socket.gethostname()}_{os.urandom(4).hex()}"
        self._election = LeaderElection(
            client, identity, namespace=options.lease_namespace, duration_s=options.lease_duration_s
        )
        self._manager = Manager(Fenced(client, self._election.holds), config, make=self._make)

    def _make(self, context: Context) -> list[Runnable]:
        found = load_balancers.make(context)
        self._balancers = next(each for each in found if isinstance(each, LoadBalancers))
        allocate = self._config.controller.allocate_node_cidrs
        self._prefixes = NodePrefixes(context) if allocate else None
        claims = NodeClaims(context, allocated=allocate)
        return [*found, claims, *([self._prefixes] if self._prefixes else [])]

    async def run(self, stop: asyncio.Event) -> None:
        """Until stop is set, or raises what ended it."""
        pages: window.Pages = {
            "/healthz": lambda: window.text("ok"),
            "/livez": lambda: window.text("ok"),
            "/readyz": self._readyz,
            "/metrics": self._metrics,
        }
        server = window.Server(pages)
        try:
            if self._options.metrics_address:
                await server.listen(self._options.metrics_address)
            work = asyncio.create_task(self._election.run(self._manager.run), name="election")
            stopped = asyncio.create_task(stop.wait(), name="stop")
            done, _ = await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)
            if work in done:
                work.result()
        finally:
            await server.close()

    def _readyz(self) -> window.Answer:
        if not self._election.leader:
            return window.text(f"nobody leads yet: the Lease {self._election.lease} is not held", 503)
        if not self._election.leading:
            return window.text(f"ok: {self._election.leader} leads")
        if not self._manager.synced:
            return window.text(
                "not everything has been listed yet; are the CustomResourceDefinitions there (deploy/crds/)?",
                503,
            )
        return window.text("ok: this one leads")

    def _metrics(self) -> window.Answer:
        text = metrics.text(
            metrics.Seen(
                self._election.leading,
                self._balancers,
                self._prefixes,
                self._manager.controllers,
                self._client.requests,
            )
        )
        return window.Answer(200, text.encode(), CONTENT_TYPE)


def main(options: ControllerOptions) -> None:
    """Raises ConfigError before anything is done."""
    config = configuration.read(options.config)
    access = kubeconfig.load(options.kubeconfig or None, options.context, options.api_servers)
    asyncio.run(_main(options, config, access))


def give_back(options: ControllerOptions, say: Callable[[str], None]) -> None:
    """For a cluster that podlane is removed from (controller/release.py)."""
    access = kubeconfig.load(options.kubeconfig or None, options.context, options.api_servers)

    async def run() -> None:
        async with ApiHttp(access, "podlane-controller") as http:
            await release(HttpClient(http), options.lease_namespace, say)

    asyncio.run(run())


async def _main(options: ControllerOptions, config: NetworkConfig, access: kubeconfig.Access) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with ApiHttp(access, "podlane-controller") as http:
        await Daemon(options, config, HttpClient(http)).run(stop)
