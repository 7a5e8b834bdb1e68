"""The agent's CNI socket: a unix stream server that receives the pod's namespace as a descriptor."""

from __future__ import annotations

import asyncio
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
_PART_BYTES = 1 << 16
_DESCRIPTORS = 4  # more than one is nobody's


class CniServer:
    """Serves handler at socket_path (mode 0600: root's runtime alone).

    A socket that an agent killed earlier left behind is replaced in one step, so that a runtime never
    finds no file there.
    """

    def __init__(self, socket_path: Path, handler: Handler) -> None:
        self._path = socket_path
        self._handler = handler
        self._listener: socket.socket | None = None
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
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def stop(self) -> None:
        """Requests that have come in are answered first."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()
        self._path.unlink(missing_ok=True)
        await asyncio.gather(*self._serving)

    def _accept(self, listener: socket.socket) -> None:
        """Everybody who waits at the door."""
        while True:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of descriptors or memory, or a caller that was gone already
                _log.warning("CNI connection not accepted: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(_ACCEPT_AGAIN_S, self._accept_again, listener)
                return
            connection.setblocking(False)
            task = asyncio.create_task(self._serve(connection))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    def _accept_again(self, listener: socket.socket) -> None:
        if self._listener is listener:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def _serve(self, connection: socket.socket) -> None:
        fds: list[int] = []
        with connection:
            try:
                async with asyncio.timeout(_READ_TIMEOUT_S):
                    request = await _receive(connection, fds)
                environment, stdin = wire.unpack_request(request)
                answer = await self._handler(environment, stdin, fds[0] if fds else None)
                await asyncio.get_running_loop().sock_sendall(connection, wire.pack_answer(*answer))
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                # The runtime gave up, or is none: there is nobody to answer.
                _log.warning("CNI request dropped: %s", error or type(error).__name__)
            finally:
                for fd in fds:
                    os.close(fd)


async def _receive(connection: socket.socket, fds: list[int]) -> bytes:
    """A whole request; the descriptor that came with it is put into fds (the caller's to close).

    Raises EOFError for one that ends early, ValueError for one above the limits.
    """
    data = bytearray()
    missing = wire.REQUEST.size
    while missing > 0:
        try:
            part, received, _, _ = socket.recv_fds(connection, _PART_BYTES, _DESCRIPTORS, _MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await _readable(connection)
            continue
        fds += received
        if not part:
            raise EOFError("connection closed within the request")
        data += part
        missing = wire.REQUEST.size - len(data)
        if missing <= 0:
            missing += sum(wire.unpack_lengths(bytes(data[: wire.REQUEST.size])))
    return bytes(data)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
