"""Tables of hashes: fair, the same everywhere, and maglev's nearly the same after a change."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podlane.compile import hashing
from podlane.compile.hashing import chosen, jhash, maglev, maglev_size, slot_of, source_hash_size, table_of
from podlane.compile.tables import Backend, BackendList
from podlane.model.addresses import address
from podlane.model.config import HASH_TABLE_SIZES, Balancing


def backend(number: int) -> Backend:
    return Backend(address(f"10.9.{number >> 8}.{number & 255}"), 80)


numbers = st.sets(st.integers(0, 999), min_size=1, max_size=7)


@settings(deadline=None, max_examples=60)
@given(numbers, st.randoms())
def test_every_slot_is_filled_and_every_endpoint_has_its_share(found: set[int], rng: object) -> None:
    backends = [backend(n) for n in found]
    table = maglev(tuple(backends), 251)
    assert len(table) == 251
    shares = Counter(table)
    assert set(shares) == set(backends)
    assert max(shares.values()) - min(shares.values()) <= 1
    # Nothing but the endpoints decides: their order does not.
    rng.shuffle(backends)  # type: ignore[attr-defined]
    assert maglev(tuple(backends), 251) == table


@pytest.mark.parametrize(("endpoints", "slots"), [(3, 251), (10, 1021), (50, 4093)])
def test_an_endpoint_less_moves_little_of_what_the_others_have(endpoints: int, slots: int) -> None:
    backends = tuple(backend(n) for n in range(endpoints))
    before = maglev(backends, slots)
    for gone in backends[:3]:
        after = maglev(tuple(b for b in backends if b != gone), slots)
        moved = sum(was != now for was, now in zip(before, after, strict=True) if was != gone)
        assert moved <= slots * 0.06


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(deadline=None, max_examples=40)
def test_weights_are_shares_of_the_slots(weights: list[int]) -> None:
    backends = tuple(backend(n) for n, weight in enumerate(weights) for _ in range(weight))
    shares = Counter(maglev(backends, 1021))
    for n, weight in enumerate(weights):
        assert shares[backend(n)] == pytest.approx(1021 * weight / sum(weights), abs=max(weights) + 1)


def test_a_source_hash_repeats_its_entries_evenly() -> None:
    row = BackendList(
        tuple(map(backend, (1, 1, 2))), balancing=Balancing.SOURCE_HASH, slots=source_hash_size(3)
    )
    shares = Counter(table_of(row))
    assert shares == {backend(1): 168, backend(2): 83}


def test_sizes_are_primes_that_grow_with_the_endpoints() -> None:
    assert all(size % n for size in HASH_TABLE_SIZES for n in range(2, int(size**0.5) + 1))
    assert [maglev_size(n, 4093) for n in (1, 127, 128, 5000)] == [4093, 4093, 8191, 65521]
    assert [source_hash_size(n) for n in (1, 31, 32, 9000)] == [251, 251, 509, 65521]


# That the kernel computes the same for real packets is shown in tests/netns/test_balancing.py.
def test_jhash_of_every_length() -> None:
    assert jhash(b"", 0) == 0xDEADBEEF
    assert jhash(b"Four score and seven years ago", 0) == 0x17770551  # lookup3.c's own example
    assert len({jhash(b"x" * n, 1) for n in range(40)}) == 40


def test_a_client_has_a_slot_by_address_or_by_address_and_port() -> None:
    row = BackendList((backend(1), backend(2)), balancing=Balancing.MAGLEV, slots=251)
    client = address("fd00::7")
    assert chosen(row, client) == table_of(row)[slot_of(client, 251)]
    assert slot_of(client, 251, 1000) != slot_of(client, 251, 1001)
    by_port = BackendList(row.backends, balancing=Balancing.MAGLEV, slots=251, by_port=True)
    assert chosen(by_port, client) is None
    assert chosen(by_port, client, 1000) == table_of(by_port)[slot_of(client, 251, 1000)]
    assert chosen(BackendList(row.backends), client) is None
    assert chosen(BackendList((), balancing=Balancing.MAGLEV), client) is None


def test_a_table_is_remembered() -> None:
    assert hashing.maglev((backend(1),), 251) is hashing.maglev((backend(1),), 251)
