"""What leaves the cluster, in both link modes: whose address it carries; how links are sized and settled."""

from __future__ import annotations

import signal
import subprocess
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.rtnl.addresses import IFA_F_NODAD, IFA_F_TENTATIVE
from tests.netns.agent_nodes import FAMILIES, Echo, TestNode, ask, two_nodes
from tests.netns.test_agent import running

MODES: dict[str, dict[str, Any]] = {"routed": {}, "bridge": {"link": {"mode": "bridge"}}}
BEYOND = {"IPv4": "192.0.2.9", "IPv6": "2001:db8:2::9"}
KEPT = {"IPv4": "198.51.100.9", "IPv6": "2001:db8:3::9"}
EXEMPT = {"nonMasqueradeCIDRs": ["198.51.100.0/24", "2001:db8:3::/64"]}


def put_beyond(one: TestNode, two: TestNode, families: list[str]) -> None:
    """Addresses on node-2 that are neither of a pod nor of a node."""
    for at, family in enumerate(families):
        for where in (BEYOND[family], KEPT[family]):
            with Rtnl(two.fd) as rt:
                rt.add_address("lo", ip_interface(where))
            with Rtnl(one.fd) as rt:
                prefix = ip_network(where)
                via = ip_interface(two.addresses[at]).ip
                rt.add_route(prefix, via=via, device="eth0", protocol=4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("families", ["both", "IPv6"])
def test_what_leaves_the_cluster_carries_the_nodes_address_except_where_told(
    tmp_path: Path, families: str, mode: str
) -> None:
    with running(tmp_path, families, MODES[mode] | EXEMPT) as (_, one, two):
        put_beyond(one, two, FAMILIES[families])
        pod = one.add_pod("pod")
        for at, family in enumerate(FAMILIES[families]):
            with Echo(two.fd, BEYOND[family]) as echo:
                assert ask(one.pods["pod"], BEYOND[family], server=echo) == one.addresses[at]
            with Echo(two.fd, KEPT[family]) as echo:
                assert ask(one.pods["pod"], KEPT[family], server=echo) == pod[family]
            with Echo(two.fd, two.addresses[at]) as echo:
                assert ask(one.pods["pod"], two.addresses[at], server=echo) == pod[family]


def test_another_proxy_serves_and_what_leaves_is_masqueraded_all_the_same(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["both"], EXEMPT) as (_, one, two):
        for node in (one, two):
            node.start("--services=off")
        for node in (one, two):
            node.wait_ready()
        put_beyond(one, two, FAMILIES["both"])
        pod = one.add_pod("pod")
        for at, family in enumerate(FAMILIES["both"]):
            with Echo(two.fd, BEYOND[family]) as echo:
                assert ask(one.pods["pod"], BEYOND[family], server=echo) == one.addresses[at]
            with Echo(two.fd, KEPT[family]) as echo:
                assert ask(one.pods["pod"], KEPT[family], server=echo) == pod[family]
        with netns.entered(one.fd):
            listed = subprocess.run(
                ["nft", "list", "ruleset"], capture_output=True, text=True, errors="replace", check=True
            )
        # an address that no service has is the other proxy's to judge
        assert "type nat hook prerouting" not in listed.stdout
        assert "hook output" not in listed.stdout
        one.stop(signal.SIGKILL)
        one.start()  # served here from now on
        one.wait_ready()
        with netns.entered(one.fd):
            listed = subprocess.run(
                ["nft", "list", "ruleset"], capture_output=True, text=True, errors="replace", check=True
            )
        assert listed.stdout.count("type nat hook prerouting") == 2


def test_everything_may_be_exempt(tmp_path: Path) -> None:
    extra = {"nonMasqueradeCIDRs": ["0.0.0.0/0", "::/0"]}
    with running(tmp_path, "both", extra) as (_, one, two):
        put_beyond(one, two, FAMILIES["both"])
        pod = one.add_pod("pod")
        for family in FAMILIES["both"]:
            with Echo(two.fd, BEYOND[family]) as echo:
                assert ask(one.pods["pod"], BEYOND[family], server=echo) == pod[family]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("mtu_bytes", "expected"), [(0, 1450), (1280, 1280)])
def test_links_are_as_wide_as_the_tunnel_and_ipv6_is_usable_at_once(
    tmp_path: Path, mode: str, mtu_bytes: int, expected: int
) -> None:
    extra = MODES[mode] | {"backend": {"mtuBytes": mtu_bytes}}
    with running(tmp_path, "both", extra) as (_, one, _two):
        one.add_pod("pod")
        with Rtnl(one.pods["pod"]) as rt:
            eth0 = rt.link("eth0")
            held = [a for a in rt.addresses("eth0") if a.address.version == 6 and not a.address.is_link_local]
        with Rtnl(one.fd) as rt:
            widths = {link.mtu_bytes for link in rt.links() if link.name.startswith(("pl", "cni"))}
        assert widths == {eth0.mtu_bytes} == {expected}
        assert [bool(a.flags & IFA_F_NODAD) for a in held] == [True]
        assert [bool(a.flags & IFA_F_TENTATIVE) for a in held] == [False]
