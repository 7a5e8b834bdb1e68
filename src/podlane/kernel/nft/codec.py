"""nftables set elements on the wire (nfnetlink, linux/netfilter/nf_tables.h). Bytes in, bytes out.

Podlane changes elements only; chains and rules are loaded as text, once (skeleton.py). A message

    nlmsghdr  nfgenmsg(family, version 0, res_id 0)
              NFTA_SET_ELEM_LIST_TABLE, _SET, and _ELEMENTS: a list of
                  NFTA_SET_ELEM_KEY { value }  [NFTA_SET_ELEM_DATA { value }]  [NFTA_SET_ELEM_FLAGS]

adds or deletes elements of one set or map; messages between a batch's begin and end take effect
together or not at all. Every field of a concatenation is padded to 4 bytes. Marks and the numbers of
numgen are in host byte order, ports and addresses in network byte order.

An interval [first, last] of a set with `flags interval` is two elements: first, and last + 1 with the
flag INTERVAL_END (none if last is the highest value). They come and go together and one right after the
other, or the kernel does not find the end.

An interval of a set whose key is a concatenation is one element with the key's first and last value
(NFTA_SET_ELEM_KEY_END). In such sets nft has marks in network byte order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final, NamedTuple, TypeAlias

from podlane.kernel import netlink
from podlane.kernel.netlink import NLM_F_CREATE, Message, Request
from podlane.kernel.nft import expressions
from podlane.model.addresses import Address, Family, Prefix

SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
BATCH_BEGIN, BATCH_END = 0x10, 0x11

GET_TABLE: Final = SUBSYSTEM << 8 | 1
GET_CHAIN: Final = SUBSYSTEM << 8 | 4
GET_SET: Final = SUBSYSTEM << 8 | 10
NEW_ELEMENTS: Final = SUBSYSTEM << 8 | 12
GET_ELEMENTS: Final = SUBSYSTEM << 8 | 13
DELETE_ELEMENTS: Final = SUBSYSTEM << 8 | 14

INTERVAL_END: Final = 1  # NFT_SET_ELEM_INTERVAL_END

_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_KEY, _DATA, _FLAGS, _KEY_END = 1, 2, 3, 10  # NFTA_SET_ELEM_*
_VALUE, _VERDICT = 1, 2  # NFTA_DATA_*
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_LIST_ELEMENT = 1
_NAME = 1  # NFTA_TABLE_NAME; of chains and sets: the table
_SET_NAME = 2
_CHAIN_NAME = 3

# An attribute's length is 16 bits.
_MESSAGE_BYTES: Final = 60000

_NFGENMSG = struct.Struct("!BBH")
_NESTED = netlink.NLA_F_NESTED
_ATTRIBUTE = struct.Struct("=HH")


class BridgeFamily(NamedTuple):
    """The family of what crosses a bridge, beside those of IP."""

    af: int = 7  # NFPROTO_BRIDGE
    nft: str = "bridge"


TableFamily: TypeAlias = Family | BridgeFamily
BRIDGE: Final = BridgeFamily()


class Element(NamedTuple):
    """key: the padded fields. data: a map's value, None in a set and for verdicts. flags: INTERVAL_END.
    verdict, chain: of a map of verdicts, what to do and where that leads. last: the end of an interval of
    concatenations, empty when it is the key itself."""

    key: bytes
    data: bytes | None = None
    flags: int = 0
    chain: str = ""
    last: bytes = b""
    verdict: int | None = None


# --- fields ---------------------------------------------------------------------------------------


def fields(*values: bytes) -> bytes:
    """A concatenation: each field padded to 4 bytes."""
    return b"".join(value + b"\0" * (-len(value) & 3) for value in values)


def address_field(value: Address) -> bytes:
    return value.packed


def mark_field(value: int) -> bytes:
    """A mark, or a number from numgen: 32 bits in host byte order."""
    return struct.pack("=I", value)


def unpack_mark(data: bytes, offset: int = 0) -> int:
    return int(struct.unpack_from("=I", data, offset)[0])


def port_field(value: int) -> bytes:
    return struct.pack("!H", value)


def intervals(prefixes: Iterable[Prefix]) -> list[tuple[int, int]]:
    """Prefixes of one family as disjoint ranges [first, last] that do not touch, in order."""
    found: list[tuple[int, int]] = []
    for first, last in sorted((int(p.network_address), int(p.broadcast_address)) for p in prefixes):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found


def interval_elements(first: int, last: int, family: Family) -> tuple[Element, ...]:
    """The elements of one interval, in the order in which they are added and deleted."""
    size = family.bits // 8
    start = Element(first.to_bytes(size, "big"))
    if last + 1 == 1 << family.bits:
        return (start,)
    return start, Element((last + 1).to_bytes(size, "big"), flags=INTERVAL_END)


def unpack_intervals(elements: Iterable[Element], family: Family) -> list[tuple[int, int]]:
    """The intervals [first, last] that elements in any order stand for.

    An end without a start is nothing: nft puts one at 0 of a set that does not begin there.
    """
    edges = sorted((int.from_bytes(each.key, "big"), not each.flags & INTERVAL_END) for each in elements)
    found: list[tuple[int, int]] = []
    for place, (first, starts) in enumerate(edges):
        if starts:
            after = edges[place + 1][0] if place + 1 < len(edges) else 1 << family.bits
            found.append((first, after - 1))
    return found


# --- messages -------------------------------------------------------------------------------------


def header(family: TableFamily | None, resource: int = 0) -> bytes:
    """struct nfgenmsg. None: of no family."""
    return _NFGENMSG.pack(family.af if family else 0, 0, resource)


def batch() -> tuple[Request, Request]:
    """What begins and what ends a transaction."""
    body = header(None, SUBSYSTEM)
    return (Request(BATCH_BEGIN, 0, body, "nftables transaction"), Request(BATCH_END, 0, body, "commit"))


def pack_element(element: Element) -> bytes:
    key, data = element.key, element.data
    if data is not None and not element.flags and not element.last:
        before, between = _map_headers(len(key), len(data))
        return before + key + between + data
    body = _nest(_KEY, _nest(_VALUE, key, flag=0))
    if data is not None:
        body += _nest(_DATA, _nest(_VALUE, data, flag=0))
    elif element.verdict is not None:
        body += expressions.verdict(_DATA, element.verdict, element.chain)
    if element.last:
        body += _nest(_KEY_END, _nest(_VALUE, element.last, flag=0))
    if element.flags:
        body += netlink.attribute(_FLAGS, netlink.be32(element.flags))
    return _nest(_LIST_ELEMENT, body)


@cache
def _map_headers(key_bytes: int, data_bytes: int) -> tuple[bytes, bytes]:
    """What goes before the key and before the data of a map's element: the same for all of a map."""
    key, data = bytes(key_bytes), bytes(data_bytes)
    whole = _nest(
        _LIST_ELEMENT, _nest(_KEY, _nest(_VALUE, key, flag=0)) + _nest(_DATA, _nest(_VALUE, data, flag=0))
    )
    middle = len(whole) - data_bytes
    return whole[: 3 * _ATTRIBUTE.size], whole[3 * _ATTRIBUTE.size + key_bytes : middle]


def _nest(kind: int, payload: bytes, flag: int = _NESTED) -> bytes:
    return _ATTRIBUTE.pack(4 + len(payload), kind | flag) + payload + b"\0" * (-len(payload) & 3)


def change(
    family: TableFamily, table: str, set_: str, elements: Iterable[bytes], *, add: bool
) -> Iterator[Request]:
    """Messages that add or delete elements of one set. elements: packed."""
    head = header(family) + netlink.attribute(_TABLE, netlink.text(table))
    head += netlink.attribute(_SET, netlink.text(set_))
    kind, flags, verb = (NEW_ELEMENTS, NLM_F_CREATE, "add") if add else (DELETE_ELEMENTS, 0, "delete")
    chunk: list[bytes] = []
    size = 0

    def message() -> Request:
        body = head + _nest(_ELEMENTS, b"".join(chunk))
        what = "element" if len(chunk) == 1 else f"{len(chunk)} elements"
        return Request(kind, flags, body, f"{verb} {what}: {family.nft} {table} {set_}")

    for packed in elements:
        if chunk and size + len(packed) > _MESSAGE_BYTES:
            yield message()
            chunk, size = [], 0
        chunk.append(packed)
        size += len(packed)
    if chunk:
        yield message()


def get_elements(family: TableFamily, table: str, set_: str) -> Request:
    """A dump of one set's elements."""
    body = netlink.attribute(_TABLE, netlink.text(table)) + netlink.attribute(_SET, netlink.text(set_))
    return Request(GET_ELEMENTS, 0, header(family) + body, f"list elements: {family.nft} {table} {set_}")


def unpack_elements(message: Message) -> Iterator[Element]:
    """The elements in one message of a dump. Raises netlink.Truncated."""
    for kind, listed in netlink.attribute_list(message.body, _NFGENMSG.size):
        if kind == _ELEMENTS:
            alike = _unpack_alike(listed)
            if alike is not None:
                yield from alike
                continue
            for _, body in netlink.attribute_list(listed):
                yield _unpack_element(body)


def _unpack_alike(listed: bytes) -> list[Element] | None:
    """Elements that have a key and perhaps data, of one size, and nothing else, as all of a large map or
    set do: they are cut by one format, ten times as fast. None if they are not like that."""
    size = _ATTRIBUTE.unpack_from(listed)[0] if len(listed) >= _ATTRIBUTE.size else 0
    if not size or len(listed) % size:
        return None
    first = _unpack_element(listed[_ATTRIBUTE.size : size])
    keys, data = len(first.key), first.data
    start, end = 3 * _ATTRIBUTE.size, 3 * _ATTRIBUTE.size + keys
    middle = 0 if data is None else 2 * _ATTRIBUTE.size
    if listed[start:end] != first.key or listed[end + middle : size] != (data or b""):
        return None
    each = struct.Struct(f"{start}s{keys}s{middle}s{size - end - middle}s")
    before, between = listed[:start], listed[end : end + middle]
    found: list[Element] = []
    for head, key, gap, value in each.iter_unpack(listed):
        if head != before or gap != between:
            return None
        found.append(Element(key, value if middle else None))
    return found


def _unpack_element(body: bytes) -> Element:
    found = netlink.attributes(body)
    key = netlink.attributes(found.get(_KEY, b"")).get(_VALUE, b"")
    flags = int.from_bytes(found.get(_FLAGS, b"\0"), "big")
    if _DATA not in found:
        last = netlink.attributes(found.get(_KEY_END, b"")).get(_VALUE, b"")
        return Element(key, None, flags, last=last if last != key else b"")
    data = netlink.attributes(found[_DATA])
    if _VERDICT in data:
        verdict = netlink.attributes(data[_VERDICT])
        code = int.from_bytes(verdict.get(_VERDICT_CODE, b""), "big", signed=True)
        return Element(key, None, flags, netlink.unpack_text(verdict.get(_VERDICT_CHAIN, b"")), verdict=code)
    return Element(key, data.get(_VALUE, b""), flags)


def get_table(family: TableFamily, table: str) -> Request:
    body = header(family) + netlink.attribute(_NAME, netlink.text(table))
    return Request(GET_TABLE, 0, body, f"look up table {family.nft} {table}")


def get_chain(family: TableFamily, table: str, chain: str) -> Request:
    body = header(family) + netlink.attribute(_NAME, netlink.text(table))
    body += netlink.attribute(_CHAIN_NAME, netlink.text(chain))
    return Request(GET_CHAIN, 0, body, f"look up chain {family.nft} {table} {chain}")


def get_sets(family: TableFamily, table: str) -> Request:
    """A dump of a table's sets and maps."""
    body = header(family) + netlink.attribute(_NAME, netlink.text(table))
    return Request(GET_SET, 0, body, f"list sets: {family.nft} {table}")


def unpack_set_name(message: Message) -> str:
    return netlink.unpack_text(netlink.attributes(message.body, _NFGENMSG.size).get(_SET_NAME, b""))
