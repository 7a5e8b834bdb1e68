"""Expressions of nftables rules on the wire (linux/netfilter/nf_tables.h). Bytes out.

A rule is a list of expressions: some load a field of the packet into registers, some compare registers or
look them up in a set, and the last says what to do. The first that does not hold ends the rule. A key of
several fields lies in consecutive registers of 4 bytes, each field padded to its end.
"""

from __future__ import annotations

import struct
from typing import Final

from podlane.kernel.conntrack import codec as conntrack
from podlane.kernel.netlink import attribute, be32, nested, text
from podlane.model.addresses import Family

DROP, ACCEPT = 0, 1  # NF_DROP, NF_ACCEPT
JUMP, GOTO, RETURN = -3, -4, -5  # NFT_JUMP, NFT_GOTO, NFT_RETURN

REGISTER: Final = 8  # NFT_REG32_00: the first of 16 registers of 4 bytes
_VERDICT: Final = 0  # NFT_REG_VERDICT

LINK, NETWORK, TRANSPORT = 0, 1, 2  # NFT_PAYLOAD_*_HEADER

_PROTOCOL, _IIFNAME, _OIFNAME, _L4PROTO = 1, 6, 7, 16  # NFT_META_*
_EQUAL, _NOT_EQUAL = 0, 1  # NFT_CMP_*
_STATE, _LABELS = 0, 13  # NFT_CT_*
_TCP_RESET: Final = 1  # NFT_REJECT_TCP_RST
_ESTABLISHED, _RELATED = 2, 4  # NF_CT_STATE_BIT

NAME_WORDS: Final = 4  # a link's name: 16 bytes


def words(family: Family) -> int:
    """Registers that an address takes."""
    return family.bits // 32


# --- pieces ---------------------------------------------------------------------------------------


def expression(name: str, *attributes: bytes) -> bytes:
    """An element of a rule's list of expressions."""
    return nested(1, attribute(1, text(name)), nested(2, *attributes))


def number(kind: int, value: int) -> bytes:
    return attribute(kind, be32(value))


def data(kind: int, value: bytes) -> bytes:
    """NFTA_DATA_VALUE within attribute `kind`."""
    return nested(kind, attribute(1, value))


def verdict(kind: int, code: int, chain: str = "") -> bytes:
    """NFTA_DATA_VERDICT within attribute `kind`."""
    target = attribute(2, text(chain)) if chain else b""
    return nested(kind, nested(2, attribute(1, struct.pack("!i", code)), target))


# --- loads ----------------------------------------------------------------------------------------


def payload(base: int, offset: int, size: int, register: int = REGISTER) -> bytes:
    fields = (number(1, register), number(2, base), number(3, offset), number(4, size))
    return expression("payload", *fields)


def _meta(key: int, register: int) -> bytes:
    return expression("meta", number(1, register), number(2, key))


def iifname(register: int = REGISTER) -> bytes:
    return _meta(_IIFNAME, register)


def oifname(register: int = REGISTER) -> bytes:
    return _meta(_OIFNAME, register)


def l4proto(register: int = REGISTER) -> bytes:
    return _meta(_L4PROTO, register)


def ether_type(register: int = REGISTER) -> bytes:
    return _meta(_PROTOCOL, register)


def source(family: Family, register: int = REGISTER) -> bytes:
    return payload(NETWORK, 12 if family is Family.IPV4 else 8, family.bits // 8, register)


def destination(family: Family, register: int = REGISTER) -> bytes:
    return payload(NETWORK, 16 if family is Family.IPV4 else 24, family.bits // 8, register)


def destination_port(register: int = REGISTER) -> bytes:
    """Of TCP, UDP and SCTP alike."""
    return payload(TRANSPORT, 2, 2, register)


# --- conditions -----------------------------------------------------------------------------------


def equal(value: bytes, register: int = REGISTER) -> bytes:
    return expression("cmp", number(1, register), number(2, _EQUAL), data(3, value))


def masked(mask: bytes, register: int = REGISTER) -> bytes:
    """register &= mask"""
    nothing = bytes(len(mask))
    return expression(
        "bitwise",
        number(1, register),
        number(2, register),
        number(3, len(mask)),
        data(4, mask),
        data(5, nothing),
    )


def established() -> bytes:
    """ct state established,related"""
    state = expression("ct", number(1, REGISTER), number(2, _STATE))
    wanted = masked(struct.pack("=I", _ESTABLISHED | _RELATED))
    some = expression("cmp", number(1, REGISTER), number(2, _NOT_EQUAL), data(3, bytes(4)))
    return state + wanted + some


def cut() -> bytes:
    """The conntrack label says that policy has cut the flow."""
    label = expression("ct", number(1, REGISTER), number(2, _LABELS))
    some = expression("cmp", number(1, REGISTER), number(2, _NOT_EQUAL), data(3, bytes(16)))
    return label + masked(conntrack.label_bytes(conntrack.CUT)) + some


def names_labels() -> bytes:
    """Sets a flow's labels to what they are. That there is such a rule makes room for labels in new flows."""
    load = expression("ct", number(1, REGISTER), number(2, _LABELS))
    return load + expression("ct", number(4, REGISTER), number(2, _LABELS))


def reset() -> bytes:
    """reject with tcp reset"""
    return expression("reject", number(1, _TCP_RESET), attribute(2, bytes(1)))


def member(set_: str, register: int = REGISTER) -> bytes:
    """The key that begins at `register` is in the set."""
    return expression("lookup", attribute(1, text(set_)), number(2, register))


def no_member(set_: str, register: int = REGISTER) -> bytes:
    """The key that begins at `register` is not in the set."""
    return expression("lookup", attribute(1, text(set_)), number(2, register), number(5, 1))


# --- ends -----------------------------------------------------------------------------------------


def by_map(map_: str, register: int = REGISTER) -> bytes:
    """What the map of verdicts says; the rule does not hold for a key it does not have."""
    return expression("lookup", attribute(1, text(map_)), number(2, register), number(3, _VERDICT))


def end(code: int, chain: str = "") -> bytes:
    return expression("immediate", number(1, _VERDICT), verdict(2, code, chain))


def counter() -> bytes:
    return expression("counter")
