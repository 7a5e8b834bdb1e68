"""etcd of a lab's own: members in the namespace `control`, on its loopback, where nobody else is.

The supervisor starts a member that dies again; it finds its data, and the others go on meanwhile.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

from podlane.errors import LabError, UnsupportedError
from podlane.kernel import netns
from podlane.lab import record as records
from podlane.lab.api import etcd_store
from podlane.lab.api.etcd_client import Connect, EtcdAwayError, EtcdError
from podlane.lab.api.etcd_client import connect as plain_connect
from podlane.lab.api.etcd_store import EtcdStore
from podlane.lab.record import LabRecord
from podlane.model import stores
from podlane.model.stores import CLIENT_PORT, StoreAddress, StoreKind

LOOPBACK = "127.0.0.1"
_PORTS_APART = 10


def service(member: int) -> str:
    """What the supervisor calls it. Members are numbered from 0."""
    return f"etcd/{member}"


def require() -> str:
    """The program's path. Raises UnsupportedError."""
    program = shutil.which("etcd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise UnsupportedError("store etcd://local needs the package etcd-server; or use sqlite")
    return program


def command(directory: Path, member: int, members: int) -> list[str]:
    """What starts a member; its data is in a directory of its own below directory."""
    mine = CLIENT_PORT + _PORTS_APART * member
    peers = [f"http://{LOOPBACK}:{CLIENT_PORT + _PORTS_APART * i + 1}" for i in range(members)]
    options = {
        "name": str(member),
        "data-dir": str(directory / str(member)),
        "listen-client-urls": f"http://{LOOPBACK}:{mine}",
        "advertise-client-urls": f"http://{LOOPBACK}:{mine}",
        "listen-peer-urls": peers[member],
        "initial-advertise-peer-urls": peers[member],
        "initial-cluster": ",".join(f"{i}={peer}" for i, peer in enumerate(peers)),
        "initial-cluster-state": "new",
        "logger": "zap",
        "log-level": "warn",
        "log-outputs": "stderr",
    }
    return [require(), *(f"--{name}={value}" for name, value in options.items())]


def run(options: dict[str, Any]) -> None:
    """Entry of the service `etcd/N`. options: {"lab": NAME, "member": N}. Becomes etcd."""
    lab = records.load(options["lab"])
    directory = lab.paths.state / "etcd"
    directory.mkdir(exist_ok=True, mode=0o700)
    program, *arguments = command(directory, options["member"], stores.parse(lab.config.store).members)
    os.execv(program, ["etcd", *arguments])


class Place:
    """Where a lab's objects are in etcd: address, prefix, and how the control process connects to it."""

    def __init__(self, name: str, store: StoreAddress, namespace: int | None) -> None:
        """namespace: of host `control`, for members of the lab's own; then `close` it."""
        self.prefix = store.prefix or f"/podlane/{name}"
        self.namespace = namespace
        if store.kind is StoreKind.LOCAL:
            endpoints = tuple((LOOPBACK, CLIENT_PORT + _PORTS_APART * i) for i in range(store.members))
            store = StoreAddress(kind=StoreKind.ETCD, endpoints=endpoints)
        self.address = store

    @property
    def connect(self) -> Connect:
        return plain_connect if self.namespace is None else self._inside

    def _inside(self, host: str, port: int, timeout_s: float) -> socket.socket:
        assert self.namespace is not None
        sock = netns.socket_in(self.namespace, socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect((host, port))
        except BaseException:
            sock.close()
            raise
        return sock


def opened(lab: LabRecord, store: StoreAddress) -> EtcdStore:
    """The lab's store. Raises LabError when etcd does not answer."""
    namespace = netns.open_pid(lab.pids["control"]) if store.kind is StoreKind.LOCAL else None
    place = Place(lab.name, store, namespace)
    return EtcdStore(place.address, place.prefix, connect=place.connect)


def check_free(name: str, store: StoreAddress) -> None:
    """Raises LabError when somebody's objects are where the lab's would be, or nobody answers there."""
    place = Place(name, store, None)
    try:
        occupied = etcd_store.occupied(place.address, place.prefix)
    except (EtcdAwayError, EtcdError) as error:
        raise LabError(f"store: {error}") from None
    if occupied:
        raise LabError(
            f"store: etcd at {place.address.shown} has keys below {place.prefix}/ already, of another lab or "
            "one that was not taken down; choose another prefix (…/PREFIX), or remove them: "
            f"`etcdctl del --prefix {place.prefix}/`"
        )


def remove(name: str, store: StoreAddress) -> None:
    """The lab's objects, from an etcd that is not its own. Raises LabError saying what is left."""
    place = Place(name, store, None)
    try:
        etcd_store.remove(place.address, place.prefix)
    except (EtcdAwayError, EtcdError) as error:
        raise LabError(
            f"lab {name!r} is down, but its keys below {place.prefix}/ in etcd are left: {error}; "
            f"`etcdctl del --prefix {place.prefix}/` removes them"
        ) from None
