"""What a service costs at the socket, beside no service at all and beside nftables, in one run.

A pod asks another pod of its node, directly, through a service answered at the socket, and through the same
service answered by nftables. Rounds are interleaved; told are the differences to asking directly.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from podlane.compile.tables import Backend, BackendList, Frontend, FrontendClass, FrontendKey, ListKey, Table
from podlane.delta import Change, Delta
from podlane.kernel import cgroups, netns
from podlane.model.addresses import Family, Protocol
from tests.netns.service_lab import PLANS, PODS, ServiceLab, service_lab
from tests.netns.socket_site import SocketSite, scratch

ROUNDS, PACKETS, FLOWS = 15, 1500, 400
PORT = 9100
ENDPOINTS = 10
SIZES = (10, 10_000)

Tables = dict[Table, dict[Any, Any]]
PLAN = PLANS[Family.IPV4]
SERVER = PLAN.pod(PODS["local-1"])


def tables(services: int) -> Tables:
    """Services with endpoints; the first is answered by the server alone."""
    found: Tables = {Table.SETS: {}, Table.BACKENDS: {}, Table.FRONTENDS: {}, Table.NODE_PORTS: {}}
    first = int(ipaddress.ip_address("10.96.0.10"))
    for n in range(services):
        key = ListKey("default", f"web-{n}", "udp", Protocol.UDP, Family.IPV4, "cluster")
        ends = (Backend(ipaddress.ip_address("10.9.0.0") + n, 8000 + number) for number in range(ENDPOINTS))
        backends = tuple(ends) if n else (Backend(ipaddress.ip_address(SERVER), PORT),)
        found[Table.BACKENDS][key] = BackendList(backends)
        where = ipaddress.ip_address(first + n)
        found[Table.FRONTENDS][FrontendKey(where, Protocol.UDP, 80)] = Frontend(FrontendClass.INTERNAL, key)
    return found


@contextmanager
def echo(lab: ServiceLab) -> Iterator[None]:
    """UDP, in a process of its own."""
    server = netns.socket_in(lab.fds["local-1"], socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((SERVER, PORT))
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                data, peer = server.recvfrom(64)
                server.sendto(data, peer)
        finally:
            os._exit(0)
    server.close()
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class Asking:
    """One way to the server. cgroup: None where nothing is done at the socket."""

    def __init__(self, lab: ServiceLab, cgroup: Path | None, where: str, port: int) -> None:
        self._netns, self._cgroup, self._to = lab.fds["client"], cgroup, (where, port)

    def _socket(self) -> socket.socket:
        made = netns.socket_in(self._netns, socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(2.0)
        return made

    def round_us(self) -> dict[str, float]:
        """Medians of an established round trip, of the first of a socket that connects, and of one that does
        not; and of each datagram of one that does not."""
        with cgroups.joined(self._cgroup):
            times: dict[str, list[int]] = {"established": [], "connect": [], "sendto": [], "datagram": []}
            with self._socket() as each:
                each.connect(self._to)
                for _ in range(PACKETS):
                    times["established"].append(timed(lambda: (each.send(b"x"), each.recv(16))))
            with self._socket() as each:
                for _ in range(PACKETS):
                    times["datagram"].append(timed(lambda: (each.sendto(b"x", self._to), each.recvfrom(16))))
            for _ in range(FLOWS):
                with self._socket() as each:
                    times["connect"].append(
                        timed(lambda: (each.connect(self._to), each.send(b"x"), each.recv(16)))
                    )
                with self._socket() as each:
                    times["sendto"].append(timed(lambda: (each.sendto(b"x", self._to), each.recv(16))))
        return {name: statistics.median(values) / 1000 for name, values in times.items()}


def timed(work: Callable[[], object]) -> int:
    began = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - began


def measure() -> dict[str, object]:
    results: dict[str, object] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        service_lab() as lab,
        one_processor(),
        echo(lab),
        scratch(Path(folder, "bpf"), lab) as place,
    ):
        for size in SIZES:
            site = SocketSite(lab, place)
            try:
                results |= one_size(site, size)
            finally:
                site.close()
    return results


@contextmanager
def one_processor() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def one_size(site: SocketSite, size: int) -> dict[str, object]:
    wanted = tables(size)
    site.nft.resync(wanted)
    began = time.perf_counter()
    site.driver.resync(wanted)
    load_s = time.perf_counter() - began
    changed = statistics.median(update_us(site, wanted) for _ in range(50))
    where = PLAN.services.format(10)
    cgroup = site.site.cgroup
    ways = {
        "direct": Asking(site.lab, None, SERVER, PORT),
        "direct, in the cgroup": Asking(site.lab, cgroup, SERVER, PORT),
        "socket": Asking(site.lab, cgroup, where, 80),
        "nftables": Asking(site.lab, None, where, 80),
    }
    rounds: dict[str, list[Mapping[str, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            rounds[name].append(way.round_us())
    told: dict[str, object] = {
        f"{size} services: load the maps": f"{load_s:.2f} s",
        f"{size} services: one endpoint more": f"{changed:.0f} µs",
    }
    for what in ("established", "datagram", "connect", "sendto"):
        base = statistics.median(each[what] for each in rounds["direct"])
        told[f"{size} services: {what}, directly"] = f"{base:.2f} µs"
        for name in list(ways)[1:]:
            over = statistics.median(
                each[what] - direct[what] for each, direct in zip(rounds[name], rounds["direct"], strict=True)
            )
            told[f"{size} services: {what}, {name}"] = f"{over:+.2f} µs"
    return told


def update_us(site: SocketSite, wanted: Tables) -> float:
    """One endpoint more, and one less again."""
    key, row = list(wanted[Table.BACKENDS].items())[-1]
    more = BackendList((*row.backends, Backend(ipaddress.ip_address("10.9.255.1"), 1)))
    took = timed(
        lambda: (
            site.driver.apply({Table.BACKENDS: Delta({}, {key: Change(row, more)}, {})}),
            site.driver.apply({Table.BACKENDS: Delta({}, {key: Change(more, row)}, {})}),
        )
    )
    return took / 2000
