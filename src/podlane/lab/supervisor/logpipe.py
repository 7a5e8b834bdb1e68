"""What a container writes, as lines with their time in a file of bounded size.

A line of the file is `2026-01-02T03:04:05.678901Z TEXT`. When the file is full it becomes FILE.1 (the
one before is dropped) and a new one begins, so a container keeps between one and two times LIMIT_BYTES.
"""

from __future__ import annotations

import os
import time

LIMIT_BYTES = 10 << 20
LONGEST_LINE_BYTES = 16 << 10
READ_BYTES = 1 << 16
BURST_BYTES, BURST_S = 1 << 20, 0.1  # a container that writes more has to wait: one process serves all


class LogPipe:
    """fd: reading end of a container's stdout and stderr (a pipe, or a terminal's master)."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self._path = path
        self._file = _append(path)
        self._size_bytes = os.fstat(self._file).st_size
        self._partial = b""
        self._burst_began_s, self._burst_bytes = 0.0, 0
        os.set_blocking(fd, False)

    def rest_s(self, now_s: float) -> float:
        """How long it must not be read from, after a `read`. now_s: monotonic."""
        if now_s - self._burst_began_s >= BURST_S:
            self._burst_began_s, self._burst_bytes = now_s, 0
        if self._burst_bytes < BURST_BYTES:
            return 0.0
        return self._burst_began_s + BURST_S - now_s

    def read(self) -> bool:
        """Moves what is there, some of it. Returns whether there may come more."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:  # EIO: a terminal whose last user is gone
            return False
        if not data:
            return False
        self._take(data)
        return True

    def drain(self) -> None:
        """All that is there now, but no more than a pipe holds: others may still write."""
        for _ in range(32):
            try:
                data = os.read(self.fd, READ_BYTES)
            except OSError:
                return
            if not data:
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        self._burst_bytes += len(data)
        *whole, self._partial = (self._partial + data).split(b"\n")
        lines = [piece for line in whole for piece in _pieces(line)]
        *cut, self._partial = _pieces(self._partial)
        self._write([*lines, *cut])

    def _write(self, lines: list[bytes]) -> None:
        if not lines:
            return
        if self._size_bytes > LIMIT_BYTES:
            os.close(self._file)
            os.replace(self._path, f"{self._path}.1")
            self._file = _append(self._path)
            self._size_bytes = 0
        stamp = _stamp(time.time()).encode() + b" "
        data = b"".join(stamp + line + b"\n" for line in lines)
        self._size_bytes += len(data)
        os.write(self._file, data)

    def close(self) -> None:
        if self._partial:
            self._write([self._partial])
        os.close(self.fd)
        os.close(self._file)


def _pieces(line: bytes) -> list[bytes]:
    """At least one, none too long."""
    return [line[at : at + LONGEST_LINE_BYTES] for at in range(0, len(line) or 1, LONGEST_LINE_BYTES)]


def _append(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


def _stamp(now_s: float) -> str:
    """RFC 3339 in UTC with microseconds: all stamps have one length and sort as text."""
    whole = int(now_s)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((now_s - whole) * 1e6):06d}Z"
