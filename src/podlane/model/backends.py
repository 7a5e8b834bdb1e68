"""NetworkConfig's sections `backend` and `wireguard`: how pods of two nodes reach each other."""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Iterator

from podlane.model.addresses import Family
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


LEAST_MTU_BYTES = {Family.IPV4: 576, Family.IPV6: 1280}
"""Of pods' links: what every host must take of IPv4 (RFC 791), and every link carry of IPv6 (RFC 8200)."""

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


class Wireguard(Section, frozen=True):
    """Of backend.type wireguard. port: UDP, of every node. presharedKey: of all nodes, 32 bytes in base64 (as
    `wg genpsk` makes them); "" for none. keepaliveSeconds: for a NAT between nodes; 0 for none."""

    port: int = 51820
    preshared_key: str = ""
    keepalive_seconds: int = 0


class Udp(Section, frozen=True):
    """Of backend.type udp. port: of every node."""

    port: int = 8285


def problems(backend: Backend, wireguard: Wireguard, udp: Udp) -> Iterator[tuple[str, str]]:
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


def wireguard_key(text: str) -> bytes | None:
    """32 bytes as WireGuard writes its keys; None for anything else."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == 32 else None
