"""The bytes between shim and agent."""

from __future__ import annotations

import pytest

from podlane.cni import wire


def test_a_request_is_lengths_environment_and_stdin():
    packed = wire.pack_request({"A": "b=c", "CNI_X": ""}, b"{}")
    assert packed == b"\0\0\0\x0d\0\0\0\x02" + b"A=b=c\0CNI_X=\0" + b"{}"
    assert wire.unpack_request(packed) == ({"A": "b=c", "CNI_X": ""}, b"{}")


def test_bytes_that_are_no_utf8_survive():
    value = b"\xff".decode(errors="surrogateescape")
    assert wire.unpack_request(wire.pack_request({"A": value}, b""))[0] == {"A": value}


def test_a_request_cut_anywhere_is_refused():
    packed = wire.pack_request({"A": "b"}, b"{}")
    for size in range(len(packed)):
        with pytest.raises(ValueError, match="cut short"):
            wire.unpack_request(packed[:size])


def test_a_request_above_the_limits_is_refused_before_it_is_read():
    with pytest.raises(ValueError, match="at most"):
        wire.unpack_lengths(wire.REQUEST.pack(2**32 - 1, 0))
    with pytest.raises(ValueError, match="at most"):
        wire.unpack_lengths(wire.REQUEST.pack(0, wire.STDIN_LIMIT_BYTES + 1))


def test_an_answer_is_a_status_and_stdout():
    assert wire.pack_answer(1, b"{}") == b"\0\0\0\x01{}"
    assert wire.unpack_answer(b"\0\0\0\x01{}") == (1, b"{}")
    with pytest.raises(ValueError, match="cut short"):
        wire.unpack_answer(b"\0\0\0")
