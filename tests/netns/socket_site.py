"""The node of service_lab with programs at its sockets: a scratch cgroup, pins in a scratch directory.

A socket belongs to the cgroup its process was in when it was made, so clients make theirs in a moment inside.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from podlane.compile.engine import compile_node
from podlane.compile.tables import Table
from podlane.delta import delta
from podlane.kernel import cgroups, mounts, netns
from podlane.kernel.bpf import bpffs, installation
from podlane.kernel.bpf.installation import Site
from podlane.kernel.bpf.sockets import SocketDriver
from podlane.kernel.driver import Report
from podlane.kernel.nft.services import ServicesDriver
from podlane.model.addresses import Address, Family
from podlane.model.config import NetworkConfig
from podlane.model.objects import Object
from tests.netns.service_lab import PLANS, ServiceLab
from tests.netns.test_services import node

CONFIG = NetworkConfig()


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
        nodes = [node("node-1", "node", 1), node("node-2", "peer", 2)]
        old, self.tables = self.tables, compile_node([*nodes, *objects], node="node-1", config=CONFIG)
        changes = {t: delta(self.tables[t], old.get(t, {})) for t in self.driver.tables}
        changes = {t: d for t, d in changes.items() if d}
        report = self.driver.apply(changes)
        assert report.failures == ()
        assert self.nft.apply(changes).failures == ()
        if wait:
            assert self.nft.sweeper.wait()
            assert self.driver.ending.wait()
        return report

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
