"""The pod's end of a link as the reference plugins make it: addresses with their prefixes, and routes.

A default route of a second interface does not fight with the first one's: it stands behind it, with a
higher metric, and serves when the first is gone. Blocking.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from typing import Final

from podlane.cni.protocol import INVALID_ENVIRONMENT, KERNEL_REFUSED, TRY_AGAIN_LATER
from podlane.cni.results import Ip, Result, RouteEntry
from podlane.errors import CniError, KernelError, KernelExistsError, KernelNotFoundError
from podlane.kernel import netns
from podlane.kernel.rtnl import KernelRoute, Rtnl, addresses, links, routes
from podlane.kernel.rtnl.links import Link
from podlane.model.addresses import Address, host_prefix

_DISABLE_IPV6: Final = "net/ipv6/conf/all/disable_ipv6"
_LOOPBACK: Final = 1  # lo is always the first link of a namespace
_NS_GET_NSTYPE: Final = 0xB703
_SECOND_METRIC: Final = 10_000  # behind what others add by hand
_DAD_TIMEOUT_S: Final = 10
_DAD_PAUSE_S: Final = 0.02


def check_namespace(pod_netns: int, node_netns: int | None) -> None:
    """Raises CniError: not a network namespace, or the node's own, whose links are not a pod's."""
    try:
        kind = fcntl.ioctl(pod_netns, _NS_GET_NSTYPE)
    except OSError:
        kind = -1
    if kind != netns.CLONE_NEWNET:
        raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS is not a network namespace")
    pod = os.fstat(pod_netns)
    node = os.stat(netns.SELF) if node_netns is None else os.fstat(node_netns)
    if (pod.st_dev, pod.st_ino) == (node.st_dev, node.st_ino):
        raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS is the node's own network namespace")


def prepare(pod_netns: int, pod: Rtnl, ifname: str, result: Result, *, dad: bool) -> None:
    """Before the link is born, so that it starts with these. dad: IPv6 addresses wait for detection."""
    if pod.find_index(ifname):
        raise CniError(KERNEL_REFUSED, f"the pod's namespace already has an interface {ifname}")
    settings = {"net/ipv6/conf/default/accept_ra": 0}
    with_ipv6 = any(ip.address.version == 6 for ip in result.ips)
    if with_ipv6:
        settings |= {
            "net/ipv6/conf/default/disable_ipv6": 0,
            "net/ipv6/conf/default/accept_dad": int(dad),
            "net/ipv6/conf/default/ndisc_notify": 1,
            "net/ipv6/conf/default/keep_addr_on_down": 1,
        }
    with netns.entered(pod_netns):
        for name, value in settings.items():
            with contextlib.suppress(KernelNotFoundError):  # a kernel without IPv6 has none of its own
                netns.write_own_sysctl(name, value)
        if with_ipv6:
            enable_ipv6()


def create(
    node: Rtnl, pod_netns: int, device: str, ifname: str, mac: str, mtu_bytes: int, *, master: int = 0
) -> Link:
    """The pair, up at the node's end, which is returned. master: index of the bridge it is a port of."""

    def make() -> Link:
        return node.create_veth(
            device,
            ifname,
            peer_netns=pod_netns,
            peer_mac=mac,
            mtu_bytes=mtu_bytes,
            master=master,
            up=True,
            link_local=not master,
        )

    try:
        return make()
    except KernelExistsError:  # what a killed agent left: the name is the attachment's own
        node.delete_links([device])
        return make()


def ignore_routers(node_netns: int | None, device: str) -> None:
    """The node believes no router advertisement that comes by this link: it leads to pods alone."""
    there = contextlib.nullcontext() if node_netns is None else netns.entered(node_netns)
    with there, contextlib.suppress(KernelNotFoundError):  # a kernel without IPv6
        netns.write_own_sysctl(f"net/ipv6/conf/{device}/accept_ra", 0)


def enable_ipv6() -> None:
    """In the calling thread's namespace. Writing this one takes a lock that every link waits for."""
    try:
        if netns.read_own_sysctl(_DISABLE_IPV6) != "0":
            netns.write_own_sysctl(_DISABLE_IPV6, 0)
    except FileNotFoundError:
        pass  # a kernel without IPv6


def configure(
    pod: Rtnl,
    ifname: str,
    result: Result,
    *,
    index: int = 0,
    dad: bool = False,
    point_to_point: bool = False,
) -> None:
    """Up, with the addresses and routes of the result. Raises CniError or KernelError.

    index: the link's, if it is known. point_to_point: the gateway alone is on the link; the rest of the
    addresses' networks is behind it.
    """
    index = index or pod.link_index(ifname)
    wanted = list(_routes(result, point_to_point=point_to_point))
    steps = [
        links.change(_LOOPBACK, up=True, what="lo"),
        *(
            addresses.add(index, ip.address, nodad=not dad, noprefixroute=point_to_point, what=ifname)
            for ip in result.ips
        ),
        links.announce_ipv4(index, what=ifname),
        links.change(index, up=True, what=ifname),
    ]
    verdicts = pod.execute([*steps, *(routes.add(_route(index, *each)) for each in wanted)])
    for error in verdicts[: len(steps)]:
        if error is not None:
            raise error
    if dad:
        _wait_for_detection(pod, index, ifname)
    pod.settle(ip.address.ip for ip in result.ips)
    for each, refused in zip(wanted, verdicts[len(steps) :], strict=True):
        if refused is not None:  # another link has it, or its gateway was not there yet
            add_route(pod, index, *each)


def _routes(result: Result, *, point_to_point: bool) -> Iterator[tuple[RouteEntry, Address | None]]:
    """Each with its next hop, in an order in which they can be added."""
    for ip in result.ips if point_to_point else ():
        if ip.gateway is not None:
            yield RouteEntry(host_prefix(ip.gateway)), None
            if ip.address.network.prefixlen < ip.address.max_prefixlen:
                yield RouteEntry(ip.address.network), ip.gateway
    for route in result.routes:
        yield route, next_hop(route, result.ips)


def next_hop(route: RouteEntry, ips: Iterable[Ip]) -> Address | None:
    """The route's own, or the gateway of its family; on link without either."""
    if route.gateway is not None:
        return route.gateway
    if route.scope is not None and route.scope >= 253:  # link or host: it has none
        return None
    of_family = (ip.gateway for ip in ips if ip.address.version == route.destination.version)
    return next((gateway for gateway in of_family if gateway is not None), None)


def add_route(pod: Rtnl, index: int, entry: RouteEntry, via: Address | None, *, onlink: bool = False) -> None:
    """One that is there is left alone; a default route of another link comes before this one."""
    route = _route(index, entry, via, onlink=onlink)
    try:
        pod.do(routes.add(route))
    except KernelExistsError:
        others = [r for r in pod.routes() if r.destination == route.destination and r.link != index]
        if others and route.table == routes.MAIN_TABLE:
            pod.do(routes.add(route._replace(metric=_SECOND_METRIC + index), replace=True))


def _route(index: int, entry: RouteEntry, via: Address | None, *, onlink: bool = False) -> KernelRoute:
    return KernelRoute(
        entry.destination,
        via,
        index,
        onlink=onlink,
        mtu_bytes=entry.mtu_bytes,
        metric=entry.priority or 0,
        table=entry.table or routes.MAIN_TABLE,
        advmss_bytes=entry.advmss_bytes,
        scope=entry.scope,
    )


def _wait_for_detection(pod: Rtnl, index: int, ifname: str) -> None:
    """Returns when duplicate address detection has ended. Raises CniError if an address is taken."""
    end_s = time.monotonic() + _DAD_TIMEOUT_S
    while True:
        held = [entry for entry in pod.addresses(index) if entry.address.version == 6]
        taken = [str(entry.address) for entry in held if entry.flags & _DAD_FAILED]
        if taken:
            raise CniError(TRY_AGAIN_LATER, f"{', '.join(taken)} of {ifname} is in use by another machine")
        if not any(entry.flags & addresses.IFA_F_TENTATIVE for entry in held):
            return
        if time.monotonic() > end_s:
            what = f"duplicate address detection on {ifname}"
            raise KernelError.of(errno.ETIMEDOUT, what, f"not done in {_DAD_TIMEOUT_S} s")
        time.sleep(_DAD_PAUSE_S)


_DAD_FAILED: Final = 0x08


def one_link(host: Link, inner: Link) -> bool:
    return host.kind == "veth" and (host.peer, inner.peer) == (inner.index, host.index)


def holds(node: Rtnl, pod: Rtnl, device: str, ifname: str, result: Result) -> bool:
    """The link is there, between these two ends, with the result's addresses."""
    host, inner = node.find_link(device), pod.find_link(ifname)
    if host is None or inner is None or not one_link(host, inner):
        return False
    held = {entry.address for entry in pod.addresses(inner.index)}
    return held.issuperset(ip.address for ip in result.ips)


def faults(node: Rtnl, pod: Rtnl, device: str, ifname: str, previous: Result) -> list[str]:
    """In what the link is not as the final result (prevResult of CHECK) says; empty if it is."""
    host, inner = node.find_link(device), pod.find_link(ifname)
    if host is None or inner is None:
        where = f"the node has no link {device}" if host is None else ""
        there = f"the pod has no interface {ifname}" if inner is None else ""
        return [text for text in (where, there) if text]
    found = []
    if not one_link(host, inner):
        found.append(f"{device} and {ifname} are not one link")
    found += [f"{link.name} is down" for link in (host, inner) if not link.up]
    entries = {place: i for place, i in enumerate(previous.interfaces) if i.name == ifname and i.sandbox}
    if previous.interfaces and not entries:
        found.append(f"prevResult has no interface {ifname} of a sandbox")
    found += [
        f"{ifname} has MAC {inner.mac}, not {entry.mac}"
        for entry in entries.values()
        if entry.mac and entry.mac.lower() != inner.mac
    ]
    held = {entry.address for entry in pod.addresses(inner.index)}
    ours = [ip for ip in previous.ips if ip.interface is None or ip.interface in entries]
    found += [f"{ifname} has no address {ip.address}" for ip in ours if ip.address not in held]
    known = {(r.destination, r.via, r.table) for r in pod.routes()}
    for route in previous.routes:
        via = next_hop(route, ours)
        if (route.destination, via, route.table or routes.MAIN_TABLE) not in known:
            found.append(f"no route to {route.destination}" + (f" via {via}" if via else ""))
    return found
