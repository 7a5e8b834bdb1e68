"""Flows on the wire, and which of them are stale."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from podlane.compile.tables import Backend
from podlane.kernel import netlink
from podlane.kernel.conntrack import codec, nudge
from podlane.kernel.conntrack.codec import Entry, Filter, Tuple
from podlane.kernel.conntrack.stale import Fate, Front, Kept, Stale
from podlane.kernel.netlink import Message, attribute, be32, nested
from podlane.model import marks
from podlane.model.addresses import Family, Protocol, address
from podlane.observe.packet import decode_ip

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
GONE, KEPT, DRAINING = "10.244.1.5", "10.244.2.5", "10.244.2.6"
V4 = Family.IPV4


def end(where: str) -> Backend:
    return Backend(address(where), 5353)


def front(where: str = "10.96.0.1", port: int = 53, protocol: Protocol = Protocol.UDP) -> Front:
    return protocol, address(where), port


def kept(chosen: tuple[str, ...], *others: str) -> Kept:
    return Kept(tuple(map(end, chosen)), tuple(map(end, (*chosen, *others))))


U, T = Protocol.UDP, Protocol.TCP
LISTS: dict[Any, Any] = {(V4, U, LIST): kept((KEPT,)), (V4, T, LIST): kept((KEPT,), DRAINING)}
EVERY = Stale(every=LISTS, families=frozenset({V4}))


def tcp(server: str, mark: int = MARK, *, answered: bool = True, **given: Any) -> Entry:
    found = flow(server, mark=mark, protocol=TCP, **given)
    return found._replace(status=codec.SEEN_REPLY if answered else 0)


CASES = {
    "to an endpoint that went": (Stale(lists=LISTS), flow(GONE, mark=MARK), Fate.GOES),
    "to one that went, with affinity": (Stale(lists=LISTS), flow(GONE, mark=STICKY), Fate.GOES),
    "to an endpoint that stays": (Stale(lists=LISTS), flow(KEPT, mark=MARK), Fate.STAYS),
    "of another list": (Stale(lists=LISTS), flow(GONE, mark=MARK + 1), Fate.STAYS),
    "of no list": (Stale(lists=LISTS), flow(GONE), Fate.STAYS),
    "of a protocol that has no services": (Stale(lists=LISTS), flow(GONE, mark=MARK, protocol=1), Fate.STAYS),
    "of a list without endpoints": (
        Stale(lists={(V4, U, LIST): kept(())}),
        flow(KEPT, mark=MARK),
        Fate.GOES,
    ),
    "older than the service": (Stale(fronts={front(): frozenset({LIST})}), flow(KEPT), Fate.GOES),
    "of the service": (Stale(fronts={front(): frozenset({LIST})}), flow(KEPT, mark=MARK), Fate.STAYS),
    "of the address's former service": (
        Stale(fronts={front(): frozenset({7})}),
        flow(KEPT, mark=MARK),
        Fate.GOES,
    ),
    "to another port": (Stale(fronts={front(port=54): frozenset()}), flow(KEPT), Fate.STAYS),
    "of an address that is no service any more": (
        Stale(fronts={front(): None}),
        flow(KEPT, mark=MARK),
        Fate.GOES,
    ),
    "to it, but never a service's": (Stale(fronts={front(): None}), flow(KEPT), Fate.STAYS),
    "at start, of a number nobody has": (EVERY, flow(KEPT, mark=MARK + 1), Fate.GOES),
    "at start, of a list's endpoint": (EVERY, flow(KEPT, mark=MARK), Fate.STAYS),
    "at start, to an endpoint that went": (EVERY, flow(GONE, mark=MARK), Fate.GOES),
    "at start, of no number": (EVERY, flow(KEPT), Fate.STAYS),
    "a connection to an endpoint that went": (Stale(lists=LISTS), tcp(GONE), Fate.GOES_IF_GONE),
    "a connection to one that goes": (Stale(lists=LISTS), tcp(DRAINING), Fate.STAYS),
    "a connection to one that stays": (Stale(lists=LISTS), tcp(KEPT), Fate.STAYS),
    "half open, to one that goes": (Stale(lists=LISTS), tcp(DRAINING, answered=False), Fate.GOES),
    "half open, to one that stays": (Stale(lists=LISTS), tcp(KEPT, answered=False), Fate.STAYS),
    "half open, older than the service": (
        Stale(fronts={front(protocol=T): frozenset({LIST})}),
        tcp(KEPT, 0, answered=False),
        Fate.GOES,
    ),
    "a connection older than the service": (
        Stale(fronts={front(protocol=T): frozenset({LIST})}),
        tcp(KEPT, 0),
        Fate.STAYS,
    ),
    "at start, a connection of a number nobody has": (EVERY, tcp(KEPT, MARK + 1), Fate.GOES_IF_GONE),
    "at start, a connection to an endpoint that went": (EVERY, tcp(GONE), Fate.GOES_IF_GONE),
}


@pytest.mark.parametrize("what", CASES)
def test_stale(what: str) -> None:
    stale, entry, expected = CASES[what]
    assert stale.fate(entry) is expected


def test_a_later_word_replaces_an_earlier_one() -> None:
    stale = Stale(lists={(V4, U, LIST): kept(())})
    stale.update(Stale(lists=LISTS, fronts={front(): None}))
    assert stale == Stale(lists=LISTS, fronts={front(): None})
    stale.update(EVERY)
    stale.update(Stale())
    assert (stale.every, stale.families) == (LISTS, {V4})


def test_few_are_looked_up_narrowly() -> None:
    stale = Stale(lists=LISTS, fronts={front(): None, front(protocol=T): None})
    assert list(stale.filters()) == [
        Filter(V4, UDP, mark=LIST, mask=marks.LIST.mask),
        Filter(V4, TCP, mark=LIST, mask=marks.LIST.mask),
        Filter(V4, UDP, address("10.96.0.1"), 53),
        Filter(V4, TCP, unanswered=True),
    ]


def test_many_are_looked_up_at_once() -> None:
    stale = Stale(lists={(family, U, n): kept(()) for family in Family for n in range(5)})
    assert list(stale.filters()) == [Filter(family, UDP) for family in Family]
    fronts = Stale(fronts={front(port=port): None for port in range(5)})
    assert list(fronts.filters()) == [Filter(V4, UDP)]
    assert set(EVERY.filters()) == {Filter(V4, protocol.number) for protocol in Protocol}


def test_nothing_is_false() -> None:
    assert not Stale()
    assert Stale(every={})


# --- what else an entry says ----------------------------------------------------------------------


def test_state_and_counts_are_read() -> None:
    body = as_message(tcp(KEPT)).body
    body += attribute(3, be32(codec.SEEN_REPLY | codec.ASSURED)) + attribute(7, be32(431999))
    body += nested(4, nested(1, attribute(1, b"\x03")))
    for kind, (packets, octets) in {9: (3, 200), 10: (2, 1 << 40)}.items():
        counts = (attribute(n, value.to_bytes(8, "big")) for n, value in ((1, packets), (2, octets)))
        body += nested(kind, *counts)
    entry = codec.unpack(Message(1 << 8, 0, 1, body))
    assert entry is not None
    assert (entry.state, entry.timeout_s, entry.half_open) == ("ESTABLISHED", 431999, False)
    assert (entry.sent, entry.answered) == ((3, 200), (2, 1 << 40))


@pytest.mark.parametrize(
    ("status", "state"),
    [(0, "UNREPLIED"), (codec.SEEN_REPLY, ""), (codec.SEEN_REPLY | codec.ASSURED, "ASSURED")],
)
def test_the_state_of_what_has_none_of_its_own(status: int, state: str) -> None:
    assert flow(KEPT)._replace(status=status).state == state


# --- nudges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "to"), [("10.244.1.9", "10.96.0.1"), ("fd00::9", "fd00:10:96::1")])
def test_a_nudge_is_a_syn_and_fin_in_the_name_of_whom_the_client_talks_to(source: str, to: str) -> None:
    packet = decode_ip(nudge.pack(Tuple(address(source), address(to), TCP, 40000, 80)))
    assert packet is not None
    assert (packet.source, packet.destination) == (address(to), address(source))
    assert (packet.source_port, packet.destination_port) == (80, 40000)
    # RFC 9293: the sum over pseudo header and segment, checksum included, is all ones.
    octets = nudge.pack(Tuple(address(source), address(to), TCP, 40000, 80))
    segment = octets[-20:]
    assert segment[13] == 0x03
    whole = address(to).packed + address(source).packed + (20).to_bytes(4, "big") + (6).to_bytes(4, "big")
    words = struct.unpack(f"!{len(whole + segment) // 2}H", whole + segment)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
