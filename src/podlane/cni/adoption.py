"""Pods of the reference bridge plugin, or of Flannel, go over to podlane while they run.

    pod eth0 10.244.1.5/24 ──veth── port of cni0 (10.244.1.1/24)       as the other plugin made it

`adopt`, before the agent's first generation: what the runtime remembers of each pod (runtime_cache.py)
becomes a lease, so that its address is not given out and its DEL finds it. In link mode `bridge` the port
stays where it is. In mode `routed` the pod is led off the bridge, a step at a time, and each step works
with what stands before it:

    1. in the pod: a permanent neighbour, podlane's gateway at the MAC of its own veth's other end, and every
       route by way of cni0's address goes there instead; then the bridge's network is no longer on the link.
       A frame for a port's own MAC is the node's, so all the pod sends is routed from now on.
    2. the first generation: the node's route to the pod's address leaves by its veth, port or not
    3. `release`: the veth is no port any more, and the pod's link is as routed as any other

Nothing is down or without a route at any time. An agent that is killed in between does the rest when it is
back. What cannot be taken over is told with the reason, and stays as it was.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from podlane.cni import runtime_cache
from podlane.cni.inside import check_namespace, one_link
from podlane.cni.leases import Lease, Leases
from podlane.cni.link import GATEWAYS
from podlane.cni.runtime_cache import Cached
from podlane.errors import CniError, KernelError, KernelNotFoundError
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl, neighbours, routes
from podlane.kernel.rtnl.links import Link
from podlane.model.addresses import Family, Prefix, family_of

_log = logging.getLogger(__name__)

_LOOSE: Final = "2"


class Left(NamedTuple):
    """A pod's link that could not be taken over, and why."""

    device: str
    pod: str
    reason: str

    def __str__(self) -> str:
        return f"{self.device} of pod {self.pod}: {self.reason}"


class Adoption:
    """pods: the cluster's pod prefixes; others' are left alone. bridge: of link mode `bridge`, "" for routed.

    cache_dir: where the runtime keeps results. netns_fd: the node's namespace; None for the caller's.
    Blocking.
    """

    def __init__(
        self,
        leases: Leases,
        pods: Collection[Prefix],
        *,
        bridge: str = "",
        cache_dir: str = runtime_cache.RESULTS_DIR,
        netns_fd: int | None = None,
    ) -> None:
        self._leases, self._pods, self._bridge = leases, tuple(pods), bridge
        self._cache_dir, self._netns_fd = cache_dir, netns_fd
        self.left: list[Left] = []

    def adopt(self) -> int:
        """Returns how many went over now. Raises KernelError when the links cannot be listed."""
        self.left = []
        with Rtnl(self._netns_fd) as node:
            known = {link.name: link for link in node.links()}
            by_index = {link.index: link for link in known.values()}
            taken = 0
            for cached in runtime_cache.read(self._cache_dir):
                port = self._port(cached, known, by_index)
                if port is None or self._leases.get(*cached.key) is not None:
                    continue
                try:
                    taken += self._adopt(node, cached, port, by_index[port.master])
                except (KernelError, CniError, OSError) as error:
                    self._leave(cached, port, str(error))
            return taken

    def release(self) -> list[str]:
        """Links of pods that are routed leave the bridge they came on: names of those that did."""
        done = []
        with Rtnl(self._netns_fd) as node:
            found = [
                (lease, node.find_link(lease.device)) for lease in self._leases.all() if not lease.bridge
            ]
            ports = [(lease, link) for lease, link in found if link is not None and link.master]
            for lease, link in ports:
                with suppress(KernelNotFoundError):  # its DEL was faster
                    node.set_master(link.index, 0)
                    done.append(link.name)
                for address in lease.addresses:
                    with suppress(KernelNotFoundError):
                        node.do(neighbours.delete_neighbour(link.master, address))
        return done

    def taken_over(self) -> list[Cached]:
        """What the runtime remembers of attachments that went over."""
        found = []
        for cached in runtime_cache.read(self._cache_dir):
            lease = self._leases.get(*cached.key)
            if lease is not None and lease.network == cached.network:
                found.append(cached)
        return found

    def _port(self, cached: Cached, known: dict[str, Link], by_index: dict[int, Link]) -> Link | None:
        """The node's end of a Kubernetes pod's link, if it is a port of a bridge and of the cluster's
        network.
        """
        inside = cached.addresses and all(any(a.ip in p for p in self._pods) for a in cached.addresses)
        if not cached.pod_name or not inside:
            return None
        for interface in cached.result.interfaces:
            link = known.get(interface.name)
            if link is not None and not interface.sandbox and link.kind == "veth" and link.master:
                return link if by_index[link.master].kind == "bridge" else None
        return None

    def _adopt(self, node: Rtnl, cached: Cached, port: Link, bridge: Link) -> bool:
        if self._bridge and bridge.name != self._bridge:
            why = f"it is a port of {bridge.name}: set link.bridge to {bridge.name}, or link.mode to routed"
            self._leave(cached, port, why)
            return False
        if not cached.sandbox:
            self._leave(cached, port, "the runtime does not remember its namespace: delete the pod")
            return False
        try:
            pod_fd = netns.open_path(cached.sandbox)
        except KernelError as error:
            why = "mount /run/netns into the agent's container (HostToContainer), or delete the pod"
            self._leave(cached, port, f"{error}; {why}")
            return False
        try:
            check_namespace(pod_fd, self._netns_fd)
            with Rtnl(pod_fd) as pod:
                inner = pod.find_link(cached.ifname)
                if inner is None or not one_link(port, inner):
                    return False  # another pod's file
                lease = self._lease(cached, port, inner)
                if not self._leases.adopt(lease):
                    self._leave(cached, port, "another pod has its address already: delete the pod")
                    return False
                try:
                    if not self._bridge:
                        # What it sends to another port comes by the node now, which asks nobody for its MAC.
                        for each in lease.addresses:
                            node.do(neighbours.set_neighbour(bridge.index, each, inner.mac))
                    gateway_mac = bridge.mac if self._bridge else port.mac
                    _lead(pod, inner, cached, gateway_mac, routed=not self._bridge)
                except KernelError:
                    self._leases.release(*lease.key)
                    raise
        finally:
            os.close(pod_fd)
        if not self._bridge:
            self._loosen(bridge.name)
        return True

    def _lease(self, cached: Cached, port: Link, inner: Link) -> Lease:
        return Lease(
            cached.container_id,
            cached.ifname,
            cached.network,
            port.name,
            inner.mac,
            tuple(each.ip for each in cached.addresses),
            pod_namespace=cached.pod_namespace,
            pod_name=cached.pod_name,
            bridge=self._bridge,
        )

    def _loosen(self, bridge: str) -> None:
        """What still comes by the bridge has its way back by the veth for a moment."""
        name = f"net/ipv4/conf/{bridge}/rp_filter"
        with suppress(OSError, KernelError):
            if self._netns_fd is None:
                if netns.read_own_sysctl(name) == "1":
                    netns.write_own_sysctl(name, _LOOSE)
            elif netns.read_sysctl(self._netns_fd, name) == "1":
                netns.write_sysctl(self._netns_fd, name, _LOOSE)

    def _leave(self, cached: Cached, port: Link, why: str) -> None:
        left = Left(port.name, f"{cached.pod_namespace}/{cached.pod_name}", why)
        _log.warning("not taken over: %s", left)
        self.left.append(left)


def _lead(pod: Rtnl, inner: Link, cached: Cached, gateway_mac: str, *, routed: bool) -> None:
    """From the pod's inside: where it sends to."""
    families = [family_of(each.ip) for each in cached.addresses]
    if not routed:
        _hold_gateways(pod, inner, gateway_mac, families)
        return
    for family in families:
        pod.do(neighbours.set_neighbour(inner.index, GATEWAYS[family], gateway_mac))
    own = {each.network for each in cached.addresses}
    held = [r for r in pod.routes() if r.link == inner.index and r.kind == routes.RouteKind.UNICAST]
    for route in held:
        gateway = GATEWAYS[family_of(route.destination)]
        if route.via is not None and route.via != gateway:
            pod.do(routes.add(route._replace(via=gateway, onlink=True), replace=True))
    for route in held:
        if route.via is None and route.destination in own and route.destination.prefixlen < _bits(route):
            with suppress(KernelNotFoundError):
                pod.do(routes.delete(route))


def _hold_gateways(pod: Rtnl, inner: Link, mac: str, families: Iterable[Family]) -> None:
    """Nobody on the bridge can claim the address that the pod sends to."""
    wanted = set(families)
    for route in pod.routes():
        if route.link == inner.index and route.via is not None and family_of(route.via) in wanted:
            pod.do(neighbours.set_neighbour(inner.index, route.via, mac))


def _bits(route: routes.KernelRoute) -> int:
    return route.destination.max_prefixlen
