"""rtnetlink messages of links (linux/if_link.h): veth, bridge, VXLAN. Pure."""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

from msgspec import Struct

from podlane.kernel import netlink as nl
from podlane.kernel.netlink import Message, Request, attribute, attributes, nested, text, u8, u32
from podlane.model.addresses import Address

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
IFF_UP, IFF_PROMISC = 0x1, 0x100
IFNAMSIZ = 16

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_ALIAS = 20
_IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 31, 32
_IFLA_AF_SPEC, _IFLA_GROUP, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 26, 27, 28, 29
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_BRPORT_STATE, _BRPORT_HAIRPIN = 1, 4  # the latter is IFLA_BRPORT_MODE
_FORWARDING = 3  # BR_STATE_FORWARDING
_VETH_INFO_PEER = 1
_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
_RTEXT_FILTER_SKIP_STATS = 8
_AF_INET, _AF_INET6 = 2, 10
_IFLA_INET_CONF, _DEVCONF_ARP_NOTIFY = 1, 22

_IFLA_BR_FORWARD_DELAY, _IFLA_BR_STP_STATE, _IFLA_BR_MCAST_SNOOPING = 1, 5, 23
_VXLAN_ID, _VXLAN_LINK, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_LOCAL6 = 1, 3, 4, 7, 15, 17
_VXLAN_GBP = 23  # a flag: there or not

_IFINFO = struct.Struct("=BxHiII")


class Vxlan(NamedTuple):
    """What makes a VXLAN device the one it is: none of it can be changed later.

    underlay: index of the link it sends by, 0 for any. gbp: with Group Policy IDs.
    """

    vni: int
    port: int
    underlay: int
    local: Address | None
    learning: bool = False
    gbp: bool = False


class Link(Struct, frozen=True):
    """kind: "veth", "bridge", "vxlan", ...; "" for what has no kind (lo, hardware).

    master: index of the bridge it is a port of, 0 for none. peer: for a veth, the peer's index in the
    peer's own namespace. alias: free text of whoever made it. hairpin: a port that sends frames back
    where they came from.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu_bytes: int
    up: bool
    master: int = 0
    group: int = 0
    peer: int = 0
    vxlan: Vxlan | None = None
    alias: str = ""
    promiscuous: bool = False
    forwarding: bool = False
    hairpin: bool = False


def pack_mac(mac: str) -> bytes:
    """Raises ValueError unless it is six bytes as aa:bb:cc:dd:ee:ff."""
    octets = bytes.fromhex(mac.replace(":", ""))
    if len(octets) != 6:
        raise ValueError(f"{mac!r} is not a MAC address")
    return octets


def unpack_mac(octets: bytes) -> str:
    return octets.hex(":")


def check_name(name: str) -> str:
    """Returns name. Raises ValueError for what the kernel refuses as a link's name."""
    size = len(name.encode())
    if not 0 < size < IFNAMSIZ or name in (".", "..") or any(c in "/:" or c.isspace() for c in name):
        raise ValueError(f"{name!r} is not a link name: 1 to 15 bytes without '/', ':' or spaces")
    return name


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return _IFINFO.pack(0, 0, index, flags, change)


def _common(name: str, mac: str, mtu_bytes: int, group: int = 0) -> bytes:
    body = attribute(_IFLA_IFNAME, text(check_name(name)))
    if mac:
        body += attribute(_IFLA_ADDRESS, pack_mac(mac))
    if mtu_bytes:
        body += attribute(_IFLA_MTU, u32(mtu_bytes))
    if group:
        body += attribute(_IFLA_GROUP, u32(group))
    return body


def _create(
    name: str, kind: str, body: bytes, data: bytes, *, up: bool, master: int, link_local: bool
) -> list[Request]:
    operation = f"add {kind} {name}"
    info = nested(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, kind.encode()), attribute(_IFLA_INFO_DATA, data))
    if master:
        body += attribute(_IFLA_MASTER, u32(master))
    # The kernel takes the IPv6 address mode only from a set request, and heeds it when the link goes up.
    start = IFF_UP if up and link_local else 0
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    requests = [Request(RTM_NEWLINK, flags, _ifinfo(0, start, start) + body + info, operation)]
    if not link_local:
        named = attribute(_IFLA_IFNAME, text(name))
        mode = nested(_AF_INET6, attribute(_IFLA_INET6_ADDR_GEN_MODE, u8(_ADDR_GEN_NONE)))
        requests.append(Request(RTM_SETLINK, 0, _ifinfo() + named + nested(_IFLA_AF_SPEC, mode), operation))
        if up:
            requests.append(Request(RTM_SETLINK, 0, _ifinfo(0, IFF_UP, IFF_UP) + named, operation))
    return requests


def create_veth(
    name: str,
    peer: str,
    *,
    peer_netns: int | None = None,
    mac: str = "",
    peer_mac: str = "",
    mtu_bytes: int = 0,
    group: int = 0,
    master: int = 0,
    up: bool = False,
    link_local: bool = True,
) -> list[Request]:
    """A veth pair whose peer is born in namespace descriptor peer_netns under its final name.

    Moving a link between namespaces waits for RCU (some 16 ms); being born in the right one does not.
    The peer is born down: the kernel cannot open it before the pair is complete.
    link_local: whether our end gets an IPv6 link-local address of its own.
    Each end has one queue, which is all that the kernel uses of those it would make otherwise: one a
    processor, and a wait for RCU to put them out of use.
    """
    queues = attribute(_IFLA_NUM_TX_QUEUES, u32(1)) + attribute(_IFLA_NUM_RX_QUEUES, u32(1))
    other = _ifinfo() + _common(peer, peer_mac, mtu_bytes) + queues
    if peer_netns is not None:
        other += attribute(_IFLA_NET_NS_FD, u32(peer_netns))
    return _create(
        name,
        "veth",
        _common(name, mac, mtu_bytes, group) + queues,
        attribute(_VETH_INFO_PEER | nl.NLA_F_NESTED, other),
        up=up,
        master=master,
        link_local=link_local,
    )


def create_bridge(
    name: str, *, mac: str = "", mtu_bytes: int = 0, up: bool = False, link_local: bool = True
) -> list[Request]:
    """A bridge without spanning tree and without multicast snooping: it forwards from its first frame.

    With a mac the bridge keeps it; otherwise it takes its lowest port's, and changes it with the ports.
    """
    data = (
        attribute(_IFLA_BR_FORWARD_DELAY, u32(0))
        + attribute(_IFLA_BR_STP_STATE, u32(0))
        + attribute(_IFLA_BR_MCAST_SNOOPING, u8(0))
    )
    return _create(
        name, "bridge", _common(name, mac, mtu_bytes), data, up=up, master=0, link_local=link_local
    )


def create_ifb(name: str, *, mac: str = "", mtu_bytes: int = 0) -> list[Request]:
    """An intermediate functional block: what is redirected to it passes its queue and goes on as before."""
    return _create(name, "ifb", _common(name, mac, mtu_bytes), b"", up=True, master=0, link_local=False)


def create_vxlan(
    name: str, vxlan: Vxlan, *, mac: str = "", mtu_bytes: int = 0, up: bool = False, link_local: bool = False
) -> list[Request]:
    """A VXLAN device (RFC 7348). local's family is that of the outer packets."""
    data = attribute(_VXLAN_ID, u32(vxlan.vni))
    if vxlan.underlay:
        data += attribute(_VXLAN_LINK, u32(vxlan.underlay))
    if vxlan.local is not None:
        kind = _VXLAN_LOCAL if vxlan.local.version == 4 else _VXLAN_LOCAL6
        data += attribute(kind, vxlan.local.packed)
    data += attribute(_VXLAN_LEARNING, u8(vxlan.learning)) + attribute(_VXLAN_PORT, nl.be16(vxlan.port))
    if vxlan.gbp:
        data += attribute(_VXLAN_GBP, b"")
    return _create(name, "vxlan", _common(name, mac, mtu_bytes), data, up=up, master=0, link_local=link_local)


def change(
    index: int,
    *,
    up: bool | None = None,
    name: str = "",
    mac: str = "",
    mtu_bytes: int = 0,
    master: int | None = None,
    group: int | None = None,
    alias: str = "",
    promiscuous: bool | None = None,
    what: str = "",
) -> Request:
    """Only what is given changes. master 0: no longer a port. what: for the error text."""
    mask = (0 if up is None else IFF_UP) | (0 if promiscuous is None else IFF_PROMISC)
    body = _ifinfo(index, (IFF_UP if up else 0) | (IFF_PROMISC if promiscuous else 0), mask)
    if alias:
        body += attribute(_IFLA_ALIAS, text(alias))
    if name:
        body += attribute(_IFLA_IFNAME, text(check_name(name)))
    if mac:
        body += attribute(_IFLA_ADDRESS, pack_mac(mac))
    if mtu_bytes:
        body += attribute(_IFLA_MTU, u32(mtu_bytes))
    if master is not None:
        body += attribute(_IFLA_MASTER, u32(master))
    if group is not None:
        body += attribute(_IFLA_GROUP, u32(group))
    return Request(RTM_NEWLINK, 0, body, f"change link {what or index}")


def announce_ipv4(index: int, *, what: str = "") -> Request:
    """Sysctl arp_notify: neighbours hear of the link's addresses when it comes up."""
    settings = nested(_IFLA_INET_CONF, attribute(_DEVCONF_ARP_NOTIFY, u32(1)))
    body = _ifinfo(index) + nested(_IFLA_AF_SPEC, nested(_AF_INET, settings))
    return Request(RTM_SETLINK, 0, body, f"set arp_notify of {what or index}")


def set_hairpin(index: int, hairpin: bool, *, what: str = "") -> Request:
    """Of a bridge's port."""
    data = nested(_IFLA_INFO_SLAVE_DATA, attribute(_BRPORT_HAIRPIN, u8(hairpin)))
    info = nested(_IFLA_LINKINFO, attribute(_IFLA_INFO_SLAVE_KIND, text("bridge")), data)
    return Request(RTM_NEWLINK, 0, _ifinfo(index) + info, f"set hairpin of {what or index}")


def _which(link: str | int) -> bytes:
    """A link by its name, or by its index."""
    if isinstance(link, int):
        return _ifinfo(link)
    return _ifinfo() + attribute(_IFLA_IFNAME, text(check_name(link)))


def delete(link: str | int) -> Request:
    return Request(RTM_DELLINK, 0, _which(link), f"delete link {link}")


def delete_group(group: int) -> Request:
    """Every link of a group at once: the kernel waits for RCU once, not once a link."""
    if not group:
        raise ValueError("group 0 is every link's default: it is never deleted")
    return Request(
        RTM_DELLINK, 0, _ifinfo() + attribute(_IFLA_GROUP, u32(group)), f"delete link group {group}"
    )


def get(link: str | int) -> Request:
    body = _which(link) + attribute(_IFLA_EXT_MASK, u32(_RTEXT_FILTER_SKIP_STATS))
    return Request(RTM_GETLINK, 0, body, f"get link {link}")


def get_all() -> Request:
    body = _ifinfo() + attribute(_IFLA_EXT_MASK, u32(_RTEXT_FILTER_SKIP_STATS))
    return Request(RTM_GETLINK, 0, body, "list links")


def unpack_index(message: Message) -> int:
    """Of an RTM_NEWLINK, when nothing else is asked."""
    index: int = _IFINFO.unpack_from(message.body)[2]
    return index


def unpack(message: Message) -> Link:
    """A link of an RTM_NEWLINK or RTM_DELLINK. Raises netlink.Truncated or struct.error."""
    _, _, index, flags, _ = _IFINFO.unpack_from(message.body)
    found = attributes(message.body, _IFINFO.size)
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    kind = nl.unpack_text(info.get(_IFLA_INFO_KIND, b""))
    port = _port(info)
    return Link(
        index=index,
        name=nl.unpack_text(found.get(_IFLA_IFNAME, b"")),
        kind=kind,
        mac=unpack_mac(found.get(_IFLA_ADDRESS, b"")),
        mtu_bytes=_u32(found.get(_IFLA_MTU)),
        up=bool(flags & IFF_UP),
        master=_u32(found.get(_IFLA_MASTER)),
        group=_u32(found.get(_IFLA_GROUP)),
        peer=_u32(found.get(_IFLA_LINK)) if kind == "veth" else 0,
        vxlan=_unpack_vxlan(info.get(_IFLA_INFO_DATA, b"")) if kind == "vxlan" else None,
        alias=nl.unpack_text(found.get(_IFLA_ALIAS, b"")),
        promiscuous=bool(flags & IFF_PROMISC),
        forwarding=port.get(_BRPORT_STATE, b"\0")[0] == _FORWARDING,
        hairpin=port.get(_BRPORT_HAIRPIN, b"\0") != b"\0",
    )


def _port(info: nl.Attributes) -> nl.Attributes:
    """What a bridge says of its port; nothing for other links."""
    of_bridge = nl.unpack_text(info.get(_IFLA_INFO_SLAVE_KIND, b"")) == "bridge"
    return attributes(info.get(_IFLA_INFO_SLAVE_DATA, b"")) if of_bridge else {}


def _unpack_vxlan(data: bytes) -> Vxlan:
    found = attributes(data)
    local = found.get(_VXLAN_LOCAL) or found.get(_VXLAN_LOCAL6)
    return Vxlan(
        vni=_u32(found.get(_VXLAN_ID)),
        port=int.from_bytes(found.get(_VXLAN_PORT, b""), "big"),
        underlay=_u32(found.get(_VXLAN_LINK)),
        local=ipaddress.ip_address(local) if local else None,
        learning=found.get(_VXLAN_LEARNING, b"\0") != b"\0",
        gbp=_VXLAN_GBP in found,
    )


def _u32(payload: bytes | None) -> int:
    value: int = struct.unpack("=I", payload)[0] if payload else 0
    return value
