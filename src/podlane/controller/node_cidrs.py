"""Which part of the cluster's pod prefixes each node owns. Pure.

Every family's pod prefix (10.244.0.0/16) is cut into equal parts (/24); a node gets one part of each
family, or none at all. What the API says is taken over first (`adopt`); only then is anything handed out.
Parts are handed out in order and a returned one comes back last, so that routes to a node that has just
gone do not lead to its successor.
"""

from __future__ import annotations

from collections.abc import Iterable

from podlane.errors import ConfigError, PodlaneError
from podlane.model.addresses import Family, Prefix, family_of, prefix
from podlane.model.config import NetworkConfig


class ExhaustedError(PodlaneError):
    """Every part of a family's pod prefix belongs to some node."""


class _Pool:
    """The parts of one prefix, by number."""

    def __init__(self, whole: Prefix, part_bits: int) -> None:
        self.whole, self.part_bits = whole, part_bits
        self.size = 1 << (part_bits - whole.prefixlen)
        self._step = 1 << (whole.max_prefixlen - part_bits)
        self._holders: dict[int, set[str]] = {}
        self._next = 0

    def part(self, number: int) -> Prefix:
        base = self.whole.network_address + number * self._step
        return prefix(f"{base}/{self.part_bits}")

    def _numbers(self, found: Prefix) -> range:
        """The parts that found touches; a node's prefix may have another size than ours."""
        if found.version != self.whole.version or not found.overlaps(self.whole):
            return range(0)
        if found.prefixlen <= self.whole.prefixlen:
            return range(self.size)
        first = (int(found.network_address) - int(self.whole.network_address)) // self._step
        return range(first, first + max(1, found.num_addresses // self._step))

    def take(self, found: Prefix, node: str) -> None:
        for number in self._numbers(found):
            self._holders.setdefault(number, set()).add(node)

    def give_back(self, found: Prefix, node: str) -> None:
        for number in self._numbers(found):
            holders = self._holders.get(number, set())
            holders.discard(node)
            if not holders:
                self._holders.pop(number, None)

    def free(self) -> int:
        """The next free part's number. Raises ExhaustedError."""
        if len(self._holders) < self.size:
            for number in range(self._next, self._next + self.size):
                if number % self.size not in self._holders:
                    self._next = (number + 1) % self.size
                    return number % self.size
        raise ExhaustedError(
            f"all {self.size} parts (/{self.part_bits}) of {self.whole} are taken; "
            "use a larger podCIDRs prefix or a longer nodeCidrMaskSizes"
        )


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

    @property
    def nodes(self) -> dict[str, tuple[Prefix, ...]]:
        return dict(self._owned)
