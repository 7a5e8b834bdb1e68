"""How full connection tracking is, and what went wrong in it: of one network namespace, read only.

Messages IPCTNL_MSG_CT_GET_STATS and _GET_STATS_CPU of linux/netfilter/nfnetlink_conntrack.h. The limit is the
machine's: podlane never writes it.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import Final, NamedTuple

from podlane.kernel.netlink import NETLINK_NETFILTER, Message, Request, attributes
from podlane.kernel.netlink_socket import Netlink

_GET_CPU, _GET_GLOBAL = 1 << 8 | 4, 1 << 8 | 5
_NFGENMSG: Final = struct.pack("!BBH", 0, 0, 0)
_ENTRIES, _LIMIT = 1, 2  # CTA_STATS_GLOBAL_*
_EVENTS: Final = {
    "invalid": 4,
    "insert_failed": 9,
    "drop": 10,
    "early_drop": 11,
    "error": 12,
    "search_restart": 13,
    "clash_resolve": 14,
    "chain_too_long": 15,
}  # CTA_STATS_*


class Statistics(NamedTuple):
    """limit: 0 where the kernel does not say. events: how often so far, over all CPUs."""

    entries: int
    limit: int
    events: dict[str, int]


def read(netns_fd: int | None = None) -> Statistics:
    """Raises KernelError. A few system calls, however many entries there are."""
    with Netlink(NETLINK_NETFILTER, netns_fd) as netlink:
        told = netlink.ask(Request(_GET_GLOBAL, 0, _NFGENMSG, "count connections"))
        each_cpu = netlink.dump(Request(_GET_CPU, 0, _NFGENMSG, "read conntrack statistics"))
    return unpack(told, each_cpu)


def unpack(told: list[Message], each_cpu: list[Message]) -> Statistics:
    """Pure. Raises netlink.Truncated."""
    known = attributes(told[0].body, len(_NFGENMSG)) if told else {}
    events: Counter[str] = Counter(dict.fromkeys(_EVENTS, 0))
    for message in each_cpu:
        found = attributes(message.body, len(_NFGENMSG))
        for name, kind in _EVENTS.items():
            events[name] += int.from_bytes(found.get(kind, b""), "big")
    return Statistics(
        int.from_bytes(known.get(_ENTRIES, b""), "big"),
        int.from_bytes(known.get(_LIMIT, b""), "big"),
        dict(events),
    )
