"""Asking the supervisor: `Supervisor` waits for each answer, `AsyncSupervisor` lives on an event loop.

Both raise LabError: when the supervisor is gone, and with its own words when it refuses
(SupervisorRefusal, whose reason is NotFound for a process or program that is not there).
"""

from __future__ import annotations

import asyncio
import builtins
import itertools
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from podlane.errors import LabError
from podlane.lab.supervisor import protocol
from podlane.lab.supervisor.protocol import ContainerSpec, ProcessInfo, Started

__all__ = ["AsyncSupervisor", "ContainerSpec", "ProcessInfo", "Started", "Supervisor", "SupervisorRefusal"]

T = TypeVar("T")
STDIO = (0, 1, 2)


class SupervisorRefusal(LabError):
    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


def _result(answer: protocol.Answer, kind: type[T]) -> T:
    if answer.error:
        raise SupervisorRefusal(answer.error, answer.reason)
    return msgspec.json.decode(answer.result, type=kind)


def _text(path: Path | str | None) -> str:
    return "" if path is None else str(path)


def _anchor(
    name: str, hostname: str, new_mount: bool, cgroup: Path | None, binds: Sequence[tuple[str, str]]
) -> protocol.StartAnchor:
    return protocol.StartAnchor(
        name=name, hostname=hostname, new_mount=new_mount, cgroup=_text(cgroup), binds=list(binds)
    )


def _service(
    name: str,
    entry: str,
    options: dict[str, Any],
    join: int | None,
    cgroup: Path | None,
    log: Path,
    restart: bool,
) -> protocol.StartService:
    return protocol.StartService(
        name=name,
        entry=entry,
        options=options,
        join=join or 0,
        cgroup=_text(cgroup),
        log=str(log),
        restart=restart,
    )


class Supervisor:
    """One connection, one question at a time. Close it, or use it as a context manager."""

    def __init__(self, socket_path: Path) -> None:
        self.path = socket_path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._ids = itertools.count(1)
        self._buffer = bytearray()
        try:
            self._socket.connect(os.fspath(socket_path))
        except OSError as error:
            self._socket.close()
            raise LabError(
                f"the lab's supervisor at {socket_path} does not answer: {error.strerror}"
            ) from None

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._socket.close()

    def _call(self, request: protocol.Request, kind: type[T], descriptors: Sequence[int] = ()) -> T:
        call = protocol.Call(next(self._ids), request, len(descriptors))
        data = protocol.frame(call)
        try:
            sent = socket.send_fds(self._socket, [data], list(descriptors)) if descriptors else 0
            self._socket.sendall(data[sent:])
            while True:
                for body in protocol.frames(self._buffer):
                    answer = msgspec.json.decode(body, type=protocol.Answer)
                    if answer.id == call.id:
                        return _result(answer, kind)
                chunk = self._socket.recv(1 << 16)
                if not chunk:
                    raise LabError(f"the lab's supervisor at {self.path} ended")
                self._buffer += chunk
        except OSError as error:
            raise LabError(f"the lab's supervisor at {self.path}: {error.strerror}") from None

    def start_anchor(
        self,
        name: str,
        *,
        hostname: str = "",
        new_mount: bool = False,
        cgroup: Path | None = None,
        binds: Sequence[tuple[str, str]] = (),
    ) -> int:
        """A process that holds a new network and UTS (and mount) namespace. Returns its pid."""
        return self._call(_anchor(name, hostname, new_mount, cgroup, binds), Started).pid

    def start_service(
        self,
        name: str,
        *,
        entry: str,
        options: dict[str, Any],
        join: int | None,
        cgroup: Path | None,
        log: Path,
        restart: bool = True,
        descriptors: Sequence[int] = (),
    ) -> int:
        """entry "module:function" called with options in a process of its own. Returns its pid.

        join: a pid whose network, mount and UTS namespaces it enters. With restart, it is started again
        when it ends, after 0.1 s, doubling up to 5 s. descriptors: open in each of its processes, which find
        them in options["descriptors"].
        """
        request = _service(name, entry, options, join, cgroup, log, restart)
        return self._call(request, Started, descriptors).pid

    def start_sandbox(
        self,
        name: str,
        *,
        hostname: str,
        netns_pid: int | None,
        cgroup: Path,
        labels: dict[str, str] | None = None,
        tmpfs: Sequence[tuple[str, int]] = (),
        share_pid: bool = False,
        sysctls: dict[str, str] | None = None,
    ) -> int:
        """A pause process: the pod's network (unless netns_pid has it), UTS and IPC namespaces."""
        return self._call(
            protocol.StartSandbox(
                name=name,
                labels=labels or {},
                hostname=hostname,
                netns_pid=netns_pid or 0,
                cgroup=str(cgroup),
                tmpfs=list(tmpfs),
                share_pid=share_pid,
                sysctls=sysctls or {},
            ),
            Started,
        ).pid

    def start_container(self, spec: ContainerSpec) -> Started:
        return self._call(protocol.StartContainer(spec), Started)

    def exec(
        self,
        container_pid: int,
        argv: Sequence[str],
        *,
        env: dict[str, str] | None = None,
        tty: bool = False,
        fds: tuple[int, int, int] = STDIO,
    ) -> int:
        """A command in a container with these stdin, stdout and stderr. It ends with this connection."""
        request = protocol.Exec(pid=container_pid, argv=list(argv), env=env or {}, tty=tty)
        return self._call(request, Started, fds).pid

    def wait(self, pid: int) -> int:
        """Exit status, as a shell has it: 128 + signal when a signal ended it."""
        status = self._call(protocol.Wait(pid), ProcessInfo).exit_status
        return 0 if status is None else status

    def signal(self, pid: int, number: int) -> None:
        self._call(protocol.Signal(pid, number), msgspec.Raw)

    def list(self) -> builtins.list[ProcessInfo]:
        """Every process there is, and those that ended and are not forgotten."""
        return self._call(protocol.List(), builtins.list[ProcessInfo])

    def forget(self, pid: int) -> None:
        """The exit status of pid is known: it need not be kept."""
        self._call(protocol.Forget(pid), msgspec.Raw)

    def stop(self, name: str) -> None:
        """End a service for good."""
        self._call(protocol.Stop(name), msgspec.Raw)

    def shutdown(self) -> None:
        """End every process, then the supervisor."""
        self._call(protocol.Shutdown(), msgspec.Raw)


class AsyncSupervisor:
    """Many questions at once on one connection. `connect` first, `close` at the end."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._socket: socket.socket | None = None
        self._ids = itertools.count(1)
        self._buffer = bytearray()
        self._outgoing: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._answers: dict[int, asyncio.Future[protocol.Answer]] = {}

    @property
    def connected(self) -> bool:
        return self._socket is not None

    async def connect(self) -> None:
        """Raises LabError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(os.fspath(self._path))  # a local socket: connecting does not wait
        except OSError as error:
            connection.close()
            raise LabError(
                f"the lab's supervisor at {self._path} does not answer: {error.strerror}"
            ) from None
        connection.setblocking(False)
        self._socket = connection
        asyncio.get_running_loop().add_reader(connection, self._readable)

    def close(self) -> None:
        self._lost("the connection to the supervisor was closed")

    def _lost(self, why: str) -> None:
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()
        self._socket = None
        for _, descriptors in self._outgoing:
            _close_all(descriptors)
        self._outgoing.clear()
        answers, self._answers = self._answers, {}
        for future in answers.values():
            if not future.done():
                future.set_exception(LabError(why))
                future.exception()  # whoever waits hears of it; one nobody waits for is no fault

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            chunk = self._socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(f"the lab's supervisor: {error.strerror}")
            return
        if not chunk:
            self._lost("the lab's supervisor ended")
            return
        self._buffer += chunk
        for body in protocol.frames(self._buffer):
            answer = msgspec.json.decode(body, type=protocol.Answer)
            future = self._answers.pop(answer.id, None)
            if future is not None and not future.done():
                future.set_result(answer)

    def _writable(self) -> None:
        assert self._socket is not None
        try:
            while self._outgoing:
                data, descriptors = self._outgoing[0]
                if descriptors:
                    sent = socket.send_fds(self._socket, [data], list(descriptors))
                else:
                    sent = self._socket.send(data)
                _close_all(descriptors)
                if sent < len(data):
                    self._outgoing[0] = (data[sent:], ())
                else:
                    self._outgoing.popleft()
        except BlockingIOError:
            asyncio.get_running_loop().add_writer(self._socket, self._writable)
            return
        except OSError as error:
            self._lost(f"the lab's supervisor: {error.strerror}")
            return
        asyncio.get_running_loop().remove_writer(self._socket)

    async def _call(self, request: protocol.Request, kind: type[T], descriptors: Sequence[int] = ()) -> T:
        if self._socket is None:
            raise LabError("the lab's supervisor is not connected")
        call = protocol.Call(next(self._ids), request, len(descriptors))
        future = self._answers[call.id] = asyncio.get_running_loop().create_future()
        # Duplicates: the caller may close its own before the frame has left.
        self._outgoing.append((protocol.frame(call), tuple(map(os.dup, descriptors))))
        self._writable()
        try:
            return _result(await future, kind)
        finally:
            self._answers.pop(call.id, None)

    async def start_anchor(
        self,
        name: str,
        *,
        hostname: str = "",
        new_mount: bool = False,
        cgroup: Path | None = None,
        binds: Sequence[tuple[str, str]] = (),
    ) -> int:
        return (await self._call(_anchor(name, hostname, new_mount, cgroup, binds), Started)).pid

    async def start_service(
        self,
        name: str,
        *,
        entry: str,
        options: dict[str, Any],
        join: int | None,
        cgroup: Path | None,
        log: Path,
        restart: bool = True,
    ) -> int:
        return (await self._call(_service(name, entry, options, join, cgroup, log, restart), Started)).pid

    async def start_sandbox(self, request: protocol.StartSandbox) -> int:
        return (await self._call(request, Started)).pid

    async def start_container(self, spec: ContainerSpec) -> Started:
        return await self._call(protocol.StartContainer(spec), Started)

    async def exec(
        self,
        container_pid: int,
        argv: Sequence[str],
        *,
        env: dict[str, str] | None = None,
        tty: bool = False,
        fds: tuple[int, int, int],
    ) -> int:
        """The descriptors are duplicated: the caller may close its own at once."""
        request = protocol.Exec(pid=container_pid, argv=list(argv), env=env or {}, tty=tty)
        start = asyncio.create_task(self._call(request, Started, fds))
        try:
            return (await asyncio.shield(start)).pid
        except asyncio.CancelledError:
            start.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, start: asyncio.Task[Started]) -> None:
        """Whoever asked for a command has gone before it was started: nobody would wait for it."""
        if start.cancelled() or start.exception() is not None or not self.connected:
            return
        pid = start.result().pid
        for request in (protocol.Signal(pid, signal.SIGKILL), protocol.Wait(pid)):
            self._outgoing.append((protocol.frame(protocol.Call(next(self._ids), request)), ()))
        self._writable()

    async def wait(self, pid: int) -> ProcessInfo:
        """How pid ended."""
        return await self._call(protocol.Wait(pid), ProcessInfo)

    async def signal(self, pid: int, number: int) -> None:
        await self._call(protocol.Signal(pid, number), msgspec.Raw)

    async def list(self) -> builtins.list[ProcessInfo]:
        return await self._call(protocol.List(), builtins.list[ProcessInfo])

    async def forget(self, pid: int) -> None:
        await self._call(protocol.Forget(pid), msgspec.Raw)

    async def stop(self, name: str) -> None:
        await self._call(protocol.Stop(name), msgspec.Raw)


def _close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
