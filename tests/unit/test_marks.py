"""Bits of marks and labels have one user each."""

from __future__ import annotations

from itertools import combinations

import pytest

from podlane.model import marks
from podlane.model.config import NetworkConfig, Services
from podlane.model.marks import Bits, Class

WORDS = {
    "conntrack mark": (marks.CONNTRACK_MARK, 32),
    "conntrack label": (marks.CONNTRACK_LABEL, 128),
    "packet mark": (marks.packet_mark(NetworkConfig().services.masquerade_mark), 32),
    "packet mark, other bit": (marks.packet_mark(Services(masquerade_mark=1 << 31).masquerade_mark), 32),
}


@pytest.mark.parametrize("word", WORDS)
def test_no_two_users_share_a_bit(word: str) -> None:
    users, width = WORDS[word]
    for one, other in combinations(users, 2):
        assert not one.mask & other.mask, f"{one.user} and {other.user}"
    for user in users:
        assert 0 < user.mask < 1 << width, user.user


def test_the_packet_mark_uses_the_configured_bit_only() -> None:
    assert [each.mask for each in marks.packet_mark(0x8000)] == [0x8000]


def test_a_mark_is_read_back_field_by_field() -> None:
    word = marks.mark(Class.EXTERNAL_LOCAL_AFFINITY, 1023, 0x2A)
    assert (marks.CLASS.of(word), marks.COUNT.of(word), marks.LIST.of(word)) == (11, 1023, 42)


@pytest.mark.parametrize(
    ("field", "value"), [(marks.LIST, 1 << 18), (marks.COUNT, 1024), (marks.CLASS, 16), (marks.LIST, -1)]
)
def test_what_does_not_fit_is_refused(field: Bits, value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        field.put(value)


def test_every_class_fits_its_bits_and_affinity_is_one_bit_of_it() -> None:
    assert all(marks.CLASS.of(marks.CLASS.put(klass)) == klass for klass in Class)
    assert Class.INTERNAL_AFFINITY & ~marks.AFFINITY == Class.INTERNAL
