"""A whole agent process with many services: memory, start, and events from the API to the kernel."""

from __future__ import annotations

import json
import select
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from podlane.kernel.netlink import NETLINK_NETFILTER
from podlane.kernel.netlink_socket import Netlink
from podlane.watch.reflector import PATHS
from tests.bench.lab import pss_kib
from tests.bench.service_control import centiles
from tests.bench.service_objects import Cluster, endpoint, endpoints_of, modified, piece
from tests.netns.agent_nodes import TestNode, join

EVENTS = 300
PAUSE_S = 0.06  # longer than the agent collects changes that keep coming
_TABLES_GROUP, _NEW_GENERATION = 7, 10 << 8 | 15  # NFNLGRP_NFTABLES, NFT_MSG_NEWGEN

Result = dict[str, Any]


class Api:
    """Lists of a cluster page by page, and watches into which `send` writes. A thread a connection."""

    def __init__(self, listener: socket.socket, cluster: Cluster) -> None:
        self._listener, self._cluster = listener, cluster
        self._watches: dict[str, socket.socket] = {}
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def send(self, kind: str, line: bytes) -> None:
        self._watches[kind].sendall(b"%x\r\n%s\n\r\n" % (len(line) + 1, line))

    def close(self) -> None:
        for each in (self._listener, *self._connections):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            part = connection.recv(65536)
            if not part:
                return
            head += part
        method, target = head.split(b" ")[:2]
        path, _, query = target.decode().partition("?")
        kind = next((k for k, p in PATHS.items() if p == path), "")
        asked = parse_qs(query)
        if "sendInitialEvents" in asked:  # pages are what is measured
            connection.sendall(b"HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: 0\r\n\r\n")
            connection.close()
            return
        if "watch" in asked and kind:
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            self._watches[kind] = connection
            return
        if method == b"GET" and kind:
            body = self._cluster.page(kind, int(asked.get("continue", ["0"])[0]))
        else:
            body = b"{}"
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        connection.close()


class Commits:
    """Hears of every committed change of a namespace's rulesets."""

    def __init__(self, fd: int) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER, fd, groups=(_TABLES_GROUP,))

    def wait(self, timeout_s: float = 5.0) -> float:
        """Until the next one; when that was."""
        end_s = time.perf_counter() + timeout_s
        while select.select([self._netlink], [], [], max(0.0, end_s - time.perf_counter()))[0]:
            if any(message.type == _NEW_GENERATION for message in self._netlink.receive()):
                return time.perf_counter()
        raise SystemExit(f"the agent changed nothing in {timeout_s} s")

    def drain(self) -> None:
        while select.select([self._netlink], [], [], 0)[0]:
            self._netlink.receive()

    def close(self) -> None:
        self._netlink.close()


@contextmanager
def agent(cluster: Cluster) -> Iterator[tuple[TestNode, Api]]:
    """A node with an agent that is not started yet; its neighbour is only there to carry the link."""
    with tempfile.TemporaryDirectory() as folder:
        nodes = [TestNode(number, ["IPv4", "IPv6"], Path(folder), {}) for number in (1, 2)]
        api = None
        try:
            join(*nodes)
            api = Api(nodes[0].listener(), cluster)
            yield nodes[0], api
        finally:
            for node in nodes:
                node.close()
            if api is not None:
                api.close()


def measure(services: int, endpoints: int) -> Result:
    cluster = Cluster(services, endpoints, address="172.30.1.1")
    with agent(cluster) as (node, api):
        result: Result = {"start_s": _started_s(node)}
        time.sleep(2)
        assert node.process is not None
        result["pss_mib"] = pss_kib(node.process.pid) / 1024
        result["most_mib"] = _status(node.process.pid, "VmHWM") / 1024
        commits = Commits(node.fd)
        try:
            result["event_ms"] = centiles([_event_ms(cluster, api, commits, n) for n in range(EVENTS)])
        finally:
            commits.close()
        result["resyncs"] = node.status()["resyncs"]
        before_s, generation = _cpu_s(node.process.pid), node.status()["generation"]
        result["rolled_cpu_s"] = _roll(cluster, api, node) - before_s
        result["rolled_generations"] = node.status()["generation"] - generation
        result["after_mib"] = pss_kib(node.process.pid) / 1024
        node.stop(9)
        result["restart_s"] = _started_s(node)
        return result


def _started_s(node: TestNode) -> float:
    began_s = time.perf_counter()
    node.start()
    while not node.status().get("ready"):
        time.sleep(0.02)
        if time.perf_counter() - began_s > 120:
            raise SystemExit(f"the agent does not get ready: {node.log()[-2000:]}")
    return time.perf_counter() - began_s


def _event_ms(cluster: Cluster, api: Api, commits: Commits, turn: int) -> float:
    number = turn * 7919 % cluster.services
    ends = endpoints_of(number, cluster.endpoints)
    ends.append(endpoint(number, f"10.200.{turn >> 8}.{turn & 255}"))
    line = modified(piece(number, ends, 2_000_000 + turn))
    time.sleep(PAUSE_S)
    commits.drain()
    began_s = time.perf_counter()
    api.send("EndpointSlice", line)
    return (commits.wait() - began_s) * 1000


def _roll(cluster: Cluster, api: Api, node: TestNode) -> float:
    """Each endpoint of a hundred services is replaced, one every millisecond; the agent's CPU afterwards."""
    assert node.process is not None
    version = 3_000_000
    for number in range(min(100, cluster.services)):
        ends = endpoints_of(number, cluster.endpoints)
        for place in range(len(ends)):
            new = number * len(ends) + place
            ends[place] = endpoint(new, f"10.211.{new >> 8 & 255}.{new & 255}")
            version += 1
            api.send("EndpointSlice", modified(piece(number, ends, version)))
            time.sleep(0.001)
    while node.status()["applied"].get("EndpointSlice") != str(version):
        time.sleep(0.05)
    return _cpu_s(node.process.pid)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    import sys

    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
