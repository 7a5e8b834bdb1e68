"""The chain of one endpoint count, as netlink messages: `numgen` takes a constant, so each count has its own.

    chain count-3 { dnat ip addr . port to ct mark & 0x3ffff . numgen random mod 3 map @endpoints }
    chain pick-3  { ct mark set ct mark & 0x3ffff . numgen random mod 3 map @picks jump stick }   (twice)

With the code of a hash instead of a count it is `jhash ip saddr mod M` that gives the number,

and the element of the verdict map `counts` that leads there. They go with the first list of that many
endpoints, in the same transaction. (nft 1.0.6 cannot add such a rule to a table that stands: it takes the
map's `th dport` for a contradiction of `meta l4proto`. The kernel itself has no such wish.)

Expressions and attributes: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from podlane.compile import hashing
from podlane.kernel.netlink import NLM_F_APPEND, NLM_F_CREATE, Request, attribute, nested, text
from podlane.kernel.nft import codec, lists
from podlane.kernel.nft.expressions import JUMP, verdict
from podlane.kernel.nft.expressions import expression as _expression
from podlane.kernel.nft.expressions import number as _u
from podlane.kernel.nft.skeleton import COUNTS, ENDPOINTS, PICKS, STICK, TABLE, count_key
from podlane.model import marks
from podlane.model.addresses import Family

_NEW_CHAIN: Final = codec.SUBSYSTEM << 8 | 3
_NEW_RULE: Final = codec.SUBSYSTEM << 8 | 6

_CT_MARK: Final = 3  # NFT_CT_MARK
_RANDOM: Final = 1  # NFT_NG_RANDOM
_DNAT: Final = 1  # NFT_NAT_DNAT

# 32-bit registers. The key: list id, number. What comes out of the map begins where the key did.
_R0, _R1 = 8, 9  # NFT_REG32_00 and the next
_R6: Final = 14  # what is hashed begins here

_NETWORK, _TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
_JENKINS: Final = 0  # NFT_HASH_JENKINS


def unpack_key(word: int) -> tuple[int, bool]:
    """(code, affinity) of a key of `counts`"""
    return marks.COUNT.of(word), bool(word & marks.CLASS.put(marks.AFFINITY))


def chain(family: Family, code: int, *, affinity: bool) -> Iterator[Request]:
    """The messages that make a count's chain and lead to it. COUNT 0 has none."""
    name = f"{'pick' if affinity else 'count'}-{code}"
    head, table = codec.header(family), attribute(1, text(TABLE))
    yield Request(_NEW_CHAIN, NLM_F_CREATE, head + table + attribute(3, text(name)), f"add chain {name}")
    drawn = _draw(family, code, PICKS if affinity else ENDPOINTS)
    rule = drawn + (_stick() if affinity else _translate(family))
    body = head + table + attribute(2, text(name)) + nested(4, rule)
    for _ in range(2 if affinity else 1):
        yield Request(_NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, body, f"add rule to {name}")
    key = attribute(1, codec.mark_field(count_key(code, affinity=affinity)))
    element = nested(1, nested(1, key), verdict(2, JUMP, name))
    body = head + table + attribute(2, text(COUNTS)) + nested(3, element)
    yield Request(codec.NEW_ELEMENTS, NLM_F_CREATE, body, f"add element: {COUNTS} {name}")


def _draw(family: Family, code: int, map_: str) -> bytes:
    """ct mark & LIST . number map @map"""
    mask = attribute(1, struct.pack("=I", marks.LIST.mask))
    nothing = attribute(1, struct.pack("=I", 0))
    modulus = lists.modulus(code)
    if lists.is_hash(code):
        number = _hash(family, modulus, port=lists.hashes_port(code))
    else:
        number = _expression("numgen", _u(1, _R1), _u(2, modulus), _u(3, _RANDOM), _u(4, 0))
    return b"".join(
        (
            _expression("ct", _u(1, _R0), _u(2, _CT_MARK)),
            _expression("bitwise", _u(1, _R0), _u(2, _R0), _u(3, 4), nested(4, mask), nested(5, nothing)),
            number,
            _expression("lookup", attribute(1, text(map_)), _u(2, _R0), _u(3, _R0)),
        )
    )


def _hash(family: Family, modulus: int, *, port: bool) -> bytes:
    """jhash ip saddr [. th sport] mod M"""
    size = family.bits // 8
    begin = 12 if family is Family.IPV4 else 8  # of the source in the header
    found = _expression("payload", _u(1, _R6), _u(2, _NETWORK), _u(3, begin), _u(4, size))
    if port:
        found += _expression("payload", _u(1, _R6 + size // 4), _u(2, _TRANSPORT), _u(3, 0), _u(4, 2))
        size += 4
    numbers = _u(3, size), _u(4, modulus), _u(5, hashing.SEED), _u(6, 0), _u(7, _JENKINS)
    return found + _expression("hash", _u(1, _R6), _u(2, _R1), *numbers)


def _translate(family: Family) -> bytes:
    """dnat to the address and port that the map gave"""
    port = _R0 + family.bits // 32
    registers = (_u(3, _R0), _u(4, _R0), _u(5, port), _u(6, port))
    return _expression("nat", _u(1, _DNAT), _u(2, family.af), *registers)


def _stick() -> bytes:
    """ct mark set to what the map gave, then on to the affinity rules"""
    return _expression("ct", _u(4, _R0), _u(2, _CT_MARK)) + _expression(
        "immediate", _u(1, 0), verdict(2, JUMP, STICK)
    )
