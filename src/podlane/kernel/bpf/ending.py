"""Ends sockets that are connected to endpoints that are gone, on a thread of its own.

A connected socket never asks again where its service is: without this it would wait for an answer until
its timeouts end, a datagram socket for ever. Only sockets that a program of ours connected are ended, and
of those only the ones whose endpoint is no more. Sockets that send to a service without being connected
need nothing: their next datagram finds another endpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from podlane.errors import KernelError
from podlane.kernel import cgroups
from podlane.kernel.bpf.sock_diag import Seen, Sockets
from podlane.kernel.bpf.socket_state import Gone

_COLLECT_S: Final = 0.02  # who met the old endpoints has been connected by then

Open = Callable[[int], Sockets]
"""Sockets of the namespace that a descriptor is of."""


class Ending:
    """cgroup: whose processes' namespaces are looked through; open_sockets: how. ended: how many went."""

    def __init__(self, cgroup: Path, open_sockets: Open) -> None:
        self.ended = 0
        self._cgroup, self._open = cgroup, open_sockets
        self._gone = Gone()
        self._error: KernelError | None = None
        self._change = threading.Condition()
        self._busy = self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, gone: Gone) -> None:
        if not gone:
            return
        with self._change:
            self._gone.update(gone)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="sockets", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def take_error(self) -> KernelError | None:
        """What went wrong since the last call; that work is not done."""
        with self._change:
            error, self._error = self._error, None
            return error

    def wait(self, timeout_s: float = 10.0) -> bool:
        """Until nothing is left to do."""
        with self._change:
            return self._change.wait_for(lambda: not self._gone and not self._busy, timeout_s)

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()

    def seen(self) -> Iterator[tuple[int, Seen]]:
        """Every socket that uses a service, with the inode of its namespace."""
        for fd, inode in cgroups.namespaces(self._cgroup):
            with self._open(fd) as sockets:
                yield from ((inode, each) for each in sockets.seen())

    def _run(self) -> None:
        while True:
            with self._change:
                self._busy = False
                self._change.notify_all()
                self._change.wait_for(lambda: self._closed or self._gone)
                if not self._closed:
                    self._change.wait_for(lambda: self._closed, _COLLECT_S)
                if self._closed:
                    return
                gone, self._gone, self._busy = self._gone, Gone(), True
            try:
                self._end(gone)
            except KernelError as error:
                with self._change:
                    self._error = error

    def _end(self, gone: Gone) -> None:
        for fd, _ in cgroups.namespaces(self._cgroup):
            with self._open(fd) as sockets:
                found = [
                    each for each in sockets.seen() if each.connected and gone.has(each.bound, each.protocol)
                ]
                self.ended += sockets.end(found)
