"""A real API server on 127.0.0.1 for tests: its own thread and loop, TLS, a token, a database in memory."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from podlane.lab.api import auth
from podlane.lab.api.registry import Registry
from podlane.lab.api.server import ApiServer
from podlane.lab.api.sqlite_store import SqliteStore
from podlane.lab.api.streams import Kubelets
from podlane.model.config import DEFAULT

T = TypeVar("T")
Obj = dict[str, Any]


class Lab:
    def __init__(self, server: ApiServer, loop: asyncio.AbstractEventLoop, url: str, pki: auth.Pki) -> None:
        self.server, self.loop, self.url, self.pki = server, loop, url, pki
        self.kubeconfig = pki.directory.parent / "kubeconfig"

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """On the server's own loop."""

        async def wrapped() -> T:
            return await call()

        return asyncio.run_coroutine_threadsafe(wrapped(), self.loop).result(30)


@contextmanager
def running(
    directory: Path,
    kubelets: Kubelets | None = None,
    *,
    database: Path | str = ":memory:",
    sockets: Sequence[socket.socket] = (),
) -> Iterator[Lab]:
    """sockets: listening ones, of wherever it is to be reached at 127.0.0.1 too."""
    pki = auth.make_pki(directory / "pki", ["localhost"], ["127.0.0.1"])
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    (directory / "kubeconfig").write_text(auth.kubeconfig(pki, url, "test"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> ApiServer:
        server = ApiServer(database, DEFAULT, kubelets, service_endpoints=["172.30.0.2"])
        await server.start([listener, *sockets], pki.server_context(), pki.token)
        return server

    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
        yield Lab(server, loop, url, pki)
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
        # TLS connections say goodbye after the server has stopped: no socket shall be left to the collector.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@contextmanager
def registry(**options: Any) -> Iterator[Registry]:
    """A registry with its namespace `default`. options: of Registry."""
    store = SqliteStore(":memory:")
    found = Registry(store, **options)
    make(found, "namespaces", {"metadata": {"name": "default"}})
    try:
        yield found
    finally:
        store.close()


def make(registry: Registry, resource: str, obj: Obj) -> Obj:
    row = registry.catalog.named(resource)
    namespace = obj["metadata"].get("namespace", "default") if row.namespaced else ""
    return registry.create(row, namespace, obj).obj


def pod(name: str = "web", **spec: Any) -> Obj:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "nginx"}], **spec}}
