"""Prefixes and who has them, asked for what overlaps. Pure.

Of two prefixes that overlap one holds the other. Those that hold a prefix are found by trying the lengths
there are (a few); those within it stand side by side in order of address.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from typing import Any

from podlane.model.addresses import Prefix


class PrefixIndex:
    """Of both families. The same prefix may have several owners."""

    def __init__(self) -> None:
        self._owners: dict[Prefix, set[str]] = {}
        self._lengths: Counter[tuple[int, int]] = Counter()  # (version, length) -> how many prefixes
        self._sorted: list[tuple[int, int, int]] = []  # (version, first address, length)

    def add(self, found: Prefix, owner: str) -> None:
        if found not in self._owners:
            self._lengths[found.version, found.prefixlen] += 1
            insort(self._sorted, _place(found))
        self._owners.setdefault(found, set()).add(owner)

    def remove(self, found: Prefix, owner: str) -> None:
        """Nothing happens when it is not there."""
        owners = self._owners.get(found, set())
        owners.discard(owner)
        if not owners and self._owners.pop(found, None) is not None:
            self._lengths[found.version, found.prefixlen] -= 1
            del self._sorted[bisect_left(self._sorted, _place(found))]

    def overlapping(self, found: Prefix) -> Iterator[tuple[Prefix, str]]:
        """(prefix, owner) of all that share an address with it, itself among them."""
        for (version, length), number in tuple(self._lengths.items()):
            if number and version == found.version and length < found.prefixlen:
                yield from self._at(found.supernet(new_prefix=length))
        last = int(found.broadcast_address)
        for number in range(bisect_left(self._sorted, _place(found)), len(self._sorted)):
            version, base, length = self._sorted[number]
            if version != found.version or base > last:
                break
            yield from self._at(type(found)((base, length)))

    def _at(self, found: Any) -> Iterator[tuple[Prefix, str]]:
        for owner in sorted(self._owners.get(found, ())):
            yield found, owner


def _place(found: Prefix) -> tuple[int, int, int]:
    return found.version, int(found.network_address), found.prefixlen
