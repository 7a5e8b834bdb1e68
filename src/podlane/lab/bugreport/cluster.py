"""What a bug report has of the API: the objects that the network is compiled from, in their narrow form.

Narrow objects have no environment, no commands, no volumes; of annotations only those that podlane reads are
kept. Secrets and ConfigMaps are not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from podlane.errors import ApiError
from podlane.lab import cluster_status, snapshot
from podlane.lab.bugreport.archive import Archive, Collector
from podlane.lab.rest import Client
from podlane.model import pools
from podlane.model.config import NetworkConfig
from podlane.model.objects import Object
from podlane.observe import cluster_text
from podlane.observe.cluster import Cluster
from podlane.observe.lint import lint
from podlane.watch.reflector import ANNOTATIONS

MOST_EVENTS: Final = 1000
LOG_LINES: Final = 20000


def collect(archive: Archive, client: Client, config: NetworkConfig, socket: Path) -> None:
    for name, collector in collectors(client, config, socket):
        archive.add(f"cluster/{name}", collector)


def collectors(client: Client, config: NetworkConfig, socket: Path) -> Iterator[tuple[str, Collector]]:
    yield "version.json", lambda: client.request("GET", "/version")
    yield "status.txt", lambda: "\n".join(cluster_text.lines(cluster_status.gather(client, socket))) + "\n"
    yield "status.json", lambda: cluster_status.gather(client, socket)
    for kind, resource in snapshot.RESOURCES.items():
        yield (
            f"objects/{resource.partition('.')[0]}.json",
            partial(_narrow, client, kind, resource),
        )
    named = f"/apis/podlane.dev/v1alpha1/{pools.RESOURCE.partition('.')[0]}"
    yield "objects/loadbalancerpools.json", lambda: [_plain(o) for o in client.request("GET", named)["items"]]
    leases = "leases.coordination.k8s.io"
    selector = f"metadata.name={cluster_status.LEASE}"
    yield "objects/leases.json", lambda: [_plain(o) for o in client.list(leases, field_selector=selector)]
    yield "objects/conditions.json", lambda: _conditions(client)
    yield "events.json", lambda: _events(client)
    yield "lint.txt", lambda: "\n".join(map(str, _findings(client, config))) + "\n"


def pods_logs(archive: Archive, client: Client) -> None:
    """Of podlane's own pods, where it runs as such."""
    try:
        pods = client.list("pods", label_selector=cluster_status.SELECTOR)
    except ApiError:
        return
    for pod in pods:
        meta = pod["metadata"]
        where = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/log"
        archive.add(f"logs/{meta['name']}.log", partial(client.text, where, {"tailLines": str(LOG_LINES)}))


def _narrow(client: Client, kind: str, resource: str) -> list[Any]:
    found = [snapshot.narrow(kind, obj) for obj in client.list(resource)]
    return [msgspec.to_builtins(_slim(each), str_keys=True) for each in found]


def _slim(found: Object) -> Object:
    kept = {name: text for name, text in found.metadata.annotations.items() if name.startswith(ANNOTATIONS)}
    return msgspec.structs.replace(found, metadata=msgspec.structs.replace(found.metadata, annotations=kept))


def _plain(obj: dict[str, Any]) -> dict[str, Any]:
    """Without annotations and managed fields."""
    meta = {k: v for k, v in obj["metadata"].items() if k not in ("annotations", "managedFields")}
    return {**obj, "metadata": meta}


def _conditions(client: Client) -> dict[str, Any]:
    """Of Nodes: a narrow Node has none."""
    return {
        node["metadata"]["name"]: (node.get("status") or {}).get("conditions")
        for node in client.list("nodes")
    }


def _events(client: Client) -> list[Any]:
    """Podlane's own, and those at pods that could not be attached."""
    found = [
        event
        for event in client.list("events")
        if str((event.get("source") or {}).get("component") or event.get("reportingComponent")).startswith(
            "podlane"
        )
        or event.get("reason") in ("FailedCreatePodSandBox", "NetworkNotReady")
    ]
    return [_plain(event) for event in found[-MOST_EVENTS:]]


def _findings(client: Client, config: NetworkConfig) -> list[Any]:
    return list(lint(Cluster(snapshot.objects(client)), config).findings)
