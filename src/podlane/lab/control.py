"""The lab's control process: API server, controllers, scheduler and every node's kubelet, on one loop.

It may be killed at any moment. What it knows is in SQLite, in the supervisor (running containers) and
in the record; the supervisor starts it again and it finds everything where it was.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from pathlib import Path
from typing import Any

from podlane.controller import rights
from podlane.lab import record as records
from podlane.lab.api import accounts, auth
from podlane.lab.api.bootstrap import API_PORT
from podlane.lab.api.server import ApiServer
from podlane.lab.api.store import Store
from podlane.lab.controllers.manager import ControllerManager, make_all
from podlane.lab.controllers.pool_routes import PoolRoutes
from podlane.lab.kubelet.kubelet import Kubelet, NodeFacts
from podlane.lab.nodes import NodeKubelets
from podlane.lab.record import LabRecord
from podlane.lab.supervisor.client import AsyncSupervisor
from podlane.lab.topology import plan
from podlane.model import stores
from podlane.model.stores import StoreKind

log = logging.getLogger(__name__)

_LIFE_S = 10 * 365 * 86400.0


def run(options: dict[str, Any]) -> None:
    """Entry of the service `control`. options: {"lab": NAME, "log_level": ..., "descriptors": listeners}"""
    from podlane.logs import configure

    configure(options.get("log_level", "info"))
    # The supervisor keeps them open, so that who connects while this process is started anew waits.
    sockets = [socket.socket(fileno=fd) for fd in options["descriptors"]]
    asyncio.run(_main(records.load(options["lab"]), sockets))


async def _main(lab: LabRecord, sockets: list[socket.socket]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    config = lab.config
    topology = plan(config, len(lab.nodes))
    fabric_addresses = topology.control.plain_addresses
    pki = _credentials(lab, fabric_addresses)

    supervisor = AsyncSupervisor(lab.paths.supervisor_socket)
    kubelets = NodeKubelets()
    server = ApiServer(_database(lab), config, kubelets, service_endpoints=fabric_addresses)
    kubelets.bind(server.client)
    manager = ControllerManager(
        server.client,
        config,
        ca_pem=pki.ca_pem,
        make=lambda context: [*make_all(context), PoolRoutes(context, topology, lab.pids["fabric"])],
    )
    running: dict[str, Kubelet] = {}
    for node in lab.nodes:
        facts = NodeFacts(
            name=node.name,
            pid=node.pid,
            addresses=node.addresses,
            zone=node.zone,
            paths=lab.paths,
            config=config,
        )
        running[node.name] = Kubelet(facts, server.client, supervisor)
        kubelets.add(node.name, running[node.name])

    await supervisor.connect()
    await server.start(sockets, pki.server_context(), pki.token)
    tasks = [asyncio.create_task(manager.run(), name="controllers")]
    tasks += [asyncio.create_task(k.run(), name=f"kubelet {name}") for name, k in running.items()]
    stopped = asyncio.create_task(stop.wait(), name="stop")
    done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
    # A controller or kubelet that ends by itself is a fault: end the process, the supervisor starts it anew.
    failed = [t for t in done if t is not stopped]
    for task in failed:
        log.error("%s ended", task.get_name(), exc_info=task.exception())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await server.stop()
    if failed:
        raise SystemExit(1)


def _database(lab: LabRecord) -> Path | Store:
    place = stores.parse(lab.config.store)
    if place.kind is StoreKind.SQLITE:
        return lab.paths.database
    from podlane.lab import etcd

    return etcd.opened(lab, place)


def _credentials(lab: LabRecord, fabric_addresses: list[str]) -> auth.Pki:
    """Makes keys, token and kubeconfigs once; a restarted process keeps them."""
    paths, config = lab.paths, lab.config
    service = [str(prefix[1]) for prefix in config.cluster_services.values()]
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names.append(f"kubernetes.default.svc.{config.cluster_domain}")
    pki = auth.make_pki(paths.pki, names, ["127.0.0.1", "::1", *fabric_addresses, *service])
    primary = fabric_addresses[0]
    host = f"[{primary}]" if ":" in primary else primary
    auth.write_private(
        paths.kubeconfig, auth.kubeconfig(pki, f"https://127.0.0.1:{lab.api_port}", lab.name).encode()
    )
    # Agents are who they are in a cluster, and may do what they may do there (controller/rights.py).
    agent = accounts.sign(pki.token, rights.NAMESPACE, rights.AGENT, expires_s=time.time() + _LIFE_S)
    for node in lab.nodes:
        text = auth.kubeconfig(pki, f"https://{host}:{API_PORT}", lab.name, agent)
        auth.write_private(paths.node_run(node.name) / "kubeconfig", text.encode())
    return pki
