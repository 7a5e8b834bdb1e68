"""Which of several API servers to ask: the one that answered last, and the next one when it fails."""

from __future__ import annotations

import random
from collections.abc import Sequence


class Servers:
    """URLs of servers that are as good as each other. A client begins with a random one: thousands of nodes
    have the same list."""

    def __init__(self, urls: Sequence[str], rng: random.Random) -> None:
        self._urls = tuple(dict.fromkeys(urls))
        self._current = rng.randrange(len(self._urls))

    @property
    def current(self) -> str:
        return self._urls[self._current]

    def order(self) -> tuple[str, ...]:
        """All of them, the preferred first."""
        return self._urls[self._current :] + self._urls[: self._current]

    def good(self, url: str) -> None:
        """It answered: it is asked first from now on."""
        self._current = self._urls.index(url)

    def failed(self, url: str) -> None:
        """It did not answer, or only with a fault of its own: the one after it is asked first."""
        if url == self.current:
            self._current = (self._current + 1) % len(self._urls)

    def __str__(self) -> str:
        return ", ".join(self._urls)
