"""Load-balancer addresses on real links: one node answers ARP and NDP, and another when it is gone."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_interface

import pytest

from podlane.compile.tables import Announcement, Candidate, Table
from podlane.delta import Change, Delta
from podlane.errors import KernelNotFoundError
from podlane.kernel import netns
from podlane.kernel.announce import driver as announce
from podlane.kernel.announce.driver import AnnounceDriver
from podlane.kernel.rtnl import PROTOCOL, Rtnl
from podlane.model.addresses import Address, address, host_prefix
from tests.netns.agent_nodes import wait_until

VIPS = [address("203.0.113.7"), address("2001:db8:7::7")]
ORDER = tuple(Candidate(name, f"uid-{name}") for name in ("a", "b"))


class Host:
    """A namespace on the switch. mac: of its uplink."""

    def __init__(self, switch: Rtnl, number: int) -> None:
        self.fd = netns.new()
        self.mac = f"02:00:00:00:00:{number:02x}"
        switch.create_veth(
            f"h{number}", "eth0", peer_netns=self.fd, mac=f"02:00:00:00:01:{number:02x}",
            peer_mac=self.mac, master="br", up=True, peer_up=True,
        )  # fmt: skip
        self.rt = Rtnl(self.fd)
        for text in (f"172.31.0.{number}/24", f"fd00:31::{number}/64"):
            self.rt.add_address("eth0", ip_interface(text))

    def close(self) -> None:
        self.rt.close()
        os.close(self.fd)

    def lent(self) -> set[Address]:
        return {a.address.ip for a in self.rt.addresses("eth0") if a.protocol == PROTOCOL}


class Wire:
    """Two nodes, a and b, and a client, on one bridge."""

    def __init__(self) -> None:
        self.switch_fd = netns.new()
        self.switch = Rtnl(self.switch_fd)
        self.switch.create_bridge("br", up=True)
        self.hosts = [Host(self.switch, n) for n in (1, 2, 3)]
        self.a, self.b, self.client = self.hosts
        for number in (1, 2, 3):
            self.switch.settle_port(f"h{number}")
        for where in VIPS:
            self.client.rt.add_route(host_prefix(where), device="eth0")
        self.drivers: list[AnnounceDriver] = []

    def close(self) -> None:
        for each in self.drivers:
            with contextlib.suppress(OSError):
                each.close()
        for host in self.hosts:
            host.close()
        self.switch.close()
        os.close(self.switch_fd)

    def driver(self, host: Host) -> AnnounceDriver:
        made = AnnounceDriver(host.fd)
        self.drivers.append(made)
        return made

    def kill(self, driver: AnnounceDriver) -> None:
        """What is left of an agent that was killed: the kernel's state."""
        self.drivers.remove(driver)
        driver.close()

    def asked(self, where: Address) -> str:
        """The MAC address that the client finds for an address, "" for none."""
        family = socket.AF_INET if where.version == 4 else socket.AF_INET6
        with netns.socket_in(self.client.fd, family, socket.SOCK_DGRAM) as s, contextlib.suppress(OSError):
            s.sendto(b"?", (str(where), 9))
        return next((n.mac for n in self.client.rt.neighbours() if n.address == where), "")


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


def rows(me: int, order: tuple[Candidate, ...] = ORDER) -> dict[Address, Announcement]:
    return {where: Announcement(where, "eth0", order[me], order) for where in VIPS}


def sync(driver: AnnounceDriver, held: dict[Address, Announcement]) -> None:
    assert driver.resync({Table.ANNOUNCEMENTS: held}).failures == ()


def test_one_answers_and_the_other_takes_over(wire: Wire) -> None:
    first, second = wire.driver(wire.a), wire.driver(wire.b)
    sync(second, rows(1))
    sync(first, rows(0))
    assert (wire.a.lent(), wire.b.lent()) == (set(VIPS), set())
    for where in VIPS:
        wait_until(lambda w=where: wire.asked(w) == wire.a.mac, f"a answers for {where}")
    told: list[tuple[Address, bool]] = []
    second.listen(lambda where, held: told.append((where, held)))
    wire.switch.set_down("h1")
    wait_until(lambda: wire.b.lent() == set(VIPS), "b holds them")
    assert sorted(told, key=str) == sorted(((where, True) for where in VIPS), key=str)
    # The client learns it from what is announced: its entry is of a host that would still be asked first.
    for where in VIPS:
        wait_until(lambda w=where: wire.asked(w) == wire.b.mac, f"b answers for {where}")
    wire.switch.set_up("h1")
    wait_until(lambda: wire.b.lent() == set(), "a is heard again")
    for where in VIPS:
        wait_until(lambda w=where: wire.asked(w) == wire.a.mac, f"a answers for {where} again")


def test_an_agent_that_is_killed_drops_nothing_and_one_that_stays_away_leaves_nothing(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce, "LENT_S", 3)
    second = wire.driver(wire.b)
    sync(second, rows(1))
    wait_until(lambda: wire.b.lent() == set(VIPS), "a was never heard")
    wire.kill(second)
    assert wire.b.lent() == set(VIPS)
    # The next life of b does not know yet that a is dead, and keeps them all the same.
    again = wire.driver(wire.b)
    sync(again, rows(1))
    assert wire.b.lent() == set(VIPS)
    # The better one comes.
    first = wire.driver(wire.a)
    sync(first, rows(0))
    wait_until(lambda: (wire.a.lent(), wire.b.lent()) == (set(VIPS), set()), "a has them, b does not")
    wire.kill(first)
    wait_until(lambda: wire.b.lent() == set(VIPS), "b takes over")
    wait_until(lambda: wire.a.lent() == set(), "what a was lent is gone by itself")


def test_rows_come_and_go_and_what_is_taken_away_comes_back(wire: Wire) -> None:
    alone = (Candidate("a", "uid-a"),)
    only = wire.driver(wire.a)
    sync(only, rows(0, alone))
    assert wire.a.lent() == set(VIPS)
    for where in VIPS:
        wire.a.rt.delete_address("eth0", announce.interface(where))
    sync(only, rows(0, alone))
    assert wire.a.lent() == set(VIPS)
    four, six = (rows(0, alone)[where] for where in VIPS)
    report = only.apply({Table.ANNOUNCEMENTS: Delta({}, {}, {VIPS[1]: six})})
    assert (report.operations, wire.a.lent()) == (1, {VIPS[0]})
    # Another has a better right now, but nobody has heard of it.
    later = Announcement(four.address, "eth0", alone[0], (Candidate("z", "uid-z"), *alone))
    only.apply({Table.ANNOUNCEMENTS: Delta({}, {VIPS[0]: Change(four, later)}, {})})
    assert wire.a.lent() == {VIPS[0]}, "it holds on until the better one is heard"
    only.apply({Table.ANNOUNCEMENTS: Delta({}, {}, {VIPS[0]: later})})
    assert wire.a.lent() == set()


def test_a_link_that_is_not_there_is_told(wire: Wire) -> None:
    alone = (Candidate("a", "uid-a"),)
    only = wire.driver(wire.a)
    row = Announcement(VIPS[0], "absent0", alone[0], alone)
    (failure,) = only.resync({Table.ANNOUNCEMENTS: {VIPS[0]: row}}).failures
    assert isinstance(failure.error, KernelNotFoundError)
    assert wire.a.lent() == set()
    sync(only, rows(0, alone))
    assert wire.a.lent() == set(VIPS)
