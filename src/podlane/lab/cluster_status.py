"""Asking a cluster for what `podlane status` tells, and the agent of the node that this runs on."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from podlane.errors import ApiError, LabError, NotFoundError
from podlane.lab import agents
from podlane.lab.rest import Client
from podlane.model import pools
from podlane.observe.cluster_status import ClusterStatus, Found, Obj, judge

AGENT_SOCKET: Final = Path("/run/podlane/agent.sock")
LEASE: Final = "podlane-controller"
SELECTOR: Final = "app.kubernetes.io/name=podlane"


def gather(client: Client, socket: Path = AGENT_SOCKET) -> ClusterStatus:
    """Raises ApiError, LabError when not even the Nodes can be read; what else cannot is a note."""
    found = Found(client.list("nodes"), [], [], [], [], [])

    def read(what: str, ask: Callable[[], list[Obj]], into: list[Obj]) -> None:
        try:
            into += ask()
        except NotFoundError:
            pass  # the kind is not there
        except ApiError as error:
            found.unread.append(f"{what} cannot be read: {error}")

    read("podlane's pods", lambda: client.list("pods", label_selector=SELECTOR), found.pods)
    sets = "daemonsets.apps"
    read("its DaemonSet", lambda: client.list(sets, label_selector=SELECTOR), found.daemon_sets)
    named = f"metadata.name={LEASE}"
    leases = "leases.coordination.k8s.io"
    read("its Lease", lambda: client.list(leases, field_selector=named), found.leases)
    pools_at = f"/apis/podlane.dev/v1alpha1/{pools.RESOURCE.partition('.')[0]}"
    read("LoadBalancerPools", lambda: client.request("GET", pools_at).get("items") or [], found.pools)
    return judge(client.server, found, datetime.now(UTC), here(socket, found.nodes))


def here(socket: Path, nodes: list[Obj]) -> dict[str, Any] | None:
    """What the agent of this node answers; None where none runs, or one of another cluster."""
    if not socket.exists():
        return None
    try:
        told: dict[str, Any] = json.loads(agents.fetch(socket, "/status"))
    except (LabError, ValueError) as error:
        return {"error": str(error)}
    return told if told.get("node") in {node["metadata"]["name"] for node in nodes} else None
