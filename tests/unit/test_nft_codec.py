"""nftables elements on the wire, their text, and the skeleton they hang on."""

from __future__ import annotations

import struct
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.compile.tables import Backend, FrontendKey, NodePortKey, SetMember, SetName
from podlane.kernel import netlink
from podlane.kernel.netlink import Message, Request
from podlane.kernel.nft import codec, counts, skeleton, text
from podlane.kernel.nft import service_elements as pack
from podlane.kernel.nft.codec import INTERVAL_END, Element
from podlane.model.addresses import Family, Protocol, address, prefix
from podlane.model.config import NetworkConfig, with_settings

GOLDEN = Path(__file__).parent / "golden"
V4, V6 = Family.IPV4, Family.IPV6


def change(
    family: Family, table: str, set_: str, elements: list[Element], *, add: bool = True
) -> list[netlink.Request]:
    return list(codec.change(family, table, set_, map(codec.pack_element, elements), add=add))


def as_dump(request: Request) -> Message:
    """What the kernel would send back of a message that adds elements."""
    return Message(codec.NEW_ELEMENTS, 0, 1, request.body)


ELEMENTS = {
    "of a set": Element(b"\x0a\x00\x00\x01"),
    "of a map": Element(b"\x0a\x00\x00\x01", b"\x2a\x00\x00\x00"),
    "concatenated": Element(
        b"\x0a\x00\x00\x01\x06\x00\x00\x00\x00\x50\x00\x00", b"\x01\x02\x03\x04\x1f\x90\0\0"
    ),
    "the end of an interval": Element(b"\x0b\x00\x00\x00", flags=INTERVAL_END),
}


@pytest.mark.parametrize("what", ELEMENTS)
def test_an_element_is_read_back(what: str) -> None:
    (request,) = change(V4, "podlane", "some", [ELEMENTS[what]])
    assert list(codec.unpack_elements(as_dump(request))) == [ELEMENTS[what]]


def test_the_bytes_of_a_message() -> None:
    element = Element(b"\x01\x02\x03\x04", b"\x05\x06\x07\x08")
    (request,) = change(V6, "t", "s", [element], add=False)
    assert (request.type, request.flags) == (10 << 8 | 14, 0)
    assert request.operation == "delete element: ip6 t s"
    assert request.body == bytes.fromhex(
        "0a000000"  # nfgenmsg: AF_INET6, version 0, resource 0
        "0600010074000000"  # table "t"
        "0600020073000000"  # set "s"
        "20000380"  # elements, nested
        "1c000180"  # one
        "0c000180" "0800010001020304"  # key
        "0c000280" "0800010005060708"  # data
    )  # fmt: skip


def test_many_elements_are_several_messages_and_none_is_too_long() -> None:
    every = [Element(struct.pack("=I", n), struct.pack("=I", n)) for n in range(10_000)]
    messages = change(V4, "podlane", "some", every)
    assert len(messages) > 1
    assert max(len(request.body) for request in messages) < 65536
    back = [e for request in messages for e in codec.unpack_elements(as_dump(request))]
    assert back == every


@given(st.lists(st.sampled_from(list(ELEMENTS.values())), max_size=6))
def test_elements_of_all_shapes_together_are_read_back(elements: list[Element]) -> None:
    """Elements of one shape are read by a shorter way than others."""
    found = [e for request in change(V4, "t", "s", elements) for e in codec.unpack_elements(as_dump(request))]
    assert found == elements


def test_a_verdict_is_read_as_the_chain_it_leads_to() -> None:
    *_, element = counts.chain(V4, 3, affinity=True)
    (found,) = codec.unpack_elements(as_dump(element))
    assert found.chain == "pick-3"
    assert counts.unpack_key(codec.unpack_mark(found.key)) == (3, True)


def test_truncated_elements_are_an_error() -> None:
    (request,) = change(V4, "podlane", "some", [Element(b"\1\2\3\4")])
    with pytest.raises(netlink.Truncated):
        list(codec.unpack_elements(Message(codec.NEW_ELEMENTS, 0, 1, request.body[:-2])))


INTERVALS = {
    "one": (["10.0.0.0/8"], ["10.0.0.0-10.255.255.255"]),
    "nested": (["10.0.0.0/8", "10.1.0.0/16"], ["10.0.0.0-10.255.255.255"]),
    "touching": (["10.0.0.0/8", "11.0.0.0/8"], ["10.0.0.0-11.255.255.255"]),
    "touching but no prefix together": (["10.1.0.0/16", "10.2.0.0/16"], ["10.1.0.0-10.2.255.255"]),
    "apart": (["10.0.0.0/8", "12.0.0.0/8"], ["10.0.0.0-10.255.255.255", "12.0.0.0-12.255.255.255"]),
    "one address": (["10.0.0.1/32"], ["10.0.0.1"]),
    "from the lowest": (["0.0.0.0/8"], ["0.0.0.0-0.255.255.255"]),
    "to the highest": (["255.0.0.0/8"], ["255.0.0.0-255.255.255.255"]),
    "everything": (["0.0.0.0/0"], ["0.0.0.0-255.255.255.255"]),
}


@pytest.mark.parametrize("what", INTERVALS)
def test_prefixes_become_intervals(what: str) -> None:
    prefixes, shown = INTERVALS[what]
    ranges = codec.intervals(map(ip_network, prefixes))
    elements = [e for each in ranges for e in codec.interval_elements(*each, V4)]
    assert codec.unpack_intervals(reversed(elements), V4) == ranges
    assert text.elements(V4, SetName.POD_CIDRS, elements) == (
        "add element ip podlane pod-cidrs {\n\t" + ",\n\t".join(shown) + "\n}\n"
    )


def test_an_end_at_zero_is_nothing() -> None:
    elements = [Element(bytes(4), flags=INTERVAL_END), *codec.interval_elements(5, 6, V4)]
    assert codec.unpack_intervals(elements, V4) == [(5, 6)]


def member(name: SetName, where: str) -> Element:
    return pack.member(SetMember(name, prefix(where)))


TEXTS = {
    "frontends": (
        V4,
        pack.frontend(FrontendKey(address("10.96.0.1"), Protocol.TCP, 80), 42),
        "10.96.0.1 . tcp . 80 : 0x2a",
    ),
    "node-ports": (V6, pack.node_port(NodePortKey(V6, Protocol.SCTP, 30000), 42), "sctp . 30000 : 0x2a"),
    "endpoints": (V6, pack.endpoint(7, 2, Backend(address("fd00::1"), 80)), "0x7 . 2 : fd00::1 . 80"),
    "picks": (V4, pack.pick(7, 2, 5), "0x7 . 2 : 0x80140007"),
    "slots": (V4, pack.slot(7, 5, Backend(address("10.0.0.1"), 80)), "0x140007 : 10.0.0.1 . 80"),
    "short-circuits": (V4, pack.short_circuit(7, 42), "0x7 : 0x2a"),
    "sticky-60": (V4, pack.sticky(7), "0x7"),
    "source-ranges": (V4, pack.source_range(7, 0x0A000000, 0x0A0000FF, V4), "0x7 . 10.0.0.0-10.0.0.255"),
    "node-ips": (V6, member(SetName.NODE_IPS, "fd00::1/128"), "fd00::1"),
    "local-endpoints": (V4, member(SetName.LOCAL_ENDPOINTS, "10.0.0.1/32"), "10.0.0.1 . 10.0.0.1"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_elements_as_text(name: str) -> None:
    family, element, shown = TEXTS[name]
    expected = f"add element {family.nft} podlane {name} {{\n\t{shown}\n}}\n"
    assert text.elements(family, name, [element]) == expected
    assert text.elements(family, name, []) == ""


def test_keys_are_read_back() -> None:
    front = FrontendKey(address("fd00::a"), Protocol.UDP, 53)
    assert pack.unpack_frontend(pack.frontend(front, 0).key) == front
    port = NodePortKey(V4, Protocol.TCP, 30001)
    assert pack.unpack_node_port(pack.node_port(port, 0).key, V4) == port
    backend = Backend(address("fd00::a"), 8080)
    element = pack.slot(9, 3, backend)
    assert pack.unpack_slot(element.key) == (9, 3)
    assert element.data is not None
    assert pack.unpack_backend(element.data) == backend


# --- the skeleton ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(Family))
def test_the_skeleton_is_the_golden_one(family: Family) -> None:
    assert skeleton.skeleton(family, NetworkConfig()) == (GOLDEN / f"services-{family.nft}.nft").read_text()


def test_another_mark_is_another_version() -> None:
    other = with_settings(NetworkConfig(), ["services.masqueradeMark=0x8000"])
    assert skeleton.version(V4, NetworkConfig()) != skeleton.version(V4, other)
    assert "0x4000 " not in skeleton.skeleton(V4, other)
    assert skeleton.version(V4, NetworkConfig()) in skeleton.skeleton(V4, NetworkConfig())


def test_what_the_configuration_says_of_other_things_is_no_new_version() -> None:
    other = with_settings(NetworkConfig(), ["fabric.racks=2", "backend.vni=7"])
    assert skeleton.version(V6, NetworkConfig()) == skeleton.version(V6, other)
