"""What `observe` is given: a cluster's objects as they are now, and the namespaces of a lab."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from podlane.errors import KernelError, LabError, NotFoundError, UsageError
from podlane.kernel import cgroups, netns
from podlane.kernel.conntrack.codec import Entry, Filter
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.rtnl import Rtnl
from podlane.lab import agents
from podlane.lab import record as records
from podlane.lab.kubelet.container_spec import LABEL_CONTAINER, LABEL_UID
from podlane.lab.record import LabRecord
from podlane.lab.rest import Client
from podlane.lab.supervisor.client import ProcessInfo, Supervisor
from podlane.model.addresses import Address, Family, Protocol, address
from podlane.model.config import DEFAULT, NetworkConfig, ServiceMode
from podlane.model.objects import KINDS, Object
from podlane.observe.cluster import Cluster
from podlane.observe.flows import AtSocket, through_sockets
from podlane.observe.ground import Running
from podlane.observe.listening import FILES, Listening, parse
from podlane.watch.reflector import OPTIONAL

RESOURCES = {
    "Node": "nodes",
    "Namespace": "namespaces",
    "NetworkPolicy": "networkpolicies.networking.k8s.io",
    "Pod": "pods",
    "Service": "services",
    "EndpointSlice": "endpointslices.discovery.k8s.io",
    "ServiceCIDR": "servicecidrs.networking.k8s.io",
}


def objects(client: Client) -> list[Object]:
    """Everything the network is compiled from. Raises ApiError, LabError."""
    found: list[Object] = []
    for kind, resource in RESOURCES.items():
        try:
            found += [narrow(kind, obj) for obj in client.list(resource)]
        except NotFoundError:
            if kind not in OPTIONAL:
                raise
    return found


def narrow(kind: str, obj: dict[str, Any]) -> Object:
    return msgspec.convert(obj, KINDS[kind])


class Look:
    """Where a command looks: a lab of this machine, or any cluster by its kubeconfig.

    record: None for a cluster that is no lab.
    """

    def __init__(self, client: Client, config: NetworkConfig, record: LabRecord | None) -> None:
        self.client, self.config, self.record = client, config, record


@contextmanager
def look(lab: str | None, kubeconfig: str | None, context: str | None, config: str | None) -> Iterator[Look]:
    """Raises UsageError for options that exclude each other, LabError when there is no such lab."""
    if kubeconfig is None and context is None:
        if config is not None:
            raise UsageError("--config goes with --kubeconfig; a lab knows its own")
        record = records.load(lab or "lab")
        with Client.from_kubeconfig(record.paths.kubeconfig) as client:
            yield Look(client, record.config, record)
        return
    if lab is not None:
        raise UsageError("give --lab, or --kubeconfig and --context, not both")
    from podlane.lab.up import load_config

    with Client.from_kubeconfig(kubeconfig, context or "") as client:
        yield Look(client, load_config(config, ()) if config else DEFAULT, None)


def running(record: LabRecord) -> dict[str, Running]:
    """What runs of each pod, and what its namespace listens on, by the pod's uid."""
    held = processes(record)
    containers: dict[str, dict[str, str]] = {}
    for each in held.values():
        if each.kind == "container" and each.exit_status is None:
            containers.setdefault(each.labels[LABEL_UID], {})[each.labels[LABEL_CONTAINER]] = each.ran
    return {
        each.labels[LABEL_UID]: Running(
            containers.get(each.labels[LABEL_UID], {}), tuple(_listening(each.pid))
        )
        for each in held.values()
        if each.kind == "sandbox" and each.exit_status is None
    }


def _listening(pid: int) -> Iterator[Listening]:
    for name in FILES:
        try:
            yield from parse(name, Path(f"/proc/{pid}/net/{name}").read_text())
        except OSError:
            continue  # it ended, or the family is off


def processes(record: LabRecord) -> dict[int, ProcessInfo]:
    """The pods' processes, by pid."""
    with Supervisor(record.paths.supervisor_socket) as supervisor:
        return {p.pid: p for p in supervisor.list() if LABEL_UID in p.labels}


def places(record: LabRecord, cluster: Cluster) -> dict[str, int]:
    """A process that holds each place's network namespace: pods of their own address, nodes, and the hosts
    of the fabric. Names are those of targets."""
    found = {f"node/{node.name}": node.pid for node in record.nodes}
    found |= {name: record.pids[name] for name in ("fabric", "control", "outside") if name in record.pids}
    by_uid = {
        p.labels[LABEL_UID]: p.pid
        for p in processes(record).values()
        if p.kind == "sandbox" and p.exit_status is None
    }
    for pod in cluster.pods.values():
        if not pod.spec.host_network and pod.metadata.uid in by_uid:
            found[f"{pod.namespace}/pod/{pod.name}"] = by_uid[pod.metadata.uid]
    return found


def cgroup(record: LabRecord, pid: int) -> Path | None:
    """What a place's sockets must be of to be treated as its processes' are; None where that is the same."""
    if record.config.services.mode is not ServiceMode.SOCKET:
        return None
    try:
        return cgroups.of(pid)
    except OSError:
        return None  # it ended meanwhile


def tracked(look: Look, cluster: Cluster) -> dict[str, list[Entry]]:
    """Connections by node: of all nodes of a lab, else of the node this runs on. Raises UsageError."""
    if look.record is not None:
        return conntrack(look.record)
    with Rtnl() as rt:
        here = [cluster.node_at(held.address.ip) for held in rt.addresses()]
    node = next((each for each in here if each is not None), None)
    if node is None:
        raise UsageError(
            "no node of the cluster has an address of this machine: run it on a node, or use --lab"
        )
    return {node.name: read_flows()}


def conntrack(record: LabRecord) -> dict[str, list[Entry]]:
    """What every node of a lab has in its connection tracking; of nodes that are up. Raises KernelError."""
    with namespaces({node.name: node.pid for node in record.nodes}) as opened:
        found = {name: read_flows(fd) for name, fd in opened.items()}
    if record.config.services.mode is not ServiceMode.SOCKET:
        return found
    return {node: through_sockets(entries, sockets(record, node)) for node, entries in found.items()}


def sockets(record: LabRecord, node: str) -> list[AtSocket]:
    """What a node's agent says of sockets connected to services; nothing while it does not answer."""
    try:
        answer = json.loads(agents.fetch(record.paths.agent_socket(node), "/sockets"))
    except LabError:
        return []

    def end(told: dict[str, Any]) -> tuple[Address, int]:
        return address(told["address"]), told["port"]

    return [
        AtSocket(
            Protocol(each["protocol"]).number, end(each["local"]), end(each["address"]), end(each["endpoint"])
        )
        for each in answer["sockets"]
    ]


def read_flows(netns_fd: int | None = None) -> list[Entry]:
    """Every connection of a namespace, None: of that of the calling thread. Raises KernelError."""
    flows = Flows(netns_fd)
    try:
        return [entry for family in Family for entry in flows.list(Filter(family))]
    finally:
        flows.close()


@contextmanager
def namespaces(pids: dict[str, int]) -> Iterator[dict[str, int]]:
    """Descriptors of the processes' network namespaces, by the same names; of those that live."""
    opened: dict[str, int] = {}
    try:
        for name, pid in pids.items():
            try:
                opened[name] = netns.open_pid(pid)
            except KernelError:
                if Path(f"/proc/{pid}").exists():
                    raise
        yield opened
    finally:
        for fd in opened.values():
            os.close(fd)
