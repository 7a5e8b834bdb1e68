"""One at a time for each key: a DEL may come while its ADD still runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Turns(Generic[K]):
    def __init__(self) -> None:
        self._turns: dict[K, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, key: K) -> AsyncIterator[None]:
        lock, users = self._turns.get(key, (asyncio.Lock(), 0))
        self._turns[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns[key]
            if users > 1:
                self._turns[key] = lock, users - 1
            else:
                del self._turns[key]
