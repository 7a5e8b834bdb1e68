"""Deletes stale flows on a thread of its own: a dump walks the whole table, no generation waits for it."""

from __future__ import annotations

import threading
import time
from typing import Final

from podlane.errors import KernelError
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.conntrack.stale import Stale

_COLLECT_S: Final = 0.02  # packets that met the old tables have made their entries by then


class Sweeper:
    """deleted: how many entries went. The thread starts with the first submission and ends with `close`."""

    def __init__(self, netns_fd: int | None = None) -> None:
        self.deleted = 0
        self._durations_s: list[float] = []
        self._flows = Flows(netns_fd)
        self._wanted = Stale()
        self._error: KernelError | None = None
        self._change = threading.Condition()
        self._busy = self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, stale: Stale) -> None:
        if not stale:
            return
        with self._change:
            self._wanted.update(stale)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="conntrack", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def take_error(self) -> KernelError | None:
        """What went wrong since the last call; that work is not done."""
        with self._change:
            error, self._error = self._error, None
            return error

    def take_durations_s(self) -> list[float]:
        """How long each sweep since the last call took."""
        with self._change:
            found, self._durations_s = self._durations_s, []
            return found

    def wait(self, timeout_s: float = 10.0) -> bool:
        """Until nothing is left to do."""
        with self._change:
            return self._change.wait_for(lambda: not self._wanted and not self._busy, timeout_s)

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._flows.close()

    def _run(self) -> None:
        while True:
            with self._change:
                self._busy = False
                self._change.notify_all()
                self._change.wait_for(lambda: self._closed or self._wanted)
                if not self._closed:
                    self._change.wait_for(lambda: self._closed, _COLLECT_S)
                if self._closed:
                    return
                stale, self._wanted, self._busy = self._wanted, Stale(), True
            began_s = time.monotonic()
            try:
                self.deleted += self._sweep(stale)
                with self._change:
                    self._durations_s.append(time.monotonic() - began_s)
            except KernelError as error:
                with self._change:
                    self._error = error

    def _sweep(self, stale: Stale) -> int:
        found = {entry for wanted in stale.filters() for entry in self._flows.list(wanted)}
        return self._flows.delete(entry for entry in found if stale.has(entry))
