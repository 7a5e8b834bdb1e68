"""Whatever bytes come, parsing ends in what was packed or in Truncated: never in anything else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.kernel import netlink as nl
from podlane.kernel.netlink import Truncated

ATTRIBUTES = st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8)


@given(ATTRIBUTES)
def test_attributes_come_back_as_they_were_packed(pairs):
    packed = b"".join(nl.attribute(kind, payload) for kind, payload in pairs)
    assert list(nl.attribute_list(packed)) == pairs


@given(ATTRIBUTES.filter(len), st.data())
def test_attributes_cut_short_give_a_prefix_and_then_truncated(pairs, data):
    packed = b"".join(nl.attribute(kind, payload) for kind, payload in pairs)
    # The padding of the last attribute may be missing: the kernel leaves it out at times.
    needed = len(packed) - (-len(pairs[-1][1]) & 3)
    cut = data.draw(st.integers(0, needed - 1))
    seen = []
    ends = [sum(4 + (len(p) + 3 & ~3) for _, p in pairs[:count]) for count in range(len(pairs) + 1)]
    try:
        for pair in nl.attribute_list(packed[:cut]):
            seen.append(pair)
        assert cut in ends or any(end - 3 <= cut <= end for end in ends)
    except Truncated:
        pass
    assert seen == pairs[: len(seen)]
    assert len(seen) < len(pairs)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_truncated(data):
    for parse in (nl.attribute_list, nl.unpack_messages):
        try:
            for _ in parse(data):
                pass
        except Truncated:
            pass


@given(st.binary(max_size=80), st.integers(0, 0xFFFF), st.sampled_from([nl.NLMSG_ERROR, nl.NLMSG_DONE]))
def test_any_answer_is_read_or_truncated(body, flags, kind):
    with contextlib.suppress(Truncated):
        nl.unpack_answer(nl.Message(kind, flags, 1, body))


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=60)), max_size=6)
)
def test_messages_come_back_as_they_were_packed(parts):
    data = b"".join(nl.pack_message(kind, flags, 5, body) for kind, flags, body in parts)
    found = [(m.type, m.flags, m.body) for m in nl.unpack_messages(data)]
    assert found == parts


def test_a_length_of_zero_does_not_loop_forever():
    for parse in (nl.attribute_list, nl.unpack_messages):
        with pytest.raises(Truncated):
            list(parse(bytes(64)))
