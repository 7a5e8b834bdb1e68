"""rtnetlink messages of a link's flags and queue length (linux/if.h, IFLA_TXQLEN). Pure."""

from __future__ import annotations

import struct

from podlane.kernel.netlink import Message, Request, attribute, attributes, u32
from podlane.kernel.rtnl.links import RTM_NEWLINK

IFF_PROMISC, IFF_ALLMULTI = 0x100, 0x200
_IFLA_TXQLEN = 13
_IFINFO = struct.Struct("=BxHiII")


def set_flag(index: int, flag: int, on: bool, *, what: str = "") -> Request:
    return Request(
        RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, flag if on else 0, flag), f"set flags of {what or index}"
    )


def set_queue(index: int, packets: int, *, what: str = "") -> Request:
    """How many packets wait for the link at most."""
    body = _IFINFO.pack(0, 0, index, 0, 0) + attribute(_IFLA_TXQLEN, u32(packets))
    return Request(RTM_NEWLINK, 0, body, f"set queue length of {what or index}")


def unpack(message: Message) -> tuple[int, int]:
    """(flags, queue length in packets) of an RTM_NEWLINK. Raises netlink.Truncated or struct.error."""
    _, _, _, flags, _ = _IFINFO.unpack_from(message.body)
    found = attributes(message.body, _IFINFO.size).get(_IFLA_TXQLEN, bytes(4))
    return flags, struct.unpack("=I", found)[0]
