"""Chains of all nftables tables of a namespace, whosever they are: names, hooks and policies. Read only.

iptables of the variant nft is among them (tables filter and nat of ip and ip6).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from podlane.kernel.netlink import NETLINK_NETFILTER, Message, Request, attributes, unpack_text
from podlane.kernel.netlink_socket import Netlink

_GET_CHAIN: Final = 10 << 8 | 4
_FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_HOOKS: Final = ("prerouting", "input", "forward", "output", "postrouting")
_TABLE, _NAME, _HOOK, _POLICY = 1, 3, 4, 5  # NFTA_CHAIN_*
_HOOK_NUMBER: Final = 1
_DROP: Final = 0


class NamedChain(NamedTuple):
    """hook: "" for a chain that is no base chain. drops: its policy is drop."""

    family: str
    table: str
    name: str
    hook: str = ""
    drops: bool = False


def read(netns_fd: int | None = None) -> list[NamedChain]:
    """Raises KernelError."""
    netlink = Netlink(NETLINK_NETFILTER, netns_fd)
    try:
        request = Request(_GET_CHAIN, 0, bytes(4), "list chains of all families")
        return [unpack(message) for message in netlink.dump(request)]
    finally:
        netlink.close()


def unpack(message: Message) -> NamedChain:
    """Raises netlink.Truncated or struct.error."""
    found = attributes(message.body, 4)
    family = _FAMILIES.get(message.body[0], str(message.body[0]))
    table, name = unpack_text(found.get(_TABLE, b"")), unpack_text(found.get(_NAME, b""))
    if _HOOK not in found:
        return NamedChain(family, table, name)
    (number,) = struct.unpack_from(">I", attributes(found[_HOOK])[_HOOK_NUMBER])
    of_ip = family in ("ip", "ip6", "inet") and number < len(_HOOKS)
    policy = struct.unpack_from(">I", found[_POLICY])[0] if _POLICY in found else 1
    return NamedChain(family, table, name, _HOOKS[number] if of_ip else "other", policy == _DROP)
