"""Two nodes with a pod each, made by hand: veth, VXLAN, routes and a translation, as podlane makes them."""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Callable

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import Family

VNI, PORT = 85, 8472
PODS = {
    Family.IPV4: ("10.244.{}.0/24", "10.244.{}.2", "10.244.{}.0", "10.96.0.1", "172.30.0.{}/24", 32),
    Family.IPV6: (
        "fd00:244:{}::/64",
        "fd00:244:{}::2",
        "fd00:244:{}::1",
        "fd00:96::1",
        "fd00:172::{}/64",
        128,
    ),
}


class Nodes:
    """client pod - node-1 - fabric (a bridge) - node-2 - server pod, VXLAN between the nodes, made by hand.

    10.96.0.1:80 is translated to the server's 8080 on node-1; :81 is rejected, :82 dropped.
    """

    def __init__(self, make: Callable[[], int]) -> None:
        self.places = {
            name: make()
            for name in ("default/pod/client", "node/node-1", "fabric", "node/node-2", "default/pod/server")
        }
        fabric = self.places["fabric"]
        for fd in self.places.values():
            netns.write_sysctl(fd, "net/ipv6/conf/all/accept_dad", 0)
            netns.write_sysctl(fd, "net/ipv6/conf/default/accept_dad", 0)
            with Rtnl(fd) as inside:
                inside.set_up("lo")
        with Rtnl(fabric) as router:
            router.create_bridge("rack1", up=True)
        for number, pod in ((1, "default/pod/client"), (2, "default/pod/server")):
            self._node(number, self.places[f"node/node-{number}"], self.places[pod])
        self._rules()

    def _node(self, number: int, node: int, pod: int) -> None:
        other = 3 - number
        netns.write_sysctl(node, "net/ipv4/ip_forward", 1)
        netns.write_sysctl(node, "net/ipv6/conf/all/forwarding", 1)
        with Rtnl(self.places["fabric"]) as router:
            router.create_veth(
                f"node-{number}", "eth0", peer_netns=node, master="rack1", up=True, peer_up=True
            )
        with Rtnl(node) as inside, Rtnl(pod) as within:
            for *_, uplink, _bits in PODS.values():
                inside.add_address("eth0", ipaddress.ip_interface(uplink.format(number)))
            inside.create_veth(f"plpod{number}", "eth0", peer_netns=pod, up=True, peer_up=True)
            inside.create_vxlan(
                "plvxlan",
                vni=VNI,
                port=PORT,
                underlay="eth0",
                local=ipaddress.ip_address(f"172.30.0.{number}"),
                mac=f"02:00:00:00:00:0{number}",
                up=True,
            )
            inside.set_fdb("plvxlan", f"02:00:00:00:00:0{other}", ipaddress.ip_address(f"172.30.0.{other}"))
            inner = within.link("eth0").mac
            host = inside.link(f"plpod{number}").mac
            for family, (cidr, own, end, _, _, bits) in PODS.items():
                address, remote = (
                    ipaddress.ip_address(own.format(number)),
                    ipaddress.ip_address(end.format(other)),
                )
                inside.add_address("plvxlan", ipaddress.ip_interface(f"{end.format(number)}/{bits}"))
                inside.add_route(ipaddress.ip_network(f"{address}/{bits}"), device=f"plpod{number}")
                inside.set_neighbour(f"plpod{number}", address, inner)
                inside.set_neighbour("plvxlan", remote, f"02:00:00:00:00:0{other}")
                inside.add_route(
                    ipaddress.ip_network(cidr.format(other)), via=remote, device="plvxlan", onlink=True
                )
                gateway = ipaddress.ip_address("169.254.1.1" if family is Family.IPV4 else "fe80::1")
                within.add_address("eth0", ipaddress.ip_interface(f"{address}/{bits}"))
                within.set_neighbour("eth0", gateway, host)
                everything = "0.0.0.0/0" if family is Family.IPV4 else "::/0"
                within.add_route(ipaddress.ip_network(everything), via=gateway, device="eth0", onlink=True)

    def _rules(self) -> None:
        rules = "table inet t {\n chain pre { type nat hook prerouting priority -100;\n"
        for family, (_, own, _, service, _, _) in PODS.items():
            server = own.format(2) if family is Family.IPV4 else f"[{own.format(2)}]"
            for protocol in ("tcp", "udp"):
                rules += (
                    f"  {family.nft} daddr {service} {protocol} dport 80 dnat {family.nft} to {server}:8080\n"
                )
        rules += " }\n chain forward { type filter hook forward priority 0;\n"
        for family, (*_, service, _, _) in PODS.items():
            rules += f"  {family.nft} daddr {service} tcp dport 81 reject with tcp reset\n"
            rules += f"  {family.nft} daddr {service} udp dport 81 reject\n"
            rules += f"  {family.nft} daddr {service} tcp dport 82 drop\n"
            rules += f"  {family.nft} daddr {service} udp dport 82 drop\n"
        rules += " }\n}\n"
        node = self.places["node/node-1"]
        with Rtnl(node) as inside:  # so that what is not translated is forwarded at all
            for *_, service, _, bits in PODS.values():
                inside.add_route(ipaddress.ip_network(f"{service}/{bits}"), device="eth0")
        netns.inside(node, lambda: subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True))
