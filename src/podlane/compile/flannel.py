"""Flannel's protocol (backend.flannelCompat): nodes with flanneld and nodes with podlane share one network.

    flannel.alpha.coreos.com/kube-subnet-manager   "true" where flanneld, or an agent, looks after the node
    …/backend-type                                 vxlan or host-gw
    …/backend-data, backend-v6-data                {"VNI":1,"VtepMAC":"aa:…"} of the tunnel of each family
    …/public-ip, public-ipv6                       the node's address, of outer packets or as next hop
    …/public-ip-overwrite, public-ipv6-overwrite   what the node's own daemon shall say instead

Flannel has a tunnel for each family, whose outer packets are of that family too; the other's MAC address is
what it tells. Source: flannel, pkg/subnet/kube and pkg/backend/vxlan.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from podlane.compile.tables import FdbEntry, Neighbour, Route, Rows, Table, VxlanLink
from podlane.compile.vxlan import DEVICE, OVERHEAD_BYTES, next_hop, vtep_mac
from podlane.compile.ways import Here, Peer
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, address, family_of, host_prefix
from podlane.model.backends import BackendType
from podlane.model.config import NetworkConfig
from podlane.model.objects import Node

PREFIX: Final = "flannel.alpha.coreos.com/"
MANAGED: Final = f"{PREFIX}kube-subnet-manager"
TYPE: Final = f"{PREFIX}backend-type"
DATA: Final = {Family.IPV4: f"{PREFIX}backend-data", Family.IPV6: f"{PREFIX}backend-v6-data"}
PUBLIC: Final = {Family.IPV4: f"{PREFIX}public-ip", Family.IPV6: f"{PREFIX}public-ipv6"}
OVERWRITE: Final = {family: f"{name}-overwrite" for family, name in PUBLIC.items()}
SECOND_DEVICE: Final = "plvxlan2"
"""Of the second of this node's families."""

_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


class _VxlanData(msgspec.Struct):
    VNI: int
    VtepMAC: str


class FlannelVxlan:
    """The Way of backend.type vxlan with flannelCompat."""

    tunnel: Final = DEVICE
    place: Final = (Table.LINKS, DEVICE)

    def overhead_bytes(self, outer: Family) -> int:
        return OVERHEAD_BYTES[outer]

    def device(self, here: Here) -> Rows:
        links: dict[Any, Any] = {}
        for family, pods in here.pods.items():
            local = here.address(family)
            if local is None:
                raise ConfigError(f"no InternalIP of {family}, the family of Flannel's tunnel for its pods")
            backend, name = here.config.backend, _device(here, family)
            links[name] = VxlanLink(
                name=name,
                vni=backend.vni,
                port=backend.port,
                underlay=here.underlay.device,
                local=local,
                mac=vtep_mac(here.node.name),
                mtu_bytes=backend.mtu_bytes or here.underlay.mtu_bytes - self.overhead_bytes(family),
                # Flannel's nodes send from this address, and expect to be sent to from it.
                addresses=(host_prefix(pods.network_address),),
                gbp=backend.gbp,
            )
        return {Table.LINKS: links}

    def peer(self, peer: Peer, here: Here) -> Rows:
        neighbours: dict[Any, Any] = {}
        routes: dict[Any, Any] = {}
        fdb: dict[Any, Any] = {}
        for family, pods in peer.pods.items():
            mac, device = _mac(peer.node, family, here.config), _device(here, family)
            remote = public_address(peer.node, family)
            if remote == here.address(family):
                raise ConfigError(f"annotation {PUBLIC[family]} is this node's own address {remote}")
            via = next_hop(pods, mac)
            neighbours[device, via] = Neighbour(device, via, mac)
            fdb[device, mac] = FdbEntry(device, mac, remote)
            routes[pods] = Route(pods, via, device, onlink=family is Family.IPV4)
        return {Table.NEIGHBOURS: neighbours, Table.FDB: fdb, Table.ROUTES: routes}


def require(node: Node, config: NetworkConfig) -> None:
    """Raises ConfigError for a node that does not speak Flannel's protocol, or of another backend."""
    if node.metadata.annotations.get(MANAGED) != "true":
        why = "neither flanneld nor an agent with backend.flannelCompat has begun there"
        raise ConfigError(f'annotation {MANAGED} is not "true": {why}')
    kind = node.metadata.annotations.get(TYPE, "")
    if kind != config.backend.type:
        raise ConfigError(f"annotation {TYPE} is {kind!r}, and this node's backend is {config.backend.type}")


def public_address(node: Node, family: Family) -> Address:
    """Where it is sent to. Raises ConfigError."""
    return _address(node, PUBLIC[family], family)


def announcements(here: Here) -> dict[str, str]:
    """What this node says of itself. Raises ConfigError for an overwrite that is no address."""
    kind = here.config.backend.type
    said = {MANAGED: "true", TYPE: str(kind)}
    own = here.node.metadata.annotations
    for family in here.pods:
        where = (
            _address(here.node, OVERWRITE[family], family)
            if OVERWRITE[family] in own
            else here.address(family)
        )
        if where is None:
            continue  # its device's unit says so
        said[PUBLIC[family]] = str(where)
        data = {"VNI": here.config.backend.vni, "VtepMAC": vtep_mac(here.node.name)}
        said[DATA[family]] = msgspec.json.encode(data).decode() if kind is BackendType.VXLAN else "null"
    return said


def subnet_env(here: Here, mtu_bytes: int) -> str:
    """The content of subnet.env: networks, this node's part of each with its first address, MTU."""
    lines = []
    names: Mapping[Family, str] = {Family.IPV4: "FLANNEL_", Family.IPV6: "FLANNEL_IPV6_"}
    for family in sorted(here.pods, key=lambda family: family is Family.IPV6):
        pods, whole = here.pods[family], here.config.pods[family]
        lines.append(f"{names[family]}NETWORK={whole}")
        lines.append(f"{names[family]}SUBNET={pods.network_address + 1}/{pods.prefixlen}")
    lines.append(f"FLANNEL_MTU={mtu_bytes}")
    lines.append(f"FLANNEL_IPMASQ={str(here.config.flannel.ip_masq).lower()}")
    return "\n".join(lines) + "\n"


def _device(here: Here, family: Family) -> str:
    return DEVICE if next(iter(here.pods)) is family else SECOND_DEVICE


def _mac(node: Node, family: Family, config: NetworkConfig) -> str:
    name = DATA[family]
    text = node.metadata.annotations.get(name, "")
    try:
        data = msgspec.json.decode(text, type=_VxlanData)
    except msgspec.DecodeError as error:
        raise ConfigError(f"annotation {name} is {text!r}, which cannot be read: {error}") from None
    if config.backend.vni != data.VNI:
        raise ConfigError(f"annotation {name}: its VNI is {data.VNI}, this node's {config.backend.vni}")
    mac = data.VtepMAC.lower()
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ConfigError(f"annotation {name}: {data.VtepMAC!r} is no MAC address of one station")
    return mac


def _address(node: Node, name: str, family: Family) -> Address:
    text = node.metadata.annotations.get(name, "")
    try:
        found = address(text)
    except ConfigError:
        found = None
    if found is None or family_of(found) is not family:
        raise ConfigError(f"annotation {name} is {text!r}, no address of {family}")
    return found
