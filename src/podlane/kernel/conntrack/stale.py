"""Which flows lead to an endpoint that is gone, or past a service that came after them. Pure.

A UDP flow is an entry in the kernel that every further datagram renews: it would go on to an address where
nobody is, for as long as the client keeps talking. A connection whose other end vanished without a word
(its node died, its namespace was taken away) hangs for minutes. So after a generation such entries are
deleted. The next packet is a first packet again: a datagram goes to another endpoint, a connection's
segment to one that knows nothing of it and resets it.

    a list lost endpoints     its flows (the list id is in their mark) to endpoints it does not keep: UDP
                              at once, connections when the pod is gone as well, for a pod that only lost
                              a label keeps its connections. Connections that nobody answered yet, to
                              endpoints that are not chosen any more: the client tries again elsewhere
    an address became a       flows to it that do not have the mark of one of its lists: they are older than
    service, or another one   the service, and go where the address led before. UDP, and unanswered ones
    an address ceased to      flows to it that have a service's mark, likewise
    be one
    start                     flows of all lists by the same rules, and of lists that are no more
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from podlane.compile.tables import Backend
from podlane.kernel.conntrack.codec import Entry, Filter
from podlane.model import marks
from podlane.model.addresses import Address, Family, Protocol, family_of

_FEW: Final = 4


class Fate(enum.Enum):
    STAYS = 0
    GOES = 1
    GOES_IF_GONE = 2  # if there is no pod any more that has the endpoint's address


class Kept(NamedTuple):
    """chosen: endpoints that new flows go to. kept: those whose flows may go on, the chosen ones included."""

    chosen: Collection[Backend]
    kept: Collection[Backend]


ListId = tuple[Family, Protocol, int]
Front = tuple[Protocol, Address, int]


@dataclass
class Stale:
    """fronts: address and port -> ids of the lists that may answer there, None when it is no service any
    more. every: all lists there are; None to leave flows of unknown ones alone."""

    lists: dict[ListId, Kept] = field(default_factory=dict)
    fronts: dict[Front, frozenset[int] | None] = field(default_factory=dict)
    every: Mapping[ListId, Kept] | None = None
    families: frozenset[Family] = frozenset()  # of `every`

    def __bool__(self) -> bool:
        return bool(self.lists or self.fronts or self.every is not None)

    def update(self, later: Stale) -> None:
        """What a later generation says goes before what an earlier one said."""
        self.lists |= later.lists
        self.fronts |= later.fronts
        if later.every is not None:
            self.every, self.families = later.every, later.families

    def filters(self) -> Iterator[Filter]:
        """What to read: a few narrow dumps, or all flows of a protocol once."""
        if self.every is not None:
            for family in sorted(self.families):
                for protocol in Protocol:
                    yield Filter(family, protocol.number)
            return
        numbers: dict[tuple[Family, Protocol], list[int]] = {}
        for family, protocol, number in self.lists:
            numbers.setdefault((family, protocol), []).append(number)
        for (family, protocol), found in numbers.items():
            if len(found) > _FEW:
                yield Filter(family, protocol.number)
            else:
                yield from (Filter(family, protocol.number, mark=n, mask=marks.LIST.mask) for n in found)
        fronts: dict[tuple[Family, Protocol], list[tuple[Address, int]]] = {}
        for protocol, where, port in self.fronts:
            fronts.setdefault((family_of(where), protocol), []).append((where, port))
        for (family, protocol), places in fronts.items():
            if protocol is not Protocol.UDP:
                yield Filter(family, protocol.number, unanswered=True)
            elif len(places) > _FEW:
                yield Filter(family, protocol.number)
            else:
                yield from (Filter(family, protocol.number, *place) for place in places)

    def fate(self, entry: Entry) -> Fate:
        """What is to become of a flow."""
        protocol = _PROTOCOLS.get(entry.original.protocol)
        if protocol is None:
            return Fate.STAYS
        number = marks.LIST.of(entry.mark)
        fate = Fate.STAYS
        if number:
            fate = self._of_list((family_of(entry.original.source), protocol, number), entry)
        return self._of_front(protocol, number, entry) if fate is Fate.STAYS else fate

    def _of_list(self, key: ListId, entry: Entry) -> Fate:
        row = self.lists.get(key)
        if row is None and self.every is not None:
            row = self.every.get(key, _UNKNOWN)
        if row is None:
            return Fate.STAYS
        backend = Backend(entry.reply.source, entry.reply.source_port)
        if entry.half_open:
            return Fate.STAYS if backend in row.chosen else Fate.GOES
        if backend in row.kept:
            return Fate.STAYS
        return Fate.GOES if key[1] is Protocol.UDP else Fate.GOES_IF_GONE

    def _of_front(self, protocol: Protocol, number: int, entry: Entry) -> Fate:
        place = protocol, entry.original.destination, entry.original.destination_port
        if place not in self.fronts or not (protocol is Protocol.UDP or entry.half_open):
            return Fate.STAYS
        answering = self.fronts[place]
        past = bool(entry.mark) if answering is None else number not in answering
        return Fate.GOES if past else Fate.STAYS


_PROTOCOLS: Final = {protocol.number: protocol for protocol in Protocol}
_UNKNOWN: Final = Kept((), ())
