"""What the agent hears of changes to its nftables tables: those of others, and nothing of its own."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
from collections.abc import Iterator

import pytest

from podlane.agent.ruleset_monitor import DEBOUNCE_S, RulesetMonitor
from podlane.kernel import netns, own_ports
from podlane.kernel.netlink import NETLINK_NETFILTER
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.nft import command, skeleton
from podlane.kernel.nft.codec import Element
from podlane.kernel.nft.elements import Elements, Operation
from podlane.model.addresses import Family

MAP = f"table ip {skeleton.TABLE} {{\n\tmap some {{ type mark : mark; }}\n}}\n"
TABLES_GROUP = 7  # NFNLGRP_NFTABLES


@pytest.fixture
def place() -> Iterator[int]:
    fd = netns.new()
    yield fd
    os.close(fd)


def write(elements: Elements, first: int, count: int) -> None:
    numbers = (number.to_bytes(4, "little") for number in range(first, first + count))
    assert elements.commit([Operation(Family.IPV4, "some", Element(n, n), True) for n in numbers]) == []


async def heard(place: int, change: object) -> int:
    """How often the monitor called while change() was done, and a moment later."""
    calls: list[None] = []
    monitor = RulesetMonitor({skeleton.TABLE: lambda: calls.append(None)}, place)
    try:
        assert callable(change)
        await asyncio.to_thread(change)
        await asyncio.sleep(3 * DEBOUNCE_S)
        return len(calls)
    finally:
        monitor.close()


def test_only_what_others_change_is_told(place: int) -> None:
    elements = Elements(skeleton.TABLE, place)
    try:
        assert asyncio.run(heard(place, lambda: command.load(MAP, place))) == 0
        assert asyncio.run(heard(place, lambda: write(elements, 1, 1))) == 0
        foreign = ["nft", "add", "element", "ip", skeleton.TABLE, "some", "{ 5 : 6 }"]
        assert (
            asyncio.run(heard(place, lambda: netns.inside(place, lambda: subprocess.check_call(foreign))))
            == 1
        )
        other = ["nft", "add", "table", "ip", "other"]
        assert (
            asyncio.run(heard(place, lambda: netns.inside(place, lambda: subprocess.check_call(other)))) == 0
        )
    finally:
        elements.close()


def test_ones_own_changes_do_not_fill_the_buffer(place: int) -> None:
    """A cluster's services are more notices than a socket holds; that of another must still arrive."""
    elements = Elements(skeleton.TABLE, place)
    command.load(MAP, place)
    listener = Netlink(NETLINK_NETFILTER, place, groups=(TABLES_GROUP,))
    listener.ignore_own()
    stranger = Elements(skeleton.TABLE, place)  # its port was not there when the listener was told
    try:
        write(elements, 1, 50_000)
        assert select.select([listener], [], [], 0) == ([], [], [])
        write(stranger, 60_000, 1)
        assert listener.receive()
    finally:
        for each in (elements, stranger, listener):
            each.close()


def test_a_child_is_ours_while_it_runs_and_a_moment_longer() -> None:
    pid = 2**31 - 5
    assert not own_ports.is_own(pid)
    with own_ports.child(pid):
        assert own_ports.is_own(pid)
    assert own_ports.is_own(pid)


def test_more_ports_than_a_filter_holds(place: int) -> None:
    with netns.socket_in(place, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as listener:
        own_ports.do_not_hear(listener, range(1, 1000))
