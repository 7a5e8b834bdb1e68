"""The lab's control process: API server, controllers, scheduler and every node's kubelet, on one loop.

It may be killed at any moment. What it knows is in SQLite, in the supervisor (running containers) and
in the record; the supervisor starts it again and it finds everything where it was.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from typing import Any

from podlane.kernel import netns
from podlane.lab import record as records
from podlane.lab.api import auth
from podlane.lab.api.bootstrap import API_PORT
from podlane.lab.api.server import ApiServer
from podlane.lab.controllers.manager import ControllerManager
from podlane.lab.kubelet.kubelet import Kubelet, NodeFacts
from podlane.lab.nodes import NodeKubelets
from podlane.lab.record import LabRecord
from podlane.lab.supervisor.client import AsyncSupervisor
from podlane.lab.topology import plan
from podlane.model.addresses import Family, address

IP_FREEBIND = 15
IPV6_FREEBIND = 78

log = logging.getLogger(__name__)


def run(options: dict[str, Any]) -> None:
    """Entry of the service `control`. options: {"lab": NAME, "log_level": ...}"""
    from podlane.logs import configure

    configure(options.get("log_level", "info"))
    asyncio.run(_main(records.load(options["lab"])))


async def _main(lab: LabRecord) -> None:
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
    server = ApiServer(lab.paths.database, config, kubelets, service_endpoints=fabric_addresses)
    kubelets.bind(server.client)
    manager = ControllerManager(server.client, config, ca_pem=pki.ca_pem)
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

    sockets = [_listen_here(lab.api_port), *_listen_in_fabric(lab.pids["control"], fabric_addresses)]
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


def _credentials(lab: LabRecord, fabric_addresses: list[str]) -> auth.Pki:
    """Makes keys, token and kubeconfigs once; a restarted process keeps them."""
    paths, config = lab.paths, lab.config
    service = [str(prefix[1]) for prefix in config.cluster_services.values()]
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names.append(f"kubernetes.default.svc.{config.cluster_domain}")
    pki = auth.make_pki(paths.pki, names, ["127.0.0.1", "::1", *fabric_addresses, *service])
    primary = fabric_addresses[0]
    host = f"[{primary}]" if ":" in primary else primary
    files = {paths.kubeconfig: f"https://127.0.0.1:{lab.api_port}"}
    files |= {paths.node_run(n.name) / "kubeconfig": f"https://{host}:{API_PORT}" for n in lab.nodes}
    for path, url in files.items():
        auth.write_private(path, auth.kubeconfig(pki, url, lab.name).encode())
    return pki


def _listen_here(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    return listener


def _listen_in_fabric(pid: int, addresses: list[str]) -> list[socket.socket]:
    """Sockets of the `control` host's namespace. They may be bound before the fabric is built (freebind)."""
    namespace = netns.open_pid(pid)
    try:
        listeners = []
        for text in addresses:
            family = Family.IPV4 if address(text).version == 4 else Family.IPV6
            listener = netns.socket_in(namespace, family.af, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is Family.IPV4:
                listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            else:
                listener.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((text, API_PORT))
            listener.listen(1024)
            listeners.append(listener)
        return listeners
    finally:
        os.close(namespace)
