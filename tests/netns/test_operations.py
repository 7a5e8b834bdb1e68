"""Agents come and go under traffic: other configurations, kill -9, a reboot. Nothing is lost or reset."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.agent_nodes import FAMILIES, TestNode, two_nodes, wait_until
from tests.netns.fake_api import FakeApi
from tests.netns.test_agent import Stream, assert_reaches
from tests.netns.test_uninstall import inside

VIP = {"IPv4": "10.96.0.9", "IPv6": "fd00:10:96::9"}


class TcpStream:
    """One connection that carries numbers there and back without a pause; whatever breaks it is `fault`."""

    def __init__(self, client_fd: int, server_fd: int, address: str, where: str, port: int = 8080) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = netns.socket_in(server_fd, family, socket.SOCK_STREAM)
        self._listener.bind((where, port))
        self._listener.listen()
        self._client = netns.socket_in(client_fd, family, socket.SOCK_STREAM)
        self._client.settimeout(10)
        self._target = address, port
        self._stop = threading.Event()
        self.fault = ""
        self.answered = 0
        self._threads = [threading.Thread(target=self._serve), threading.Thread(target=self._ask)]

    def __enter__(self) -> TcpStream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(4096):
                connection.sendall(data)

    def _ask(self) -> None:
        with self._client:
            try:
                self._client.connect(self._target)
                while not self._stop.is_set():
                    number = b"%08d" % self.answered
                    self._client.sendall(number)
                    got = b""
                    while len(got) < len(number):
                        got += self._client.recv(len(number) - len(got)) or b"ended..."
                    if got != number:
                        self.fault = f"{number!r} came back as {got!r}"
                        return
                    self.answered += 1
                    time.sleep(0.001)
            except OSError as error:
                self.fault = f"after {self.answered}: {error}"


def serve(api: FakeApi, endpoints: dict[str, str]) -> None:
    """A service at VIP, of these endpoints by family."""
    meta = {"namespace": "default", "name": "web", "uid": "1"}
    ports = [{"name": p, "port": 8080, "protocol": p} for p in ("TCP", "UDP")]
    spec = {
        "clusterIPs": list(VIP.values()),
        "clusterIP": VIP["IPv4"],
        "ipFamilies": list(VIP),
        "ports": ports,
    }
    api.put("Service", "web", metadata=dict(meta), spec=spec)
    for family, address in endpoints.items():
        name = f"web-{family.lower()}"
        labels = {"kubernetes.io/service-name": "web"}
        api.put(
            "EndpointSlice",
            name,
            metadata={**meta, "name": name, "labels": labels},
            addressType=family,
            endpoints=[{"addresses": [address], "conditions": {"ready": True}}],
            ports=ports,
        )


def configure(node: TestNode, **more: Any) -> None:
    path = node.dir / "config.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def going(streams: list[Any]) -> None:
    """All of them went on since this was asked."""
    at = [stream.answered for stream in streams]
    wait_until(
        lambda: all(s.answered > a + 20 or getattr(s, "fault", "") for s, a in zip(streams, at, strict=True)),
        "the streams go on",
    )
    assert [s.fault for s in streams if getattr(s, "fault", "")] == []


def test_upgrades_and_rollbacks_lose_nothing_of_what_flows(tmp_path: Path) -> None:
    """Each node's agent in turn, as a rolling update has it."""
    with two_nodes(tmp_path, FAMILIES["both"]) as (api, one, two):
        for node in (one, two):
            node.start()
        for node in (one, two):
            node.wait_ready()
        near, far = one.add_pod("near"), two.add_pod("far")
        serve(api, far)
        wait_until(lambda: one.status()["tables"].get("frontends"), "the service is programmed")
        one.wait_ready()
        client, server = one.pods["near"], two.pods["far"]
        assert near["IPv4"]
        with contextlib.ExitStack() as stack:
            streams: list[Any] = [
                stack.enter_context(Stream(client, server, far["IPv4"])),
                stack.enter_context(TcpStream(client, server, far["IPv6"], far["IPv6"], 8081)),
                stack.enter_context(TcpStream(client, server, VIP["IPv4"], far["IPv4"])),
                stack.enter_context(TcpStream(client, server, VIP["IPv6"], far["IPv6"])),
            ]
            going(streams)
            changes: list[tuple[signal.Signals, dict[str, Any]]] = [
                (signal.SIGTERM, {}),
                (signal.SIGKILL, {"services": {"flowAccounting": False, "localhostNodePorts": True}}),
                (signal.SIGTERM, {"policy": {"cutEstablished": True}}),
                (signal.SIGKILL, {"services": {}, "policy": {}}),  # back again
            ]
            for number, change in changes:
                for node in (one, two):
                    node.stop(number)
                    going(streams)
                    configure(node, **change)
                    node.start()
                    node.wait_ready()
                    going(streams)
        datagrams = streams[0]
        assert datagrams.answered == datagrams.sent


def test_a_node_that_was_rebooted_is_what_it_was(tmp_path: Path) -> None:
    """Kernel and pods are as after a boot; files are as an agent that was killed left them."""
    with two_nodes(tmp_path, FAMILIES["both"]) as (api, one, two):
        conf = tmp_path / "net.d"
        for node in (one, two):
            node.start(f"--cni-conf-dir={conf}-{node.number}")
        for node in (one, two):
            node.wait_ready()
        old, far = one.add_pod("old"), two.add_pod("far")
        serve(api, far)
        one.wait_ready()
        tables = {name: n for name, n in one.status()["tables"].items() if n}
        one.stop(signal.SIGKILL)
        reboot(one)
        assert "podlane" not in inside(one.fd, "nft", "list", "tables")
        one.start(f"--cni-conf-dir={conf}-1")
        status = one.wait_ready()
        assert status["attachments"] == 0
        new = one.add_pod("new")
        assert new["IPv4"] != old["IPv4"] or new["IPv6"] != old["IPv6"]
        for family in VIP:
            assert_reaches(one.pods["new"], two.pods["far"], far[family], new[family])
            assert_reaches(two.pods["far"], one.pods["new"], new[family], far[family])
        assert {name: n for name, n in one.status()["tables"].items() if n} == tables
        assert netns.read_sysctl(one.fd, "net/ipv4/ip_forward") == "1"


def reboot(node: TestNode) -> None:
    """The kernel holds nothing of ours; what files say was said before this boot."""
    for fd in node.pods.values():
        os.close(fd)
    node.pods.clear()
    with Rtnl(node.fd) as rt:
        wait_until(
            lambda: not [ln for ln in rt.links() if ln.kind == "veth" and ln.name != "eth0"], "pods go"
        )
        rt.delete_links(link.name for link in rt.links() if link.name.startswith("pl"))
    inside(node.fd, "nft", "flush", "ruleset")
    for family in ("-4", "-6"):
        inside(node.fd, "ip", family, "route", "flush", "proto", "85")
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        netns.write_sysctl(node.fd, name, 0)
    for name, table in (("leases", "lease"), ("plugins", "note")):
        database = sqlite3.connect(node.dir / "state" / f"{name}.sqlite", isolation_level=None)
        database.execute(f"UPDATE {table} SET boot_id = 'an earlier one'")
        database.close()
    for path in (node.dir / "state").glob("*.json"):
        known = json.loads(path.read_text())
        path.write_text(json.dumps(known | {"boot": "an earlier one"}))


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd would hear."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        yield ear


def test_systemd_is_told_what_the_agent_does(tmp_path: Path, told: socket.socket) -> None:
    with two_nodes(tmp_path, FAMILIES["IPv4"]) as (api, one, _):
        api.delete("Node", one.name)
        one.start()
        heard: list[str] = []

        def hear(wanted: str) -> bool:
            while not any(wanted in each for each in heard):
                heard.extend(told.recv(4096).decode().splitlines())
            return True

        assert hear("READY=1")
        assert hear(f"STATUS=there is no Node {one.name} in the API yet")
        api.put("Node", one.name, **one.object)
        assert hear("STATUS=ready, generation ")
        heard.clear()
        assert hear("WATCHDOG=1")
        one.stop()
        assert hear("STOPPING=1")
