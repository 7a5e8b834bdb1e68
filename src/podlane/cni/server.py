"""The agent's CNI socket: a unix stream server that receives the pod's namespace as a descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from podlane.cni import wire
from podlane.cni.plugin import Answer

_log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Mapping[str, str], bytes, int | None], Awaitable[Answer]]

_READ_TIMEOUT_S = 10.0
_ACCEPT_AGAIN_S = 0.05
_MSG_CMSG_CLOEXEC = 0x40000000


class CniServer:
    """Serves handler at socket_path (mode 0600: root's runtime alone).

    A socket that an agent killed earlier left behind is replaced in one step, so that a runtime never
    finds no file there.
    """

    def __init__(self, socket_path: Path, handler: Handler) -> None:
        self._path = socket_path
        self._handler = handler
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            temporary.unlink(missing_ok=True)
            listener.bind(str(temporary))
            temporary.chmod(0o600)
            listener.listen(512)
            temporary.replace(self._path)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))

    async def stop(self) -> None:
        """Requests that have come in are answered first."""
        if self._accepting is None or self._listener is None:
            return
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        await asyncio.gather(*self._serving)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors or memory, or a caller that was gone already
                _log.warning("CNI connection not accepted: %s", error)
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            task = asyncio.create_task(self._serve(connection))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, connection: socket.socket) -> None:
        netns_fd: int | None = None
        with connection:
            try:
                async with asyncio.timeout(_READ_TIMEOUT_S):
                    header, netns_fd = await _receive_header(connection)
                    environment_bytes, stdin_bytes = wire.unpack_lengths(header)
                    block = await _receive(connection, environment_bytes)
                    stdin = await _receive(connection, stdin_bytes)
                answer = await self._handler(wire.unpack_environment(block), stdin, netns_fd)
                await asyncio.get_running_loop().sock_sendall(connection, wire.pack_answer(*answer))
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                # The runtime gave up, or is none: there is nobody to answer.
                _log.warning("CNI request dropped: %s", error or type(error).__name__)
            finally:
                if netns_fd is not None:
                    os.close(netns_fd)


async def _receive_header(connection: socket.socket) -> tuple[bytes, int | None]:
    """The first 8 bytes and the descriptor that came with them, if one did."""
    loop = asyncio.get_running_loop()
    data, fds = b"", list[int]()
    try:
        while len(data) < wire.REQUEST.size:
            await _readable(loop, connection)
            with contextlib.suppress(BlockingIOError):
                part, received, _, _ = socket.recv_fds(
                    connection, wire.REQUEST.size - len(data), 4, _MSG_CMSG_CLOEXEC
                )
                fds += received
                if not part:
                    raise EOFError("connection closed before the request")
                data += part
        return data, fds.pop(0) if fds else None
    finally:
        for fd in fds:
            os.close(fd)


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)


async def _receive(connection: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        part = await loop.sock_recv(connection, min(size - len(data), 1 << 16))
        if not part:
            raise EOFError("connection closed within the request")
        data += part
    return bytes(data)
