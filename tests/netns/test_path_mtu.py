"""A router between two nodes that carries less than their uplinks say, with and without telling."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from podlane.compile.facts import UNDERLAY_ANNOTATION, announcement
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import Family
from podlane.model.backends import Backend
from podlane.model.config import NetworkConfig
from podlane.model.local import Underlay
from podlane.model.objects import Node, NodeAddress, NodeStatus, ObjectMeta
from podlane.observe.check import Check, Place
from podlane.observe.path_mtu import KIND, measure, paths

NETS = {Family.IPV4: ("10.66.{}.{}", 24), Family.IPV6: ("fd66:{}::{}", 64)}
CARRIED = 1400


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, int]]:
    """node-1 - router - node-2; the router's link to node-2 takes CARRIED bytes."""
    found = {name: netns.new() for name in ("node-1", "router", "node-2")}
    router = found["router"]
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        netns.write_sysctl(router, f"net/{name}", 1)
    with Rtnl(router) as rt:
        for number in (1, 2):
            node = found[f"node-{number}"]
            rt.create_veth(f"to{number}", "eth0", peer_netns=node, up=True, peer_up=True)
            with Rtnl(node) as inside:
                for shape, length in NETS.values():
                    rt.add_address(f"to{number}", ip_interface(f"{shape.format(number, 1)}/{length}"))
                    inside.add_address("eth0", ip_interface(f"{shape.format(number, 9)}/{length}"))
                    via = ip_address(shape.format(number, 1))
                    everything = ip_network("0.0.0.0/0" if via.version == 4 else "::/0")
                    inside.add_route(everything, via=via, device="eth0", protocol=3)
        rt.set_mtu("to2", CARRIED)
    yield found
    for fd in found.values():
        os.close(fd)


def node(number: int, mtu_bytes: int = 1500) -> Node:
    own = [shape.format(number, 9) for shape, _ in NETS.values()]
    lengths = [length for _, length in NETS.values()]
    addresses = tuple(
        (ip_address(a), ip_interface(f"{a}/{length}").network) for a, length in zip(own, lengths, strict=True)
    )
    said = announcement(Underlay("eth0", mtu_bytes, addresses))
    return Node(
        metadata=ObjectMeta(name=f"node-{number}", annotations={UNDERLAY_ANNOTATION: said}),
        status=NodeStatus(addresses=[NodeAddress("InternalIP", a) for a in own]),
    )


def measured(places: dict[str, int], config: NetworkConfig, mtu_bytes: int = 1500) -> dict[str, Check]:
    nodes = [node(1, mtu_bytes), node(2, mtu_bytes)]
    where = {f"node/{name}": Place(f"/proc/self/fd/{fd}") for name, fd in places.items()}
    return {check.source: check for check in measure(paths(nodes, config), where)}


@pytest.mark.parametrize("family", list(Family))
def test_what_the_path_carries_is_found_out(places: dict[str, int], family: Family) -> None:
    config = NetworkConfig(ip_families=[family])
    found = measured(places, config)
    there = found["node/node-1"]
    overhead = 50 if family is Family.IPV4 else 70
    assert (there.kind, there.ok, there.target) == (KIND, False, "node/node-2")
    assert f"{CARRIED} bytes get there whole, 1500 do not: pods' links have {1500 - overhead}" in there.detail
    assert f"set backend.mtuBytes to {CARRIED - overhead}," in there.detail
    # With what is said there it is right.
    right = NetworkConfig(ip_families=[family], backend=Backend(mtu_bytes=CARRIED - overhead))
    assert all(check.ok for check in measured(places, right).values())
    assert f"{CARRIED} bytes get there whole" in measured(places, right)["node/node-1"].detail


def test_a_router_that_tells_nothing_is_found_out_too(places: dict[str, int]) -> None:
    errors = "type filter hook output priority 0; meta l4proto { icmp, icmpv6 } drop"
    silence = f"table inet t {{ chain out {{ {errors}; }}; }}"
    router = places["router"]
    netns.inside(router, lambda: subprocess.run(["nft", "-f", "-"], input=silence, text=True, check=True))
    try:
        there = measured(places, NetworkConfig(ip_families=[Family.IPV4]))["node/node-1"]
    finally:
        netns.inside(router, lambda: subprocess.run(["nft", "delete", "table", "inet", "t"], check=True))
    assert f"{CARRIED} bytes get there whole, 1500 do not" in there.detail


def test_a_node_that_cannot_be_reached_is_said_to_be(places: dict[str, int]) -> None:
    config = NetworkConfig(ip_families=[Family.IPV4])
    wall = "table inet t { chain f { type filter hook forward priority 0; policy drop; }; }"
    router = places["router"]
    netns.inside(router, lambda: subprocess.run(["nft", "-f", "-"], input=wall, text=True, check=True))
    try:
        found = measured(places, config)
    finally:
        netns.inside(router, lambda: subprocess.run(["nft", "delete", "table", "inet", "t"], check=True))
    assert all("not even small datagrams get there" in check.detail for check in found.values())
    absent = measure(paths([node(1), node(2)], config), {})
    assert all("has no network namespace here" in check.detail for check in absent)
    assert [check.ok for check in absent] == [False, False]
