"""How often something may be done: so many times at once, so often in the long run. No clock of its own.

The generic cell rate algorithm (ITU-T I.371): one number, the time at which what was done so far is paid for.
"""

from __future__ import annotations


class Pace:
    """per_s: in the long run; burst: at once, after a pause that was long enough."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._each_s = 1 / per_s
        self._slack_s = (burst - 1) * self._each_s
        self._paid_s = float("-inf")

    def due_s(self) -> float:
        """When it may be done next, by the clock that `spend` is told of; in the past for at once."""
        return self._paid_s - self._slack_s

    def spend(self, now_s: float) -> None:
        """It is done."""
        self._paid_s = max(self._paid_s, now_s) + self._each_s
