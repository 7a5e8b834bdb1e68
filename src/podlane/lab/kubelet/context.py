"""What a node's kubelet gives each of its pods, and where a pod's files are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from podlane.lab import cgroups
from podlane.lab.client import ApiClient, Obj
from podlane.lab.kubelet.attachment import Attachments
from podlane.lab.kubelet.world import World
from podlane.lab.paths import LabPaths, run_root, state_root
from podlane.lab.supervisor.client import AsyncSupervisor
from podlane.model.config import NetworkConfig


@dataclass(frozen=True)
class NodeFacts:
    """A node as the fabric made it. pid: of the process that holds its namespaces.

    addresses: InternalIPs, primary family first.
    """

    name: str
    pid: int
    addresses: Sequence[str]
    zone: str
    paths: LabPaths
    config: NetworkConfig


@dataclass(frozen=True)
class NodeContext:
    """netns: descriptor of the node's network namespace. token, ca_pem: for service accounts.

    accounts_written: namespaces whose service account's files are there.
    """

    facts: NodeFacts
    client: ApiClient
    supervisor: AsyncSupervisor
    world: World
    attachments: Attachments
    netns: int
    token: str
    ca_pem: str
    accounts_written: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def hidden(self) -> list[str]:
        """Directories no container may see."""
        return [str(run_root()), str(state_root())]

    def cgroup(self, uid: str) -> Path:
        return cgroups.lab_cgroup(self.facts.paths.name) / self.name / "pods" / uid

    def service_account(self, namespace: str) -> Path:
        """What pods of the namespace find at /var/run/secrets/kubernetes.io/serviceaccount."""
        return self.facts.paths.node_state(self.name) / "serviceaccounts" / namespace

    def resolv_conf(self) -> str:
        path = self.facts.paths.node_run(self.name) / "resolv.conf"
        return path.read_text() if path.exists() else ""


@dataclass(frozen=True)
class PodFiles:
    """Of one pod, below its state directory."""

    root: Path

    @classmethod
    def of(cls, facts: NodeFacts, pod: Obj) -> PodFiles:
        return cls(facts.paths.pod_state(facts.name, pod["metadata"]["uid"]))

    @property
    def hosts(self) -> Path:
        return self.root / "etc" / "hosts"

    @property
    def hostname(self) -> Path:
        return self.root / "etc" / "hostname"

    @property
    def resolv_conf(self) -> Path:
        return self.root / "etc" / "resolv.conf"

    def volume(self, name: str) -> Path:
        return self.root / "volumes" / name

    def container(self, name: str) -> Path:
        return self.root / "containers" / name

    def log(self, container: str, restart: int) -> Path:
        return self.container(container) / f"{restart}.log"

    def termination(self, container: str, restart: int) -> Path:
        return self.container(container) / f"{restart}.termination"

    def responder(self, container: str) -> Path:
        return self.container(container) / "responder.json"
