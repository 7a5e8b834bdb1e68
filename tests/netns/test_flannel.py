"""A node with podlane and a node that does what flanneld does, by hand: one network, both families."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from podlane.agent import flannel_files
from podlane.compile import flannel
from podlane.compile.tables import Table
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.rtnl.driver import RtnlDriver
from tests.netns.agent_nodes import FAMILIES, Echo, TestNode, ask, two_nodes, wait_until
from tests.netns.fake_api import FakeApi

NET_CONF = {
    "Network": "10.244.0.0/16",
    "EnableIPv6": True,
    "IPv6Network": "fd00:10:244::/56",
    "Backend": {"Type": "vxlan", "VNI": 3},
}
SUBNETS = {"IPv4": "10.244.{}.0", "IPv6": "fd00:10:244:{}::"}
DEVICES = {"IPv4": "flannel.3", "IPv6": "flannel-v6.3"}
MACS = {"IPv4": "4e:00:00:00:00:02", "IPv6": "4e:00:00:00:00:06"}


def said_by_flanneld(number: int = 2, **changed: str) -> dict[str, str]:
    said = {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": json.dumps({"VNI": 3, "VtepMAC": MACS["IPv4"]}),
        "backend-v6-data": json.dumps({"VNI": 3, "VtepMAC": MACS["IPv6"]}),
        "public-ip": f"172.30.1.{number}",
        "public-ipv6": f"fd00:172:30::{number}",
    }
    return {f"{flannel.PREFIX}{name}": text for name, text in (said | changed).items()}


def act_as_flanneld(node: TestNode, peer: dict[str, str], pod: str) -> dict[str, str]:
    """Devices, and what leads to the peer whose annotations these are; a pod. Returns the pod's addresses."""
    fd = node.pods[pod] = netns.new()
    found: dict[str, str] = {}
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        netns.write_sysctl(node.fd, f"net/{name}", 1)
    with Rtnl(node.fd) as rt, Rtnl(fd) as inside:
        inside.set_up("lo")
        rt.create_veth("veth0", "eth0", peer_netns=fd, up=True, peer_up=True)
        for family, base in SUBNETS.items():
            six = family == "IPv6"
            bits, length = (128, 64) if six else (32, 24)
            own, theirs = ip_address(base.format(2)), ip_address(base.format(1))
            data = json.loads(peer[flannel.DATA[family]])
            rt.create_vxlan(
                DEVICES[family],
                vni=data["VNI"],
                port=8472,
                underlay="eth0",
                local=ip_address(node.addresses[six]),
                mac=MACS[family],
                up=True,
            )
            rt.add_address(DEVICES[family], ip_interface(f"{own}/{bits}"))
            rt.set_neighbour(DEVICES[family], theirs, data["VtepMAC"])
            rt.set_fdb(DEVICES[family], data["VtepMAC"], ip_address(peer[flannel.PUBLIC[family]]))
            subnet = ip_network(f"{theirs}/{length}")
            rt.add_route(subnet, via=theirs, device=DEVICES[family], onlink=True, protocol=3)
            gateway, found[family] = own + 1, str(own + 7)
            rt.add_address("veth0", ip_interface(f"{gateway}/{length}"))
            inside.add_address("eth0", ip_interface(f"{found[family]}/{length}"))
            inside.add_route(
                ip_network("::/0" if six else "0.0.0.0/0"), via=gateway, device="eth0", protocol=3
            )
    return found


@contextmanager
def beside_flanneld(where: Path, **backend: Any) -> Iterator[tuple[FakeApi, TestNode, TestNode, Path]]:
    """The agent of node-1 runs; the node that it is to meet is node-2."""
    conf, subnet_file = where / "net-conf.json", where / "flannel" / "subnet.env"
    conf.write_text(json.dumps(NET_CONF | ({"Backend": backend} if backend else {})))
    extra = {
        "backend": {"flannelCompat": True},
        "flannel": {"netConf": str(conf), "subnetFile": str(subnet_file)},
    }
    with two_nodes(where, FAMILIES["both"], extra) as (api, one, two):
        api.put("Node", two.name, metadata={"annotations": said_by_flanneld()}, **two.object)
        one.start()
        one.wait_ready()
        yield api, one, two, subnet_file


def rows(node: TestNode) -> dict[Table, dict[Any, Any]]:
    driver = RtnlDriver(node.fd)
    try:
        return driver.actual()
    finally:
        driver.close()


def assert_meet(one: TestNode, two: TestNode, near: dict[str, str], far: dict[str, str]) -> None:
    for six, family in enumerate(("IPv4", "IPv6")):
        with Echo(two.pods["far"], far[family]) as server:
            assert ask(one.pods["near"], far[family], server=server) == near[family]
            # A node with podlane is seen at its tunnel's address, as one with flanneld is.
            assert ask(one.fd, far[family], server=server) == SUBNETS[family].format(1)
        with Echo(one.pods["near"], near[family]) as server:
            assert ask(two.pods["far"], near[family], server=server) == far[family]
            assert ask(two.fd, near[family], server=server) in (SUBNETS[family].format(2), two.addresses[six])


def test_pods_of_both_kinds_of_nodes_reach_each_other(tmp_path: Path) -> None:
    with beside_flanneld(tmp_path) as (api, one, two, subnet_file):
        peer = api.annotations("Node", one.name)
        assert peer[flannel.MANAGED] == "true"
        assert peer[flannel.TYPE] == "vxlan"
        assert json.loads(peer[flannel.DATA["IPv4"]])["VNI"] == 3
        assert (peer[flannel.PUBLIC["IPv4"]], peer[flannel.PUBLIC["IPv6"]]) == tuple(one.addresses)
        near, far = one.add_pod("near"), act_as_flanneld(two, peer, "far")
        assert_meet(one, two, near, far)
        assert subnet_file.read_text().splitlines() == [
            "FLANNEL_NETWORK=10.244.0.0/16",
            "FLANNEL_SUBNET=10.244.1.1/24",
            "FLANNEL_IPV6_NETWORK=fd00:10:244::/56",
            "FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64",
            "FLANNEL_MTU=1430",
            "FLANNEL_IPMASQ=true",
        ]

        # What the other tells anew is followed.
        changed = {"backend-data": json.dumps({"VNI": 3, "VtepMAC": "4e:00:00:00:00:99"})}
        with Rtnl(two.fd) as rt:
            rt.set_mac("flannel.3", "4e:00:00:00:00:99")  # it forgets its neighbours
            mac = json.loads(peer[flannel.DATA["IPv4"]])["VtepMAC"]
            rt.set_neighbour("flannel.3", ip_address("10.244.1.0"), mac)
        api.put("Node", two.name, metadata={"annotations": said_by_flanneld(**changed)}, **two.object)
        ends = {("plvxlan", "4e:00:00:00:00:99"), ("plvxlan2", MACS["IPv6"])}
        wait_until(lambda: set(rows(one)[Table.FDB]) == ends, "it is followed, and the old one is forgotten")
        assert_meet(one, two, near, far)

        # An agent killed and started again finds nothing to do, and goes on with the address it is to tell.
        overwrite = api.annotations("Node", one.name) | {flannel.OVERWRITE["IPv4"]: "198.51.100.1"}
        api.put("Node", one.name, metadata={"annotations": overwrite}, **one.object)
        one.stop(9)
        one.start()
        assert one.wait_ready()["operations"] == 0
        wait_until(
            lambda: api.annotations("Node", one.name)[flannel.PUBLIC["IPv4"]] == "198.51.100.1", "it is told"
        )
        one.stop()
        assert flannel_files.remove(one.dir) == subnet_file
        assert not subnet_file.exists()


def test_a_malformed_annotation_leaves_that_node_out_and_no_other(tmp_path: Path) -> None:
    with beside_flanneld(tmp_path) as (api, one, _two, _):
        third = {
            "spec": {"podCIDRs": ["10.244.3.0/24", "fd00:10:244:3::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.30.1.3"}]},
        }
        four, six = ip_network("10.244.3.0/24"), ip_network("fd00:10:244:3::/64")

        def tells(**changed: str) -> None:
            api.put("Node", "node-3", metadata={"annotations": said_by_flanneld(3, **changed)}, **third)

        def refused(text: str, *left: Any) -> None:
            wait_until(
                lambda: text in " ".join(one.status()["refused"]), f"{text}; {one.status()['refused']}"
            )
            wait_until(
                lambda: rows(one)[Table.ROUTES].keys() & {four, six} == set(left), "only that is left out"
            )
            assert ip_network("10.244.2.0/24") in rows(one)[Table.ROUTES]

        good = {"VNI": 3, "VtepMAC": "4e:00:00:00:00:33"}
        goods = {"backend-data": json.dumps(good), "backend-v6-data": json.dumps(good)}
        tells(**goods | {"backend-data": "{VNI"})
        refused(
            "node node-3: annotation flannel.alpha.coreos.com/backend-data is '{VNI', which cannot be", six
        )
        wait_until(
            lambda: any("node-3" in e["involvedObject"]["name"] for e in api.events.values()),
            "it is an event",
        )
        tells(**goods | {"backend-data": json.dumps(good | {"VtepMAC": "4e:00:00"})})
        refused("'4e:00:00' is no MAC address of one station", six)
        tells(**goods | {"backend-v6-data": json.dumps(good | {"VtepMAC": "ff:ff:ff:ff:ff:ff"})})
        refused("'ff:ff:ff:ff:ff:ff' is no MAC address of one station", four)
        tells(**goods | {"backend-data": json.dumps(good | {"VNI": 4})})
        refused("its VNI is 4, this node's 3", six)
        tells(**goods | {"public-ip": "172.30.1.300"})
        refused("annotation flannel.alpha.coreos.com/public-ip is '172.30.1.300', no address of IPv4", six)
        tells(**goods | {"public-ip": "172.30.1.1"})
        refused("is this node's own address 172.30.1.1", six)
        tells(**goods | {"backend-type": "udp"})
        refused("annotation flannel.alpha.coreos.com/backend-type is 'udp', and this node's backend is vxlan")
        tells(**goods | {"kube-subnet-manager": "false"})
        refused('annotation flannel.alpha.coreos.com/kube-subnet-manager is not "true"')
        tells(**goods)
        wait_until(lambda: not one.status()["refused"], "all is well again")
        assert rows(one)[Table.ROUTES].keys() >= {four, six}


def test_plain_routes_lead_to_the_public_addresses(tmp_path: Path) -> None:
    with beside_flanneld(tmp_path, Type="host-gw") as (api, one, two, subnet_file):
        changed = {"backend-type": "host-gw", "backend-data": "null", "backend-v6-data": "null"}
        api.put("Node", two.name, metadata={"annotations": said_by_flanneld(**changed)}, **two.object)
        vias = {ip_address(a) for a in two.addresses}
        wait_until(lambda: {r.via for r in rows(one)[Table.ROUTES].values()} == vias, "next hops")
        said = api.annotations("Node", one.name)
        assert (said[flannel.TYPE], said[flannel.DATA["IPv4"]]) == ("host-gw", "null")
        assert "FLANNEL_MTU=1500" in subnet_file.read_text()
        assert "plvxlan" not in rows(one)[Table.LINKS]
