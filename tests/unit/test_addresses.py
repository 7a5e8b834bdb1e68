"""Addresses as text, read fast and read carefully: the two must agree."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from podlane.compile.tables import Backend
from podlane.errors import ConfigError
from podlane.model.addresses import Prefix, address, overlap, packed

digits = st.text("0123456789", max_size=4)
quads = st.lists(digits, min_size=3, max_size=5).map(".".join)


@given(st.ip_addresses().map(str) | quads | st.text(".:0123456789af+-_ ²٣", max_size=20))
@example("010.020.030.040")
@example("1.2.3.256")
@example("1.2.3.-4")
@example("1.2.3.²")
@example("1.2.3.٣")
@example("1.2.3.0000000000000004")
@example("1.2.3.00000000000000004")
def test_octets_are_those_of_the_address(text: str) -> None:
    try:
        wanted = address(text).packed
    except ConfigError:
        with pytest.raises(ConfigError):
            packed(text)
    else:
        assert packed(text) == wanted


@given(st.ip_addresses(), st.integers(0, 65535))
def test_an_endpoint_is_its_octets(where: object, port: int) -> None:
    parsed = address(str(where))
    backend = Backend(parsed, port)
    assert (backend.address, backend.port) == (parsed, port)
    assert backend == Backend.packed(parsed.packed + port.to_bytes(2, "big"))


@given(st.lists(st.tuples(st.ip_addresses(v=4), st.integers(0, 65535))))
def test_the_order_is_that_of_address_and_port(ends: list[tuple[object, int]]) -> None:
    backends = [Backend(address(str(where)), port) for where, port in ends]
    assert sorted(backends) == sorted(backends, key=lambda b: (b.address, b.port))


prefixes = st.ip_addresses().flatmap(
    lambda where: st.integers(0, where.max_prefixlen).map(
        lambda bits: ipaddress.ip_network((where, bits), strict=False)
    )
)


@given(prefixes, prefixes)
def test_prefixes_overlap_as_the_library_says(one: Prefix, other: Prefix) -> None:
    assert overlap(one, other) == (one.version == other.version and one.overlaps(other))
    assert overlap(one, one)
    assert overlap(one, one.supernet()) if one.prefixlen else True
