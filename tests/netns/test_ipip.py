"""IP in IP by eBPF: what the driver leaves in the kernel, finds again, repairs and removes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from msgspec.structs import replace

from podlane.compile.ipip import DEVICE
from podlane.compile.tables import Table, Tunnel, TunnelPeer
from podlane.delta import delta
from podlane.kernel import netns
from podlane.kernel.ipip import driver as ipip
from podlane.kernel.ipip import programs
from podlane.kernel.ipip.driver import IpipDriver
from podlane.kernel.netlink import NETLINK_ROUTE
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.tc import codec
from podlane.model.backends import BackendType

TUNNEL = Tunnel(
    DEVICE,
    BackendType.IPIP,
    0,
    ip_address("172.30.1.1"),
    1480,
    (ip_network("10.244.1.0/32"), ip_network("fd00:10:244:1::1/128")),
    "up0",
)


def peer(number: int) -> TunnelPeer:
    pods = (ip_network(f"10.244.{number}.0/24"), ip_network(f"fd00:10:244:{number}::/64"))
    return TunnelPeer(DEVICE, f"node-{number}", ip_address(f"172.30.1.{number}"), 0, pods, ())


def tables(*numbers: int) -> dict[Table, dict[Any, Any]]:
    return {
        Table.TUNNELS: {DEVICE: TUNNEL},
        Table.TUNNEL_PEERS: {f"node-{number}": peer(number) for number in numbers},
    }


@contextmanager
def node() -> Iterator[None]:
    """The calling thread is in a namespace that has a link up0."""
    place = netns.new()
    try:
        with netns.entered(place):
            with Rtnl() as rt:
                rt.create_veth("up0", "far0", up=True)
            yield
    finally:
        os.close(place)


def maps(driver: IpipDriver) -> dict[str, dict[bytes, bytes]]:
    return {name: driver._programs.read(name) for name in programs.SPECS}


def qdiscs() -> set[str]:
    netlink = Netlink(NETLINK_ROUTE)
    try:
        return {each.kind for each in map(codec.unpack, netlink.dump(codec.get_all()))}
    finally:
        netlink.close()


def test_what_is_right_is_not_touched_by_a_driver_that_begins_anew() -> None:
    with node():
        first = IpipDriver()
        assert first.resync(tables(2, 3)).operations > 0
        before = maps(first)
        assert len(before[programs.REMOTES]) == 4
        assert first.resync(tables(2, 3)).operations == 0
        first.close()
        second = IpipDriver()
        report = second.resync(tables(2, 3))
        assert (report.operations, report.failures) == (0, ())
        assert maps(second) == before
        second.close()


def test_a_peer_more_or_less_is_its_own_entries_only() -> None:
    with node():
        driver = IpipDriver()
        driver.resync(tables(2, 3))
        two, three = tables(2)[Table.TUNNEL_PEERS], tables(2, 3)[Table.TUNNEL_PEERS]
        assert driver.apply({Table.TUNNEL_PEERS: delta(two, three)}).operations == 3
        assert len(maps(driver)[programs.SENDERS]) == 1
        moved = {**two, "node-2": replace(peer(2), remote=ip_address("172.30.1.9"))}
        driver.apply({Table.TUNNEL_PEERS: delta(moved, two)})
        assert set(maps(driver)[programs.SENDERS]) == {ip_address("172.30.1.9").packed}
        assert set(maps(driver)[programs.REMOTES].values()) == {ip_address("172.30.1.9").packed}
        driver.close()


@pytest.mark.parametrize("damage", ["device", "uplink"])
def test_what_was_taken_away_comes_back(damage: str) -> None:
    with node(), Rtnl() as rt:
        driver = IpipDriver()
        driver.resync(tables(2))
        before = maps(driver)
        if damage == "device":
            rt.delete_link(DEVICE)
        else:
            rt.delete_link("up0")
            rt.create_veth("up0", "far0", up=True)
        assert driver.resync(tables(2)).operations > 0
        assert driver.resync(tables(2)).operations == 0
        after = maps(driver)
        assert {n: after[n] for n in (programs.REMOTES, programs.SENDERS)} == {
            n: before[n] for n in (programs.REMOTES, programs.SENDERS)
        }
        assert after[programs.SETTINGS] == {
            bytes(4): programs.settings(
                ip_address("172.30.1.1"), rt.link_index("up0"), rt.link_index(DEVICE), rt.link(DEVICE).mac
            )
        }
        driver.close()


def test_another_backend_removes_everything() -> None:
    with node(), Rtnl() as rt:
        driver = IpipDriver()
        driver.resync(tables(2))
        driver.close()
        assert "clsact" in qdiscs()
        ipip.remove()
        ipip.remove()
        assert rt.find_link(DEVICE) is None
        assert "clsact" not in qdiscs()
