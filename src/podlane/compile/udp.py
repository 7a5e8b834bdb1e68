"""Pods of other nodes are reached through UDP: one bare packet a datagram, nothing before it.

    route       10.244.2.0/24 dev pludp src 172.30.1.11
    peer        10.244.2.0/24 is behind 172.30.2.12:8285
    outer       172.30.1.11 -> 172.30.2.12, UDP 8285

As Flannel's udp backend has it on the wire, and for both families: which one a datagram holds, its first four
bits tell. What a node sends must come from its own pods or its own addresses, as with WireGuard.
"""

from __future__ import annotations

from typing import Any, Final

from podlane.compile import facts
from podlane.compile.spoken import port_of
from podlane.compile.tables import Route, Rows, Table, Tunnel, TunnelPeer
from podlane.compile.vxlan import vtep_address
from podlane.compile.ways import Here, Peer
from podlane.errors import ConfigError
from podlane.model.addresses import Family, host_prefix
from podlane.model.backends import BackendType

DEVICE: Final = "pludp"
_OVERHEAD_BYTES: Final = {Family.IPV4: 20 + 8, Family.IPV6: 40 + 8}


class UdpTunnel:
    """The Way of backend.type udp."""

    tunnel: Final = DEVICE
    place: Final = (Table.TUNNELS, DEVICE)

    def overhead_bytes(self, outer: Family) -> int:
        return _OVERHEAD_BYTES[outer]

    def device(self, here: Here) -> Rows:
        local = here.address(here.outer)
        assert local is not None
        link = Tunnel(
            name=DEVICE,
            kind=BackendType.UDP,
            port=here.config.udp.port,
            local=local,
            mtu_bytes=here.mtu_bytes,
            addresses=tuple(host_prefix(vtep_address(pods)) for pods in here.pods.values()),
        )
        return {Table.TUNNELS: {DEVICE: link}}

    def peer(self, peer: Peer, here: Here) -> Rows:
        remote = peer.address(here.outer)
        if remote is None:
            raise ConfigError(f"no InternalIP of {here.outer}, the family of the tunnels")
        row = TunnelPeer(
            device=DEVICE,
            node=peer.node.name,
            remote=remote,
            port=port_of(peer.node, BackendType.UDP, here.config.udp.port),
            pods=tuple(peer.pods.values()),
            sources=tuple(map(host_prefix, facts.sending_addresses(peer.node, remote, peer.pods))),
        )
        routes: dict[Any, Any] = {
            pods: Route(pods, None, DEVICE, here.source(family)) for family, pods in peer.pods.items()
        }
        return {Table.TUNNEL_PEERS: {f"udp/{peer.node.name}": row}, Table.ROUTES: routes}
