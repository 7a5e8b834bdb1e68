"""rtnetlink messages of qdisc clsact and of eBPF programs as its filters (linux/pkt_cls.h). Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from podlane.kernel import netlink as nl
from podlane.kernel.netlink import Message, Request, attribute, attributes, nested, text, u32
from podlane.kernel.tc.codec import (
    EVERY_PROTOCOL,
    GET_FILTER,
    INGRESS,
    INGRESS_HANDLE,
    KIND,
    MESSAGE,
    NEW_FILTER,
    NEW_QDISC,
    OPTIONS,
)

DELETE_FILTER: Final = 45
ON_INGRESS: Final = 0xFFFFFFF2  # what the link receives
ON_EGRESS: Final = 0xFFFFFFF3  # what it is to send

_FD, _NAME, _FLAGS, _ID = 6, 7, 8, 11  # TCA_BPF_*
_DIRECT: Final = 1  # TCA_BPF_FLAG_ACT_DIRECT: the program's verdict is the action


class Attached(NamedTuple):
    """A bpf filter. hook: ON_INGRESS or ON_EGRESS; program: its id."""

    link: int
    hook: int
    priority: int
    name: str
    program: int


def add_clsact(link: int) -> Request:
    """Where programs see what a link receives and sends. Refused (EEXIST) if it has one, or `ingress`."""
    head = MESSAGE.pack(0, link, INGRESS_HANDLE, INGRESS, 0)
    body = head + attribute(KIND, text("clsact")) + nested(OPTIONS)
    return Request(NEW_QDISC, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body, f"add clsact qdisc of link {link}")


def attach(link: int, hook: int, priority: int, name: str, program: int) -> Request:
    """program: a descriptor. Takes the place of the program that is there, at once."""
    head = MESSAGE.pack(0, link, 1, hook, priority << 16 | EVERY_PROTOCOL)
    options = attribute(_FD, u32(program)) + attribute(_NAME, text(name)) + attribute(_FLAGS, u32(_DIRECT))
    body = head + attribute(KIND, text("bpf")) + nested(OPTIONS, options)
    return Request(NEW_FILTER, nl.NLM_F_CREATE, body, f"attach {name} to link {link}")


def detach(link: int, hook: int, priority: int) -> Request:
    body = MESSAGE.pack(0, link, 0, hook, priority << 16 | EVERY_PROTOCOL)
    return Request(DELETE_FILTER, 0, body, f"detach programs of link {link}")


def get_all(link: int, hook: int) -> Request:
    """A dump of a link's filters."""
    return Request(GET_FILTER, 0, MESSAGE.pack(0, link, 0, hook, 0), f"list filters of link {link}")


def is_filter(message: Message) -> bool:
    """A dump tells of each priority first, without a handle, and then of the filters that it has."""
    return bool(MESSAGE.unpack_from(message.body)[2])


def unpack(message: Message) -> Attached | None:
    """None for what is no bpf filter. Raises netlink.Truncated or struct.error."""
    _, link, _, parent, info = MESSAGE.unpack_from(message.body)
    found = attributes(message.body, MESSAGE.size)
    if nl.unpack_text(found.get(KIND, b"")) != "bpf":
        return None
    options = attributes(found.get(OPTIONS, b""))
    program = int.from_bytes(options.get(_ID, b""), "little")
    return Attached(link, parent, info >> 16, nl.unpack_text(options.get(_NAME, b"")), program)
