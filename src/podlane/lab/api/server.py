"""The API server of a lab: store, registry, in-process client and the HTTP door, in one object."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from podlane.errors import GoneError
from podlane.lab.api.bootstrap import API_PORT, bootstrap
from podlane.lab.api.crd import Definitions
from podlane.lab.api.http import Door
from podlane.lab.api.local import LocalClient
from podlane.lab.api.registry import Registry
from podlane.lab.api.remote import Remote
from podlane.lab.api.sqlite_store import SqliteStore
from podlane.lab.api.store import Store
from podlane.lab.api.streams import Kubelets
from podlane.lab.api.table import Tables
from podlane.lab.api.verbs import Verbs
from podlane.model.config import NetworkConfig

EVENT_LIFE_S = 3600.0
"""Events are kept for an hour, as by kube-apiserver's --event-ttl."""

_EXPIRY_EVERY_S = 60.0
_SHUTDOWN_S = 1.0


class ApiServer:
    """database: a path or ":memory:" for SQLite, or any store, which is the server's now.

    kubelets: where logs and exec go; None refuses them.

    service_endpoints: addresses at which pods reach this server, for the `kubernetes` service; their
    sockets are the caller's (`start`), on service_port.
    """

    def __init__(
        self,
        database: Path | str | Store,
        config: NetworkConfig,
        kubelets: Kubelets | None = None,
        *,
        service_endpoints: Sequence[str] = (),
        service_port: int = API_PORT,
    ) -> None:
        self.store = database if isinstance(database, Store) else SqliteStore(database)
        self.registry = Registry(self.store, config)
        self.client = LocalClient(self.registry)
        self.registry.custom = definitions = Definitions(self.registry)
        self._tables = Tables(definitions.columns)
        self._remote = Remote(self.registry, kubelets)
        self._runner: web.ServerRunner | None = None
        self._expiry: asyncio.Task[None] | None = None
        bootstrap(self.registry, config, service_endpoints, service_port)

    async def start(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None, token: str) -> None:
        """Serve on listening sockets, which now belong to the server. token: what clients must bear."""
        door = Door(self.registry, Verbs(self.registry, self._tables, self._remote, token), token)
        # Cancelled handlers let go of watches and of exec'd commands as soon as their client is gone.
        server = web.Server(door.handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_S)
        await self._runner.setup()
        for sock in sockets:
            await web.SockSite(self._runner, sock, ssl_context=tls).start()
        loop = asyncio.get_running_loop()
        self.store.attend(lambda: _on(loop, self.store.poll))
        self._expiry = asyncio.create_task(self._expire_events(), name="expiry of events")

    async def _expire_events(self) -> None:
        while True:
            self.registry.expire_events(EVENT_LIFE_S)
            await asyncio.sleep(_EXPIRY_EVERY_S)

    async def stop(self) -> None:
        """End watches and connections, then close the database."""
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.gather(self._expiry, return_exceptions=True)
        self.registry.hub.end(None, GoneError("the API server is shutting down"))
        if self._runner is not None:
            await self._runner.cleanup()
        self.store.close()


def _on(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(call)
