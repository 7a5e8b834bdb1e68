"""What a change of the service tables asks of the kernel, and how one list lies there. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from podlane.compile.tables import Backend, FrontendKey, NodePortKey
from podlane.kernel.conntrack.stale import Stale
from podlane.kernel.driver import Failure
from podlane.kernel.nft import service_elements as pack
from podlane.kernel.nft import skeleton
from podlane.kernel.nft.codec import Element, interval_elements
from podlane.kernel.nft.elements import Operation
from podlane.model.addresses import Family

Place: TypeAlias = tuple[Family, str]
"""A set or map of one family's table."""

FrontKey: TypeAlias = FrontendKey | NodePortKey


class Chain(NamedTuple):
    """A count's chain that must be there (counts.py)."""

    family: Family
    code: int
    affinity: bool


class Timeout(NamedTuple):
    """A session affinity timeout that must have its set and rule (skeleton.sticky)."""

    family: Family
    seconds: int


@dataclass
class Plan:
    """Deletions first: a key may be deleted and added again. stale: flows that must not outlive this.
    missing: more additions. silent: only the state changes; whoever asks will compare all of it with
    the kernel."""

    removals: list[Operation] = field(default_factory=list)
    additions: list[Operation] = field(default_factory=list)
    missing: Missing | None = None
    silent: bool = False
    failures: list[Failure] = field(default_factory=list)
    stale: Stale = field(default_factory=Stale)

    def __iter__(self) -> Iterator[Operation]:
        yield from self.removals
        yield from self.additions
        yield from self.missing or ()

    @property
    def operations(self) -> list[Operation]:
        return list(self)

    @property
    def count(self) -> int:
        """How many operations there are, once they have been gone through."""
        return len(self.removals) + len(self.additions) + (self.missing.count if self.missing else 0)

    def without(self, owners: Container[Any]) -> None:
        """Drop the operations of some owners."""
        self.removals = [each for each in self.removals if each.owner not in owners]
        self.additions = [each for each in self.additions if each.owner not in owners]
        if self.missing is not None:
            self.missing = Missing(self.missing.source, lambda each: each.owner not in owners)

    def exchange(self, place: Place, old: Element | None, new: Element | None, owner: Any) -> None:
        if self.silent or old == new:
            return
        family, name = place
        if old is not None:
            self.removals.append(Operation(family, name, old, add=False, owner=owner))
        if new is not None:
            self.additions.append(Operation(family, name, new, add=True, owner=owner))

    def exchange_intervals(
        self, place: Place, old: Iterable[tuple[int, int]], new: Iterable[tuple[int, int]], owner: Any
    ) -> None:
        """The same for an interval set, by whole intervals."""
        if self.silent:
            return
        family, before, after = place[0], set(old), set(new)
        for first, last in sorted(before - after):
            for element in interval_elements(first, last, family):
                self.exchange(place, element, None, owner)
        for first, last in sorted(after - before):
            for element in interval_elements(first, last, family):
                self.exchange(place, None, element, owner)


class Missing:
    """Operations that are made anew whenever somebody goes through them: nobody need hold a million.

    source: makes them; those that `wanted` says yes to are here. count: how many there were last time.
    """

    def __init__(
        self, source: Callable[[], Iterable[Operation]], wanted: Callable[[Operation], bool] = lambda _: True
    ) -> None:
        self.source, self.count = source, 0
        self._wanted = wanted

    def __iter__(self) -> Iterator[Operation]:
        self.count = 0
        for each in filter(self._wanted, self.source()):
            self.count += 1
            yield each


class List(NamedTuple):
    """One endpoint list as it lies in the kernel. slots: empty without session affinity. keep: endpoints
    whose flows may go on. sources: who may come in by guarded frontends, ready to be written."""

    id: int
    layout: tuple[Backend, ...] = ()
    code: int = 0
    slots: Mapping[Backend, int] = {}
    timeout_s: int = 0
    keep: tuple[Backend, ...] = ()
    sources: tuple[Element, ...] = ()

    def elements(self) -> Iterator[tuple[str, Element]]:
        for index, backend in enumerate(self.layout):
            yield self.at(index, backend)
        yield from self.beside()

    def at(self, index: int, backend: Backend) -> tuple[str, Element]:
        if self.timeout_s:
            return skeleton.PICKS, pack.pick(self.id, index, self.slots[backend])
        return skeleton.ENDPOINTS, pack.endpoint(self.id, index, backend)

    def beside(self) -> Iterator[tuple[str, Element]]:
        """What belongs to the list as a whole."""
        if self.timeout_s:
            for backend, number in self.slots.items():
                yield skeleton.SLOTS, pack.slot(self.id, number, backend)
            yield f"{skeleton.STICKY}{self.timeout_s}", pack.sticky(self.id)
        for element in self.sources:
            yield skeleton.SOURCE_RANGES, element
