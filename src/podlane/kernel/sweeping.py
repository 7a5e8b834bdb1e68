"""Ends what leads to endpoints that are gone, on a thread of its own: no generation waits for it.

What there is to end is looked for among everything of its kind, so a little is collected before each look.
"""

from __future__ import annotations

import errno
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Final, Generic, Protocol, Self, TypeAlias, TypeVar

from podlane.errors import KernelError
from podlane.model.addresses import Address

_COLLECT_S: Final = 0.02  # who met the old tables is under way by then
# While endpoints come and go without end it is done for a fiftieth of the time, or once a second if that is
# more: a dump walks all buckets of the machine's table, which takes milliseconds when they are empty.
_SHARE: Final = 50
_COLLECT_MOST_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_GIVE_UP_S: Final = 120.0

Gone: TypeAlias = Callable[[frozenset[Address]], frozenset[Address]]
"""Which of some endpoints' addresses have no pod any more. May block; what is not known is not gone."""


class Wanted(Protocol):
    """What is to end. False when that is nothing."""

    def __bool__(self) -> bool: ...

    def update(self, later: Self) -> None: ...


W = TypeVar("W", bound=Wanted)
T = TypeVar("T")


class Sweeping(ABC, Generic[W, T]):
    """W: what is submitted; T: one thing that may end. deleted: how many ended.

    The thread starts with the first submission and ends with `close`. gone: asked before a connection is
    ended whose endpoint left its service; None leaves them all alone. A pod that is still there is asked for
    again, at growing distances: a pod that lost its label may be deleted yet.
    """

    def __init__(self, name: str, nothing: Callable[[], W], gone: Gone | None) -> None:
        self.deleted = 0
        self._name, self._nothing, self._gone = name, nothing, gone
        self._durations_s: list[float] = []
        self._wanted = nothing()
        self._doubtful: dict[T, float] = {}  # since when
        self._pause_s, self._next_s = _FIRST_PAUSE_S, 0.0
        self._error: KernelError | None = None
        self._change = threading.Condition()
        self._busy = self._closed = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _find(self, wanted: W) -> tuple[list[T], list[T]]:
        """What ends at once, and what ends if its pod is gone. Raises KernelError."""

    @abstractmethod
    def _delete(self, things: Iterable[T]) -> int:
        """Returns how many there were to end. Raises KernelError."""

    @abstractmethod
    def _endpoint(self, thing: T) -> Address: ...

    def submit(self, wanted: W) -> None:
        if not wanted:
            return
        with self._change:
            self._wanted.update(wanted)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
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
            self._closing.set()
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._change:
                self._busy = False
                self._change.notify_all()
                self._change.wait_for(
                    lambda: self._closed or self._wanted, self._pause_s if self._doubtful else None
                )
            if self._wanted:
                # Not by the condition: whatever else is submitted meanwhile would wake the thread each time.
                self._closing.wait(max(_COLLECT_S, self._next_s - time.monotonic()))
            with self._change:
                if self._closed:
                    return
                wanted, self._wanted, self._busy = self._wanted, self._nothing(), True
            began_s = time.monotonic()
            try:
                self.deleted += self._sweep(wanted) if wanted else self._ask_again()
                now_s = time.monotonic()
                took_s = now_s - began_s
                self._next_s = now_s + min(_SHARE * took_s, _COLLECT_MOST_S)
                with self._change:
                    self._durations_s.append(took_s)
            except KernelError as error:
                self._fail(error)
            except Exception as error:  # a fault of one sweep, not the end of all that follow
                self._fail(KernelError(errno.EIO, self._name, f"{type(error).__name__}: {error}"))

    def _fail(self, error: KernelError) -> None:
        with self._change:
            self._error = error

    def _sweep(self, wanted: W) -> int:
        certain, doubtful = self._find(wanted)
        deleted = self._delete(certain)
        if not doubtful or self._gone is None:
            return deleted
        self._pause_s = _FIRST_PAUSE_S
        self._doubtful.update(dict.fromkeys(doubtful, time.monotonic()))
        return deleted + self._end(doubtful)

    def _ask_again(self) -> int:
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        oldest_s = time.monotonic() - _GIVE_UP_S
        self._doubtful = {thing: since_s for thing, since_s in self._doubtful.items() if since_s > oldest_s}
        return self._end(self._doubtful)

    def _end(self, doubtful: Iterable[T]) -> int:
        """Ends those whose pods are gone."""
        assert self._gone is not None
        asked = list(doubtful)
        gone = self._gone(frozenset(map(self._endpoint, asked))) if asked else frozenset()
        ended = [thing for thing in asked if self._endpoint(thing) in gone]
        for thing in ended:
            del self._doubtful[thing]
        return self._delete(ended)
