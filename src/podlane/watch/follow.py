"""The loop that asks what a Reflector wants to know, and pauses after what did not succeed."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from podlane.errors import ApiError
from podlane.model.objects import KINDS, Object
from podlane.watch.backoff import Backoff, Gate
from podlane.watch.http import SILENCE_TIMEOUT_S, Silent, Unreachable
from podlane.watch.http1 import Silence
from podlane.watch.reflector import STREAM_SILENCE_S, News, Reflector, Request, Source, State

log = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_S: Final = (300, 600)
"""A random time within: the watches of a cluster's nodes must not end together."""
BOOKMARKS_S: Final = 150.0
"""A watch that lasted so long should have heard two bookmarks."""
REFUSED_MOST_S: Final = 5.0
"""A 404 costs the API nothing, and somebody may be just about to install what is missing."""


class Api(Protocol):
    """What ApiHttp offers and a follower needs."""

    async def get(self, path: str, query: Mapping[str, str]) -> bytes: ...

    def lines(
        self, path: str, query: Mapping[str, str], silence_s: Silence = ...
    ) -> AsyncGenerator[bytes, None]: ...


class Progress(NamedTuple):
    """What a loop tells the one who started it. error: "" when the last exchange succeeded."""

    reflector: Reflector[Any]
    error: str


class Follower(Generic[T]):
    """Follows one source: deliver(news) for every change, progress(error) whenever something is known.

    gate: shared by the followers of one API. piecemeal: as of a Reflector. Both callbacks are called on the
    loop and must not block.
    """

    def __init__(
        self,
        source: Source,
        kind: type[T],
        api: Api,
        deliver: Callable[[News[T]], None],
        progress: Callable[[str], None],
        *,
        gate: Gate | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        piecemeal: bool = False,
    ) -> None:
        self.reflector = Reflector(source, kind, piecemeal=piecemeal)
        self._api, self._deliver, self._progress, self._sleep = api, deliver, progress, sleep
        self._rng = rng or random.Random()
        self._gate = gate or Gate(self._rng, sleep)
        self._backoff = Backoff(self._rng)
        self._said = ""

    async def run(self) -> None:
        """Without end."""
        try:
            while True:
                await self._gate.through(self)
                pause_s = await self._exchange()
                if pause_s:
                    self.reflector.pauses += 1
                    self.reflector.paused_s += pause_s
                    await self._sleep(pause_s)
        finally:
            self._gate.left(self)

    async def _exchange(self) -> float:
        """One request and its answer. Returns the pause after it, in seconds."""
        reflector = self.reflector
        request = reflector.next_request(self._rng.randint(*WATCH_S))
        began_s = time.monotonic()
        try:
            heard = await (self._stream(request) if request.stream else self._page(request))
        except ApiError as error:
            return self._failed(error)
        except msgspec.DecodeError as error:
            # A half-written line of a server that died, or no API server at all.
            self._tell(f"an answer that is no JSON of Kubernetes: {error}")
            return self._backoff.next_s()
        self._tell("")
        lasted_s = time.monotonic() - began_s
        if request.stream and not heard and lasted_s >= BOOKMARKS_S:
            reflector.doubt()
        # A watch that ends at once and says nothing would otherwise spin.
        if heard or lasted_s >= 1.0:
            self._backoff.succeeded()
            return 0.0
        return self._backoff.next_s()

    async def _page(self, request: Request) -> bool:
        page = self.reflector.page(await self._api.get(request.path, request.query))
        self._gate.opened()
        if page is not None:
            self._deliver(page)
        return True

    async def _stream(self, request: Request) -> bool:
        """Returns whether anything was heard."""
        heard = False
        stream = self._api.lines(request.path, request.query, self._silence_s)
        async with aclosing(stream) as lines:
            async for line in lines:
                if not line:
                    self._gate.opened()
                    self._tell("")
                    continue
                news = self.reflector.event(line)
                heard = True
                self._backoff.succeeded()
                if news is not None:
                    self._deliver(news)
                if self.reflector.state is State.WATCHING:
                    self._tell("")
        return heard

    def _silence_s(self) -> float:
        """A streaming list goes on as the watch, in the same answer."""
        listing = self.reflector.state is State.LISTING
        return STREAM_SILENCE_S if listing else SILENCE_TIMEOUT_S

    def _failed(self, error: ApiError) -> float:
        reflector = self.reflector
        if isinstance(error, Unreachable):
            reflector.doubt()
            if not error.connected:
                self._gate.closed(self)
        else:
            self._gate.opened()
        nothing = reflector.absent(error)
        if nothing is not None:
            self._deliver(nothing)
        again = reflector.silent() if isinstance(error, Silent) else reflector.refused(error)
        if again:
            log.info("%s: %s; asked for in another way", reflector.source.kind, error)
            return 0.0
        self._tell("" if nothing is not None else str(error))
        pause_s = self._backoff.next_s(error.retry_after_s)
        return min(pause_s, REFUSED_MOST_S) if error.code == 404 else pause_s

    def _tell(self, error: str) -> None:
        """A fault is logged when it is another one than before, and when it is over."""
        if error != self._said:
            kind = self.reflector.source.kind
            if error:
                log.warning("%s: %s; what is known stays, and it is tried again", kind, error)
            else:
                log.info("%s: the API answers again", kind)
            self._said = error
        self._progress(error)


async def follow(
    source: Source,
    api: Api,
    deliver: Callable[[str, News[Object]], None],
    progress: Callable[[Progress], None],
    *,
    gate: Gate | None = None,
    rng: random.Random | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    kinds: Mapping[str, type[Object]] = KINDS,
) -> None:
    """Without end: a follower of one of the kinds the agent reads, deliver(kind, news)."""
    follower: Follower[Object] = Follower(
        source,
        kinds[source.kind],
        api,
        lambda news: deliver(source.kind, news),
        lambda error: progress(Progress(follower.reflector, error)),
        gate=gate,
        rng=rng,
        sleep=sleep,
        piecemeal=True,
    )
    await follower.run()
