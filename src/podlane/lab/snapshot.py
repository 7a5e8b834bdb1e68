"""What `observe` is given: a cluster's objects as they are now, and the namespaces of a lab."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from podlane.errors import KernelError, UsageError
from podlane.kernel import netns
from podlane.lab import record as records
from podlane.lab.record import LabRecord
from podlane.lab.rest import Client
from podlane.lab.supervisor.client import ProcessInfo, Supervisor
from podlane.model.config import DEFAULT, NetworkConfig
from podlane.model.objects import KINDS, Object

RESOURCES = {
    "Node": "nodes",
    "Pod": "pods",
    "Service": "services",
    "EndpointSlice": "endpointslices.discovery.k8s.io",
}
POD_UID = "io.kubernetes.pod.uid"


def objects(client: Client) -> list[Object]:
    """Everything the network is compiled from. Raises ApiError, LabError."""
    return [narrow(kind, obj) for kind, resource in RESOURCES.items() for obj in client.list(resource)]


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


def sandboxes(record: LabRecord) -> dict[str, ProcessInfo]:
    """The process that holds each pod's namespaces, by the pod's uid."""
    with Supervisor(record.paths.supervisor_socket) as supervisor:
        return {
            p.labels[POD_UID]: p
            for p in supervisor.list()
            if p.kind == "sandbox" and p.exit_status is None and POD_UID in p.labels
        }


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
