"""The reflector against the lab's API server, over TLS on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from podlane.errors import ApiError
from podlane.lab.api import auth
from podlane.lab.api.server import ApiServer
from podlane.model.config import DEFAULT
from podlane.watch import kubeconfig
from podlane.watch.follow import Progress, follow
from podlane.watch.http import ApiHttp, Unreachable
from podlane.watch.reflector import Delete, Replace, Source, Upsert


class Api:
    """The server on one port; it can be stopped and started again on its database."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._pki = auth.make_pki(where, ["localhost"], ["127.0.0.1"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.server: ApiServer | None = None

    def access(self, **changes: Any) -> kubeconfig.Access:
        path = self._where / "kubeconfig"
        path.write_text(auth.kubeconfig(self._pki, f"https://127.0.0.1:{self.port}", "lab"))
        found = kubeconfig.load(path)
        return kubeconfig.msgspec.structs.replace(found, **changes)

    async def start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(16)
        self.server = ApiServer(self._where / "api.sqlite", DEFAULT, None)
        await self.server.start([listener], self._pki.server_context(), self._pki.token)

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop()
            self.server = None

    async def make(self, name: str) -> None:
        assert self.server is not None
        await self.server.client.create(
            "nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        )

    async def remove(self, name: str) -> None:
        assert self.server is not None
        await self.server.client.delete("nodes", name)


class Copy:
    """What a follower knows."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.lists = 0
        self.error = "nothing heard yet"
        self.version = ""

    def deliver(self, kind: str, news: Any) -> None:
        match news:
            case Replace(objects, _):
                self.names = {each.name for each in objects}
                self.lists += 1
            case Upsert(found):
                self.names.add(found.name)
            case Delete(key):
                self.names.discard(key[1])

    def heard(self, progress: Progress) -> None:
        self.error, self.version = progress.error, progress.reflector.version

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def followed(where: Path) -> AsyncIterator[tuple[Api, Copy]]:
    api, copy = Api(where), Copy()
    await api.start()
    try:
        async with ApiHttp(api.access()) as session:
            task = asyncio.create_task(follow(Source("Node"), session, copy.deliver, copy.heard))
            try:
                await copy.until(lambda: copy.lists == 1)
                yield api, copy
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    finally:
        await api.stop()


def test_objects_come_and_go(tmp_path: Path) -> None:
    async def work() -> None:
        async with followed(tmp_path) as (api, copy):
            await api.make("a")
            await api.make("b")
            await api.remove("a")
            await copy.until(lambda: copy.names == {"b"})

    asyncio.run(work())


def test_a_watch_resumes_after_the_server_was_away(tmp_path: Path) -> None:
    async def work() -> None:
        async with followed(tmp_path) as (api, copy):
            await api.make("a")
            await copy.until(lambda: copy.names == {"a"})
            await api.stop()
            await copy.until(lambda: "cannot be reached" in copy.error)
            assert copy.names == {"a"}
            await api.start()
            await api.make("b")
            await copy.until(lambda: copy.names == {"a", "b"})
            assert (copy.lists, copy.error) == (1, "")

    asyncio.run(work())


def refusal(api: Api, **changes: Any) -> str:
    async def work() -> str:
        await api.start()
        try:
            async with ApiHttp(api.access(**changes)) as session:
                with pytest.raises(ApiError) as caught:
                    await session.get("/api/v1/nodes", {})
                return f"{type(caught.value).__name__} {caught.value.code} {caught.value}"
        finally:
            await api.stop()

    return asyncio.run(work())


def test_who_has_no_token_is_refused(tmp_path: Path) -> None:
    assert refusal(Api(tmp_path), token="").startswith("ApiError 401")


def test_a_server_with_another_authority_is_not_believed(tmp_path: Path) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(Api(tmp_path), ca_pem=None)
    assert refusal(Api(tmp_path), ca_pem=None).startswith(Unreachable.__name__)


def test_a_token_file_is_read(tmp_path: Path) -> None:
    async def work() -> None:
        api = Api(tmp_path)
        token = tmp_path / "token"
        token.write_text(api.access().token + "\n")
        await api.start()
        try:
            async with ApiHttp(api.access(token="", token_file=str(token))) as session:
                assert b'"items"' in await session.get("/api/v1/nodes", {})
        finally:
            await api.stop()

    asyncio.run(work())
