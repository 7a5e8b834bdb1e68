"""Pods of other nodes: who the others are, and which way leads to each (backend.type, compile/reception.py).

One unit a remote node, and one for what this node needs itself. With backend.directRouting a node on this
node's own subnet is reached by plain routes, family by family, and the tunnel is left to the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from podlane.compile import bgp, facts, flannel
from podlane.compile.bgp import AS_ANNOTATION, BgpRoutes
from podlane.compile.engine import Capability
from podlane.compile.hostgw import HostGateway, is_next_to
from podlane.compile.ipip import IpInIp
from podlane.compile.reception import ANSWERED, active, choose, flips
from podlane.compile.spoken import received, said
from podlane.compile.store import Compiled, UnitKey
from podlane.compile.tables import DIRECT, NOTHING, PeerWay, Rows, Table, TunnelSource, VxlanLink
from podlane.compile.udp import UdpTunnel
from podlane.compile.view import CONFIG, STANDING, UNDERLAY, Change, View, since
from podlane.compile.vxlan import Vxlan
from podlane.compile.ways import Here, Peer, Way
from podlane.compile.wireguard import WireguardTunnel
from podlane.errors import ConfigError
from podlane.model.addresses import Family, Prefix, family_of, host_prefix, overlap
from podlane.model.backends import LEAST_MTU_BYTES, BackendType
from podlane.model.config import NetworkConfig
from podlane.model.local import Underlay
from podlane.model.objects import Node

NAME: Final = "peers"
OWN: Final = UnitKey(NAME, "device")
DIRECT_WAY: Final = HostGateway()
WAYS: Final[dict[BackendType, Way]] = {
    BackendType.VXLAN: Vxlan(),
    BackendType.WIREGUARD: WireguardTunnel(),
    BackendType.IPIP: IpInIp(),
    BackendType.UDP: UdpTunnel(),
    BackendType.HOST_GW: DIRECT_WAY,
    BackendType.BGP: BgpRoutes(),
}
FLANNEL_VXLAN: Final = flannel.FlannelVxlan()
TUNNEL_DEVICES: Final = (*(way.tunnel for way in WAYS.values() if way.tunnel), flannel.SECOND_DEVICE)
"""What a tunnel's device may be called on a node, whichever way it is that is configured."""


def way_of(kind: BackendType, config: NetworkConfig) -> Way:
    compat = config.backend.flannel_compat and kind is BackendType.VXLAN
    return FLANNEL_VXLAN if compat else WAYS[kind]


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if change.kind == "Node" and change.name != view.me.name:
        yield UnitKey(NAME, "node", change.name)
        for where in {each for side in change.sides for each in facts.internal_addresses(side)}:
            for other in view.nodes_at(where):  # who has it too
                if other.name != view.me.name:
                    yield UnitKey(NAME, "node", other.name)
    elif change.kind == STANDING:
        yield UnitKey(NAME, "node", change.object.node)
    if decides(change, view):
        # What this node is decides the rows of every peer: a change as large as the cluster.
        yield OWN
        for name in view.nodes:
            if name != view.me.name:
                yield UnitKey(NAME, "node", name)


def decides(change: Change, view: View) -> bool:
    """Whether a change concerns what this node is among the others."""
    if change.kind == "Node" and change.name == view.me.name and _moved(change):
        return True
    return change.kind in (CONFIG, UNDERLAY) or flips(change, view)


def compile_unit(key: UnitKey, view: View) -> Rows | Compiled:
    return _device(view) if key == OWN else _peer(key.name, view)


def _device(view: View) -> Rows | Compiled:
    node = view.me.node
    if node is None or view.me.underlay is None:
        return NOTHING
    refused: list[str] = []
    rows: dict[Table, dict[Any, Any]] = {}
    try:
        here = _here(view)
    except ConfigError as error:
        return _refused(node, str(error))
    if here is None:
        return NOTHING
    kinds = active(view)
    devices = [partial(way_of(kind, here.config).device, _by(kind, here)) for kind in kinds]
    if why := _too_small(view):
        refused.append(f"node {node.name}: {why}")
    if view.config.speaks_bgp and BackendType.BGP not in kinds:
        devices.append(partial(bgp.to_routers, here))
    for device in devices:
        try:
            _merge(rows, device())
        except ConfigError as error:
            refused.append(f"node {node.name}: {error}")
    tunnels = [link for link in rows.get(Table.LINKS, {}).values() if isinstance(link, VxlanLink)]
    if tunnels:
        guarded = {(link.port, None): TunnelSource(link.port) for link in tunnels}
        rows[Table.TUNNEL_SOURCES] = dict(guarded)
    return Compiled(rows, since(node), tuple(refused))


def _sources(node: Node, found: Rows, here: Here) -> dict[Any, Any]:
    """Where VXLAN of that node may come from: every address that it is known by."""
    port = here.config.backend.port
    told = facts.announced_underlay(node)
    addresses = {address for address, _ in told.addresses} if told else set()
    addresses.update(facts.internal_addresses(node))
    addresses |= {entry.remote for entry in found.get(Table.FDB, {}).values()}
    return {(port, address): TunnelSource(port, address) for address in addresses}


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
    for where in facts.internal_addresses(node):
        if where == here.address(family_of(where)):
            return _refused(node, f"its address {where} is this node's own")
    refused = list(_shared(node, view))
    pods: dict[Family, Prefix] = {}
    for family, prefix in theirs.items():
        if (own := here.pods.get(family)) is None:
            continue  # no pod here speaks it
        if overlap(prefix, own):
            refused.append(f"node {name}: podCIDR {prefix} overlaps this node's own {own}")
        else:
            pods[family] = prefix
    rows: dict[Table, dict[Any, Any]] = {}
    sent: dict[Family, str] = {}
    try:
        whole = _met(node, pods, view.config)
        for kinds, families in _ways(whole, view, here):
            part = whole._replace(pods={f: pods[f] for f in theirs if f in families})
            kind, found, why = _first(kinds, part, here)
            if found is None:
                refused.append(f"node {name}: {why}")
            else:
                _merge(rows, found)
                sent.update(dict.fromkeys(families, kind or DIRECT))
            _receive(rows, part, kind, view, here)
    except ConfigError as error:
        refused.append(f"node {name}: {error}")
    if BackendType.VXLAN in active(view):
        rows[Table.TUNNEL_SOURCES] = _sources(node, rows, here)
    if sent:
        told = tuple((family, sent[family]) for family in pods if family in sent)
        rows[Table.PEER_WAYS] = {name: PeerWay(name, told)}
    return Compiled(rows, since(node), tuple(refused))


def _shared(node: Node, view: View) -> Iterator[str]:
    """Told of the younger one, and no more: which of them is wrong nobody here can know."""
    for where in facts.internal_addresses(node):
        for other in view.nodes_at(where):
            if (since(other), other.name) < (since(node), node.name):
                yield f"node {node.name}: its address {where} is node {other.name}'s too, which is older"


def _met(node: Node, pods: dict[Family, Prefix], config: NetworkConfig) -> Peer:
    """Raises ConfigError for a node that does not speak Flannel's protocol where that is spoken."""
    if not config.backend.flannel_compat:
        return Peer(node, pods)
    if said(node) is None:
        flannel.require(node, config)
    addresses = {}
    for family in pods:
        with suppress(ConfigError):  # its way says so
            addresses[family] = flannel.public_address(node, family)
    return Peer(node, pods, addresses)


Kinds = Sequence[BackendType | None]
"""Ways in the order in which they are tried; None: without the tunnel."""


def _first(kinds: Kinds, peer: Peer, here: Here) -> tuple[BackendType | None, Rows | None, str]:
    """The first way there is to the peer, with its rows; or the first one, and why it is none."""
    refused = ""
    for kind in kinds:
        try:
            way = DIRECT_WAY if kind is None else way_of(kind, here.config)
            return kind, way.peer(peer, _by(kind, here)), ""
        except ConfigError as error:
            refused = refused or str(error)
    return kinds[0], None, refused


def _ways(peer: Peer, view: View, here: Here) -> Iterator[tuple[Kinds, set[Family]]]:
    """Which families of the peer's pods are reached which way. Raises ConfigError."""
    near: set[Family] = set()
    if view.config.backend.direct_routing:
        near = {family for family in peer.pods if is_next_to(peer, family, here)}
    if near:
        yield [None], near
    far = set(peer.pods) - near
    if far and view.config.backend.flannel_compat:
        kinds = choose(peer.node, view)
        yield from ((kinds, {family}) for family in far)  # each has a tunnel of its own
    elif far:
        yield choose(peer.node, view), far


def _receive(
    rows: dict[Table, dict[Any, Any]], peer: Peer, sent: BackendType | None, view: View, here: Here
) -> None:
    """What is needed for packets of that node that come by other ways than they are sent there."""
    others = active(view)
    if sent is None or len(others) == 1:
        return
    for kind in others:
        if kind is sent or (kind in ANSWERED and kind not in received(peer.node)):
            continue
        with suppress(ConfigError):  # it does not come that way
            found = way_of(kind, here.config).peer(peer, _by(kind, here))
            _merge(rows, {table: part for table, part in found.items() if table is not Table.ROUTES})


def _merge(rows: dict[Table, dict[Any, Any]], found: Rows) -> None:
    for table, part in found.items():
        rows.setdefault(table, {}).update(part)


CAPABILITY = Capability(NAME, units_of, compile_unit)


def link_mtu_bytes(view: View) -> int:
    """Of pods' links: what every way in use can carry; 0 while the uplink is not known."""
    node, underlay = view.me.node, view.me.underlay
    outer = facts.outer_family(node, underlay, view.config.ip_families) if node else None
    if outer is None or underlay is None:
        return 0
    return min(_mtu_bytes(kind, view.config, underlay, outer) for kind in active(view))


def _too_small(view: View) -> str:
    underlay, mtu_bytes = view.me.underlay, link_mtu_bytes(view)
    for family in view.config.ip_families:
        if underlay is not None and mtu_bytes < LEAST_MTU_BYTES[family]:
            leaves = f"{underlay.device}'s MTU {underlay.mtu_bytes} leaves {mtu_bytes} bytes for pods"
            return f"{leaves}, and {family} needs {LEAST_MTU_BYTES[family]}; raise it, or use host-gw"
    return ""


def _mtu_bytes(kind: BackendType, config: NetworkConfig, underlay: Underlay, outer: Family) -> int:
    if config.backend.flannel_compat and Family.IPV6 in config.ip_families:
        outer = Family.IPV6  # pods of IPv6 have a tunnel over IPv6
    return config.backend.mtu_bytes or underlay.mtu_bytes - way_of(kind, config).overhead_bytes(outer)


def _by(kind: BackendType | None, here: Here) -> Here:
    """What a way starts from."""
    if kind is None:
        return here
    return here._replace(mtu_bytes=_mtu_bytes(kind, here.config, here.underlay, here.outer))


def flannel_says(view: View) -> tuple[dict[str, str], str] | None:
    """This node's annotations of Flannel's protocol, and its subnet.env; None while it is not known.

    Raises ConfigError for an annotation of its own that cannot be used.
    """
    here = _here(view)
    if here is None:
        return None
    return flannel.announcements(here), flannel.subnet_env(here, link_mtu_bytes(view))


def underlay_from_node(view: View) -> Underlay | None:
    """The uplink as the node's agent announced it, or else what it must look like by the Node object."""
    node = view.me.node
    if node is None or facts.outer_family(node, None, view.config.ip_families) is None:
        return None
    if (announced := facts.announced_underlay(node)) is not None:
        return announced
    addresses = tuple((a, host_prefix(a)) for a in facts.internal_addresses(node))
    return Underlay("eth0", view.config.fabric.mtu, addresses)


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
    if view.config.backend.flannel_compat:  # Flannel knows what its configuration names
        pods = {family: prefix for family, prefix in pods.items() if family in view.config.ip_families}
    if not pods:
        raise ConfigError("no podCIDR yet; the controller gives one, or the cluster's own IPAM")
    return Here(
        view.config,
        node,
        underlay,
        outer,
        pods,
        view.config.backend.mtu_bytes or underlay.mtu_bytes,
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
