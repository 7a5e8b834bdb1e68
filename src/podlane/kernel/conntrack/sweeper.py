"""Deletes stale flows on a thread of its own: a dump walks the whole table, no generation waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from podlane.errors import KernelError
from podlane.kernel.conntrack.codec import Entry
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.conntrack.stale import Fate, Stale
from podlane.model.addresses import Address

_COLLECT_S: Final = 0.02  # packets that met the old tables have made their entries by then
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_GIVE_UP_S: Final = 120.0

Gone: TypeAlias = Callable[[frozenset[Address]], frozenset[Address]]
"""Which of some endpoints' addresses have no pod any more. May block; what is not known is not gone."""


class Sweeper:
    """deleted: how many entries went. The thread starts with the first submission and ends with `close`.

    gone: asked before a connection is ended whose endpoint left its service; None leaves them all alone.
    A pod that is still there is asked for again, at growing distances: a pod that lost its label may be
    deleted yet.
    """

    def __init__(self, netns_fd: int | None = None, gone: Gone | None = None) -> None:
        self.deleted = 0
        self._durations_s: list[float] = []
        self._gone = gone
        self._flows = Flows(netns_fd)
        self._wanted = Stale()
        self._doubtful: dict[Entry, float] = {}  # since when
        self._pause_s = _FIRST_PAUSE_S
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
        """Until nothing is left to do, but for asking again for pods that are still there."""
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
                self._change.wait_for(
                    lambda: self._closed or self._wanted, self._pause_s if self._doubtful else None
                )
                if self._wanted and not self._closed:
                    self._change.wait_for(lambda: self._closed, _COLLECT_S)
                if self._closed:
                    return
                stale, self._wanted, self._busy = self._wanted, Stale(), True
            began_s = time.monotonic()
            try:
                self.deleted += self._sweep(stale) if stale else self._ask_again()
                with self._change:
                    self._durations_s.append(time.monotonic() - began_s)
            except KernelError as error:
                with self._change:
                    self._error = error

    def _sweep(self, stale: Stale) -> int:
        found = {entry for wanted in stale.filters() for entry in self._flows.list(wanted)}
        fates = {entry: stale.fate(entry) for entry in found}
        deleted = self._flows.delete(entry for entry, fate in fates.items() if fate is Fate.GOES)
        doubtful = [entry for entry, fate in fates.items() if fate is Fate.GOES_IF_GONE]
        if not doubtful or self._gone is None:
            return deleted
        self._pause_s = _FIRST_PAUSE_S
        self._doubtful.update(dict.fromkeys(doubtful, time.monotonic()))
        return deleted + self._end(doubtful)

    def _ask_again(self) -> int:
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        oldest_s = time.monotonic() - _GIVE_UP_S
        self._doubtful = {entry: since_s for entry, since_s in self._doubtful.items() if since_s > oldest_s}
        return self._end(self._doubtful)

    def _end(self, doubtful: Iterable[Entry]) -> int:
        """Deletes those whose pods are gone."""
        assert self._gone is not None
        asked = list(doubtful)
        gone = self._gone(frozenset(entry.reply.source for entry in asked)) if asked else frozenset()
        ended = [entry for entry in asked if entry.reply.source in gone]
        for entry in ended:
            del self._doubtful[entry]
        return self._flows.delete(ended)
