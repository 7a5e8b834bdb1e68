"""Which part of the cluster's pod prefixes each node owns. Pure.

Every family's pod prefix (10.244.0.0/16) is cut into equal parts (/24); a node gets one part of each
family, or none at all. What the API says is taken over first (`adopt`); only then is anything handed out.
Parts are handed out in order and a returned one comes back last, so that routes to a node that has just
gone do not lead to its successor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from podlane.errors import ConfigError, PodlaneError
from podlane.model.addresses import Family, Prefix, family_of, prefix
from podlane.model.config import NetworkConfig


class ExhaustedError(PodlaneError):
    """Every part of a family's pod prefix belongs to some node."""


class _Pool:
    """The parts of one prefix, by number. A node's prefix of another size than ours touches one part, or a
    span of them; spans are kept as they are, since one may be as large as the whole."""

    def __init__(self, whole: Prefix, part_bits: int) -> None:
        self.whole, self.part_bits = whole, part_bits
        self.size = 1 << (part_bits - whole.prefixlen)
        self._step = 1 << (whole.max_prefixlen - part_bits)
        self._holders: dict[int, set[str]] = {}
        self._spans: dict[tuple[int, int], set[str]] = {}  # (first, last) of more than one part
        self._next = 0

    def part(self, number: int) -> Prefix:
        base = self.whole.network_address + number * self._step
        return prefix(f"{base}/{self.part_bits}")

    def _touched(self, found: Prefix) -> tuple[int, int] | None:
        """The first and the last part that found touches."""
        if found.version != self.whole.version or not found.overlaps(self.whole):
            return None
        if found.prefixlen <= self.whole.prefixlen:
            return 0, self.size - 1
        first = (int(found.network_address) - int(self.whole.network_address)) // self._step
        return first, first + max(1, found.num_addresses // self._step) - 1

    def take(self, found: Prefix, node: str) -> None:
        if (span := self._touched(found)) is None:
            return
        if span[0] == span[1]:
            self._holders.setdefault(span[0], set()).add(node)
        else:
            self._spans.setdefault(span, set()).add(node)

    def give_back(self, found: Prefix, node: str) -> None:
        if (span := self._touched(found)) is None:
            return
        held: dict[Any, set[str]] = self._holders if span[0] == span[1] else self._spans
        key = span[0] if span[0] == span[1] else span
        holders = held.get(key, set())
        holders.discard(node)
        if not holders:
            held.pop(key, None)

    def free(self) -> int:
        """The next free part's number. Raises ExhaustedError."""
        number, left = self._next, self.size
        while left > 0:
            last = max((last for first, last in self._spans if first <= number <= last), default=number)
            if last == number and number not in self._holders and not self._spanned(number):
                self._next = (number + 1) % self.size
                return number
            left -= last + 1 - number
            number = (last + 1) % self.size
        raise ExhaustedError(
            f"all {self.size} parts (/{self.part_bits}) of {self.whole} are taken; "
            "use a larger podCIDRs prefix or a longer nodeCidrMaskSizes"
        )

    def _spanned(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self._spans)

    @property
    def taken(self) -> int:
        """How many parts belong to somebody."""
        alone = sum(not self._spanned(number) for number in self._holders)
        covered, upto = 0, -1
        for first, last in sorted(self._spans):
            covered += max(0, last - max(first, upto + 1) + 1)
            upto = max(upto, last)
        return alone + covered


class NodeCidrs:
    """Who owns what. One object for a cluster; fed with every Node."""

    def __init__(self, config: NetworkConfig) -> None:
        bits = config.node_mask_bits
        self._pools: dict[Family, _Pool] = {
            family: _Pool(whole, bits[family]) for family, whole in config.pods.items()
        }
        self._owned: dict[str, tuple[Prefix, ...]] = {}

    def adopt(self, node: str, texts: Iterable[str]) -> None:
        """node has spec.podCIDRs. What cannot be read or lies elsewhere is nobody's business here."""
        found = []
        for text in texts:
            try:
                found.append(prefix(text))
            except ConfigError:
                continue
        self.release(node)
        self._owned[node] = tuple(found)
        for each in found:
            if (pool := self._pools.get(family_of(each))) is not None:
                pool.take(each, node)

    def allocate(self, node: str) -> tuple[Prefix, ...]:
        """One prefix a family, primary family first; what node has already stays its own.

        Raises ExhaustedError, with nothing taken.
        """
        if self._owned.get(node):
            return self._owned[node]
        found = tuple(pool.part(pool.free()) for pool in self._pools.values())
        self.adopt(node, map(str, found))
        return found

    def release(self, node: str) -> None:
        """node is gone."""
        for each in self._owned.pop(node, ()):
            if (pool := self._pools.get(family_of(each))) is not None:
                pool.give_back(each, node)

    def use(self) -> dict[Family, tuple[int, int]]:
        """Of each family: parts that belong to nodes, and parts that are free."""
        return {family: (pool.taken, pool.size - pool.taken) for family, pool in self._pools.items()}

    @property
    def nodes(self) -> dict[str, tuple[Prefix, ...]]:
        return dict(self._owned)
