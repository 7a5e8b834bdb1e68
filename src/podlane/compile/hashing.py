"""Endpoints by hash: which slot of a table a client falls into, and which endpoint each slot has.

    source hash    the endpoints in order, repeated evenly; a change of the list moves most clients
    maglev         consistent: of n endpoints that change by one, about one client in n moves, and no more
                   (Eisenbud et al., Maglev, NSDI 2016, section 3.4)

Both tables depend on nothing but the endpoints, so that every node sends one client to the same endpoint,
whichever node it comes in by and however the list came about. The kernel computes the slot (nft jhash);
`slot_of` is the same function, so that explain can tell it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import lru_cache
from typing import Final

from podlane.compile.tables import Backend, BackendList
from podlane.model.addresses import Address
from podlane.model.config import HASH_TABLE_SIZES, Balancing

SEED: Final = 0x85
_PER_ENDPOINT: Final = 32  # slots a maglev endpoint has at least, on average: shares differ by a few percent
_PER_ENTRY: Final = 8  # slots of each entry of a source hash: shares differ by one in eight at most
_WORD: Final = 0xFFFFFFFF


def maglev_size(endpoints: int, wanted: int) -> int:
    """Slots for a number of endpoints: `wanted`, unless they are too many for that."""
    return _fitting(max(wanted, endpoints * _PER_ENDPOINT))


def source_hash_size(entries: int) -> int:
    """Slots for a list of so many entries, endpoints repeated by weight."""
    return _fitting(entries * _PER_ENTRY)


def _fitting(slots: int) -> int:
    return next((size for size in HASH_TABLE_SIZES if size >= slots), HASH_TABLE_SIZES[-1])


def table_of(row: BackendList) -> tuple[Backend, ...]:
    """The endpoint of every slot of a list that is chosen from by hash."""
    if row.balancing is Balancing.MAGLEV:
        return maglev(row.backends, row.slots)
    return tuple(row.backends[place * len(row.backends) // row.slots] for place in range(row.slots))


@lru_cache(maxsize=16)  # a port's lists in both scopes, and those that a change does not reach
def maglev(backends: tuple[Backend, ...], slots: int) -> tuple[Backend, ...]:
    """Endpoints take turns, each claiming its next free slot in an order of its own; one of half the weight
    (how often it is in `backends`) comes to every other turn. slots: prime."""
    weights = Counter(backends)
    names = sorted(weights)
    most = max(weights.values(), default=0)
    at, step = zip(*(_permutation(each, slots) for each in names), strict=True) if names else ((), ())
    place = list(at)
    credit = [0] * len(names)
    table: list[Backend | None] = [None] * slots if names else []
    left = len(table)
    while left:
        for number, each in enumerate(names):
            credit[number] += weights[each]
            if credit[number] < most:
                continue
            credit[number] -= most
            where = place[number]
            while table[where] is not None:
                where = (where + step[number]) % slots
            table[where] = each
            place[number] = (where + step[number]) % slots
            left -= 1
            if not left:
                break
    return tuple(each for each in table if each is not None)


def _permutation(backend: Backend, slots: int) -> tuple[int, int]:
    """(first slot, step): with a prime number of slots the steps visit every one."""
    digest = hashlib.blake2b(backend, digest_size=16).digest()
    offset, skip = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
    return offset % slots, skip % (slots - 1) + 1


def slot_of(source: Address, slots: int, port: int | None = None) -> int:
    """The slot of a client: by its address, or by address and port."""
    key = source.packed if port is None else source.packed + port.to_bytes(2, "big") + b"\0\0"
    return jhash(key, SEED) * slots >> 32


def jhash(key: bytes, seed: int) -> int:
    """Bob Jenkins' lookup3 as Linux has it (include/linux/jhash.h), on a little-endian machine."""
    a = b = c = (0xDEADBEEF + len(key) + seed) & _WORD
    while len(key) > 12:
        a, b, c = _mix(*_added(a, b, c, key[:12]))
        key = key[12:]
    return _final(*_added(a, b, c, key)) if key else c


def _added(a: int, b: int, c: int, block: bytes) -> tuple[int, int, int]:
    words = [int.from_bytes(block[at : at + 4], "little") for at in (0, 4, 8)]
    return (a + words[0]) & _WORD, (b + words[1]) & _WORD, (c + words[2]) & _WORD


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _WORD


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for bits in (4, 6, 8, 16, 19, 4):
        a = (a - c & _WORD) ^ _rotated(c, bits)
        c = (c + b) & _WORD
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotated(b, bits)) & _WORD
        a, b, c = b, c, a
    return b


def chosen(row: BackendList, source: Address, port: int | None = None) -> Backend | None:
    """The endpoint that a client falls to; None where that is not known: a draw, or by a port not given."""
    if row.balancing not in (Balancing.MAGLEV, Balancing.SOURCE_HASH) or not row.backends:
        return None
    if row.by_port and port is None:
        return None
    return table_of(row)[slot_of(source, row.slots, port if row.by_port else None)]
