"""What an explanation says of tunnels that are no VXLAN: who is at the far end, and what is on the wire."""

from __future__ import annotations

from podlane.compile.tables import Table, Tunnel, TunnelPeer
from podlane.model.addresses import Address
from podlane.model.backends import BackendType
from podlane.observe.explanation import Row, Tables, table_row


def far_end(tables: Tables, tunnel: Tunnel, to: Address) -> tuple[str, TunnelPeer] | None:
    """(key, row) of the peer whose pods `to` is among."""
    for key, row in tables.get(Table.TUNNEL_PEERS, {}).items():
        if row.device == tunnel.name and any(p.version == to.version and to in p for p in row.pods):
            return str(key), row
    return None


def wrapping(tunnel: Tunnel, peer: TunnelPeer, to: Address) -> str:
    name = _NAMES.get((tunnel.kind, to.version)) or _NAMES.get((tunnel.kind, 0)) or tunnel.kind
    how = f"{name}, {tunnel.local} -> {peer.remote}"
    return f"{how}{f', UDP {peer.port}' if peer.port else ''}; MTU {tunnel.mtu_bytes}"


def rows(tunnel: Tunnel, key: str, peer: TunnelPeer) -> tuple[Row, Row]:
    pods = ", ".join(map(str, peer.pods))
    return (
        table_row(Table.TUNNELS, tunnel.name, tunnel, f"{tunnel.name} local {tunnel.local}"),
        table_row(Table.TUNNEL_PEERS, key, peer, f"peer {key} at {peer.remote} has {pods}"),
    )


_NAMES = {
    (BackendType.WIREGUARD, 0): "encrypted by WireGuard",
    (BackendType.IPIP, 4): "IP in IP (protocol 4)",
    (BackendType.IPIP, 6): "IPv6 in IP (protocol 41)",
}
