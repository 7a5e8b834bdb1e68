"""Pauses between tries, so that a server that comes back is not asked by all its clients at once.

Backoff   one reader's own pauses: doubling, jittered, never shorter than what the server asked for
Gate      all readers of one process: while nobody can be connected to, one of them tries, for all
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

MOST_S: Final = 20.0
"""An API that is back is found within this, and there is time left to list before 30 s are over."""
SPREAD_S: Final = 1.0
"""Within this the readers of one process follow the one that found the API."""
LONGEST_WAIT_S: Final = 300.0
"""What a server may ask for; more is a mistake or worse, and is not waited for."""

Sleep = Callable[[float], Awaitable[None]]


class Backoff:
    """Pauses that double from base_s to most_s; each is a random one between half of that and all of it.

    The first is short: a node that boots beside its API server should not wait out a second for a
    millisecond. Half of every pause is random, also of the longest: after an hour of silence the clients
    of a cluster are spread evenly over it.
    """

    def __init__(
        self, rng: random.Random, first_s: float = 0.1, base_s: float = 1.6, most_s: float = MOST_S
    ) -> None:
        self._rng = rng
        self._first_s, self._base_s, self._most_s = first_s, base_s, most_s
        self._next_s = first_s

    def succeeded(self) -> None:
        self._next_s = self._base_s

    def next_s(self, asked_s: float = 0.0) -> float:
        """asked_s: Retry-After of the server. Kept, and a bit more: not all shall come back at once."""
        pause_s = self._next_s
        self._next_s = min(max(2 * pause_s, self._base_s / 2), self._most_s)
        pause_s *= self._rng.uniform(0.5, 1.0)
        asked_s = min(asked_s, LONGEST_WAIT_S)
        return max(pause_s, asked_s * self._rng.uniform(1.0, 1.5))


class Gate:
    """Open while the API can be connected to. `closed` and `opened` say so; `through` waits.

    One of those who wait tries at its own pace, and the others go on when it says `opened`, each a moment
    later. So a process asks an API that is away once a pause and not once for every kind it reads.
    """

    def __init__(self, rng: random.Random, sleep: Sleep = asyncio.sleep) -> None:
        self._rng, self._sleep = rng, sleep
        self._open = asyncio.Event()
        self._open.set()
        self._scout: object | None = None

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def opened(self) -> None:
        self._scout = None
        self._open.set()

    def closed(self, who: object) -> None:
        """who could not connect. The first to say so is the one that tries again."""
        self._open.clear()
        if self._scout is None:
            self._scout = who

    def left(self, who: object) -> None:
        """who tries no more: another has to."""
        if self._scout is who:
            self._scout = None
            self._open.set()

    async def through(self, who: object) -> None:
        """Returns when who may try."""
        while not self._open.is_set() and self._scout is not who:
            await self._open.wait()
            await self._sleep(self._rng.uniform(0.0, SPREAD_S))
