"""etcd members in a namespace of the test's own, on its loopback; they end by their process ids."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.lab.api.etcd_client import EtcdAwayError, EtcdClient
from podlane.lab.etcd import command
from podlane.model.stores import StoreAddress, StoreKind


class _Status(msgspec.Struct):
    class Header(msgspec.Struct):
        member_id: int

    header: Header
    leader: int = 0


class EtcdCluster:
    """Members are numbered from 0. Use as a context manager."""

    def __init__(self, directory: Path, members: int, *, options: Sequence[str] = ()) -> None:
        """options: more of etcd's, which overrule those of a lab's members."""
        self.options = options
        self.directory, self.members = directory, members
        self.namespace = netns.new()
        with Rtnl(self.namespace) as rtnl:
            rtnl.set_up("lo")
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        endpoints = tuple(("127.0.0.1", 2379 + 10 * i) for i in range(members))
        self.address = StoreAddress(kind=StoreKind.ETCD, endpoints=endpoints)

    def connect(self, host: str, port: int, timeout_s: float) -> socket.socket:
        sock = netns.socket_in(self.namespace, socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect((host, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def start(self, member: int) -> None:
        with open(self.directory / f"{member}.log", "ab") as log:
            self.processes[member] = subprocess.Popen(
                [
                    "nsenter",
                    f"--net=/proc/{os.getpid()}/fd/{self.namespace}",
                    *command(self.directory, member, self.members),
                    *self.options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self, member: int, number: int = signal.SIGKILL) -> None:
        process = self.processes.pop(member)
        process.send_signal(number)
        process.wait(10)

    def leader(self) -> int:
        """Waits until there is one."""
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            for member in self.processes:
                client = EtcdClient(
                    StoreAddress(kind=StoreKind.ETCD, endpoints=self.address.endpoints[member : member + 1]),
                    self.connect,
                )
                try:
                    status = client.attempt("maintenance/status", {}, _Status, 1.0)
                except EtcdAwayError:
                    continue
                finally:
                    client.close()
                if status.leader and status.leader == status.header.member_id:
                    return member
            time.sleep(0.05)
        raise AssertionError("no leader")

    def client(self) -> EtcdClient:
        return EtcdClient(self.address, self.connect)

    def __enter__(self) -> EtcdCluster:
        for member in range(self.members):
            self.start(member)
        self.leader()
        return self

    def __exit__(self, *_: object) -> None:
        for member in list(self.processes):
            self.end(member)
        os.close(self.namespace)
