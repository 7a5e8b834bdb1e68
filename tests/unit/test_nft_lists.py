"""How endpoint lists are laid out and numbered."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.compile.tables import Backend
from podlane.kernel.nft import lists
from podlane.kernel.nft.lists import Size, TooLong, arrange, assign_slots, size_for
from podlane.model import marks
from podlane.model.addresses import address


def backend(number: int) -> Backend:
    return Backend(address(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"), 80)


SIZES = {
    1: (1, 1),
    512: (512, 512),
    513: (513, 8192),
    1024: (513, 8192),
    1025: (514, 16384),
    32768: (518, 262144),
}


@pytest.mark.parametrize("endpoints", SIZES)
def test_sizes(endpoints: int) -> None:
    size = size_for(endpoints)
    assert size == Size(*SIZES[endpoints])
    assert lists.modulus(size.code) == size.slots
    assert size.code <= marks.COUNT.largest


def test_a_list_beyond_the_longest_is_refused() -> None:
    with pytest.raises(TooLong, match="32768 is the most"):
        size_for(32769)


numbers = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@given(old=numbers, new=numbers)
def test_an_exact_table_holds_what_is_wanted_and_moves_nothing_needlessly(
    old: list[int], new: list[int]
) -> None:
    current, wanted = [backend(n) for n in old], [backend(n) for n in new]
    table = arrange(current, wanted)
    assert Counter(table) == Counter(wanted)
    stayed = sum(was == now for was, now in zip(current, table, strict=False))
    # At least what may stay: of the places that both have, what is wanted as often.
    assert stayed >= (Counter(current[: len(wanted)]) & Counter(wanted)).total()


@pytest.mark.parametrize(
    ("before", "after"),
    [(600, 601), (601, 600), (600, 1024), (1024, 1025), (1025, 513), (512, 513), (513, 512)],
)
def test_a_table_of_slots_is_fair_and_near_the_old_one(before: int, after: int) -> None:
    current = arrange([], [backend(n) for n in range(before)])
    wanted = [backend(n) for n in range(after)]
    table = arrange(current, wanted)
    shares = Counter(table)
    slots = size_for(after).slots
    assert len(table) == slots
    assert set(shares) == set(wanted)
    assert set(shares.values()) <= {slots // after, -(-slots // after)}
    if len(current) == slots and abs(before - after) == 1:
        moved = sum(was != now for was, now in zip(current, table, strict=True))
        assert moved <= -(-slots // min(before, after))


def test_weights_count_in_a_table_of_slots_too() -> None:
    heavy, others = backend(0), [backend(n) for n in range(1, 600)]
    shares = Counter(arrange([], [heavy] * 3 + others))
    assert shares[heavy] == pytest.approx(3 * shares[others[0]], abs=3)


def test_gaps_in_what_was_found_are_filled() -> None:
    assert arrange([None, backend(2)], [backend(1), backend(2)]) == [backend(1), backend(2)]


def test_slots_stay_and_free_ones_are_taken_from_below() -> None:
    one, two, three, four = (backend(n) for n in range(1, 5))
    slots = assign_slots({}, [one, two, three])
    assert slots == {one: 0, two: 1, three: 2}
    assert assign_slots(slots, [three, four, one]) == {three: 2, one: 0, four: 1}
    with pytest.raises(TooLong, match="1024 is the most"):
        assign_slots({}, [backend(n) for n in range(1025)])
