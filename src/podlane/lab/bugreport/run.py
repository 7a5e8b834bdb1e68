"""The two reports there are: of a lab with all its nodes, and of the node this runs on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from podlane.errors import PodlaneError
from podlane.lab import snapshot
from podlane.lab.bugreport import cluster, node, secrets
from podlane.lab.bugreport.archive import MOST_BYTES, Archive, Entry
from podlane.lab.bugreport.node import Site
from podlane.lab.record import LabRecord
from podlane.lab.rest import Client
from podlane.model.config import DEFAULT, NetworkConfig
from podlane.watch import configuration
from podlane.watch.kubeconfig import SERVICE_ACCOUNT

UNIT: Final = "podlane-agent"
KEY_FILE: Final = "wireguard.key"


class Wish(NamedTuple):
    """path: None for a name of its own in the working directory. progress(name): what is being collected."""

    path: Path | None = None
    connections: bool = False
    most_bytes: int = MOST_BYTES
    progress: Callable[[str], None] = lambda _: None


class Made(NamedTuple):
    path: Path
    files: int
    failed: list[Entry]


class Here(NamedTuple):
    """This node. kubeconfig: None for what kubectl would take; asked: the API is to be asked."""

    agent_socket: Path
    state_dir: Path
    config: Path
    kubeconfig: Path | None = None
    context: str = ""
    asked: bool = True


def of_lab(record: LabRecord, wish: Wish) -> Made:
    paths = record.paths
    kubeconfigs = [paths.kubeconfig, *(paths.node_run(each.name) / "kubeconfig" for each in record.nodes)]
    keys = [paths.node_state(each.name) / KEY_FILE for each in record.nodes]
    keys += [path for path in (paths.pki / "token", *paths.pki.glob("*key*")) if path.exists()]
    documents = [secrets.document(paths.run / "config.yaml")]
    known = secrets.known(kubeconfigs, keys, documents)
    with Archive(
        _path(wish, record.name), known, most_bytes=wish.most_bytes, progress=wish.progress
    ) as archive:
        archive.add("machine.json", node.machine)
        archive.add("lab.json", lambda: record)
        for log in sorted(paths.run.glob("*.log")):
            archive.add(f"logs/{log.name}", partial(node.tail, log))
        with snapshot.namespaces({each.name: each.pid for each in record.nodes}) as opened:
            for each in record.nodes:
                run = paths.node_run(each.name)
                site = Site(
                    f"nodes/{each.name}",
                    opened.get(each.name),
                    paths.agent_socket(each.name),
                    paths.node_state(each.name),
                    paths.run / "config.yaml",
                    {"agent.log": run / "agent.log"},
                )
                if site.netns_fd is None:
                    archive.add(f"{site.folder}/gone", _gone)
                else:
                    node.collect(archive, site, connections=wish.connections)
        _of_api(
            archive, lambda: Client.from_kubeconfig(paths.kubeconfig), record.config, Path("/nonexistent")
        )
    return Made(archive.path, len(archive.entries), archive.failed)


def reachable() -> bool:
    """It is known how to ask the API without being told: in a pod, or by the environment."""
    return SERVICE_ACCOUNT.exists() or bool(os.environ.get("KUBECONFIG"))


def of_node(here: Here, wish: Wish) -> Made:
    name = os.uname().nodename
    documents = [secrets.document(here.config)]
    kubeconfigs = [here.kubeconfig] if here.asked else []
    known = secrets.known(kubeconfigs, [here.state_dir / KEY_FILE], documents)
    site = Site("node", None, here.agent_socket, here.state_dir, here.config, {}, UNIT)
    with Archive(_path(wish, name), known, most_bytes=wish.most_bytes, progress=wish.progress) as archive:
        archive.add("machine.json", node.machine)
        node.collect(archive, site, connections=wish.connections)
        if here.asked:

            def connect() -> Client:
                return Client.from_kubeconfig(here.kubeconfig, here.context)

            _of_api(archive, connect, _config(here.config), here.agent_socket, logs=True)
    return Made(archive.path, len(archive.entries), archive.failed)


def _of_api(
    archive: Archive,
    connect: Callable[[], Client],
    config: NetworkConfig,
    socket: Path,
    *,
    logs: bool = False,
) -> None:
    """connect: raises when there is no way to ask; then that is noted."""
    try:
        client = connect()
    except (PodlaneError, OSError) as error:
        archive.add("cluster/api", _raiser(error))
        return
    with client:
        cluster.collect(archive, client, config, socket)
        if logs:
            cluster.pods_logs(archive, client)


def _config(path: Path) -> NetworkConfig:
    try:
        return configuration.read(str(path))
    except PodlaneError:
        return DEFAULT


def _path(wish: Wish, name: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return wish.path or Path.cwd() / f"podlane-bugreport-{name}-{stamp}.tar.gz"


def _gone() -> str:
    raise OSError("the node's namespaces are gone: the process that held them has ended")


def _raiser(error: Exception) -> Callable[[], str]:
    def collect() -> str:
        raise error

    return collect
