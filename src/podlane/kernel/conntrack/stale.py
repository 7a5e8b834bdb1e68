"""Which UDP flows lead to an endpoint that is gone, or past a service that came after them. Pure.

A TCP connection ends with its endpoint. A UDP flow is an entry in the kernel that every further datagram
renews: it would go on to an address where nobody is, for as long as the client keeps talking. So after
a generation such entries are deleted; the next datagram is a first packet again.

    a list lost endpoints     its flows (the list id is in their mark) to endpoints it does not keep
    an address became a       flows to it that do not have the mark of one of its lists: they are older than
    service, or another one   the service, and go where the address led before
    an address ceased to      flows to it that have a service's mark
    be one
    start                     flows whose mark has a list id that no list has
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from podlane.compile.tables import Backend
from podlane.kernel.conntrack.codec import Entry, Filter
from podlane.model import marks
from podlane.model.addresses import Address, Family, Protocol, family_of

UDP: Final = Protocol.UDP.number
_FEW: Final = 4


@dataclass
class Stale:
    """lists: id -> endpoints that its flows may keep. fronts: address and port -> ids of the lists that may
    answer there, None when it is no service any more. ids: all there are, None to leave unknown ones
    alone."""

    lists: dict[tuple[Family, int], frozenset[Backend]] = field(default_factory=dict)
    fronts: dict[tuple[Address, int], frozenset[int] | None] = field(default_factory=dict)
    ids: Mapping[Family, frozenset[int]] | None = None

    def __bool__(self) -> bool:
        return bool(self.lists or self.fronts or self.ids is not None)

    def update(self, later: Stale) -> None:
        """What a later generation says goes before what an earlier one said."""
        self.lists |= later.lists
        self.fronts |= later.fronts
        self.ids = later.ids if later.ids is not None else self.ids

    def filters(self) -> Iterator[Filter]:
        """What to read: a few narrow dumps, or all UDP flows once."""
        families = {family for family, _ in self.lists} | {family_of(where) for where, _ in self.fronts}
        if self.ids is not None:
            families |= set(self.ids)
        if self.ids is not None or len(self.lists) + len(self.fronts) > _FEW:
            for family in sorted(families):
                yield Filter(family, UDP)
            return
        for family, number in self.lists:
            yield Filter(family, UDP, mark=number, mask=marks.LIST.mask)
        for where, port in self.fronts:
            yield Filter(family_of(where), UDP, where, port)

    def has(self, entry: Entry) -> bool:
        """The entry is stale."""
        if entry.original.protocol != UDP:
            return False
        family = family_of(entry.original.source)
        number = marks.LIST.of(entry.mark)
        keep = self.lists.get((family, number)) if number else None
        if keep is not None and Backend(entry.reply.source, entry.reply.source_port) not in keep:
            return True
        if self.ids is not None and number and number not in self.ids.get(family, ()):
            return True
        place = entry.original.destination, entry.original.destination_port
        if place not in self.fronts:
            return False
        answering = self.fronts[place]
        return bool(entry.mark) if answering is None else number not in answering
