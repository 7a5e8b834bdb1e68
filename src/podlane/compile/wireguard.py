"""Pods of other nodes are reached through WireGuard: encrypted, each node with a key of its own.

    route       10.244.2.0/24 dev plwg src 172.30.1.11
    peer        10.244.2.0/24 and 172.30.2.12 are behind node-2's key, which was last at 172.30.2.12:51820
    outer       172.30.1.11 -> 172.30.2.12, UDP 51820

A node's private key is made on the node and stays there; the agent writes the public one into an annotation
of its own Node, from which the others read it. A peer may send only from its own pods' prefixes and its own
addresses (WireGuard's cryptokey routing): nobody sends as somebody else's pod.

One tunnel carries both families; the outer one is as with vxlan, and so is the device's own address.
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
from podlane.model.backends import BackendType, wireguard_key
from podlane.model.objects import Node

DEVICE: Final = "plwg"
KEY_ANNOTATION: Final = "podlane.dev/wireguard-key"

# IP + UDP 8 + message header 16 + authentication 16 (WireGuard, 5.4.6).
_OVERHEAD_BYTES: Final = {Family.IPV4: 20 + 8 + 16 + 16, Family.IPV6: 40 + 8 + 16 + 16}


class WireguardTunnel:
    """The Way of backend.type wireguard."""

    tunnel: Final = DEVICE
    place: Final = (Table.TUNNELS, DEVICE)

    def overhead_bytes(self, outer: Family) -> int:
        return _OVERHEAD_BYTES[outer]

    def device(self, here: Here) -> Rows:
        local = here.address(here.outer)
        assert local is not None
        link = Tunnel(
            name=DEVICE,
            kind=BackendType.WIREGUARD,
            port=here.config.wireguard.port,
            local=local,
            mtu_bytes=here.mtu_bytes,
            addresses=tuple(host_prefix(vtep_address(pods)) for pods in here.pods.values()),
        )
        return {Table.TUNNELS: {DEVICE: link}}

    def peer(self, peer: Peer, here: Here) -> Rows:
        remote = peer.address(here.outer)
        if remote is None:
            raise ConfigError(f"no InternalIP of {here.outer}, the family of the tunnels")
        key = public_key(peer.node)
        row = TunnelPeer(
            device=DEVICE,
            node=peer.node.name,
            remote=remote,
            port=port_of(peer.node, BackendType.WIREGUARD, here.config.wireguard.port),
            pods=tuple(peer.pods.values()),
            sources=tuple(map(host_prefix, facts.sending_addresses(peer.node, remote, peer.pods))),
        )
        routes: dict[Any, Any] = {
            pods: Route(pods, None, DEVICE, here.source(family)) for family, pods in peer.pods.items()
        }
        return {Table.TUNNEL_PEERS: {key: row}, Table.ROUTES: routes}


def public_key(node: Node) -> str:
    """Raises ConfigError while its agent has published none, and for what is none."""
    text = node.metadata.annotations.get(KEY_ANNOTATION, "")
    if not text:
        why = f"no annotation {KEY_ANNOTATION}: its agent has published no key yet"
        raise ConfigError(f"{why} (does it run, with backend.type wireguard?)")
    if wireguard_key(text) is None:
        raise ConfigError(f"annotation {KEY_ANNOTATION} is no WireGuard key: not 32 bytes in base64")
    return text
