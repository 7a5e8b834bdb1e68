"""A command in a container for `kubectl exec`: its stdio as pipes or a terminal, on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import Sequence

from podlane.errors import LabError
from podlane.lab.api.streams import STDERR, STDOUT
from podlane.lab.supervisor.client import AsyncSupervisor

READ_BYTES = 1 << 16
QUEUED = 16  # chunks read ahead of the client; beyond that the command waits


class Session:
    """streams.ExecSession. Made by `start`."""

    def __init__(self, supervisor: AsyncSupervisor) -> None:
        self._supervisor = supervisor
        self._pid = 0
        self._readers: dict[int, int] = {}  # descriptor -> stream
        self._stdin = -1
        self._terminal = -1
        self._queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(QUEUED)
        self._exit: asyncio.Task[int] | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        supervisor: AsyncSupervisor,
        container_pid: int,
        argv: Sequence[str],
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        tty: bool,
    ) -> Session:
        """Raises LabError (SupervisorRefusal with reason NotFound for a program that is not there)."""
        session = cls(supervisor)
        given: list[int] = []
        try:
            fds = session._terminal_ends(given) if tty else session._pipes(given, stdin, stdout, stderr)
            session._pid = await supervisor.exec(container_pid, argv, tty=tty, fds=fds)
        except BaseException:
            session._close()
            raise
        finally:
            for fd in given:
                os.close(fd)
        session._exit = asyncio.create_task(session._wait())
        session._pumps = [
            asyncio.create_task(session._pump(fd, stream)) for fd, stream in session._readers.items()
        ]
        session._ending = asyncio.create_task(session._end_of_output())
        return session

    def _terminal_ends(self, given: list[int]) -> tuple[int, int, int]:
        master, slave = pty.openpty()
        given.append(slave)
        os.set_blocking(master, False)
        self._terminal = self._stdin = master
        self._readers[master] = STDOUT
        return slave, slave, slave

    def _pipes(self, given: list[int], stdin: bool, stdout: bool, stderr: bool) -> tuple[int, int, int]:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        given.append(null)
        fds = [null, null, null]
        if stdin:
            fds[0], self._stdin = os.pipe2(os.O_CLOEXEC)
            given.append(fds[0])
            os.set_blocking(self._stdin, False)
        for index, wanted, stream in ((1, stdout, STDOUT), (2, stderr, STDERR)):
            if wanted:
                reader, fds[index] = os.pipe2(os.O_CLOEXEC)
                given.append(fds[index])
                os.set_blocking(reader, False)
                self._readers[reader] = stream
        return fds[0], fds[1], fds[2]

    async def _wait(self) -> int:
        status = (await self._supervisor.wait(self._pid)).exit_status
        return 0 if status is None else status

    async def _pump(self, fd: int, stream: int) -> None:
        while True:
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                await _ready(fd, write=False)
                continue
            except OSError:  # EIO: the last user of the terminal is gone
                return
            if not data:
                return
            await self._queue.put((stream, data))

    async def _end_of_output(self) -> None:
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self._queue.put(None)

    async def read(self) -> tuple[int, bytes] | None:
        return await self._queue.get()

    async def write(self, data: bytes) -> None:
        while data and self._stdin >= 0:
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                await _ready(self._stdin, write=True)
            except OSError:  # the command reads no more
                return

    async def close_stdin(self) -> None:
        if self._stdin < 0:
            return
        if self._terminal >= 0:
            await self.write(b"\x04")  # what end of file is on a terminal
        else:
            os.close(self._stdin)
        self._stdin = -1

    async def resize(self, columns: int, rows: int) -> None:
        if self._terminal >= 0:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def wait(self) -> int:
        assert self._exit is not None
        return await asyncio.shield(self._exit)

    async def kill(self) -> None:
        if self._exit is not None and not self._exit.done():
            with contextlib.suppress(LabError):
                await self._supervisor.signal(self._pid, signal.SIGKILL)
        tasks = [*self._pumps, *([self._ending] if self._ending is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._exit is not None:
            await asyncio.wait({self._exit})
            if not self._exit.cancelled():
                self._exit.exception()
        self._close()

    def _close(self) -> None:
        if self._stdin >= 0 and self._stdin != self._terminal:
            os.close(self._stdin)
        self._stdin = self._terminal = -1
        for fd in self._readers:
            os.close(fd)
        self._readers.clear()


async def _ready(fd: int, *, write: bool) -> None:
    """Until a read (or write) of fd would not wait."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    (loop.add_writer if write else loop.add_reader)(fd, _done, ready)
    try:
        await ready
    finally:
        (loop.remove_writer if write else loop.remove_reader)(fd)


def _done(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
