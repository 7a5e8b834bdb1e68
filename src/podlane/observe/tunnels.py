"""What an explanation says of tunnels: who is at the far end, and what is on the wire. Pure."""

from __future__ import annotations

from podlane.compile.peers import WAYS
from podlane.compile.tables import Route, Table, Tunnel, TunnelPeer, VxlanLink
from podlane.model.addresses import Address, Family, family_of
from podlane.model.backends import BackendType
from podlane.observe.explanation import Outcome, Row, Tables, WayEnds, table_row
from podlane.observe.walk import Walk


def device(tables: Tables, route: Route) -> VxlanLink | Tunnel | None:
    """The tunnel that a route leads into."""
    tunnel: Tunnel | None = tables.get(Table.TUNNELS, {}).get(route.device)
    link: VxlanLink | None = tables.get(Table.LINKS, {}).get(route.device)
    return link if tunnel is None else tunnel


def through(walk: Walk, node: str, tunnel: VxlanLink | Tunnel, via: Address | None, to: Address) -> str:
    """From `node` by its tunnel. via: the inner next hop of the route that leads there. Returns the node at
    its other end; raises WayEnds where there is none, or none that takes the outer packet off."""
    if isinstance(tunnel, Tunnel):
        return _prefixes(walk, node, tunnel, to)
    return _vxlan(walk, node, tunnel, via)


def own_address(link: VxlanLink | Tunnel, family: Family) -> Address:
    """What masquerade makes the source of what leaves by the tunnel."""
    own = [p.network_address for p in link.addresses if family_of(p) is family]
    return own[0] if own else link.local


def _vxlan(walk: Walk, node: str, link: VxlanLink, via: Address | None) -> str:
    here = walk.tables(node)
    neighbour = here.get(Table.NEIGHBOURS, {}).get((link.name, via))
    entry = here.get(Table.FDB, {}).get((link.name, neighbour.mac)) if neighbour else None
    if neighbour is None or entry is None:
        why = f"{link.name} has no neighbour or FDB row for {via}"
        walk.add("encapsulation", node, why)
        raise WayEnds(Outcome.NO_ROUTE, f"{node}: {why}")
    walk.add(
        "encapsulation",
        node,
        f"VXLAN {link.vni} in UDP {link.port}, {link.local} -> {entry.remote}; MTU {link.mtu_bytes}",
        table_row(Table.LINKS, link.name, link, f"{link.name} local {link.local} dev {link.underlay}"),
        table_row(
            Table.NEIGHBOURS,
            (link.name, neighbour.address),
            neighbour,
            f"neighbour {neighbour.address} lladdr {neighbour.mac}",
        ),
        table_row(Table.FDB, (link.name, entry.mac), entry, f"fdb {entry.mac} dst {entry.remote}"),
    )
    remote = walk.cluster.node_at(entry.remote)
    if remote is None:
        raise WayEnds(Outcome.NO_ROUTE, f"no node has the outer address {entry.remote}")
    walk.add("underlay", "", f"{node} -> {remote.name} over the nodes' own network")
    name = _unwrapping(walk.tables(remote.name), remote.name, link)
    walk.add("arrival", remote.name, f"{name} takes the outer packet off")
    return remote.name


def _unwrapping(there: Tables, node: str, sent_by: VxlanLink) -> str:
    link = there.get(Table.LINKS, {}).get(sent_by.name)
    if link is None or (link.vni, link.port) != (sent_by.vni, sent_by.port):
        why = f"{node} has no tunnel device for VXLAN {sent_by.vni} in UDP {sent_by.port}"
        raise WayEnds(Outcome.DROPPED, why)
    return str(link.name)


def _prefixes(walk: Walk, node: str, tunnel: Tunnel, to: Address) -> str:
    """By a tunnel whose peers are prefixes."""
    found = _far_end(walk.tables(node), tunnel, to)
    remote = walk.cluster.node_at(found[1].remote) if found else None
    if found is None or remote is None:
        why = f"{tunnel.name} has no peer for {to}"
        walk.add("encapsulation", node, why)
        raise WayEnds(Outcome.NO_ROUTE, f"{node}: {why}")
    walk.add("encapsulation", node, _wrapping(tunnel, found[1], to), *_rows(tunnel, *found))
    walk.add("underlay", "", f"{node} -> {remote.name} over the nodes' own network")
    if tunnel.name not in walk.tables(remote.name).get(Table.TUNNELS, {}):
        raise WayEnds(Outcome.DROPPED, f"{remote.name} has no {tunnel.kind} tunnel")
    walk.add("arrival", remote.name, f"{tunnel.name} takes the outer packet off")
    return remote.name


def _far_end(tables: Tables, tunnel: Tunnel, to: Address) -> tuple[str, TunnelPeer] | None:
    """(key, row) of the peer whose pods `to` is among."""
    for key, row in tables.get(Table.TUNNEL_PEERS, {}).items():
        if row.device == tunnel.name and any(p.version == to.version and to in p for p in row.pods):
            return str(key), row
    return None


def _wrapping(tunnel: Tunnel, peer: TunnelPeer, to: Address) -> str:
    name = _NAMES.get((tunnel.kind, to.version)) or _NAMES.get((tunnel.kind, 0)) or tunnel.kind
    how = f"{name}, {tunnel.local} -> {peer.remote}"
    more = WAYS[tunnel.kind].overhead_bytes(family_of(tunnel.local))
    port = f", UDP {peer.port}" if peer.port else ""
    return f"{how}{port}; MTU {tunnel.mtu_bytes} ({more} bytes more on the wire)"


def _rows(tunnel: Tunnel, key: str, peer: TunnelPeer) -> tuple[Row, Row]:
    pods = ", ".join(map(str, peer.pods))
    return (
        table_row(Table.TUNNELS, tunnel.name, tunnel, f"{tunnel.name} local {tunnel.local}"),
        table_row(Table.TUNNEL_PEERS, key, peer, f"peer {key} at {peer.remote} has {pods}"),
    )


_NAMES = {
    (BackendType.WIREGUARD, 0): "encrypted by WireGuard",
    (BackendType.UDP, 0): "a bare packet in a datagram",
    (BackendType.IPIP, 4): "IP in IP (protocol 4)",
    (BackendType.IPIP, 6): "IPv6 in IP (protocol 41)",
}
