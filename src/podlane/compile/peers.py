"""Pods of other nodes: who the others are, and which way leads to each (backend.type).

One unit a remote node, and one for what this node needs itself. With backend.directRouting a node on this
node's own subnet is reached by plain routes, family by family, and the tunnel is left to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from podlane.compile import bgp, facts
from podlane.compile.bgp import AS_ANNOTATION, BgpRoutes
from podlane.compile.engine import Capability
from podlane.compile.hostgw import HostGateway, is_next_to
from podlane.compile.ipip import IpInIp
from podlane.compile.store import Compiled, UnitKey
from podlane.compile.tables import NOTHING, Rows, Table
from podlane.compile.view import CONFIG, UNDERLAY, Change, View, since
from podlane.compile.vxlan import Vxlan
from podlane.compile.ways import Here, Peer, Way
from podlane.compile.wireguard import WireguardTunnel
from podlane.errors import ConfigError
from podlane.model.addresses import Family, Prefix, host_prefix, overlap
from podlane.model.backends import BackendType
from podlane.model.local import Underlay
from podlane.model.objects import Node

NAME: Final = "peers"
OWN: Final = UnitKey(NAME, "device")
ROUTERS: Final = UnitKey(NAME, "routers")
"""The BGP speaker of a node whose backend is another one."""
DIRECT: Final = HostGateway()
WAYS: Final[dict[BackendType, Way]] = {
    BackendType.VXLAN: Vxlan(),
    BackendType.WIREGUARD: WireguardTunnel(),
    BackendType.IPIP: IpInIp(),
    BackendType.HOST_GW: DIRECT,
    BackendType.BGP: BgpRoutes(),
}
TUNNEL_DEVICES: Final = tuple(way.tunnel for way in WAYS.values() if way.tunnel)
"""What a tunnel's device may be called on a node, whichever way it is that is configured."""


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if change.kind == "Node" and change.name != view.me.name:
        yield UnitKey(NAME, "node", change.name)
    elif change.kind in (CONFIG, UNDERLAY) or (change.kind == "Node" and _moved(change)):
        # What this node is decides the rows of every peer: a change as large as the cluster.
        yield OWN
        if view.config.speaks_bgp:
            yield ROUTERS
        for name in view.nodes:
            if name != view.me.name:
                yield UnitKey(NAME, "node", name)


def compile_unit(key: UnitKey, view: View) -> Rows | Compiled:
    if key == ROUTERS and view.config.backend.type is BackendType.BGP:
        return NOTHING  # the backend's own speaker tells them
    if key in (OWN, ROUTERS):
        return _device(view, bgp.to_routers if key == ROUTERS else _way(view).device)
    return _peer(key.name, view)


def _device(view: View, rows_for: Callable[[Here], Rows]) -> Rows | Compiled:
    """What this node needs once, whoever the others are."""
    node = view.me.node
    if node is None or view.me.underlay is None:
        return NOTHING
    try:
        here = _here(view)
        return rows_for(here) if here else NOTHING
    except ConfigError as error:
        return _refused(node, str(error))


def _peer(name: str, view: View) -> Rows | Compiled:
    node = view.nodes.get(name)
    try:
        here = _here(view)
    except ConfigError:
        return NOTHING  # this node's own unit says so
    if node is None or here is None:
        return NOTHING
    try:
        theirs = facts.pod_prefixes(node)
    except ConfigError as error:
        return _refused(node, f"spec.podCIDRs: {error}")
    if not theirs:
        return _refused(node, "no podCIDR yet, so its pods cannot be reached")
    refused: list[str] = []
    pods: dict[Family, Prefix] = {}
    for family, prefix in theirs.items():
        if (own := here.pods.get(family)) is None:
            continue  # no pod here speaks it
        if overlap(prefix, own):
            refused.append(f"node {name}: podCIDR {prefix} overlaps this node's own {own}")
        else:
            pods[family] = prefix
    rows: dict[Table, dict[Any, Any]] = {}
    for way, families in _ways(Peer(node, pods), view, here):
        part = Peer(node, {f: pods[f] for f in theirs if f in families})
        try:
            for table, found in way.peer(part, here).items():
                rows.setdefault(table, {}).update(found)
        except ConfigError as error:
            refused.append(f"node {name}: {error}")
    return Compiled(rows, since(node), tuple(refused))


def _ways(peer: Peer, view: View, here: Here) -> Iterator[tuple[Way, set[Family]]]:
    """Which families of the peer's pods are reached which way."""
    near: set[Family] = set()
    if view.config.backend.direct_routing:
        near = {family for family in peer.pods if is_next_to(peer, family, here)}
    if near:
        yield DIRECT, near
    if far := set(peer.pods) - near:
        yield _way(view), far


CAPABILITY = Capability(NAME, units_of, compile_unit)


def link_mtu_bytes(view: View) -> int:
    """Of the tunnel and of pods' links; 0 while the uplink is not known."""
    node, underlay = view.me.node, view.me.underlay
    outer = facts.outer_family(node, underlay, view.config.ip_families) if node else None
    if outer is None or underlay is None:
        return 0
    return view.config.backend.mtu_bytes or underlay.mtu_bytes - _way(view).overhead_bytes(outer)


def underlay_from_node(view: View) -> Underlay | None:
    """The uplink as the node's agent announced it, or else what it must look like by the Node object."""
    node = view.me.node
    if node is None or facts.outer_family(node, None, view.config.ip_families) is None:
        return None
    if (announced := facts.announced_underlay(node)) is not None:
        return announced
    addresses = tuple((a, host_prefix(a)) for a in facts.internal_addresses(node))
    return Underlay("eth0", view.config.fabric.mtu, addresses)


def _way(view: View) -> Way:
    return WAYS[view.config.backend.type]


def _here(view: View) -> Here | None:
    """None while the node or its uplink is not known. Raises ConfigError with what the Node lacks."""
    found = view.of_me(_here_or_why)
    if isinstance(found, str):
        raise ConfigError(found)
    return found


def _here_or_why(view: View) -> Here | str | None:
    try:
        return _find_here(view)
    except ConfigError as error:
        return str(error)


def _find_here(view: View) -> Here | None:
    node, underlay = view.me.node, view.me.underlay
    if node is None or underlay is None:
        return None
    outer = facts.outer_family(node, underlay, view.config.ip_families)
    if outer is None:
        raise ConfigError("no InternalIP of any family of ipFamilies; set one (kubelet --node-ip)")
    try:
        pods = facts.pod_prefixes(node)
    except ConfigError as error:
        raise ConfigError(f"spec.podCIDRs: {error}") from None
    if not pods:
        raise ConfigError("no podCIDR yet; the controller gives one, or the cluster's own IPAM")
    return Here(
        view.config,
        node,
        underlay,
        outer,
        pods,
        link_mtu_bytes(view),
        {family: facts.own_address(node, underlay, family) for family in Family},
        {family: facts.source_address(node, underlay, family) for family in Family},
    )


def _moved(change: Change) -> bool:
    """Whether a change of this node's own Node object concerns its links to others."""
    old, new = change.old, change.new
    return old is None or new is None or _place(old) != _place(new)


def _place(node: Node) -> object:
    """Addresses and CIDRs; labels choose BGP peers, an annotation the AS."""
    meta = node.metadata
    return node.spec, node.status.addresses, meta.labels, meta.annotations.get(AS_ANNOTATION)


def _refused(node: Node, why: str) -> Compiled:
    return Compiled(NOTHING, since(node), (f"node {node.name}: {why}",))
