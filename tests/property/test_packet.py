"""Decoding takes any bytes: cut short, changed anywhere, or nonsense."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from podlane.observe.listening import FILES, parse
from podlane.observe.packet import Packet, decode_ethernet, decode_ip
from tests.unit.test_packet import ETH4, ETH6, SYN4, SYNACK6, VXLAN_HEADER, outer4

WHOLE = st.sampled_from(
    [ETH4 + SYN4, ETH6 + SYNACK6, ETH4 + outer4(VXLAN_HEADER + ETH4 + SYN4), ETH4 + outer4(VXLAN_HEADER)]
)


@given(st.binary(max_size=200))
def test_nonsense_never_raises(data: bytes) -> None:
    for packet in (decode_ethernet(data), decode_ip(data), decode_ethernet(ETH6 + data)):
        assert packet is None or packet.what


@given(WHOLE, st.data())
def test_truncated_and_changed_frames_never_raise(frame: bytes, data: st.DataObject) -> None:
    cut = bytearray(frame[: data.draw(st.integers(0, len(frame)))])
    if cut:
        cut[data.draw(st.integers(0, len(cut) - 1))] = data.draw(st.integers(0, 255))
    packet = decode_ethernet(bytes(cut))
    assert packet is None or isinstance(packet, Packet)


@given(WHOLE, st.data())
def test_a_header_that_is_whole_reads_the_same_whatever_follows(frame: bytes, data: st.DataObject) -> None:
    whole, longer = decode_ethernet(frame), decode_ethernet(frame + data.draw(st.binary(max_size=20)))
    assert whole is not None
    assert longer is not None
    assert whole.ends == longer.ends


@given(st.text(max_size=400), st.sampled_from(sorted(FILES)))
def test_tables_of_sockets_never_raise(text: str, name: str) -> None:
    assert all(each.port >= 0 for each in parse(name, "header\n" + text))
