"""Elements as nft text, for the one moment when netlink cannot carry them: a table is replaced by that of
another version of the skeleton, in the transaction that also fills it. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Final

from podlane.compile.tables import SetName
from podlane.kernel.nft import service_elements as unpack
from podlane.kernel.nft import skeleton
from podlane.kernel.nft.codec import Element, unpack_intervals, unpack_mark
from podlane.model.addresses import Family


def elements(family: Family, name: str, members: Iterable[Element]) -> str:
    """`add element` for all members of one set or map; nothing for none."""
    if name in skeleton.INTERVALS:
        shown = [_interval(*each, family) for each in unpack_intervals(members, family)]
    else:
        shown = [_show(name, family, each) for each in members]
    if not shown:
        return ""
    return f"add element {family.nft} {skeleton.TABLE} {name} {{\n\t" + ",\n\t".join(shown) + "\n}\n"


def _show(name: str, family: Family, element: Element) -> str:
    key, data = element.key, element.data
    if name == skeleton.SOURCE_RANGES:
        list_id, first, last = unpack.unpack_source_range(element)
        return f"{list_id:#x} . {_interval(first, last, family)}"
    if show := _SHOW.get(name):
        return show(family, key, data or b"")
    if name.startswith(skeleton.STICKY):
        return hex(unpack_mark(key))
    size = family.bits // 8
    where = str(ipaddress.ip_address(key[:size]))
    return f"{where} . {where}" if name == SetName.LOCAL_ENDPOINTS else where


def _frontend(_: Family, key: bytes, data: bytes) -> str:
    front = unpack.unpack_frontend(key)
    return f"{front.address} . {front.protocol.lower()} . {front.port} : {unpack_mark(data):#x}"


def _node_port(family: Family, key: bytes, data: bytes) -> str:
    front = unpack.unpack_node_port(key, family)
    return f"{front.protocol.lower()} . {front.port} : {unpack_mark(data):#x}"


def _indexed(key: bytes) -> str:
    list_id, index = unpack.unpack_index(key)
    return f"{list_id:#x} . {index}"


def _backend(data: bytes) -> str:
    backend = unpack.unpack_backend(data)
    return f"{backend.address} . {backend.port}"


_SHOW: Final[dict[str, Callable[[Family, bytes, bytes], str]]] = {
    skeleton.FRONTENDS: _frontend,
    skeleton.NODE_PORTS: _node_port,
    skeleton.ENDPOINTS: lambda _, key, data: f"{_indexed(key)} : {_backend(data)}",
    skeleton.PICKS: lambda _, key, data: f"{_indexed(key)} : {unpack_mark(data):#x}",
    skeleton.SLOTS: lambda _, key, data: f"{unpack_mark(key):#x} : {_backend(data)}",
    skeleton.SHORT_CIRCUITS: lambda _, key, data: f"{unpack_mark(key):#x} : {unpack_mark(data):#x}",
}


def _interval(first: int, last: int, family: Family) -> str:
    size = family.bits // 8
    low, high = (ipaddress.ip_address(n.to_bytes(size, "big")) for n in (first, last))
    return str(low) if low == high else f"{low}-{high}"
