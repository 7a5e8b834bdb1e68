"""The fabric's way to the addresses of LoadBalancerPools: a network administrator's part, in a lab.

Nodes answer ARP and NDP for such addresses on their own segment, but for pools that are announced by BGP
alone, whose routes the router learns (lab/router.py). Addresses within a rack's subnet are on-link there
already; others need a route of the router to the rack where nodes announce them, which is the rack of
the first node that the pool means (compile/announce.py has the same rule). One layer-2 network is as
far as announcing goes: to use another rack, give the pool a nodeSelector on the zone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final

from podlane.controller.meta import created_s, is_deleting, labels_of
from podlane.errors import ConfigError, KernelError
from podlane.kernel import netns
from podlane.kernel.rtnl import PROTOCOL, Rtnl
from podlane.lab.client import Obj
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.informer import Key
from podlane.lab.topology import Topology
from podlane.model import pools
from podlane.model.addresses import Prefix
from podlane.model.pools import Pool, Way, range_of

COMPONENT: Final = "podlane-fabric"


class PoolRoutes(Controller):
    """fabric_pid: a process in the fabric's namespace. All pools together are looked at as one."""

    resource: ClassVar[str] = pools.RESOURCE
    workers: ClassVar[int] = 1
    settle_s: ClassVar[float] = 0.02

    def __init__(self, context: Context, topology: Topology, fabric_pid: int) -> None:
        self.nodes = context.informer("nodes")
        self._topology, self._fabric_pid = topology, fabric_pid
        super().__init__(context)

    def subscribe(self) -> None:
        self.nodes.subscribe(self._node_changed)
        self.soon(("", ""))  # routes of pools that went while nobody looked

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None or old.get("spec") != new.get("spec"):
            self.soon(("", ""))

    def _node_changed(self, old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None or labels_of(old) != labels_of(new):
            self.soon(("", ""))

    async def reconcile(self, key: Key) -> float | None:
        labels = {node["metadata"]["name"]: labels_of(node) for node in self.nodes.list()}
        wanted: dict[Prefix, str] = {}
        for document in sorted(self.objects.list(), key=created_s):
            if is_deleting(document):
                continue
            try:
                pool = pools.parse(document)
                by_bgp = pool.announce and Way.L2 not in pool.announce
                found = () if by_bgp else tuple(routes_of(pool, self._topology, labels))
            except ConfigError as error:
                self.context.events.warning(pools.KIND, document, "NotRouted", str(error), COMPONENT)
                continue
            for prefix, bridge in found:
                wanted.setdefault(prefix, bridge)
        try:
            await asyncio.to_thread(self._write, wanted)
        except KernelError as error:
            for document in self.objects.list():
                self.context.events.warning(pools.KIND, document, "NotRouted", str(error), COMPONENT)
            return 5.0
        return None

    def _write(self, wanted: Mapping[Prefix, str]) -> None:
        namespace = netns.open_pid(self._fabric_pid)
        try:
            with Rtnl(namespace) as router:
                names = {link.index: link.name for link in router.links()}
                present = {r.destination: names.get(r.link, "") for r in router.routes(protocol=PROTOCOL)}
                for prefix in present.keys() - wanted.keys():
                    router.delete_route(prefix)
                for prefix, bridge in wanted.items():
                    if present.get(prefix) != bridge:
                        router.add_route(prefix, device=bridge, replace=True)
        finally:
            os.close(namespace)


def routes_of(
    pool: Pool, topology: Topology, labels: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[Prefix, str]]:
    """(prefix, bridge of the fabric) for what of the pool is on no rack's link. labels: of nodes, by name.

    Raises ConfigError for addresses of the fabric's other segments.
    """
    bridge = bridge_of(pool, topology, labels)
    subnets = {s.bridge: [range_of(a.network) for a in s.addresses] for s in topology.segments}
    for each in pool.ranges:
        for name, ranges in subnets.items():
            if any(each.overlaps(theirs) for theirs in ranges) and not name.startswith("rack"):
                raise ConfigError(f"{each} overlaps the lab's segment {name}; use other addresses")
        for prefix in each.prefixes():
            own = range_of(prefix)
            if not any(own.overlaps(theirs) for ranges in subnets.values() for theirs in ranges):
                yield prefix, bridge


def bridge_of(pool: Pool, topology: Topology, labels: Mapping[str, Mapping[str, str]]) -> str:
    """The rack of the first node that may announce; of the first node if none may."""
    hosts = [host for host, _ in topology.nodes]
    for host in hosts:
        its = labels.get(host.name, {})
        if pool.nodes.matches(its) and pools.EXCLUDE_LABEL not in its:
            return host.bridge
    return hosts[0].bridge
