"""What systemd is told (sd_notify(3)): that the agent serves, what it waits for, and that it is alive.

READY=1 says that pods can be attached as far as the node allows it, not that the API has been heard: a unit
that comes after this one may be what the API runs in. Without NOTIFY_SOCKET nothing is said to anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0


def say(*words: str) -> None:
    """words: assignments as READY=1. A systemd that does not listen is no reason to end."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    # An abstract name is written with an @.
    address = "\0" + where[1:] if where.startswith("@") else where
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
            door.sendto("\n".join(words).encode(), address)
    except OSError as error:
        log.info("systemd is not told %s: %s", " ".join(words), error.strerror)


async def keep_telling(sentence: Callable[[], str]) -> None:
    """Without end: what is the matter, whenever it changes, and WATCHDOG=1 twice as often as asked."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return
    every_s = LOOK_S
    with contextlib.suppress(ValueError):
        asked_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
        every_s = min(LOOK_S, asked_s / 2) if asked_s > 0 else LOOK_S
    said = ""
    while True:
        words, now = ["WATCHDOG=1"], sentence()
        if now != said:
            words.append(f"STATUS={now}")
            said = now
        say(*words)
        await asyncio.sleep(every_s)
