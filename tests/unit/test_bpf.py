"""The eBPF object as the loader reads it, and rows as the maps' bytes. No kernel is asked."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from podlane.compile.tables import Backend, FrontendKey, ListKey, NodePortKey
from podlane.errors import ConfigError, UnsupportedError
from podlane.kernel.bpf import elf, installation, layout
from podlane.model.addresses import Family, Protocol, address

IMAGE = installation.compiled().read_bytes()
MAPS = {name: number for number, name in enumerate(layout.SPECS, 1000)}


def test_every_hook_has_a_program_that_names_only_our_maps() -> None:
    codes = elf.programs(IMAGE)
    assert set(codes) == set(installation._HOOKS)
    assert {name for code in codes.values() for _, name in code.maps} == set(layout.SPECS)
    for code in codes.values():
        assert len(code.instructions) % 8 == 0
        bound = code.bound(MAPS)
        for offset, name in code.maps:
            opcode, registers, _, low, _, _, _, high = struct.unpack_from("=BBHiBBHi", bound, offset)
            assert (opcode, registers >> 4, low, high) == (0x18, 1, MAPS[name], 0)
        untouched = [n for n in range(0, len(bound), 8) if n not in {o for o, _ in code.maps}]
        assert all(
            bound[n : n + 8] == code.instructions[n : n + 8]
            for n in untouched
            if n - 8 not in {o for o, _ in code.maps}
        )


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n" * 20,
        Path("/bin/sh").read_bytes()[:4096],
        IMAGE[:200],
        IMAGE[: len(IMAGE) // 2],
    ],
)
def test_what_is_no_object_is_refused(image: bytes) -> None:
    with pytest.raises(ConfigError, match="not a compiled BPF object"):
        elf.programs(image)


def test_an_object_that_was_not_compiled_is_refused_with_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    with pytest.raises(UnsupportedError, match=r"services\.mode=nftables works without"):
        installation.compiled()


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("10.96.0.10", "00000000000000000000ffff0a60000a"),
        ("fd00:10:96::a", "fd000010009600000000000000" + "00000a"),
    ],
)
def test_addresses_are_sixteen_bytes(text: str, octets: str) -> None:
    where = address(text)
    assert layout.octets(where).hex() == octets
    assert layout.frontend(FrontendKey(where, Protocol.UDP, 53)).hex() == octets + "0035" + "1100"
    backend = Backend(where, 8080)
    assert layout.end(backend).hex() == octets + "1f90" + "0000"
    assert layout.unpack_end(layout.end(backend)) == backend
    assert layout.unpack_member(layout.member(7, backend)) == (7, backend)


def test_keys_have_the_sizes_of_their_maps() -> None:
    key = ListKey("default", "web", "http", Protocol.TCP, Family.IPV4, "cluster")
    number, backend = layout.number(key), Backend(address("10.0.0.1"), 1)
    sizes = {
        layout.NODE_PORTS: (layout.node_port(NodePortKey(Family.IPV6, Protocol.TCP, 30080)), None),
        layout.LISTS: (layout.list_number(number), layout.list_head(3, 60)),
        layout.BACKENDS: (layout.place(number, 2), layout.end(backend)),
        layout.MEMBERS: (layout.member(number, backend), layout.NEVER),
        layout.SETTINGS: (bytes(4), layout.settings(1 << 40)),
        layout.NODE_ADDRESSES: (layout.octets(address("::1")), layout.ONE),
    }
    for name, (wanted_key, value) in sizes.items():
        assert len(wanted_key) == layout.SPECS[name].key_bytes
        assert value is None or len(value) == layout.SPECS[name].value_bytes
    assert layout.layout_of(layout.settings(5)) == layout.LAYOUT
    assert layout.unpack_place(layout.place(number, 2)) == (number, 2)


def test_a_socket_that_is_connected_elsewhere_now_has_no_service() -> None:
    service, backend = Backend(address("10.96.0.1"), 80), Backend(address("10.244.0.1"), 8080)
    kept = struct.pack("=Q20s20s", 9, layout.end(service), layout.end(backend))
    assert layout.unpack_bound(kept) == (9, service, backend)
    assert layout.unpack_bound(bytes(8) + kept[8:]) is None


def test_lists_differ_by_every_part_of_their_name() -> None:
    key = ListKey("a", "b", "c", Protocol.TCP, Family.IPV4, "cluster")
    others = [
        key._replace(namespace="ab", service=""),
        key._replace(port="d"),
        key._replace(protocol=Protocol.UDP),
        key._replace(family=Family.IPV6),
        key._replace(scope="local"),
    ]
    assert len({layout.number(each) for each in (key, *others)}) == 6
