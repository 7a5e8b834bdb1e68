"""Nodes with two uplinks: which of them carries the pods is chosen, told to the others, and followed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from podlane.compile.facts import UNDERLAY_ANNOTATION
from podlane.compile.tables import Table
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.rtnl.driver import RtnlDriver
from tests.netns.agent_nodes import FAMILIES, Echo, TestNode, ask, two_nodes, wait_until
from tests.netns.fake_api import FakeApi

SECOND = ("10.77.0.{}/24", "fd77::{}/64")


def join_again(one: TestNode, two: TestNode, device: str = "fast0") -> None:
    """A second veth between them, with addresses that the Node objects do not know."""
    with Rtnl(one.fd) as rt:
        rt.create_veth(device, device, peer_netns=two.fd, up=True, peer_up=True)
    for node in (one, two):
        with Rtnl(node.fd) as rt:
            for text in SECOND:
                rt.add_address(device, ip_interface(text.format(node.number)))


@contextmanager
def nodes(
    where: Path, underlay: dict[str, Any], **extra: Any
) -> Iterator[tuple[FakeApi, TestNode, TestNode]]:
    config = {"underlay": underlay, **extra}
    with two_nodes(where, FAMILIES["both"], config) as (api, one, two):
        join_again(one, two)
        for node in (one, two):
            node.start()
        yield api, one, two


def tunnel(node: TestNode) -> Any:
    return rows(node)[Table.LINKS].get("plvxlan")


def rows(node: TestNode) -> dict[Table, dict[Any, Any]]:
    driver = RtnlDriver(node.fd)
    try:
        return driver.actual()
    finally:
        driver.close()


def complaint(node: TestNode) -> str:
    found = [said for said in node.status().get("blockers", []) if said.startswith("no link of this node")]
    return "".join(found)


def assert_reaches(one: TestNode, two: TestNode, near: dict[str, str], far: dict[str, str]) -> None:
    for family, address in far.items():
        with Echo(two.pods["far"], address) as server:
            assert ask(one.pods["near"], address, server=server) == near[family]


@pytest.mark.parametrize(
    "choice",
    [
        {"interfaces": ["absent0", "fast0"]},
        {"interfaceRegex": "fast.*"},
        {"canReach": ["10.77.0.99", "fd77::99"]},
        {"cidrs": ["10.77.0.0/16", "fd77::/64"]},
    ],
    ids=lambda choice: next(iter(choice)),
)
def test_the_chosen_link_carries_the_pods(tmp_path: Path, choice: dict[str, Any]) -> None:
    with nodes(tmp_path, choice) as (api, one, two):
        for node in (one, two):
            node.wait_ready()
        near, far = one.add_pod("near"), two.add_pod("far")
        assert (tunnel(one).underlay, tunnel(one).local) == ("fast0", ip_address("10.77.0.1"))
        said = wait_until(lambda: api.annotations("Node", one.name).get(UNDERLAY_ANNOTATION), "it is told")
        assert json.loads(said)["use"] == ["10.77.0.1", "fd77::1"]
        remote = wait_until(
            lambda: [e.remote for e in rows(one)[Table.FDB].values() if str(e.remote) == "10.77.0.2"],
            "node-1 sends to the address that node-2 chose",
        )
        assert len(remote) == 1
        assert_reaches(one, two, near, far)
        # Pods still see the node by the address that the API shows.
        with Echo(two.pods["far"], far["IPv4"]) as server:
            assert ask(one.fd, far["IPv4"], server=server) == one.addresses[0]


def test_plain_routes_lead_over_the_chosen_link_and_follow_its_addresses(tmp_path: Path) -> None:
    with nodes(tmp_path, {"interfaces": ["fast0"]}, backend={"type": "host-gw"}) as (_, one, two):
        for node in (one, two):
            node.wait_ready()
        near, far = one.add_pod("near"), two.add_pod("far")
        wait_until(lambda: hops(one) == {"10.77.0.2", "fd77::2"}, "next hops on the chosen link")
        assert_reaches(one, two, near, far)

        # The address changes while all is running: the others follow.
        with Rtnl(two.fd) as rt:
            for old, new in (("10.77.0.2/24", "10.77.0.22/24"), ("fd77::2/64", "fd77::22/64")):
                rt.delete_address("fast0", ip_interface(old))
                rt.add_address("fast0", ip_interface(new))
        wait_until(lambda: hops(one) == {"10.77.0.22", "fd77::22"}, "the new address is followed")
        wait_until(lambda: hops(two) == {"10.77.0.1", "fd77::1"}, "what went with the address is back")
        assert_reaches(one, two, near, far)


def hops(node: TestNode) -> set[str]:
    return {
        str(r.via) for r in rows(node)[Table.ROUTES].values() if r.via is not None and r.device == "fast0"
    }


def test_a_route_that_leads_elsewhere_moves_the_underlay(tmp_path: Path) -> None:
    with nodes(tmp_path, {"canReach": ["192.0.2.1"]}) as (_, one, two):
        wait_until(
            lambda: (
                "no link of this node fits underlay.canReach" in " ".join(one.status().get("blockers", []))
            ),
            "refused",
        )
        for node, other in ((one, two), (two, one)):
            with Rtnl(node.fd) as rt:
                via = ip_address(other.addresses[0])
                rt.add_route(ip_network("192.0.2.0/24"), via=via, device="eth0", protocol=4)
        for node in (one, two):
            node.wait_ready()
        assert tunnel(one).underlay == "eth0"
        near, far = one.add_pod("near"), two.add_pod("far")
        for node, other in ((one, 2), (two, 1)):
            with Rtnl(node.fd) as rt:
                via = ip_address(f"10.77.0.{other}")
                rt.add_route(ip_network("192.0.2.0/24"), via=via, device="fast0", protocol=4, replace=True)
        wait_until(lambda: tunnel(one) and tunnel(one).underlay == "fast0", "the tunnel has moved")
        wait_until(
            lambda: {str(e.remote) for e in rows(one)[Table.FDB].values()} == {"10.77.0.2"},
            "so have its peers",
        )
        wait_until(lambda: tunnel(two) and tunnel(two).underlay == "fast0", "on both sides")
        wait_until(
            lambda: {str(e.remote) for e in rows(two)[Table.FDB].values()} == {"10.77.0.1"}, "and theirs"
        )
        assert_reaches(one, two, near, far)


def test_a_choice_that_fits_nothing_is_told_with_what_there_is(tmp_path: Path) -> None:
    with nodes(tmp_path, {"interfaceRegex": "wan[0-9]"}) as (_, one, _two):
        said = wait_until(lambda: complaint(one), "it says why it waits")
        assert said.startswith("no link of this node fits underlay.interfaceRegex wan[0-9]; there is ")
        for there in ("eth0 172.30.1.1", "eth0 fd00:172:30::1", "fast0 10.77.0.1", "fast0 fd77::1"):
            assert there in said
        assert "Correct interfaceRegex, or leave it out" in said
        # What comes later and fits is taken.
        with Rtnl(one.fd) as rt:
            rt.create_veth("wan7", "wan7peer", up=True, peer_up=True)
            rt.add_address("wan7", ip_interface("10.78.0.1/24"))
        one.wait_ready()
        assert (tunnel(one).underlay, str(tunnel(one).local)) == ("wan7", "10.78.0.1")
