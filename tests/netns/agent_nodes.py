"""Two nodes joined by a veth, each with an agent process, and pods made through the agents' CNI socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from podlane.cni import client as cni
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.fake_api import FakeApi

API_PORT = 6443
CNI_CONFIG = {"cniVersion": "1.1.0", "name": "podlane", "type": "podlane"}
FAMILIES = {"both": ["IPv4", "IPv6"], "IPv6": ["IPv6"], "IPv4": ["IPv4"]}
PODS = {"IPv4": "10.244.{}.0/24", "IPv6": "fd00:10:244:{}::/64"}
UNDERLAY = {"IPv4": "172.30.1.{}/24", "IPv6": "fd00:172:30::{}/112"}


def wait_until(condition: Any, what: str, timeout_s: float = 20.0) -> Any:
    """The first true value of condition(); AssertionError naming `what` otherwise."""
    end_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end_s, f"not in {timeout_s} s: {what}"
        time.sleep(0.02)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        try:
            self.sock.connect(str(self.path))
        except OSError:
            self.sock.close()
            raise


class TestNode:
    """One node's namespace and files; the agent is a child process that can be killed and started again."""

    __test__ = False

    def __init__(self, number: int, families: list[str], where: Path, extra: dict[str, Any]) -> None:
        self.number, self.name, self.families = number, f"node-{number}", families
        self.fd = netns.new()
        self.dir = self.sockets = where / self.name
        self.dir.mkdir()
        self.pods: dict[str, int] = {}
        self.process: subprocess.Popen[bytes] | None = None
        config = {
            "apiVersion": "podlane.dev/v1alpha1",
            "kind": "NetworkConfig",
            "ipFamilies": families,
            **extra,
        }
        (self.dir / "config.yaml").write_text(json.dumps(config))
        kubeconfig = {
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "x"}}],
            "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{API_PORT}"}}],
        }
        (self.dir / "kubeconfig").write_text(json.dumps(kubeconfig))
        with Rtnl(self.fd) as rt:
            rt.set_up("lo")

    def listener(self) -> socket.socket:
        """Where this node's agent finds the API."""
        found = netns.socket_in(self.fd, socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("127.0.0.1", API_PORT))
        found.listen(64)
        return found

    @property
    def addresses(self) -> list[str]:
        return [UNDERLAY[f].format(self.number).partition("/")[0] for f in self.families]

    @property
    def object(self) -> dict[str, Any]:
        return {
            "spec": {"podCIDRs": [PODS[f].format(self.number) for f in self.families]},
            "status": {"addresses": [{"type": "InternalIP", "address": a} for a in self.addresses]},
        }

    # --- the agent ---

    def start(self, *flags: str) -> None:
        command = [
            sys.executable,
            "-c",
            "from podlane.cli.main import main; main()",
            "--log-level",
            "info",
            "agent",
        ]
        command += ["--kubeconfig", str(self.dir / "kubeconfig"), "--node-name", self.name]
        command += ["--config", str(self.dir / "config.yaml"), "--state-dir", str(self.dir / "state")]
        command += [
            "--cni-socket",
            str(self.sockets / "cni.sock"),
            "--agent-socket",
            str(self.sockets / "agent.sock"),
        ]
        command += list(flags)
        fd = self.fd
        with (self.dir / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=lambda: netns.setns(fd), pass_fds=[fd]
            )

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(20)
        self.process = None
        return status

    def get(self, path: str) -> tuple[int, bytes]:
        connection = UnixConnection(self.sockets / "agent.sock")
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        code, body = self.get("/status")
        return json.loads(body) if code == 200 else {}

    def log(self) -> str:
        return (self.dir / "agent.log").read_text()

    def wait_ready(self) -> dict[str, Any]:
        def ready() -> dict[str, Any] | None:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            status = self.status()
            return (
                status if status.get("ready") and not status["pending"] and not status["failures"] else None
            )

        try:
            return wait_until(ready, f"{self.name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.status()}\n{self.log()}") from None

    # --- pods ---

    def add_pod(self, name: str) -> dict[str, str]:
        """CNI ADD. Returns the pod's address by family."""
        fd = self.pods[name] = netns.new()
        with Rtnl(fd) as rt:
            rt.set_up("lo")
        answer = self.cni("ADD", name, fd)
        return {
            ("IPv6" if ":" in ip["address"] else "IPv4"): ip["address"].partition("/")[0]
            for ip in answer["ips"]
        }

    def delete_pod(self, name: str) -> None:
        fd = self.pods.pop(name)
        self.cni("DEL", name, fd)
        os.close(fd)

    def cni(self, verb: str, name: str, fd: int) -> dict[str, Any]:
        call = cni.call(self.sockets / "cni.sock", verb, netns_fd=fd, container_id=name, config=CNI_CONFIG)
        return asyncio.run(call)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._end_engines()
        for fd in (*self.pods.values(), self.fd):
            os.close(fd)

    def _end_engines(self) -> None:
        """What runs beside an agent outlives it."""
        for path in self.sockets.glob("*/*.pid"):
            pid = int(path.read_text())
            if _is_of(pid, path.parent):
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid, path=path: not _is_of(pid, path.parent), f"the end of {path.stem}")


def _is_of(pid: int, directory: Path) -> bool:
    """Whether pid is a living engine of `directory`. wireguard-go's command line does not say whose it is."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return str(directory).encode() in command or b"wireguard-go" in command


def join(one: TestNode, two: TestNode) -> None:
    """A veth between them, with their addresses on it."""
    with Rtnl(one.fd) as rt:
        rt.create_veth("eth0", "eth0", peer_netns=two.fd, up=True, peer_up=True)
    for node in (one, two):
        with Rtnl(node.fd) as rt:
            for family in node.families:
                rt.add_address("eth0", ip_interface(UNDERLAY[family].format(node.number)))


@contextmanager
def two_nodes(
    where: Path, families: list[str], extra: dict[str, Any] | None = None
) -> Iterator[tuple[FakeApi, TestNode, TestNode]]:
    """Underlay and API; the agents are not started."""
    nodes = [TestNode(number, families, where, extra or {}) for number in (1, 2)]
    try:
        join(*nodes)
        with FakeApi([node.listener() for node in nodes]) as api:
            for node in nodes:
                api.put("Node", node.name, **node.object)
            yield api, nodes[0], nodes[1]
    finally:
        for node in nodes:
            node.close()


class Echo:
    """A UDP server in a namespace that answers with the address it saw."""

    def __init__(self, fd: int, address: str, port: int = 9999) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = netns.socket_in(fd, family, socket.SOCK_DGRAM)
        self.socket.bind((address, port))
        self.socket.settimeout(5)

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def answer(self) -> str:
        """Serve one datagram; returns whom it came from."""
        _, peer = self.socket.recvfrom(2048)
        self.socket.sendto(peer[0].encode(), peer)
        return str(peer[0])


def ask(fd: int, address: str, port: int = 9999, server: Echo | None = None) -> str:
    """One datagram to a server; what it answered: the address it saw."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.socket_in(fd, family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((address, port))
        client.send(b"?")
        if server is not None:
            server.answer()
        return client.recv(2048).decode()
