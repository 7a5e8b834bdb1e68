"""Pods of other nodes are reached by plain routes: the node that has them is the next hop.

    route       10.244.2.0/24 via 172.30.1.12 dev eth0 src 172.30.1.11

No tunnel and no cost, but the next hop must be on this node's own subnet: a router between knows nothing
of pods. A node behind one is refused by name. The next hop has the family of the pods.
"""

from __future__ import annotations

from typing import Any, Final

from podlane.compile.tables import NOTHING, Route, Rows, Table
from podlane.compile.ways import Here, Peer
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family


class HostGateway:
    """The Way of backend.type host-gw, and of any other with directRouting for the nodes next to this one."""

    tunnel: Final = ""
    place: Final = None

    def overhead_bytes(self, outer: Family) -> int:
        return 0

    def device(self, here: Here) -> Rows:
        return NOTHING

    def peer(self, peer: Peer, here: Here) -> Rows:
        routes: dict[Any, Any] = {}
        for family, pods in peer.pods.items():
            via = peer.address(family)
            if via is None:
                raise ConfigError(f"no InternalIP of {family}, the next hop to its pods {pods}")
            if not here.reaches(via):
                raise ConfigError(_too_far(via, here))
            source = here.source(family)
            routes[pods] = Route(pods, via, here.underlay.device, source)
        return {Table.ROUTES: routes}


def is_next_to(peer: Peer, family: Family, here: Here) -> bool:
    via = peer.address(family)
    return via is not None and here.reaches(via)


def _too_far(via: Address, here: Here) -> str:
    subnets = ", ".join(str(subnet) for _, subnet in here.underlay.addresses if subnet.version == via.version)
    return (
        f"{via} is not on {here.underlay.device}'s subnet ({subnets or 'it has none'}), so host-gw has no "
        "next hop there; use backend.type=vxlan, with backend.directRouting=true for the nodes that are"
    )
