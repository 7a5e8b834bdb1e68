"""Any number of nodes on one switch, each with an agent; streams between pods that count what is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.agent_nodes import FAMILIES, UNDERLAY, TestNode
from tests.netns.fake_api import FakeApi


class Fleet:
    def __init__(self, api: FakeApi, nodes: list[TestNode], switch: int) -> None:
        self.api, self.nodes, self.switch = api, nodes, switch

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_ready()

    def configure(self, node: TestNode, **sections: Any) -> None:
        """Killed, given another configuration, and started again."""
        node.stop(signal.SIGKILL)
        path = node.dir / "config.yaml"
        path.write_text(json.dumps(json.loads(path.read_text()) | sections))
        node.start()
        node.wait_ready()

    def said(self, node: TestNode, annotation: str = "podlane.dev/backend") -> Any:
        return json.loads(self.api.annotations("Node", node.name).get(annotation, "{}"))


@contextmanager
def fleet(where: Path, count: int, **config: Any) -> Iterator[Fleet]:
    """The agents are not started."""
    nodes = [TestNode(number, FAMILIES["both"], where, config) for number in range(1, count + 1)]
    switch = netns.new()
    try:
        with Rtnl(switch) as rt:
            rt.create_bridge("switch", up=True)
            for node in nodes:
                rt.create_veth(node.name, "eth0", peer_netns=node.fd, master="switch", up=True, peer_up=True)
                with Rtnl(node.fd) as inside:
                    for family in node.families:
                        inside.add_address("eth0", ip_interface(UNDERLAY[family].format(node.number)))
                rt.settle_port(node.name)
        with FakeApi([node.listener() for node in nodes]) as api:
            for node in nodes:
                api.put("Node", node.name, **node.object)
            yield Fleet(api, nodes, switch)
    finally:
        for node in nodes:
            node.close()
        os.close(switch)


class Datagrams:
    """One numbered datagram after another from one namespace to another and back; `lost` never came back."""

    def __init__(self, client_fd: int, server_fd: int, address: str, port: int = 9900) -> None:
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.server = netns.socket_in(server_fd, self.family, socket.SOCK_DGRAM)
        self.server.bind((address, port))
        self.client = netns.socket_in(client_fd, self.family, socket.SOCK_DGRAM)
        self.client.connect((address, port))
        self.sent = self.answered = self.lost = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._serve), threading.Thread(target=self._ask)]

    def __enter__(self) -> Datagrams:
        for each in (self.client, self.server):
            each.settimeout(1)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in reversed(self._threads):
            thread.join()
        self.client.close()
        self.server.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                data, peer = self.server.recvfrom(2048)
                self.server.sendto(data, peer)
            except OSError:
                continue

    def _ask(self) -> None:
        while not self._stop.is_set():
            self.sent += 1
            try:
                self.client.send(b"%d" % self.sent)
                while self.client.recv(2048) != b"%d" % self.sent:
                    pass
                self.answered += 1
            except OSError:
                self.lost += 1
            time.sleep(0.001)


class Bytes:
    """A TCP connection that carries blocks there and back without end; `broken` says what went wrong."""

    BLOCK = bytes(range(256)) * 64

    def __init__(self, client_fd: int, server_fd: int, address: str, port: int = 9901) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = netns.socket_in(server_fd, family, socket.SOCK_STREAM)
        self._listener.bind((address, port))
        self._listener.listen(1)
        self._client = netns.socket_in(client_fd, family, socket.SOCK_STREAM)
        self._client.settimeout(10)
        self._client.connect((address, port))
        self._server, _ = self._listener.accept()
        self._server.settimeout(10)
        self.blocks, self.broken = 0, ""
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._serve), threading.Thread(target=self._ask)]

    def __enter__(self) -> Bytes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in reversed(self._threads):
            thread.join()
        for each in (self._client, self._server, self._listener):
            each.close()

    def _serve(self) -> None:
        try:
            while data := self._server.recv(65536):
                self._server.sendall(data)
        except OSError as error:
            self.broken = self.broken or f"server: {error}"

    def _ask(self) -> None:
        try:
            while not self._stop.is_set():
                self._client.sendall(self.BLOCK)
                came = b""
                while len(came) < len(self.BLOCK):
                    came += self._client.recv(65536) or self._fail()
                assert came == self.BLOCK
                self.blocks += 1
                time.sleep(0.005)
            self._client.shutdown(socket.SHUT_WR)
        except (OSError, AssertionError) as error:
            self.broken = self.broken or f"client: {error!r}"
            self._client.close()

    def _fail(self) -> bytes:
        raise ConnectionError("the stream ended")
