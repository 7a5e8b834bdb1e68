"""rtnetlink messages of a bridge's ports (linux/if_link.h, IFLA_BRPORT_*): isolation. Pure."""

from __future__ import annotations

import struct

from podlane.kernel.netlink import Message, Request, attribute, attributes, nested, u8
from podlane.kernel.rtnl.links import RTM_NEWLINK

_IFLA_LINKINFO, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA, _BRPORT_ISOLATED = 18, 4, 5, 33
_IFINFO = struct.Struct("=BxHiII")


def set_isolated(index: int, isolated: bool, *, what: str = "") -> Request:
    """Frames do not pass between isolated ports."""
    data = nested(_IFLA_INFO_SLAVE_DATA, attribute(_BRPORT_ISOLATED, u8(isolated)))
    info = nested(_IFLA_LINKINFO, attribute(_IFLA_INFO_SLAVE_KIND, b"bridge\0"), data)
    head = _IFINFO.pack(0, 0, index, 0, 0)
    return Request(RTM_NEWLINK, 0, head + info, f"set isolation of {what or index}")


def isolated(message: Message) -> bool:
    """Of an RTM_NEWLINK. Raises netlink.Truncated."""
    info = attributes(attributes(message.body, _IFINFO.size).get(_IFLA_LINKINFO, b""))
    port = attributes(info.get(_IFLA_INFO_SLAVE_DATA, b""))
    return port.get(_BRPORT_ISOLATED, b"\0") != b"\0"
