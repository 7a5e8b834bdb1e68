"""The underlay alone: every host reaches every other, over racks too, and nothing else is there."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable

import pytest

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.lab import fabric
from podlane.lab.topology import Host, plan
from podlane.model.addresses import family_of
from podlane.model.config import DEFAULT, with_settings


def udp_reaches(source: int, target: int, target_host: Host, number: int) -> str:
    """The sender's address as the target sees it."""
    address = target_host.addresses[number].ip
    family = family_of(address).af
    with (
        netns.socket_in(target, family, socket.SOCK_DGRAM) as listener,
        netns.socket_in(source, family, socket.SOCK_DGRAM) as sender,
    ):
        listener.bind((str(address), 9))
        listener.settimeout(2.0)
        sender.sendto(b"x", (str(address), 9))
        seen: str = listener.recvfrom(16)[1][0]
        return seen


@pytest.mark.parametrize("settings", [[], ["fabric.racks=2"], ["ipFamilies=IPv6"], ["fabric.mtu=9000"]])
def test_every_host_reaches_every_other_with_its_own_address(
    namespaces: Callable[[], int], settings: list[str]
) -> None:
    config = with_settings(DEFAULT, settings)
    topology = plan(config, 3)
    hosts = {h.name: h for h in (topology.control, topology.outside, *(n for n, _ in topology.nodes))}
    where = {name: namespaces() for name in ["fabric", *hosts]}
    fabric.build(topology, where, config.fabric.mtu)
    for a, b in itertools.permutations(hosts.values(), 2):
        for number, address in enumerate(a.addresses):
            assert udp_reaches(where[a.name], where[b.name], b, number) == str(address.ip)
    with Rtnl(where["node-1"]) as node:
        assert {link.name for link in node.links()} == {"lo", "eth0"}
        assert node.link("eth0").mtu_bytes == config.fabric.mtu


def test_nodes_of_two_racks_are_not_on_one_link(namespaces: Callable[[], int]) -> None:
    config = with_settings(DEFAULT, ["fabric.racks=2"])
    topology = plan(config, 2)
    where = {
        name: namespaces() for name in ["fabric", "control", "outside", *(n.name for n, _ in topology.nodes)]
    }
    fabric.build(topology, where, config.fabric.mtu)
    with Rtnl(where["node-1"]) as node:
        connected = [r.destination for r in node.routes() if r.via is None and r.table == 254]
    other = topology.nodes[1][0].addresses
    assert connected
    for address, network in itertools.product(other, connected):
        assert address.version != network.version or address.ip not in network or network.prefixlen == 0
