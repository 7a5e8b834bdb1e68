"""The node of service_lab with programs at its sockets: a scratch cgroup, pins in a scratch directory.

A socket belongs to the cgroup its process was in when it was made, so clients make theirs in a moment inside.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from podlane.compile.engine import compile_node
from podlane.compile.tables import Table
from podlane.delta import Delta, delta
from podlane.kernel import cgroups, mounts, netns
from podlane.kernel.bpf import bpffs, installation
from podlane.kernel.bpf.installation import Site
from podlane.kernel.bpf.sockets import SocketDriver
from podlane.kernel.driver import Report
from podlane.kernel.nft.services import ServicesDriver
from podlane.model.addresses import Address, Family
from podlane.model.config import NetworkConfig
from podlane.model.objects import Object
from tests.netns.service_lab import PLANS, Answer, ServiceLab
from tests.netns.test_services import node, piece, service

CONFIG = NetworkConfig()
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


Changes = dict[Table, Delta[Any, Any]]


class SocketSite:
    """The driver under test beside that of nftables. objects: what `set` is given, compiled for node-1."""

    def __init__(self, lab: ServiceLab, site: Site) -> None:
        self.lab, self.site = lab, site
        self.tables: Mapping[Table, Mapping[Any, Any]] = compile_node([], node="node-1", config=CONFIG)
        self.nft = ServicesDriver(CONFIG, lab.fds["node"])
        self.kept: frozenset[Address] = frozenset()  # endpoints whose pods only left their service
        self.driver = self._driver()

    def _driver(self) -> SocketDriver:
        return SocketDriver(CONFIG, self.site, self.lab.fds["node"], gone=lambda some: some - self.kept)

    def start(self) -> None:
        self.nft.resync(self.tables)
        assert self.driver.resync(self.tables).failures == ()

    def close(self) -> None:
        self.driver.close()
        installation.remove(self.site.directory)
        self.nft.remove()
        self.nft.close()

    def restart(self) -> Report:
        """As after kill -9: nothing of the old driver is left but what is in the kernel."""
        self.driver.close()
        self.driver = self._driver()
        return self.driver.resync(self.tables)

    def set(self, *objects: Object, wait: bool = True) -> Report:
        """One generation that leads to exactly these services and slices. wait: for what ends by it."""
        changes = self.know(*objects)
        report = self.driver.apply(changes)
        assert report.failures == ()
        if wait:
            assert self.nft.sweeper.wait()
            assert self.driver.ending.wait()
        return report

    def know(self, *objects: Object) -> Changes:
        """The same while no agent is there that would tell the socket driver."""
        nodes = [node("node-1", "node", 1), node("node-2", "peer", 2)]
        old, self.tables = self.tables, compile_node([*nodes, *objects], node="node-1", config=CONFIG)
        changes = {t: delta(self.tables[t], old.get(t, {})) for t in self.nft.tables}
        changes = {t: d for t, d in changes.items() if d}
        assert self.nft.apply(changes).failures == ()
        return changes

    def socket(self, name: str, family: int, kind: int) -> socket.socket:
        """Of a process of this node."""
        with cgroups.joined(self.site.cgroup):
            made = netns.socket_in(self.lab.fds[name], family, kind)
        made.settimeout(3.0)
        return made


@contextmanager
def scratch(directory: Path, lab: ServiceLab) -> Iterator[Site]:
    """A cgroup with a process in each namespace of node-1, and a BPF file system; gone afterwards."""
    cgroup = cgroups.mount_point() / f"podlane-test-{os.getpid()}"
    cgroup.mkdir()
    pauses = []
    try:
        for name in ("node", "client", "local-1"):
            with cgroups.joined(cgroup), netns.entered(lab.fds[name]):
                pauses.append(subprocess.Popen(["sleep", "1000"]))
        yield Site(directory, cgroup)
    finally:
        for each in pauses:
            each.kill()
            each.wait()
        if bpffs.is_bpffs(directory):
            mounts.unmount(str(directory))
        cgroup.rmdir()


def service_address(family: Family, number: int = 10) -> str:
    return PLANS[family].services.format(number)


@contextmanager
def running(lab: ServiceLab, directory: Path) -> Iterator[SocketSite]:
    with scratch(directory, lab) as place:
        site = SocketSite(lab, place)
        try:
            site.start()
            yield site
        finally:
            site.close()


# --- clients --------------------------------------------------------------------------------------


class How:
    """A way to reach an address: the socket's family, and the address as that family writes it."""

    def __init__(self, family: Family, *, in_six: bool) -> None:
        self.family = family
        self.af = socket.AF_INET6 if in_six or family is Family.IPV6 else socket.AF_INET
        self._prefix = "::ffff:" if in_six and family is Family.IPV4 else ""

    def __call__(self, where: str, port: int = 80) -> tuple[str, int]:
        return self._prefix + where, port


HOWS = {
    "IPv4": How(Family.IPV4, in_six=False),
    "IPv6": How(Family.IPV6, in_six=True),
    "IPv4 by an IPv6 socket": How(Family.IPV4, in_six=True),
}


def web(family: Family, *names: str, number: int = 10, **spec: Any) -> tuple[Any, Any]:
    plan, owner = PLANS[family], f"web-{number}"
    made = service(plan, family, owner, number, **spec)
    return made, piece(plan, family, *names, owner=owner)


def line(stream: socket.socket) -> Answer:
    data = b""
    while not data.endswith(b"\n"):
        data += stream.recv(4096)
    return Answer(*json.loads(data))


def connect(
    site: SocketSite, how: How, name: str = "client", where: str = "", port: int = 80
) -> socket.socket:
    made = site.socket(name, how.af, STREAM)
    made.connect(how(where or service_address(how.family), port))
    return made


def asked(site: SocketSite, how: How, name: str = "client", where: str = "", port: int = 80) -> Answer:
    with connect(site, how, name, where, port) as stream:
        return line(stream)


def services_of(site: SocketSite) -> Counter[tuple[str, str]]:
    """What is kept with sockets: (service or "", endpoint's address)"""
    return Counter(
        (use.list.service if use.list else "", str(use.seen.bound.backend.address))
        for use in site.driver.uses()
    )
