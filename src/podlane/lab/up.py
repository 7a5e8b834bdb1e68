"""`podlane up`: launch, apply, and wait until what was applied answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from podlane.errors import ConfigError, LabError, PodlaneError
from podlane.lab import agents, launch, manifests, ready, rest
from podlane.lab.apply import apply_objects
from podlane.lab.down import down
from podlane.lab.record import LabRecord
from podlane.model import pools
from podlane.model.config import DEFAULT, NetworkConfig, parse, with_settings

Obj = dict[str, Any]
Progress = Callable[[str], None]

# What agents compile from. Pods too: policy on one node needs the addresses of those on the others.
_WATCHED = {
    "Node": "nodes",
    "Service": "services",
    "EndpointSlice": "endpointslices.discovery.k8s.io",
    "Namespace": "namespaces",
    "Pod": "pods",
    "NetworkPolicy": "networkpolicies.networking.k8s.io",
}
_POLL_S = 0.03
_BALANCERS_S = 3.0


class NotReadyError(LabError):
    """The lab is up, but not everything applied is ready in time. missing: one line each."""

    def __init__(self, lab: str, missing: list[str], timeout_s: float) -> None:
        self.missing = missing
        lines = "\n  ".join(missing[:20])
        more = f"\n  and {len(missing) - 20} more" if len(missing) > 20 else ""
        super().__init__(
            f"lab {lab!r} is up, but after {timeout_s:g} s this is not ready:\n  {lines}{more}\n"
            f"look with kubectl --kubeconfig $(podlane kubeconfig {lab}); `podlane down {lab}` removes it"
        )


def load_config(file: str | None, settings: Sequence[str]) -> NetworkConfig:
    """--config and --set. Raises ConfigError naming file and key."""
    config = DEFAULT
    if file is not None:
        try:
            document = yaml.safe_load(Path(file).read_text())
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
        config = parse(document, file)
    return with_settings(config, list(settings)) if settings else config


def up(
    name: str,
    config: NetworkConfig,
    *,
    nodes: int = 3,
    files: Sequence[str] = (),
    timeout_s: float = 60.0,
    api_port: int = 0,
    log_level: str = "info",
    progress: Progress = lambda _: None,
) -> LabRecord:
    """A lab in which everything of `files` is ready.

    Raises before anything is made, or with everything removed again; only NotReadyError leaves the lab up,
    to be looked at.
    """
    deadline_s = time.monotonic() + timeout_s
    objects = manifests.load(list(files), note=progress)
    record = launch.launch(name, config, nodes, api_port=api_port, log_level=log_level, progress=progress)
    try:
        with rest.Client.from_kubeconfig(record.paths.kubeconfig) as client:
            _await(lambda: _nodes_missing(client, record), record, deadline_s, timeout_s)
            roots: set[str] = set()
            if objects:
                progress(f"applying {len(objects)} objects")
                applied = apply_objects(client, objects)
                refused = [str(a.error) for a in applied if a.error is not None]
                if refused:
                    raise ConfigError("\n".join(refused))
                roots = {a.object["metadata"]["uid"] for a in applied if a.object is not None}
            progress("waiting for pods and data plane")
            _await_balancers(client, roots, deadline_s)
            _await(
                lambda: _missing(client, roots) or _behind(client, record),
                record,
                deadline_s,
                timeout_s,
            )
        for line in _refusals(record):
            progress(f"! {line}")
    except NotReadyError:
        raise
    except BaseException:
        down(name)
        raise
    return record


def _await(missing: Callable[[], list[str]], lab: LabRecord, deadline_s: float, timeout_s: float) -> None:
    while found := missing():
        if time.monotonic() > deadline_s:
            # Pods wait for their node's agent: say so too when that is what is wrong.
            raise NotReadyError(lab.name, [*_silent_agents(lab), *found], timeout_s)
        time.sleep(_POLL_S)


def _nodes_missing(client: rest.Client, record: LabRecord) -> list[str]:
    """Nodes that have not registered; nothing can be scheduled on them."""
    try:
        names = {n["metadata"]["name"] for n in client.list("nodes")}
    except LabError as error:  # the kubeconfig is there a moment before the server answers
        return [str(error)]
    return [f"node {n.name} has not registered" for n in record.nodes if n.name not in names]


def _await_balancers(client: rest.Client, roots: set[str], deadline_s: float) -> None:
    """A moment for load-balancer addresses to be given and answered for. Some never are (another's class, a
    pool that is exhausted), and that is no reason to fail."""
    until_s = min(deadline_s, time.monotonic() + _BALANCERS_S)
    while time.monotonic() < until_s:
        any_pool = bool(client.request("GET", pools.PATH).get("items"))
        services = [s for s in client.list("services") if s["metadata"]["uid"] in roots]
        if not any(ready.balancer_waits(service, any_pool=any_pool) for service in services):
            return
        time.sleep(_POLL_S)


def _missing(client: rest.Client, roots: set[str]) -> list[str]:
    """What is not ready of the objects with uids `roots` and of what descends from them."""
    if not roots:
        return []
    owners: dict[str, Obj] = {}
    missing: list[str] = []
    for kind, resource in ready.WORKLOADS.items():
        for obj in client.list(resource):
            obj.setdefault("kind", kind)
            owners[obj["metadata"]["uid"]] = obj
    for obj in owners.values():
        # An old ReplicaSet or a Job's replacement is its owner's business.
        if obj["metadata"]["uid"] in roots and (why := ready.workload_missing(obj)):
            missing.append(why)
    for pod in client.list("pods"):
        pod.setdefault("kind", "Pod")
        if ready.belongs(pod, roots, owners) and (why := ready.pod_missing(pod)):
            missing.append(why)
    return missing


def _behind(client: rest.Client, record: LabRecord) -> list[str]:
    """What the nodes' agents do not hold yet of the objects there are."""
    newest: dict[str, int] = {}
    for kind, resource in _WATCHED.items():
        newest |= ready.newest_versions(client.list(resource), kind)
    missing: list[str] = []
    for node in record.nodes:
        try:
            missing += ready.agent_missing(agents.status(record.paths.agent_socket(node.name)), newest)
        except PodlaneError as error:
            missing.append(f"node {node.name}: {error}")
    return missing


def _refusals(record: LabRecord) -> list[str]:
    """What agents refuse to serve of what the API says: the rest works, and the lab is up."""
    found = []
    for node in record.nodes:
        said = agents.status(record.paths.agent_socket(node.name)).get("refused", [])
        found += [f"{node.name} refuses {line}" for line in said]
    return found


def _silent_agents(record: LabRecord) -> list[str]:
    """Agents that do not answer or are not ready, and where they say why."""
    silent = []
    for node in record.nodes:
        try:
            found = ready.agent_missing(agents.status(record.paths.agent_socket(node.name)), {})
        except PodlaneError as error:
            found = [f"node {node.name}: {error}"]
        log = record.paths.node_run(node.name) / "agent.log"
        silent += [f"{line} (log: {log})" for line in found]
    return silent
