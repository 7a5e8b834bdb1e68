"""Pods of other nodes are reached by routes that BGP (RFC 4271) brings: no tunnel, routers may be between.

    node-1 announces 10.244.1.0/24 to its peers; node-2's session with it brings
    route       10.244.1.0/24 via 172.30.1.11 dev eth0 proto bird src 172.30.1.12

Every node has a session with every other (bgp.nodeMesh), or with the route reflectors alone
(bgp.routeReflectors), one a family, each between the nodes' InternalIPs of that family, and with the routers
of bgp.peers. Nodes of one AS speak iBGP; a node with an AS of its own (annotation podlane.dev/bgp-as-number)
eBGP. Between subnets the routers must know pods' prefixes: they are told as peers, or the nodes' next hops do
not lead there.

With another backend and bgp.peers the speaker tells routers addresses of services; nodes have no sessions
with each other then, and nothing is learnt.

Here is decided who speaks with whom and what for; the speaker itself is BIRD (engines/bird). LEARNT says
which routes are to come of it, so that their absence is seen and `explain` can tell the way.
"""

from __future__ import annotations

from typing import Any, Final

from podlane.compile.tables import NOTHING, BgpPeer, BgpSpeaker, Learnt, Rows, Table
from podlane.compile.ways import Here, Peer
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Prefix, address, family_of
from podlane.model.bgp import Bgp, BgpPeerConfig
from podlane.model.objects import Node

AS_ANNOTATION: Final = "podlane.dev/bgp-as-number"
SPEAKER: Final = "bgp"


class BgpRoutes:
    """The Way of backend.type bgp."""

    tunnel: Final = ""
    place: Final = (Table.SPEAKER, SPEAKER)

    def overhead_bytes(self, outer: Family) -> int:
        return 0

    def device(self, here: Here) -> Rows:
        sources = [here.address(family) for family in here.pods]
        missing = [str(f) for f, source in zip(here.pods, sources, strict=True) if source is None]
        if missing:
            raise ConfigError(f"no InternalIP of {', '.join(missing)}: its pods cannot be announced by BGP")
        known = tuple(source for source in sources if source is not None)
        own = tuple(here.pods.values())
        accepted = tuple(here.config.pods[family] for family in here.pods)
        originated = {pods: pods for pods in own}
        return {**_speaker(here, known, own, accepted), Table.ORIGINATED: originated}

    def peer(self, peer: Peer, here: Here) -> Rows:
        bgp = here.config.bgp
        sessions: dict[Any, Any] = {}
        learnt: dict[Any, Any] = {}
        for family, pods in peer.pods.items():
            via = peer.address(family)
            if via is None:
                raise ConfigError(f"no InternalIP of {family}, the next hop to its pods {pods}")
            learnt[pods] = Learnt(pods, via)
            if _speak(here.node, peer.node, bgp):
                number = as_number(peer.node, here)
                client = reflects(here.node, bgp) and number == as_number(here.node, here)
                sessions[peer.node.name, family] = BgpPeer(
                    via,
                    number,
                    bgp.password,
                    here.reaches(via),
                    True,
                    client=client and not reflects(peer.node, bgp),
                    bfd=bgp.bfd,
                )
        return {Table.BGP_PEERS: sessions, Table.LEARNT: learnt}


def to_routers(here: Here) -> Rows:
    """A speaker beside another backend: for addresses of services (compile/advertise.py), and for them alone.

    Raises ConfigError for an AS number that is none.
    """
    sources = [here.address(family) for family in here.pods]
    known = tuple(source for source in sources if source is not None)
    return _speaker(here, known, (), ()) if known else NOTHING


def _speaker(
    here: Here, sources: tuple[Address, ...], own: tuple[Prefix, ...], accepted: tuple[Prefix, ...]
) -> dict[Table, dict[Any, Any]]:
    bgp = here.config.bgp
    router_id = _router_id(sources)
    speaker = BgpSpeaker(
        router_id=router_id,
        as_number=as_number(here.node, here),
        interface=here.underlay.device,
        sources=sources,
        own=own,
        accepted=accepted,
        bfd=bgp.bfd,
        restart_s=bgp.graceful_restart_seconds,
        cluster_id=(bgp.cluster_id or router_id) if own and reflects(here.node, bgp) else "",
        pod_communities=tuple(bgp.communities.pods),
        service_communities=tuple(bgp.communities.services),
    )
    peers: dict[Any, Any] = {}
    for peer in bgp.peers:
        if peer.nodes.items() <= here.node.metadata.labels.items():
            where = address(peer.address) if peer.address else None
            family = family_of(where) if where is not None else Family.IPV6
            if where is None or family in here.pods:
                peers[peer.interface or str(where), family] = _router(peer, where, here)
    return {Table.SPEAKER: {SPEAKER: speaker}, Table.BGP_PEERS: peers}


def _router(peer: BgpPeerConfig, where: Address | None, here: Here) -> BgpPeer:
    return BgpPeer(
        where,
        peer.as_number,
        peer.password,
        where is None or here.reaches(where),
        False,
        peer.port,
        interface=peer.interface,
        bfd=peer.bfd,
        import_rules=tuple(peer.import_rules),
        export_rules=tuple(peer.export_rules),
        local_preference=peer.local_preference,
        prepend=peer.prepend,
    )


def reflects(node: Node, bgp: Bgp) -> bool:
    """Whether it is a route reflector (RFC 4456)."""
    return bool(bgp.route_reflectors) and bgp.route_reflectors.items() <= node.metadata.labels.items()


def _speak(one: Node, other: Node, bgp: Bgp) -> bool:
    """Whether two nodes have a session."""
    if bgp.route_reflectors:
        return reflects(one, bgp) or reflects(other, bgp)
    return bgp.node_mesh


def as_number(node: Node, here: Here) -> int:
    """Raises ConfigError for an annotation that is no AS number (RFC 6793)."""
    text = node.metadata.annotations.get(AS_ANNOTATION)
    if text is None:
        return here.config.bgp.as_number
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 32:
        raise ConfigError(f"annotation {AS_ANNOTATION} is {text!r}, no number between 1 and 4294967295")
    return int(text)


def _router_id(sources: tuple[Address, ...]) -> str:
    """The first IPv4 InternalIP; without one 32 bits that differ, the last of the IPv6 address (RFC 6286)."""
    four = next((s for s in sources if s.version == 4), None)
    if four is not None:
        return str(four)
    return ".".join(map(str, sources[0].packed[-4:]))
