"""Reading a container's log file (supervisor/logpipe.py writes it), as `kubectl logs` wants it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from podlane.lab.api.streams import LogOptions

CHUNK_BYTES = 1 << 16
LOOK_AGAIN_S = 0.1  # while somebody follows
STAMP_BYTES = len("2026-01-02T03:04:05.678901Z")


MESSAGE_BYTES, MESSAGE_LINES, MESSAGE_FROM_LOG_BYTES = 4096, 80, 2048  # the kubelet's limits


def last_words(termination: Path, log: Path, *, from_log: bool) -> str:
    """What a container left in its terminationMessagePath; else, with from_log, the end of its log."""
    try:
        text = termination.read_bytes()[:MESSAGE_BYTES].decode(errors="replace")
        if not text and from_log:
            lines = log.read_bytes().splitlines()[-MESSAGE_LINES:]
            text = b"\n".join(shown(line, False) for line in lines).decode(errors="replace")
            text = text[-MESSAGE_FROM_LOG_BYTES:]
    except FileNotFoundError:
        return ""
    return text


def stamp(at_s: float) -> bytes:
    whole = int(at_s)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((at_s - whole) * 1e6):06d}Z"
    return text.encode()


def select(found: list[bytes], options: LogOptions, now_s: float) -> list[bytes]:
    """The lines that since_s and tail_lines leave."""
    if options.since_s is not None:
        first = stamp(now_s - options.since_s)
        found = [line for line in found if line[:STAMP_BYTES] >= first]
    if options.tail_lines is not None:
        found = found[-options.tail_lines :] if options.tail_lines > 0 else []
    return found


def shown(line: bytes, timestamps: bool) -> bytes:
    return line if timestamps else line[STAMP_BYTES + 1 :]


async def read(path: Path, options: LogOptions, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    """ended: nothing more will be written."""
    left = options.limit_bytes
    file = open(path, "rb")  # noqa: SIM115 - it outlives rotations below
    try:
        replaced = path.with_name(f"{path.name}.1")
        whole = replaced.read_bytes().splitlines(keepends=True) if replaced.exists() else []
        whole += file.readlines()
        pending = b""
        if whole and not whole[-1].endswith(b"\n"):
            pending = whole.pop()
        batch = b"".join(
            shown(line, options.timestamps) for line in select(whole, options, now_s=time.time())
        )
        while True:
            for start in range(0, len(batch), CHUNK_BYTES):
                chunk = batch[start : start + CHUNK_BYTES]
                if left is not None:
                    chunk, left = chunk[:left], left - len(chunk)
                yield chunk
                if left is not None and left <= 0:
                    return
            if not options.follow:
                return
            over = ended()
            data = file.read(CHUNK_BYTES)
            if not data and _rotated(file.fileno(), path) and not (data := file.read(CHUNK_BYTES)):
                file.close()
                file = open(path, "rb")  # noqa: SIM115
                data = file.read(CHUNK_BYTES)
            if not data:
                if over:
                    return
                await asyncio.sleep(LOOK_AGAIN_S)
            *complete, pending = (pending + data).split(b"\n")
            batch = b"".join(shown(line + b"\n", options.timestamps) for line in complete)
    finally:
        file.close()


def _rotated(fd: int, path: Path) -> bool:
    try:
        return os.fstat(fd).st_ino != os.stat(path).st_ino
    except FileNotFoundError:
        return False
