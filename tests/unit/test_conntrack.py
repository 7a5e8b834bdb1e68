"""Flows on the wire, and which of them are stale."""

from __future__ import annotations

from typing import Any

import pytest

from podlane.compile.tables import Backend
from podlane.kernel import netlink
from podlane.kernel.conntrack import codec
from podlane.kernel.conntrack.codec import Entry, Filter, Tuple
from podlane.kernel.conntrack.stale import Stale
from podlane.kernel.netlink import Message, attribute, be32, nested
from podlane.model import marks
from podlane.model.addresses import Address, Family, address

UDP, TCP = 17, 6


def flow(server: str, *, mark: int = 0, to: str = "10.96.0.1", port: int = 53, protocol: int = UDP) -> Entry:
    client, end = address("10.244.1.9"), address(server)
    original = Tuple(client, address(to), protocol, 40000, port)
    return Entry(original, Tuple(end, client, protocol, 5353, 40000), mark, 77)


def as_message(entry: Entry) -> Message:
    def direction(kind: int, which: Tuple) -> bytes:
        return nested(kind, *codec._pack(which))

    body = bytes(4) + direction(1, entry.original) + direction(2, entry.reply)
    return Message(1 << 8, 0, 1, body + attribute(8, be32(entry.mark)) + attribute(12, be32(entry.id)))


def test_an_entry_is_read() -> None:
    entry = flow("10.244.2.5", mark=0x1234)
    assert codec.unpack(as_message(entry)) == entry


def test_an_entry_of_ipv6_is_read() -> None:
    one, other = address("fd00::1"), address("fd00::2")
    entry = Entry(Tuple(one, other, TCP, 1, 2), Tuple(other, one, TCP, 2, 1), 0, 5)
    assert codec.unpack(as_message(entry)) == entry


def test_what_has_no_addresses_is_passed_over() -> None:
    assert codec.unpack(Message(1 << 8, 0, 1, bytes(4))) is None


def test_a_truncated_entry_is_an_error() -> None:
    message = as_message(flow("10.244.2.5"))
    with pytest.raises(netlink.Truncated):
        codec.unpack(message._replace(body=message.body[:-3]))


def test_a_deletion_names_the_entry_by_its_tuple_and_id() -> None:
    entry = flow("10.244.2.5")
    found = netlink.attributes(codec.delete(entry).body, 4)
    assert found[12] == be32(77)
    assert set(found) == {1, 12}
    assert set(netlink.attributes(codec.delete(entry._replace(zone=3)).body, 4)) == {1, 12, 18}


# --- stale ----------------------------------------------------------------------------------------

LIST = 42
MARK = marks.mark(marks.Class.INTERNAL, 2, LIST)
STICKY = marks.mark(marks.Class.STICKY, 9, LIST)
GONE, KEPT = "10.244.1.5", "10.244.2.5"
V4 = Family.IPV4


def end(where: str) -> Backend:
    return Backend(address(where), 5353)


def front(where: str = "10.96.0.1", port: int = 53) -> tuple[Address, int]:
    return address(where), port


LISTS: dict[Any, Any] = {(V4, LIST): frozenset({end(KEPT)})}
CASES = {
    "to an endpoint that went": (Stale(lists=LISTS), flow(GONE, mark=MARK), True),
    "to one that went, with affinity": (Stale(lists=LISTS), flow(GONE, mark=STICKY), True),
    "to an endpoint that stays": (Stale(lists=LISTS), flow(KEPT, mark=MARK), False),
    "of another list": (Stale(lists=LISTS), flow(GONE, mark=MARK + 1), False),
    "of no list": (Stale(lists=LISTS), flow(GONE), False),
    "TCP": (Stale(lists=LISTS), flow(GONE, mark=MARK, protocol=TCP), False),
    "of a list without endpoints": (Stale(lists={(V4, LIST): frozenset()}), flow(KEPT, mark=MARK), True),
    "older than the service": (Stale(fronts={front(): frozenset({LIST})}), flow(KEPT), True),
    "of the service": (Stale(fronts={front(): frozenset({LIST})}), flow(KEPT, mark=MARK), False),
    "of the address's former service": (Stale(fronts={front(): frozenset({7})}), flow(KEPT, mark=MARK), True),
    "to another port": (Stale(fronts={front(port=54): frozenset()}), flow(KEPT), False),
    "of an address that is no service any more": (Stale(fronts={front(): None}), flow(KEPT, mark=MARK), True),
    "to it, but never a service's": (Stale(fronts={front(): None}), flow(KEPT), False),
    "of a number nobody has": (Stale(ids={V4: frozenset({7})}), flow(KEPT, mark=MARK), True),
    "of a number somebody has": (Stale(ids={V4: frozenset({LIST})}), flow(KEPT, mark=MARK), False),
    "of no number": (Stale(ids={V4: frozenset()}), flow(KEPT), False),
}


@pytest.mark.parametrize("what", CASES)
def test_stale(what: str) -> None:
    stale, entry, expected = CASES[what]
    assert stale.has(entry) is expected


def test_a_later_word_replaces_an_earlier_one() -> None:
    stale = Stale(lists={(V4, LIST): frozenset()})
    stale.update(Stale(lists=LISTS, fronts={front(): None}))
    assert stale == Stale(lists=LISTS, fronts={front(): None})


def test_few_are_looked_up_narrowly() -> None:
    stale = Stale(lists=LISTS, fronts={front(): None})
    assert list(stale.filters()) == [
        Filter(V4, UDP, mark=LIST, mask=marks.LIST.mask),
        Filter(V4, UDP, address("10.96.0.1"), 53),
    ]


def test_many_are_looked_up_at_once() -> None:
    stale = Stale(lists={(family, n): frozenset() for family in Family for n in range(3)})
    assert list(stale.filters()) == [Filter(family, UDP) for family in Family]
    assert list(Stale(ids={V4: frozenset()}).filters()) == [Filter(V4, UDP)]


def test_nothing_is_false() -> None:
    assert not Stale()
    assert Stale(ids={})
