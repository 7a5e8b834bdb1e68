"""A pod's own link: a veth whose far end is born in the pod's namespace, and a route out of it.

    in the pod    eth0  10.244.1.5/32
                  default via 169.254.1.1 dev eth0 onlink       (IPv6: via fe80::1)
                  169.254.1.1 lladdr <MAC of the node's end> permanent
    on the node   pl0123456789, no address; the route to 10.244.1.5 and the permanent neighbour are rows
                  of the desired tables (compile/pods.py), not of this module

Nothing is resolved and nothing can be spoofed by a neighbour pod: every pod is alone on its link, and
all it sends is routed. The gateway's address exists nowhere; its neighbour entry is all it takes.

In link mode `bridge` the node's end is a port of the node's bridge (by a row too, so that it is one again
when somebody removed the bridge), and the address has the length of the node's CIDR:

    in the pod    eth0  10.244.1.5/24
                  default via 10.244.1.1, the bridge's address, with a permanent neighbour too
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from podlane.cni import inside
from podlane.cni.leases import Lease
from podlane.cni.protocol import INVALID_ENVIRONMENT, KERNEL_REFUSED, TRY_AGAIN_LATER
from podlane.cni.results import RouteEntry
from podlane.compile import bridge
from podlane.errors import CniError, KernelError, KernelExistsError
from podlane.kernel import netns
from podlane.kernel.netlink import Request
from podlane.kernel.rtnl import Rtnl, addresses, links, neighbours
from podlane.model.addresses import Address, Family, Interface, Prefix, family_of

GATEWAYS: Final[dict[Family, Address]] = {
    Family.IPV4: ipaddress.ip_address("169.254.1.1"),
    Family.IPV6: ipaddress.ip_address("fe80::1"),
}
ANYWHERE: Final[dict[Family, Prefix]] = {
    Family.IPV4: ipaddress.ip_network("0.0.0.0/0"),
    Family.IPV6: ipaddress.ip_network("::/0"),
}
_LOOPBACK: Final = 1  # lo is always the first link of a namespace
_NS_GET_NSTYPE: Final = 0xB703

# Before the link is made, so that it starts with them: an IPv6 address is usable at once (no duplicate
# address detection: nobody else is on the link), and no router but ours is listened to.
_QUIET_IPV6: Final = {
    "net/ipv6/conf/all/disable_ipv6": 0,
    "net/ipv6/conf/default/disable_ipv6": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/default/accept_ra": 0,
}


def pod_mac(container_id: str, ifname: str) -> str:
    return _mac("pod", container_id, ifname)


def host_mac(device: str) -> str:
    return _mac("host", device)


def _mac(*of: str) -> str:
    """Locally administered, unicast, and the same whenever it is asked for."""
    digest = hashlib.sha256("\0".join(("podlane", *of)).encode()).digest()
    return (b"\x02" + digest[:5]).hex(":")


class Way(NamedTuple):
    """One address of a pod: how it lies on the link, and where the pod sends to."""

    interface: Interface
    gateway: Address


def ways(lease: Lease, pools: Sequence[Prefix]) -> list[Way]:
    """pools: the node's CIDRs. An address outside of them, a routed one too, is alone on its link."""
    found = []
    for address in lease.addresses:
        pool = next((p for p in pools if address in p), None) if lease.bridge else None
        if pool is None:
            found.append(Way(ipaddress.ip_interface(address), GATEWAYS[family_of(address)]))
        else:
            found.append(Way(ipaddress.ip_interface((address.packed, pool.prefixlen)), bridge.gateway(pool)))
    return found


class PodLinks:
    """The node's end, in namespace netns_fd (None: the caller's). Blocking; serves one thread at a time."""

    def __init__(self, netns_fd: int | None = None) -> None:
        self._host = Rtnl(netns_fd)
        self._home = _identity(netns_fd)

    def close(self) -> None:
        self._host.close()

    def create(
        self,
        lease: Lease,
        pod_netns: int,
        mtu_bytes: int,
        pools: Sequence[Prefix] = (),
    ) -> None:
        """Leaves nothing when it fails. mtu_bytes 0: the link's default.

        pools: the node's CIDRs, for a lease with a bridge.
        Raises CniError for a namespace that cannot be a pod's or already has the interface, else
        KernelError.
        """
        self._check_namespace(pod_netns)
        master = self._host.find_link(lease.bridge) if lease.bridge else None
        if lease.bridge and (master is None or master.kind != "bridge"):
            raise CniError(TRY_AGAIN_LATER, f"the bridge {lease.bridge} is not there yet")
        # A link of this name without a lease is what a crash left.
        self._host.delete_links([lease.device])
        if any(address.version == 6 for address in lease.addresses):
            for name, value in _QUIET_IPV6.items():
                netns.write_sysctl(pod_netns, name, value)
        with Rtnl(pod_netns) as pod:
            if pod.find_link(lease.ifname) is not None:
                raise CniError(KERNEL_REFUSED, f"the pod's namespace already has an interface {lease.ifname}")
            try:
                self._host.create_veth(
                    lease.device,
                    lease.ifname,
                    peer_netns=pod_netns,
                    mac=host_mac(lease.device),
                    peer_mac=lease.mac,
                    mtu_bytes=mtu_bytes,
                    master=master.index if master else 0,
                    up=True,
                    link_local=False,
                )
                gateway_mac = master.mac if master else host_mac(lease.device)
                index = pod.link_index(lease.ifname)
                inner = ways(lease, pools)
                pod.do(*_inside(lease.ifname, index, inner, gateway_mac))
                for gateway in dict.fromkeys(way.gateway for way in inner):
                    anywhere = RouteEntry(ANYWHERE[family_of(gateway)])
                    inside.add_route(pod, index, anywhere, gateway, onlink=True)
                pod.settle(lease.addresses)
                if master is not None:
                    self._host.settle_port(lease.device)
            except BaseException:
                self._host.delete_links([lease.device])
                raise

    def present(self) -> set[str]:
        """Names of the links of the node."""
        return {link.name for link in self._host.links()}

    def holds(self, lease: Lease, pod_netns: int) -> bool:
        """The lease's link ends in this namespace and has its addresses. What else the pod's owner did
        to it is no reason to make it anew: that would end the pod's connections.
        """
        self._check_namespace(pod_netns)
        host = self._host.find_link(lease.device)
        with Rtnl(pod_netns) as pod:
            inner = pod.find_link(lease.ifname)
            if host is None or inner is None or not _one_link(host, inner):
                return False
            held = {entry.address.ip for entry in pod.addresses(inner.index)}
            return held.issuperset(lease.addresses)

    def faults(
        self, lease: Lease, pod_netns: int, pools: Sequence[Prefix] = (), *, hairpin: bool = False
    ) -> list[str]:
        """In what the link is not as `create` makes it; empty if it is."""
        self._check_namespace(pod_netns)
        host = self._host.find_link(lease.device)
        master = self._host.find_link(lease.bridge) if lease.bridge else None
        with Rtnl(pod_netns) as pod:
            inner = pod.find_link(lease.ifname)
            if host is None or inner is None:
                where = f"the node has no link {lease.device}" if host is None else ""
                there = f"the pod has no interface {lease.ifname}" if inner is None else ""
                return [text for text in (where, there) if text]
            found = []
            if not _one_link(host, inner):
                found.append(f"{lease.device} and {lease.ifname} are not one link")
            if inner.mac != lease.mac:
                found.append(f"{lease.ifname} has MAC {inner.mac}, not {lease.mac}")
            found += [f"{name} is down" for name, link in _named(lease, host, inner) if not link.up]
            held = {entry.address.ip for entry in pod.addresses(inner.index)}
            found += [f"{lease.ifname} has no address {a}" for a in lease.addresses if a not in held]
            routed = {(r.destination, r.via) for r in pod.routes() if r.link == inner.index}
            known = {(n.address, n.mac) for n in pod.neighbours() if n.link == inner.index and n.permanent}
            if lease.bridge:
                found += _port_faults(lease, host, master, hairpin)
            gateway_mac = master.mac if master else host.mac
            for gateway in sorted({way.gateway for way in ways(lease, pools)}, key=lambda g: g.version):
                if (ANYWHERE[family_of(gateway)], gateway) not in routed:
                    found.append(f"no default route via {gateway}")
                if (gateway, gateway_mac) not in known:
                    found.append(f"no permanent neighbour {gateway}")
            return found

    def _check_namespace(self, pod_netns: int) -> None:
        """Raises CniError: not a network namespace, or the node's own, whose links are not a pod's."""
        try:
            kind = fcntl.ioctl(pod_netns, _NS_GET_NSTYPE)
        except OSError:
            kind = -1
        if kind != netns.CLONE_NEWNET:
            raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS is not a network namespace")
        if _identity(pod_netns) == self._home:
            raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS is the node's own network namespace")


def _identity(netns_fd: int | None) -> tuple[int, int]:
    status = os.stat(netns.SELF) if netns_fd is None else os.fstat(netns_fd)
    return status.st_dev, status.st_ino


def _one_link(host: links.Link, inner: links.Link) -> bool:
    return host.kind == "veth" and (host.peer, inner.peer) == (inner.index, host.index)


def _named(lease: Lease, host: links.Link, inner: links.Link) -> tuple[tuple[str, links.Link], ...]:
    return (lease.device, host), (lease.ifname, inner)


def _port_faults(lease: Lease, host: links.Link, master: links.Link | None, hairpin: bool) -> list[str]:
    if master is None or host.master != master.index:
        return [f"{lease.device} is no port of the bridge {lease.bridge}"]
    if hairpin and not host.hairpin:
        return [f"the port {lease.device} of {lease.bridge} is not in hairpin mode"]
    return []


def _inside(ifname: str, index: int, inner: Sequence[Way], gateway_mac: str) -> list[Request]:
    """What makes the pod's end work, in order."""
    requests = [
        links.change(_LOOPBACK, up=True, what="lo"),
        links.change(index, up=True, what=ifname),
    ]
    requests += [addresses.add(index, way.interface, nodad=True, what=ifname) for way in inner]
    for gateway in dict.fromkeys(way.gateway for way in inner):
        requests.append(neighbours.set_neighbour(index, gateway, gateway_mac))
    return requests


def as_cni_error(error: KernelError, what: str) -> CniError:
    """A kernel's refusal as an answer of the specification."""
    hint = "an interface or address is there already" if isinstance(error, KernelExistsError) else ""
    return CniError(KERNEL_REFUSED, f"{what}: {error}", hint)
