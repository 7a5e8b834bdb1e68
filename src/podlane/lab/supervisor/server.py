"""The supervisor: one small process that forks and keeps every other process of a lab.

It is single-threaded and holds no policy but one: services are started again when they die. Everything
else (what runs in which pod, and when) is asked of it over its socket (protocol.py), and it remembers
how processes ended until it is told to forget, so that a control process that was killed finds, when it
comes back, what runs and what ended meanwhile.

Heavy modules are imported here once, so that a forked agent, responder or control process shares them
and starts at once: the parent is warm, its objects are out of the collector's sight (gc.freeze).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import resource
import signal
import socket
import time
from pathlib import Path

from podlane.errors import PodlaneError
from podlane.lab.runtime import syscalls
from podlane.lab.supervisor import protocol, spawn
from podlane.lab.supervisor.connection import Connection
from podlane.lab.supervisor.loop import Loop
from podlane.lab.supervisor.operations import Operations, Refusal

log = logging.getLogger(__name__)

PRELOAD = (
    "podlane.lab.runtime.container",
    "podlane.lab.runtime.responder",
    "podlane.agent.main",
    "podlane.lab.control",
)


def serve(path: str, cgroup: str, *, daemonize: bool = False) -> None:
    """Answers on a unix socket at path until told to shut down. Raises OSError when it cannot begin."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    with contextlib.suppress(PermissionError):  # already the leader of a session
        os.setsid()
    os.chdir("/")
    os.umask(0o022)
    _raise_file_limit()
    spawn.join_cgroup(cgroup)
    listener = _listen(path)
    if daemonize and os.fork():
        os._exit(0)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    try:
        Server(listener, Path(path)).run()
    finally:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _listen(path: str) -> socket.socket:
    """It appears under its name only when it answers, and for its owner alone."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    temporary = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    mask = os.umask(0o177)
    try:
        listener.bind(temporary)
    finally:
        os.umask(mask)
    listener.listen(128)
    os.rename(temporary, path)
    return listener


def _raise_file_limit() -> None:
    """A log pipe for every container, and their children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 17 if hard == resource.RLIM_INFINITY else min(hard, 1 << 17)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Server:
    def __init__(self, listener: socket.socket, path: Path) -> None:
        self._loop = Loop()
        self._listener = listener
        self._operations = Operations(self._loop, rootfs=path.parent / "rootfs")
        self._connections: set[Connection] = set()
        self._loop.add_reader(listener.fileno(), self._accept)
        self._loop.on_signal(signal.SIGCHLD, self._operations.reap)
        self._loop.on_signal(signal.SIGTERM, self._loop.stop)
        for module in PRELOAD:
            self._loop.when_idle(lambda module=module: preload(module))  # type: ignore[misc]
        self._loop.when_idle(_freeze)

    def run(self) -> None:
        try:
            self._loop.run()
        finally:
            self._operations.end_all()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            peer, _ = self._listener.accept()
            self._connections.add(Connection(self._loop, peer, self._handle, self._closed))

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._operations.abandoned_by(connection)

    def _handle(self, connection: Connection, call: protocol.Call, descriptors: list[int]) -> None:
        try:
            if isinstance(call.request, protocol.Shutdown):
                self._operations.end_all()
                connection.answer(call.id)
                self._loop.stop()
            else:
                if isinstance(call.request, protocol.StartService):
                    preload(call.request.entry.partition(":")[0])
                self._operations.handle(connection, call, descriptors)
        except Refusal as refusal:
            connection.refuse(call.id, str(refusal), refusal.reason)
        except (PodlaneError, OSError) as error:
            connection.refuse(call.id, str(error))
        finally:
            for fd in descriptors:
                os.close(fd)


def preload(module: str) -> None:
    """A module that cannot be imported here fails in the child that needs it, where its log is."""
    try:
        importlib.import_module(module)
    except Exception as error:
        log.warning("%s is not preloaded: %s", module, error)


def _freeze() -> None:
    gc.collect()
    gc.freeze()
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        log.error("%d threads in the supervisor: forked children may hang", threads)
    log.info("preloaded in %.2f s of processor time", time.process_time())
