"""The netlink codec, against bytes written by hand from linux/netlink.h (little-endian fields)."""

from __future__ import annotations

import errno
import struct
import sys

import pytest

from podlane.kernel import netlink as nl
from podlane.kernel.netlink import Message, Truncated

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the golden bytes are little-endian")


def test_a_message_is_padded_but_its_length_is_not():
    packed = nl.pack_message(0x10, nl.NLM_F_REQUEST | nl.NLM_F_ACK, 7, b"abcde")
    assert packed == bytes.fromhex("15000000 1000 0500 07000000 00000000") + b"abcde\0\0\0"


def test_messages_of_one_datagram_are_told_apart():
    data = nl.pack_message(16, 2, 1, b"abcde") + nl.pack_message(3, 2, 1, b"\0\0\0\0")
    assert list(nl.unpack_messages(data)) == [Message(16, 2, 1, b"abcde"), Message(3, 2, 1, b"\0\0\0\0")]


@pytest.mark.parametrize("cut", range(1, 21))
def test_a_message_cut_short_is_an_error(cut):
    data = nl.pack_message(16, 0, 1, b"abcd")
    with pytest.raises(Truncated):
        list(nl.unpack_messages(data[:-cut] if cut < 20 else b"\0" * 16))


def test_attributes_carry_their_own_length_and_padding():
    assert nl.attribute(3, nl.text("eth0")) == bytes.fromhex("0900 0300") + b"eth0\0" + b"\0\0\0"


def test_nested_attributes_are_marked_and_read_without_the_mark():
    packed = nl.nested(18, nl.attribute(1, b"veth"))
    assert packed == bytes.fromhex("0c00 1280 0800 0100") + b"veth"
    assert nl.attributes(packed) == {18: nl.attribute(1, b"veth")}


def test_repeated_attributes_are_kept_in_the_list_and_the_last_wins_in_the_dict():
    packed = nl.attribute(1, b"a") + nl.attribute(1, b"b")
    assert list(nl.attribute_list(packed)) == [(1, b"a"), (1, b"b")]
    assert nl.attributes(packed) == {1: b"b"}


def test_an_attribute_too_long_for_its_length_field_is_refused():
    assert len(nl.attribute(1, bytes(65531))) == 65536
    with pytest.raises(ValueError, match="65531"):
        nl.attribute(1, bytes(65532))


def test_numbers_in_both_byte_orders():
    assert (nl.u16(0x0102), nl.be16(0x0102)) == (b"\x02\x01", b"\x01\x02")
    assert (nl.u32(1), nl.be32(1)) == (b"\1\0\0\0", b"\0\0\0\1")
    assert (nl.u64(1), nl.be64(1)) == (b"\1" + bytes(7), bytes(7) + b"\1")


_ECHOED = struct.pack("=IHHII", 40, 24, 5, 9, 0)


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        pytest.param(Message(2, 0, 9, struct.pack("=i", 0) + _ECHOED), (0, ""), id="acknowledged"),
        pytest.param(
            Message(2, 0, 9, struct.pack("=i", -errno.ENODEV) + _ECHOED), (errno.ENODEV, ""), id="bare errno"
        ),
        pytest.param(
            Message(
                2,
                nl.NLM_F_CAPPED | nl.NLM_F_ACK_TLVS,
                9,
                struct.pack("=i", -errno.EINVAL) + _ECHOED + nl.attribute(1, nl.text("Invalid prefix")),
            ),
            (errno.EINVAL, "Invalid prefix"),
            id="capped echo, with words",
        ),
        pytest.param(
            Message(
                2,
                nl.NLM_F_ACK_TLVS,
                9,
                struct.pack("=i", -errno.EINVAL) + _ECHOED + bytes(24) + nl.attribute(1, nl.text("Bad")),
            ),
            (errno.EINVAL, "Bad"),
            id="whole echo, with words",
        ),
        pytest.param(
            Message(
                2,
                nl.NLM_F_CAPPED | nl.NLM_F_ACK_TLVS,
                9,
                struct.pack("=i", -errno.EINVAL) + _ECHOED + nl.attribute(5, nl.u32(3)),
            ),
            (errno.EINVAL, "attribute missing (attribute 3)"),
            id="an attribute was missing",
        ),
        pytest.param(Message(3, 0, 9, struct.pack("=i", -errno.EINTR)), (errno.EINTR, ""), id="failed dump"),
        pytest.param(Message(3, 0, 9, b""), (0, ""), id="dump ended"),
    ],
)
def test_what_an_answer_says(message, answer):
    assert tuple(nl.unpack_answer(message)) == answer


@pytest.mark.parametrize("body", [b"", b"\0\0\0", struct.pack("=i", -1) + b"\0" * 8])
def test_an_answer_cut_short_is_an_error(body):
    with pytest.raises(Truncated):
        nl.unpack_answer(Message(2, nl.NLM_F_ACK_TLVS, 1, body))
