"""Numbers for endpoint lists: 18 bits of the conntrack mark. Pure.

A flow keeps the mark of its first packet as long as it lives, maybe for days after its list went. A number
that became free therefore rests until nobody's flow carries it: who has looked says so with `rested`. Numbers
are given out in a circle, so that most of them rest long before anybody must look.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Final

from podlane.kernel.nft.lists import TooLong
from podlane.model import marks

_PART: Final = 16  # of all numbers: so many may rest, or so few be left, before a look is worth its while


class ListIds:
    """1 to `largest`. resting: numbers that flows may carry though no list has them."""

    def __init__(self, resting: Iterable[int] = (), largest: int = marks.LIST.largest) -> None:
        self._largest = largest
        self._taken: set[int] = set()
        self._resting = {number for number in resting if 0 < number <= largest}
        self._last = 0
        self._most_resting = max(1, largest // _PART)

    @property
    def known(self) -> frozenset[int]:
        """All numbers that lists have, or flows may carry: what rests when somebody begins anew."""
        return frozenset(self._taken | self._resting)

    @property
    def tight(self) -> bool:
        """Time to look which numbers flows carry."""
        left = self._largest - len(self._taken) - len(self._resting)
        return len(self._resting) >= self._most_resting or (
            bool(self._resting) and left < self._largest // _PART
        )

    def rested(self, carried: Set[int]) -> None:
        """carried: the numbers in the marks of all flows there are; no other need rest."""
        self._resting &= carried
        # If as many really are in use, looking again at once would find the same.
        self._most_resting = max(1, self._largest // _PART, 2 * len(self._resting))

    def adopt(self, number: int) -> bool:
        """Take this very number. False if it is taken already or none."""
        if not 0 < number <= self._largest or number in self._taken:
            return False
        self._taken.add(number)
        self._resting.discard(number)
        self._last = max(self._last, number)
        return True

    def take(self) -> int:
        """Raises TooLong when all are taken, or carried by flows."""
        if len(self._taken) + len(self._resting) >= self._largest:
            kept = f", and flows carry {len(self._resting)} numbers of lists that are gone"
            raise TooLong(
                f"{self._largest} is the most endpoint lists of a family{kept if self._resting else ''}"
            )
        number = self._last
        while True:
            number = number % self._largest + 1
            if number not in self._taken and number not in self._resting:
                self._taken.add(number)
                self._last = number
                return number

    def free(self, number: int) -> None:
        self._taken.discard(number)
        self._resting.add(number)
