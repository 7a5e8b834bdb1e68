"""NetworkConfig's sections `backend` and `bgp`: how pods of two nodes reach each other."""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Iterator

from msgspec import field

from podlane.errors import ConfigError
from podlane.model.addresses import address
from podlane.model.flannel import KINDS
from podlane.model.sections import Section


class BackendType(enum.StrEnum):
    VXLAN = "vxlan"
    HOST_GW = "host-gw"
    UDP = "udp"
    IPIP = "ipip"
    WIREGUARD = "wireguard"
    SRV6 = "srv6"
    BGP = "bgp"
    EXTENSION = "extension"


TUNNELS = (BackendType.VXLAN, BackendType.IPIP, BackendType.WIREGUARD, BackendType.UDP)
AVAILABLE_BACKENDS = (*TUNNELS, BackendType.HOST_GW, BackendType.BGP)


class Backend(Section, frozen=True):
    """type: how pods of two nodes reach each other. vni, port, mtuBytes (0: from the underlay).

    directRouting: nodes on one subnet without the tunnel, by plain routes. gbp: VXLAN carries packet marks
    along. flannelCompat: Flannel's annotations are spoken, so that nodes with flanneld are peers.
    """

    type: BackendType = BackendType.VXLAN
    vni: int = 85
    port: int = 8472
    mtu_bytes: int = 0
    direct_routing: bool = False
    gbp: bool = False
    flannel_compat: bool = False


class BgpPeerConfig(Section, frozen=True):
    """A BGP speaker that is no node: a router. nodes: labels of the nodes that peer with it; none: all. bfd:
    the session is watched by BFD, which the router must do too."""

    address: str
    as_number: int
    port: int = 179
    password: str = ""
    bfd: bool = False
    nodes: dict[str, str] = field(default_factory=dict)


class Advertised(enum.StrEnum):
    """Service addresses that routers may be told."""

    CLUSTER_IP = "ClusterIP"
    EXTERNAL_IP = "ExternalIP"
    LOAD_BALANCER_IP = "LoadBalancerIP"


class Bgp(Section, frozen=True):
    """Of backend.type bgp; with any other, routers among `peers` are told addresses of services and nothing
    else, and nothing is learnt of them. asNumber: of every node whose annotation podlane.dev/bgp-as-number
    says no other.

    nodeMesh: every node has a session with every other. password: of these sessions (TCP MD5, RFC 2385).
    gracefulRestartSeconds: how long others keep the routes of a speaker that is away, 0 for not at all.
    advertise: which addresses of services the routers among `peers` are told, beside pods' prefixes.
    """

    as_number: int = 64512
    node_mesh: bool = True
    password: str = ""
    bfd: bool = True
    graceful_restart_seconds: int = 120
    peers: list[BgpPeerConfig] = field(default_factory=list)
    advertise: list[Advertised] = field(default_factory=list)


class Wireguard(Section, frozen=True):
    """Of backend.type wireguard. port: UDP, of every node. presharedKey: of all nodes, 32 bytes in base64 (as
    `wg genpsk` makes them); "" for none. keepaliveSeconds: for a NAT between nodes; 0 for none."""

    port: int = 51820
    preshared_key: str = ""
    keepalive_seconds: int = 0


class Udp(Section, frozen=True):
    """Of backend.type udp. port: of every node."""

    port: int = 8285


def problems(backend: Backend, bgp: Bgp, wireguard: Wireguard, udp: Udp) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it)"""
    kind = backend.type
    if kind not in AVAILABLE_BACKENDS:
        yield "backend.type", f"{kind} is not available; use {', '.join(AVAILABLE_BACKENDS)}"
    if backend.direct_routing and kind not in TUNNELS:
        why = f"{kind} has no tunnel to leave out; it goes with {', '.join(TUNNELS)}"
        yield "backend.directRouting", why
    if backend.flannel_compat and kind not in KINDS:
        yield (
            "backend.flannelCompat",
            f"{kind} is not spoken as Flannel does; it goes with {', '.join(KINDS)}",
        )
    if backend.gbp and kind is not BackendType.VXLAN:
        yield "backend.gbp", f"{kind} carries no marks; it goes with vxlan"
    if not 0 < backend.vni < 1 << 24:
        yield "backend.vni", f"{backend.vni} is not between 1 and 16777215"
    if not 0 < backend.port < 1 << 16:
        yield "backend.port", f"{backend.port} is not between 1 and 65535"
    if not 0 <= backend.mtu_bytes <= 65535:
        yield "backend.mtuBytes", f"{backend.mtu_bytes} is not between 0 and 65535"
    if not 0 < udp.port < 1 << 16:
        yield "udp.port", f"{udp.port} is not between 1 and 65535"
    if not 0 < wireguard.port < 1 << 16:
        yield "wireguard.port", f"{wireguard.port} is not between 1 and 65535"
    if not 0 <= wireguard.keepalive_seconds < 1 << 16:
        yield "wireguard.keepaliveSeconds", f"{wireguard.keepalive_seconds} is not between 0 and 65535"
    if wireguard.preshared_key and wireguard_key(wireguard.preshared_key) is None:
        yield "wireguard.presharedKey", "not 32 bytes in base64; `wg genpsk` makes one"
    yield from _bgp_problems(bgp)


def wireguard_key(text: str) -> bytes | None:
    """32 bytes as WireGuard writes its keys; None for anything else."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == 32 else None


def _bgp_problems(bgp: Bgp) -> Iterator[tuple[str, str]]:
    if not 0 < bgp.as_number < 1 << 32:
        yield "bgp.asNumber", f"{bgp.as_number} is not between 1 and 4294967295"
    if not 0 <= bgp.graceful_restart_seconds <= 4095:
        yield "bgp.gracefulRestartSeconds", f"{bgp.graceful_restart_seconds} is not between 0 and 4095"
    if why := _password_problem(bgp.password):
        yield "bgp.password", why
    seen: set[object] = set()
    for number, peer in enumerate(bgp.peers):
        key = f"bgp.peers[{number}]"
        try:
            where = address(peer.address)
        except ConfigError as error:
            yield f"{key}.address", str(error)
            continue
        if where in seen:
            yield f"{key}.address", f"{where} is another peer's too"
        seen.add(where)
        if not 0 < peer.as_number < 1 << 32:
            yield f"{key}.asNumber", f"{peer.as_number} is not between 1 and 4294967295"
        if not 0 < peer.port < 1 << 16:
            yield f"{key}.port", f"{peer.port} is not between 1 and 65535"
        if why := _password_problem(peer.password):
            yield f"{key}.password", why


def _password_problem(password: str) -> str:
    """TCP MD5 keys have at most 80 bytes (tcp(7)); a configuration file's string knows no escapes."""
    if len(password.encode()) > 80:
        return "longer than 80 bytes"
    if any(not " " <= each <= "~" or each in '"\\' for each in password):
        return "printable ASCII without quotation marks and backslashes"
    return ""
