from __future__ import annotations

import itertools

import pytest

from podlane.errors import ConfigError
from podlane.lab.topology import MAX_NODES, Topology, plan
from podlane.model.config import DEFAULT, NetworkConfig, with_settings


def every_address(topology: Topology) -> list[str]:
    hosts = [topology.control, topology.outside, *(node for node, _ in topology.nodes)]
    interfaces = [a for h in hosts for a in h.addresses] + [a for s in topology.segments for a in s.addresses]
    return [str(a.ip) for a in interfaces]


def test_addresses_are_those_of_the_contract() -> None:
    topology = plan(DEFAULT, 3)
    assert [n.plain_addresses for n, _ in topology.nodes] == [
        ["172.30.1.11", "fd00:172:30::1:b"],
        ["172.30.1.12", "fd00:172:30::1:c"],
        ["172.30.1.13", "fd00:172:30::1:d"],
    ]
    assert topology.control.plain_addresses == ["172.30.0.2", "fd00:172:30::2"]


@pytest.mark.parametrize("racks", [1, 2, 7, 200])
@pytest.mark.parametrize("nodes", [1, 20, MAX_NODES])
def test_no_two_hosts_share_an_address_and_all_lie_in_node_cidrs(racks: int, nodes: int) -> None:
    topology = plan(with_settings(DEFAULT, [f"fabric.racks={racks}"]), nodes)
    addresses = every_address(topology)
    assert len(addresses) == len(set(addresses))
    for node, _ in topology.nodes:
        for address, whole in zip(node.addresses, DEFAULT.nodes.values(), strict=True):
            assert address.ip in whole
            assert address.network.subnet_of(whole)  # type: ignore[arg-type]


def test_two_racks_are_two_subnets_and_nodes_alternate() -> None:
    topology = plan(with_settings(DEFAULT, ["fabric.racks=2"]), 4)
    assert [rack for _, rack in topology.nodes] == [1, 2, 1, 2]
    networks = {rack: {n.addresses[0].network for n, r in topology.nodes if r == rack} for rack in (1, 2)}
    assert all(len(n) == 1 for n in networks.values())
    assert networks[1] != networks[2]


def test_segments_do_not_overlap() -> None:
    topology = plan(with_settings(DEFAULT, ["fabric.racks=5"]), 5)
    networks = [a.network for s in topology.segments for a in s.addresses]
    for a, b in itertools.combinations(networks, 2):
        assert a.version != b.version or not a.overlaps(b)  # type: ignore[arg-type]


def test_a_gateway_is_its_segments_router_address() -> None:
    topology = plan(DEFAULT, 2)
    routers = {s.bridge: [a.ip for a in s.addresses] for s in topology.segments}
    for host in (topology.control, topology.outside, *(n for n, _ in topology.nodes)):
        assert list(host.gateways) == routers[host.bridge]


@pytest.mark.parametrize("families", [["ipFamilies=IPv6"], ["ipFamilies=IPv4"], ["ipFamilies=IPv6,IPv4"]])
def test_families_follow_the_config_in_order(families: list[str]) -> None:
    config: NetworkConfig = with_settings(DEFAULT, families)
    topology = plan(config, 1)
    versions = [{4: "IPv4", 6: "IPv6"}[a.version] for a in topology.nodes[0][0].addresses]
    assert versions == config.ip_families


@pytest.mark.parametrize("nodes", [0, -1, MAX_NODES + 1])
def test_a_number_of_nodes_out_of_range_is_refused(nodes: int) -> None:
    with pytest.raises(ConfigError, match="1 to 240"):
        plan(DEFAULT, nodes)


def test_node_cidrs_too_small_are_refused_by_name() -> None:
    config = with_settings(DEFAULT, ["nodeCIDRs=172.30.0.0/27,fd00:172:30::/64"])
    with pytest.raises(ConfigError, match=r"nodeCIDRs: 172\.30\.0\.0/27 is too small"):
        plan(config, 20)
