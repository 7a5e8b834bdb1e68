"""A small event loop of one thread: descriptors, timers, SIGCHLD. No asyncio: children fork from it."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

Callback = Callable[[], None]


class Loop:
    """`idle` callbacks run one by one, once each, whenever nothing else is to be done."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callback]] = []
        self._count = itertools.count()
        self._idle: list[Callback] = []
        self._signals: dict[int, Callback] = {}
        self._running = True
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        self.add_reader(self._wake_reader, self._signalled)

    def add_reader(self, fd: int, callback: Callback) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """fd is not watched for reading at the same time."""
        self._selector.register(fd, selectors.EVENT_WRITE, callback)

    def remove(self, fd: int) -> None:
        self._selector.unregister(fd)

    def on_signal(self, number: signal.Signals, callback: Callback) -> None:
        self._signals[number] = callback
        signal.signal(number, lambda *_: None)  # the byte in the pipe is what wakes the loop

    def after(self, delay_s: float, callback: Callback) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._count), callback))

    def when_idle(self, callback: Callback) -> None:
        self._idle.append(callback)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        while self._running:
            events = self._selector.select(self._timeout_s())
            for key, _ in events:
                # An earlier callback of this round may have removed this one.
                if self._selector.get_map().get(key.fd) is key:
                    _guarded(key.data)
            now_s = time.monotonic()
            while self._timers and self._timers[0][0] <= now_s:
                _guarded(heapq.heappop(self._timers)[2])
            if not events and self._idle:
                _guarded(self._idle.pop(0))

    def _timeout_s(self) -> float | None:
        if self._idle:
            return 0.0
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _signalled(self) -> None:
        for number in set(os.read(self._wake_reader, 4096)):
            if (callback := self._signals.get(number)) is not None:
                callback()


def _guarded(callback: Callback) -> None:
    """One fault must not end every process of a lab."""
    try:
        callback()
    except Exception:
        log.exception("a fault in the supervisor")
