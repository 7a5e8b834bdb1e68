"""The lab's underlay: bridges, the router between them, and an uplink for every host.

One namespace, `fabric`, holds a bridge for each segment and is their router: it forwards between the
bridges' own addresses, which are the hosts' gateways. Each host (nodes, `control`, `outside`) has one
veth: `eth0` in its own namespace, a port named after the host on the segment's bridge. Nothing leads out
of these namespaces, and nothing is in the root namespace.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.lab.topology import Host, Topology
from podlane.model.addresses import Family, family_of

UPLINK = "eth0"
PROTO_STATIC = 4

# Addresses come from the plan: nothing is to be learnt, probed for or waited for.
_QUIET = {
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/dad_transmits": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/router_solicitations": "0",
    "net/ipv6/conf/default/keep_addr_on_down": "1",
}
_ROUTER = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # Pods of one rack speak to nodes of another with their own addresses: the way back is another one.
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
_DEFAULT: dict[Family, ipaddress.IPv4Network | ipaddress.IPv6Network] = {
    Family.IPV4: ipaddress.ip_network("0.0.0.0/0"),
    Family.IPV6: ipaddress.ip_network("::/0"),
}


def mac_of(*words: str) -> str:
    """A locally administered unicast address (IEEE 802), the same each time for the same words."""
    digest = hashlib.sha256("/".join(words).encode()).digest()
    return ":".join(f"{byte:02x}" for byte in bytes([0x02]) + digest[:5])


def build(topology: Topology, namespaces: Mapping[str, int], mtu_bytes: int) -> None:
    """namespaces: a descriptor each for `fabric`, `control`, `outside` and every node's name.

    Raises KernelError; what was made goes with the namespaces.
    """
    fabric = namespaces["fabric"]
    for name, value in (_QUIET | _ROUTER).items():
        netns.write_sysctl(fabric, name, value)
    with Rtnl(fabric) as router:
        router.set_up("lo")
        for segment in topology.segments:
            router.create_bridge(segment.bridge, mac=mac_of("fabric", segment.bridge), mtu_bytes=mtu_bytes)
            for address in segment.addresses:
                router.add_address(segment.bridge, address)
            router.set_up(segment.bridge)
        for host in (topology.control, topology.outside, *(node for node, _ in topology.nodes)):
            _attach(router, host, namespaces[host.name], mtu_bytes)


def _attach(router: Rtnl, host: Host, namespace: int, mtu_bytes: int) -> None:
    for name, value in _QUIET.items():
        netns.write_sysctl(namespace, name, value)
    router.create_veth(
        host.name,
        UPLINK,
        peer_netns=namespace,
        mac=mac_of("port", host.name),
        peer_mac=mac_of("host", host.name),
        mtu_bytes=mtu_bytes,
        master=host.bridge,
        up=True,
        link_local=False,
    )
    with Rtnl(namespace) as inside:
        inside.set_up("lo")
        inside.set_up(UPLINK)
        for address in host.addresses:
            inside.add_address(UPLINK, address)
        for gateway in host.gateways:
            inside.add_route(_DEFAULT[family_of(gateway)], via=gateway, device=UPLINK, protocol=PROTO_STATIC)
