"""Rows of the service tables as set elements, and back. Pure.

frontends         address . protocol . port : mark
node-ports        protocol . port : mark
endpoints         list id . index : address . port
picks             list id . index : mark STICKY|slot|list id        lists with session affinity
slots             slot|list id : address . port                     have these two instead
short-circuits    id of a local list : mark that leads to the cluster's list
sticky-T          list id
source-ranges     list id . first address - list id . last address
local-endpoints   address . the same address
the other sets    address, or interval
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from podlane.compile.tables import Backend, FrontendKey, NodePortKey, SetMember, SetName
from podlane.kernel.nft.codec import Element, fields, mark_field, port_field, unpack_mark
from podlane.model import marks
from podlane.model.addresses import Family, Protocol
from podlane.model.marks import Class

_PROTOCOLS: Final = {protocol.number: protocol for protocol in Protocol}
_PORT_BYTES: Final = 4  # padded
index_key: Final = struct.Struct("=II").pack
"""The key of an element of endpoints or picks: (list id, index)."""
_PADDING: Final = bytes(2)
_BACKEND_BYTES: Final = (6, 18)
_PROTOCOL_BYTES: Final = 4


def frontend(key: FrontendKey, mark: int) -> Element:
    name = fields(key.address.packed, bytes((key.protocol.number,)), port_field(key.port))
    return Element(name, mark_field(mark))


def node_port(key: NodePortKey, mark: int) -> Element:
    return Element(fields(bytes((key.protocol.number,)), port_field(key.port)), mark_field(mark))


def endpoint(list_id: int, index: int, backend: Backend) -> Element:
    return Element(index_key(list_id, index), _backend(backend))


def pick(list_id: int, index: int, slot: int) -> Element:
    value = marks.mark(Class.STICKY, slot, list_id)
    return Element(index_key(list_id, index), mark_field(value))


def slot(list_id: int, number: int, backend: Backend) -> Element:
    return Element(mark_field(marks.COUNT.put(number) | list_id), _backend(backend))


def short_circuit(list_id: int, mark: int) -> Element:
    return Element(mark_field(list_id), mark_field(mark))


def sticky(list_id: int) -> Element:
    return Element(mark_field(list_id))


def source_range(list_id: int, first: int, last: int, family: Family) -> Element:
    """first, last: addresses as numbers."""
    low, high = (struct.pack("!I", list_id) + n.to_bytes(family.bits // 8, "big") for n in (first, last))
    return Element(low, last=high if high != low else b"")


def member(row: SetMember) -> Element:
    """Of a set that is no interval set. Raises ValueError for a prefix of several addresses."""
    if row.value.prefixlen != row.value.max_prefixlen:
        raise ValueError(
            f"{row.value} has {row.value.num_addresses} addresses; {row.set} takes one at a time"
        )
    where = row.value.network_address.packed
    return Element(where + where if row.set is SetName.LOCAL_ENDPOINTS else where)


def _backend(backend: Backend) -> bytes:
    return backend + _PADDING  # octets of address and port: what the kernel has too, but for the padding


# --- and back ---


def unpack_frontend(key: bytes) -> FrontendKey:
    size = len(key) - _PROTOCOL_BYTES - _PORT_BYTES
    protocol = _PROTOCOLS[key[size]]
    return FrontendKey(ipaddress.ip_address(key[:size]), protocol, _port(key, size + _PROTOCOL_BYTES))


def unpack_node_port(key: bytes, family: Family) -> NodePortKey:
    return NodePortKey(family, _PROTOCOLS[key[0]], _port(key, _PROTOCOL_BYTES))


def unpack_index(key: bytes) -> tuple[int, int]:
    """(list id, index) of an element of endpoints or picks"""
    return unpack_mark(key), unpack_mark(key, 4)


def unpack_slot(key: bytes) -> tuple[int, int]:
    """(list id, slot) of an element of slots"""
    word = unpack_mark(key)
    return marks.LIST.of(word), marks.COUNT.of(word)


def unpack_source_range(element: Element) -> tuple[int, int, int]:
    """(list id, first, last)"""
    key, last = element.key, element.last or element.key
    return int.from_bytes(key[:4], "big"), int.from_bytes(key[4:], "big"), int.from_bytes(last[4:], "big")


def unpack_backend(data: bytes) -> Backend:
    """Raises ValueError for what is no address and port."""
    octets = data[: -len(_PADDING)]
    if len(octets) not in _BACKEND_BYTES:
        raise ValueError(f"{len(data)} bytes are no address and port")
    return Backend.packed(octets)


def _port(field: bytes, offset: int) -> int:
    return int.from_bytes(field[offset : offset + 2], "big")
