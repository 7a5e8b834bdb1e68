"""rtnetlink messages of traffic control (linux/pkt_sched.h, pkt_cls.h): tbf, ingress, u32 with mirred. Pure.

Only what a limit on one link takes. Rates are in bytes a second here, as in the kernel.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from podlane.kernel import netlink as nl
from podlane.kernel.netlink import Message, Request, attribute, attributes, nested, text, u32, u64

NEW_QDISC, DELETE_QDISC, GET_QDISC = 36, 37, 38
NEW_FILTER, GET_FILTER = 44, 46

ROOT: Final = 0xFFFFFFFF
INGRESS: Final = 0xFFFFFFF1
TBF_HANDLE: Final = 0x10000  # 1:
INGRESS_HANDLE: Final = 0xFFFF0000  # ffff:

KIND, OPTIONS = 1, 2  # TCA_*
_TBF_PARAMETERS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_U32_CLASS, _U32_SELECTOR, _U32_ACTION = 1, 5, 7
_ACTION_KIND, _ACTION_OPTIONS, _MIRRED_PARAMETERS = 1, 2, 2
_ETHERNET: Final = 1  # TC_LINKLAYER_ETHERNET: lengths are taken as they are, without a rate table
_TERMINAL: Final = 1  # TC_U32_TERMINAL
_STOLEN, _REDIRECT = 4, 1  # TC_ACT_STOLEN, TCA_EGRESS_REDIR
EVERY_PROTOCOL: Final = 0x0300  # ETH_P_ALL in network byte order
_RATE32_MOST: Final = 0xFFFFFFFF
_TICK_NS: Final = 64  # PSCHED_TICKS2NS

MESSAGE = struct.Struct("=BxxxiIII")
_RATE = struct.Struct("=BBHhHI")
_TBF = struct.Struct(f"={_RATE.size}s{_RATE.size}sIII")
_SELECTOR = struct.Struct("=BBBxHHhhI")
_KEY = struct.Struct("=IIii")
_MIRRED = struct.Struct("=IIiiiiI")


class Bucket(NamedTuple):
    """A token bucket: rate in bytes a second, burst and limit (of the queue) in bytes."""

    rate: int
    burst: int
    limit: int


def set_bucket(link: int, bucket: Bucket) -> Request:
    """The bucket as root of a link, in place of whatever it has."""
    rate = _RATE.pack(0, _ETHERNET, 0, 0, 0, min(bucket.rate, _RATE32_MOST))
    parameters = _TBF.pack(rate, bytes(_RATE.size), bucket.limit, 0, 0)
    options = attribute(_TBF_PARAMETERS, parameters) + attribute(_TBF_BURST, u32(bucket.burst))
    if bucket.rate >= _RATE32_MOST:
        options += attribute(_TBF_RATE64, u64(bucket.rate))
    body = _head(link, TBF_HANDLE, ROOT) + attribute(KIND, text("tbf")) + nested(OPTIONS, options)
    return Request(NEW_QDISC, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body, f"set tbf of link {link}")


def add_ingress(link: int) -> Request:
    """Where filters see what a link receives. Refused (EEXIST) if it has one."""
    body = _head(link, INGRESS_HANDLE, INGRESS) + attribute(KIND, text("ingress")) + nested(OPTIONS)
    return Request(NEW_QDISC, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body, f"add ingress qdisc of link {link}")


def delete(link: int, parent: int) -> Request:
    """parent: ROOT or INGRESS."""
    handle = INGRESS_HANDLE if parent == INGRESS else 0
    return Request(DELETE_QDISC, 0, _head(link, handle, parent), f"delete qdisc of link {link}")


def redirect(link: int, to: int) -> Request:
    """Everything that link receives is sent out of link `to` instead. Needs `add_ingress`."""
    mirred = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _REDIRECT, to)
    options = nested(_ACTION_OPTIONS, attribute(_MIRRED_PARAMETERS, mirred))
    action = nested(1, attribute(_ACTION_KIND, text("mirred")), options)
    selector = _SELECTOR.pack(_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _KEY.pack(0, 0, 0, 0)
    body = (
        _head(link, 0, INGRESS_HANDLE, 1 << 16 | EVERY_PROTOCOL)
        + attribute(KIND, text("u32"))
        + nested(
            OPTIONS,
            attribute(_U32_CLASS, u32(0x10001)),
            attribute(_U32_SELECTOR, selector),
            nested(_U32_ACTION, action),
        )
    )
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    return Request(NEW_FILTER, flags, body, f"redirect what link {link} receives")


def get_all() -> Request:
    """A dump of the queueing disciplines of all links."""
    return Request(GET_QDISC, 0, _head(0, 0, 0), "list qdiscs")


def get_filters(link: int) -> Request:
    """A dump of a link's filters of what it receives."""
    return Request(GET_FILTER, 0, _head(link, 0, INGRESS_HANDLE), f"list filters of link {link}")


class Qdisc(NamedTuple):
    """parent: ROOT, INGRESS or another. bucket: of a tbf; its burst is rounded by the kernel's clock."""

    link: int
    parent: int
    kind: str
    bucket: Bucket | None = None


def unpack(message: Message) -> Qdisc:
    """Raises netlink.Truncated or struct.error."""
    _, link, _, parent, _ = MESSAGE.unpack_from(message.body)
    found = attributes(message.body, MESSAGE.size)
    kind = nl.unpack_text(found.get(KIND, b""))
    return Qdisc(link, parent, kind, _unpack_bucket(found.get(OPTIONS, b"")) if kind == "tbf" else None)


def unpack_redirect(message: Message) -> int | None:
    """Index of the link that a filter redirects to; None if it does something else."""
    found = attributes(message.body, MESSAGE.size)
    actions = attributes(attributes(found.get(OPTIONS, b"")).get(_U32_ACTION, b""))
    for action in actions.values():
        parts = attributes(action)
        if nl.unpack_text(parts.get(_ACTION_KIND, b"")) == "mirred":
            mirred = attributes(parts.get(_ACTION_OPTIONS, b"")).get(_MIRRED_PARAMETERS, b"")
            *_, what, to = _MIRRED.unpack_from(mirred)
            return int(to) if what == _REDIRECT else None
    return None


def _unpack_bucket(data: bytes) -> Bucket:
    found = attributes(data)
    rate, _, limit, buffer, _ = _TBF.unpack_from(found[_TBF_PARAMETERS])
    bytes_a_second = _RATE.unpack(rate)[-1]
    if _TBF_RATE64 in found:
        bytes_a_second = struct.unpack("=Q", found[_TBF_RATE64])[0]
    return Bucket(bytes_a_second, buffer * _TICK_NS * bytes_a_second // 1_000_000_000, limit)


def _head(link: int, handle: int, parent: int, info: int = 0) -> bytes:
    return MESSAGE.pack(0, link, handle, parent, info)
