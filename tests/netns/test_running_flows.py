"""Streams through services that go on while the agent dies, comes back, and finds other services."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from podlane.kernel import netns
from podlane.kernel.conntrack.codec import Entry, Filter
from podlane.kernel.conntrack.flows import Flows
from podlane.model.addresses import Family
from tests.netns.agent_nodes import FAMILIES, TestNode, two_nodes, wait_until
from tests.netns.fake_api import FakeApi

VIPS = {"IPv4": "10.96.0.10", "IPv6": "fd00:10:96::10"}
PORT = 8080
CONFIG = {"services": {"rebalanceSeconds": 1}}


class Site:
    """A client on one node; servers `near` on the same and `far` on the other, echoing on TCP and UDP."""

    def __init__(self, api: FakeApi, one: TestNode, two: TestNode) -> None:
        self.api, self.one, self.two = api, one, two
        self.client = one.add_pod("client")
        self.at = {"near": (one, one.add_pod("near")), "far": (two, two.add_pod("far"))}
        self.closing: list[Callable[[], None]] = []
        self.newest = 0
        for name, (node, addresses) in self.at.items():
            self.pod(name)
            for where in addresses.values():
                self.closing.append(serve(node.pods[name], where))

    def pod(self, name: str) -> None:
        node, addresses = self.at[name]
        ips = [{"ip": each} for each in addresses.values()]
        self.api.put(
            "Pod",
            name,
            metadata={"namespace": "default"},
            spec={"nodeName": node.name, "containers": []},
            status={"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips},
        )

    def service(self, **notes: str) -> None:
        annotations = {f"podlane.dev/{key}": text for key, text in notes.items()}
        self.api.put(
            "Service",
            "web",
            metadata={"namespace": "default", "annotations": annotations},
            spec={
                "type": "ClusterIP",
                "clusterIP": VIPS["IPv4"],
                "clusterIPs": list(VIPS.values()),
                "ipFamilies": list(VIPS),
                "ports": [
                    {"name": "tcp", "port": 80, "protocol": "TCP", "targetPort": PORT},
                    {"name": "udp", "port": 80, "protocol": "UDP", "targetPort": PORT},
                ],
            },
        )

    def endpoints(self, *names: str) -> None:
        for family in VIPS:
            self.api.put(
                "EndpointSlice",
                f"web-{family.lower()}",
                metadata={"namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
                addressType=family,
                ports=[{"name": n, "port": PORT, "protocol": n.upper()} for n in ("tcp", "udp")],
                endpoints=[
                    {"addresses": [self.at[n][1][family]], "nodeName": self.at[n][0].name} for n in names
                ],
            )
        self.newest = self.api.version

    def row(self, port: str = "tcp") -> list[str]:
        """The addresses of the compiled IPv4 list, as often as they are in it; none before the kernel holds
        the newest slices of both families."""
        applied = self.one.status().get("applied", {})
        code, body = self.one.get("/tables")
        if code != 200 or int(applied.get("EndpointSlice") or 0) < self.newest:
            return []
        for found in json.loads(body)["tables"]["backends"]:
            if (found["key"]["service"], found["key"]["port"], found["key"]["family"]) == (
                "web",
                port,
                "IPv4",
            ):
                return [each["address"] for each in found["row"]["backends"]]
        return []


def serve(fd: int, where: str) -> Callable[[], None]:
    """Echo on TCP and UDP until called."""
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    stream = netns.socket_in(fd, family, socket.SOCK_STREAM)
    stream.bind((where, PORT))
    stream.listen(64)
    datagrams = netns.socket_in(fd, family, socket.SOCK_DGRAM)
    datagrams.bind((where, PORT))
    datagrams.settimeout(0.1)
    stopping = threading.Event()
    held: list[socket.socket] = []

    def connection(each: socket.socket) -> None:
        with suppress(OSError):
            while data := each.recv(4096):
                each.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                each, _ = stream.accept()
                held.append(each)
                threading.Thread(target=connection, args=(each,), daemon=True).start()

    def answer() -> None:
        while not stopping.is_set():
            with suppress(TimeoutError):
                data, peer = datagrams.recvfrom(4096)
                datagrams.sendto(data, peer)

    threads = [threading.Thread(target=work, daemon=True) for work in (accept, answer)]
    for thread in threads:
        thread.start()

    def close() -> None:
        stopping.set()
        stream.shutdown(socket.SHUT_RDWR)
        for each in (stream, *held):
            each.close()
        for thread in threads:
            thread.join()
        datagrams.close()

    return close


class Talk:
    """A client that says something every few milliseconds on one socket, and waits for it to come back."""

    def __init__(self, site: Site, family: str, kind: int) -> None:
        fd = site.one.pods["client"]
        self.socket = netns.socket_in(fd, socket.AF_INET6 if family == "IPv6" else socket.AF_INET, kind)
        self.socket.settimeout(5)
        self.socket.connect((VIPS[family], 80))
        self.said = 0
        self.error: OSError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            word = b"%08d" % self.said
            try:
                self.socket.sendall(word)
                assert self.socket.recv(64) == word
            except (OSError, AssertionError) as error:
                self.error = error if isinstance(error, OSError) else OSError(str(error))
                return
            self.said += 1
            time.sleep(0.005)

    def goes_on(self) -> bool:
        at = self.said
        wait_until(lambda: self.said > at + 10 or self.error, "the stream goes on")
        return self.error is None

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.socket.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    where = tmp_path_factory.mktemp("flows")
    with two_nodes(where, FAMILIES["both"], CONFIG) as (api, one, two):
        for node in (one, two):
            node.start()
        for node in (one, two):
            node.wait_ready()
        site = Site(api, one, two)
        yield site
        for close in site.closing:
            close()


def tracked(site: Site) -> list[Entry]:
    flows = Flows(site.one.fd)
    try:
        return [e for family in Family for e in flows.list(Filter(family)) if e.mark]
    finally:
        flows.close()


def test_streams_go_on_while_the_agent_is_killed_and_services_change(site: Site) -> None:
    site.service()
    site.endpoints("far")
    wait_until(lambda: len(site.row()) == 1, "the service is there")
    talks = [Talk(site, f, kind) for f in VIPS for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
    try:
        assert all(talk.goes_on() for talk in talks)
        before = {entry.id for entry in tracked(site)}
        site.one.stop(signal.SIGKILL)
        assert all(talk.goes_on() for talk in talks)
        site.endpoints("near", "far")
        site.api.put(
            "Service",
            "other",
            metadata={"namespace": "default"},
            spec={"clusterIP": "10.96.0.11", "ports": [{"port": 80}]},
        )
        site.one.start()
        site.one.wait_ready()
        assert len(site.row()) == 2
        assert all(talk.goes_on() for talk in talks)
        # They are the same flows to the kernel, not others that took their place.
        assert before <= {entry.id for entry in tracked(site)}
    finally:
        for talk in talks:
            talk.close()
    assert [talk.error for talk in talks] == [None] * 4


@pytest.mark.parametrize("family", VIPS)
@pytest.mark.parametrize("name", ["near", "far"])
def test_a_connection_ends_when_the_api_says_that_its_pod_is_gone(site: Site, family: str, name: str) -> None:
    """Not when it only left the service: the agent asks for the pods of the node in question. For its own
    node it knows itself."""
    node, addresses = site.at[name]
    site.service()
    site.endpoints(name)
    wait_until(lambda: site.row() == [addresses["IPv4"]], "one endpoint")
    talk = Talk(site, family, socket.SOCK_STREAM)
    other = "far" if name == "near" else "near"
    try:
        assert talk.goes_on()
        site.endpoints(other)
        wait_until(lambda: site.row() == [site.at[other][1]["IPv4"]], "the other endpoint")
        assert talk.goes_on()
        if name == "far":
            site.api.delete("Pod", name)
            wait_until(lambda: talk.error, "the connection ends")
            assert isinstance(talk.error, ConnectionError)
    finally:
        talk.close()
        if name == "far":
            site.pod(name)
    assert node.status()["failures"] == []


def test_least_connections_and_slow_start(site: Site) -> None:
    near, far = (site.at[name][1]["IPv4"] for name in ("near", "far"))
    site.service(balancing="least-connections")
    site.endpoints("near")
    wait_until(lambda: site.row() == [near], "one endpoint")
    held = []
    try:
        for _ in range(20):
            each = netns.socket_in(site.one.pods["client"], socket.AF_INET, socket.SOCK_STREAM)
            each.settimeout(5)
            each.connect((VIPS["IPv4"], 80))
            held.append(each)
        site.endpoints("near", "far")
        wait_until(lambda: site.row().count(far) >= 4 * max(1, site.row().count(near)), "far gets more")
    finally:
        for each in held:
            each.close()
    site.service(**{"slow-start": "3s"})
    site.endpoints("near")
    wait_until(lambda: site.row() == [near], "one endpoint")
    site.endpoints("near", "far")
    wait_until(lambda: site.row().count(near) > site.row().count(far) > 0, "far begins slowly")
    wait_until(lambda: sorted(site.row()) == sorted([near, far]), "both have the same")


def test_accounting_is_of_the_nodes_namespace_alone(site: Site) -> None:
    assert netns.read_sysctl(site.one.fd, "net/netfilter/nf_conntrack_acct") == "1"
    assert Path("/proc/sys/net/netfilter/nf_conntrack_acct").read_text().strip() == "0"
