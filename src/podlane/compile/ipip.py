"""Pods of other nodes are reached through IP in IP (RFC 2003): an IPv4 header more, and nothing else.

    route       10.244.2.0/24 dev plipip src 172.30.1.11
    peer        10.244.2.0/24 is behind 172.30.2.12
    outer       172.30.1.11 -> 172.30.2.12, protocol 4 (IPv6 pods: 41, RFC 4213)

The outer header is IPv4 whatever the pods speak. What comes from an address that is no node's is left alone.
"""

from __future__ import annotations

from typing import Any, Final

from podlane.compile.tables import Route, Rows, Table, Tunnel, TunnelPeer
from podlane.compile.vxlan import vtep_address
from podlane.compile.ways import Here, Peer
from podlane.errors import ConfigError
from podlane.model.addresses import Family, host_prefix
from podlane.model.backends import BackendType

DEVICE: Final = "plipip"


class IpInIp:
    """The Way of backend.type ipip."""

    tunnel: Final = DEVICE
    place: Final = (Table.TUNNELS, DEVICE)

    def overhead_bytes(self, outer: Family) -> int:
        return 20

    def device(self, here: Here) -> Rows:
        local = here.address(Family.IPV4)
        if local is None:
            raise ConfigError(f"{_NO_IPV4}; use backend.type=vxlan or wireguard")
        link = Tunnel(
            name=DEVICE,
            kind=BackendType.IPIP,
            port=0,
            local=local,
            mtu_bytes=here.mtu_bytes,
            addresses=tuple(host_prefix(vtep_address(pods)) for pods in here.pods.values()),
            underlay=here.underlay.device,
        )
        return {Table.TUNNELS: {DEVICE: link}}

    def peer(self, peer: Peer, here: Here) -> Rows:
        remote = peer.address(Family.IPV4)
        if remote is None or here.address(Family.IPV4) is None:
            raise ConfigError(_NO_IPV4)
        row = TunnelPeer(
            device=DEVICE,
            node=peer.node.name,
            remote=remote,
            port=0,
            pods=tuple(peer.pods.values()),
            sources=(),
        )
        routes: dict[Any, Any] = {
            pods: Route(pods, None, DEVICE, here.source(family)) for family, pods in peer.pods.items()
        }
        return {Table.TUNNEL_PEERS: {peer.node.name: row}, Table.ROUTES: routes}


_NO_IPV4: Final = "no InternalIP of IPv4, which ipip's outer header is of"
