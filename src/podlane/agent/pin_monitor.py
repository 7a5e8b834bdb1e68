"""Tells when someone takes away what keeps services.mode socket's programs in the kernel (inotify(7))."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from podlane.errors import KernelError
from podlane.kernel.bpf import installation

log = logging.getLogger(__name__)

# sys/inotify.h
_DELETE, _MOVED_FROM, _DELETE_SELF = 0x200, 0x40, 0x400
_NONBLOCK, _CLOEXEC = 0x800, 0x80000
_EVENT: Final = struct.Struct("=iIII")

DEBOUNCE_S: Final = 0.02
AGAIN_S: Final = 1.0

_libc = ctypes.CDLL(None, use_errno=True)


class PinMonitor:
    """Listens on the running loop; calls damaged() a moment after a pin of ours went. Our own exchanges of a
    pin are renames onto it, and no news."""

    def __init__(self, directory: Path, damaged: Callable[[], None]) -> None:
        self._directory, self._damaged = directory, damaged
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._fd: int = _libc.inotify_init1(_NONBLOCK | _CLOEXEC)
        if self._fd < 0:
            raise KernelError.of(ctypes.get_errno(), "inotify_init")
        self._loop.add_reader(self._fd, self._readable)
        if not self._watch():
            self._later(AGAIN_S)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> bool:
        """Of a directory that is watched already the kernel makes nothing."""
        path = os.fsencode(self._directory)
        return bool(_libc.inotify_add_watch(self._fd, path, _DELETE | _MOVED_FROM | _DELETE_SELF) >= 0)

    def _readable(self) -> None:
        if any(not name or name in installation.PINS for name in _names(os.read(self._fd, 1 << 16))):
            self._later(DEBOUNCE_S)

    def _later(self, for_s: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(for_s, self._tell)

    def _tell(self) -> None:
        self._timer = None
        log.info("someone took pins away from %s; comparing", self._directory)
        self._damaged()
        if not self._watch():  # the directory went too, and comes back with what is repaired
            self._later(AGAIN_S)


def _names(events: bytes) -> Iterator[str]:
    """Of each event; "" for the directory itself."""
    at = 0
    while at < len(events):
        *_, size = _EVENT.unpack_from(events, at)
        at += _EVENT.size
        yield events[at : at + size].rstrip(b"\0").decode(errors="replace")
        at += size
