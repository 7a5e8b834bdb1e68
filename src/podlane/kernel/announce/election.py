"""Which of the addresses that a node may answer for are its own now. Pure; time is handed in.

A candidate lives while it is heard. One that has not been heard of yet counts as alive for a while, so that
an agent that starts does not take addresses from those who have them. The exception: an address that this
node holds already, from an earlier life of its agent, stays its own until somebody with a better right is
heard, so that a restart drops nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from podlane.compile.tables import Announcement
from podlane.model.addresses import Address

HEARTBEAT_S: Final = 0.5
SILENCE_S: Final = 2.0
"""A candidate that was not heard for so long is taken for dead: three heartbeats may be lost."""


class Election:
    def __init__(self) -> None:
        self._rows: Mapping[Address, Announcement] = {}
        self._before: dict[Address, tuple[str, ...]] = {}
        self._heard_s: dict[str, float] = {}
        """By identity: when it was heard last, or when listening for it began."""

    def set_rows(self, rows: Mapping[Address, Announcement], held: Iterable[Address], now_s: float) -> None:
        """held: addresses that are on this node's uplink."""
        self._rows, known = rows, self._heard_s
        self._before = {where: tuple(c.identity for c in row.before) for where, row in rows.items()}
        usurped = {identity for where in held for identity in self._before.get(where, ())}
        wanted = {c.identity for row in rows.values() for c in row.candidates}
        self._heard_s = {
            each: known.get(each, now_s - SILENCE_S if each in usurped else now_s) for each in wanted
        }

    def heard(self, identity: str, now_s: float) -> bool:
        """Whether a candidate is back that was taken for dead: one of the two was cut off.

        Others than candidates are not remembered: whoever is on the wire may say anything.
        """
        if identity not in self._heard_s:
            return False
        back = not self.alive(identity, now_s)
        self._heard_s[identity] = now_s
        return back

    def alive(self, identity: str, now_s: float) -> bool:
        return now_s - self._heard_s.get(identity, now_s - SILENCE_S) < SILENCE_S

    def mine(self, now_s: float) -> dict[Address, Announcement]:
        return {
            where: self._rows[where]
            for where, before in self._before.items()
            if not any(self.alive(identity, now_s) for identity in before)
        }
