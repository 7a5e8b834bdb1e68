"""rtnetlink messages of a bridge's VLANs (linux/if_bridge.h, IFLA_BRIDGE_VLAN_INFO; IEEE 802.1Q). Pure.

A bridge that filters lets a frame through a port only if its VLAN is one of the port's. Frames without a
tag belong to the port's PVID, and leave untagged where the port says so.
"""

from __future__ import annotations

import struct
from typing import Final

from podlane.kernel.netlink import Message, Request, attribute, attributes, nested, u8
from podlane.kernel.rtnl.links import RTM_DELLINK, RTM_NEWLINK, RTM_SETLINK

DEFAULT: Final = 1
"""The VLAN that the kernel gives to every new port."""

_AF_BRIDGE = 7
_IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_AF_SPEC = 18, 1, 2, 26
_BR_VLAN_FILTERING, _BRIDGE_VLAN_INFO = 7, 2
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 0x2, 0x4, 0x8, 0x10
_IFINFO = struct.Struct("=BxHiII")
_INFO = struct.Struct("=HH")


def set_filtering(bridge: int, *, what: str = "") -> Request:
    """A kernel without CONFIG_BRIDGE_VLAN_FILTERING heeds it not, and says nothing: read it back."""
    data = nested(_IFLA_INFO_DATA, attribute(_BR_VLAN_FILTERING, u8(1)))
    info = nested(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, b"bridge\0"), data)
    return Request(
        RTM_NEWLINK, 0, _IFINFO.pack(0, 0, bridge, 0, 0) + info, f"set VLAN filtering of {what or bridge}"
    )


def filters(message: Message) -> bool:
    """Of a bridge's RTM_NEWLINK. Raises netlink.Truncated."""
    info = attributes(attributes(message.body, _IFINFO.size).get(_IFLA_LINKINFO, b""))
    return attributes(info.get(_IFLA_INFO_DATA, b"")).get(_BR_VLAN_FILTERING, b"\0") != b"\0"


def add(port: int, first: int, last: int = 0, *, access: bool = False, what: str = "") -> Request:
    """first to last (0: first alone), tagged; access: as the port's PVID, untagged."""
    operation = f"add VLAN {first} to {what or port}"
    return Request(RTM_SETLINK, 0, _body(port, first, last, _PVID | _UNTAGGED if access else 0), operation)


def delete(port: int, vlan: int, *, what: str = "") -> Request:
    return Request(RTM_DELLINK, 0, _body(port, vlan), f"delete VLAN {vlan} of {what or port}")


def _body(port: int, first: int, last: int = 0, flags: int = 0) -> bytes:
    if last in (0, first):
        entries = [_INFO.pack(flags, first)]
    else:
        entries = [_INFO.pack(flags | _RANGE_BEGIN, first), _INFO.pack(flags | _RANGE_END, last)]
    spec = nested(_IFLA_AF_SPEC, *(attribute(_BRIDGE_VLAN_INFO, entry) for entry in entries))
    return _IFINFO.pack(_AF_BRIDGE, 0, port, 0, 0) + spec
