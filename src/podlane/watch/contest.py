"""Two that write the same object and never agree must not do so as fast as they can.

What has to be written again, word for word and with nothing else wanted in between, somebody else has undone.
The first times are free (an upgrade, an operator's hand); after that each time waits twice as long, and what
was left alone for long enough begins anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, NamedTuple

FREE: Final = 3
FIRST_S: Final = 2.0
MOST_S: Final = 300.0
FORGOTTEN_S: Final = 600.0
REMEMBERED: Final = 4096


class _Written(NamedTuple):
    content: Hashable
    times: int
    last_s: float


class Contest:
    """What was written lately. place: which fields of which object; content: what they were to say.

    now_s: seconds that only run forward.
    """

    def __init__(self) -> None:
        self._written: OrderedDict[Hashable, _Written] = OrderedDict()

    def wait_s(self, place: Hashable, content: Hashable, now_s: float) -> float:
        """How long to leave it; 0.0: write."""
        times, last_s = self._before(place, content, now_s)
        if times < FREE:
            return 0.0
        pause_s = min(FIRST_S * 2.0 ** min(times - FREE, 16), MOST_S)
        return max(0.0, last_s + pause_s - now_s)

    def wrote(self, place: Hashable, content: Hashable, now_s: float) -> int:
        """How often in a row it was by now."""
        times = self._before(place, content, now_s)[0] + 1
        self._written.pop(place, None)
        self._written[place] = _Written(content, times, now_s)
        while len(self._written) > REMEMBERED:
            self._written.popitem(last=False)
        return times

    def _before(self, place: Hashable, content: Hashable, now_s: float) -> tuple[int, float]:
        known = self._written.get(place)
        if known is None or known.content != content or now_s - known.last_s >= FORGOTTEN_S:
            return 0, 0.0
        return known.times, known.last_s
