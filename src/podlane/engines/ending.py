"""Being told when a daemon ends that may be nobody's child: it may have been started by an earlier life."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable


class EndWatch:
    """name: of the thread that waits. ended(): called on it, once for each process that is watched."""

    def __init__(self, name: str, ended: Callable[[], None]) -> None:
        self._name, self._ended = name, ended
        self._watched = 0

    @property
    def watched(self) -> bool:
        """Whether there was a process since `forget`."""
        return bool(self._watched)

    def forget(self) -> None:
        self._watched = 0

    def watch(self, pid: int) -> None:
        """One at a time; 0 for none. One that has ended already is not told of."""
        if not pid or pid == self._watched:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return
        self._watched = pid
        threading.Thread(target=self._wait, args=(descriptor,), daemon=True, name=self._name).start()

    def _wait(self, descriptor: int) -> None:
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()
        finally:
            os.close(descriptor)
        self._ended()
