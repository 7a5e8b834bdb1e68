"""Where a lab keeps its files. Everything below two directories, so that `down` can remove them whole.

    /run/podlane/labs/NAME/          sockets, pids, credentials (0700; gone after a reboot)
        lab.json                     LabRecord: what exists, enough to take it down after a crash
        kubeconfig, pki/             0600
        supervisor.sock              lab/supervisor: starts and keeps every process of the lab
        nodes/NODE/cni.sock          the agent's CNI socket
        nodes/NODE/agent.sock        the agent's HTTP socket: /healthz /readyz /metrics /status
        nodes/NODE/kubeconfig, config.yaml
        *.log
    /var/lib/podlane/labs/NAME/      what outlives a process
        api.sqlite                   or etcd/, of --store etcd://local
        nodes/NODE/                  the agent's state directory (leases.sqlite)
        nodes/NODE/pods/UID/         volumes, logs
    <cgroup2>/podlane/NAME/          one cgroup v2 subtree: control, fabric, nodes/NODE/{agent,pods/UID}

PODLANE_RUN_DIR and PODLANE_STATE_DIR move the two roots (tests, unusual hosts).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from podlane.errors import UsageError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")


def run_root() -> Path:
    return Path(os.environ.get("PODLANE_RUN_DIR", "/run/podlane"))


def state_root() -> Path:
    return Path(os.environ.get("PODLANE_STATE_DIR", "/var/lib/podlane"))


@dataclass(frozen=True)
class LabPaths:
    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"lab name {self.name!r}: use at most 32 lower-case letters, digits and '-', "
                "beginning and ending with a letter or digit"
            )

    @property
    def run(self) -> Path:
        return run_root() / "labs" / self.name

    @property
    def state(self) -> Path:
        return state_root() / "labs" / self.name

    @property
    def record(self) -> Path:
        return self.run / "lab.json"

    @property
    def kubeconfig(self) -> Path:
        return self.run / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.run / "pki"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    @property
    def database(self) -> Path:
        return self.state / "api.sqlite"

    def node_run(self, node: str) -> Path:
        return self.run / "nodes" / node

    def node_state(self, node: str) -> Path:
        return self.state / "nodes" / node

    def cni_socket(self, node: str) -> Path:
        return self.node_run(node) / "cni.sock"

    def agent_socket(self, node: str) -> Path:
        return self.node_run(node) / "agent.sock"

    def pod_state(self, node: str, uid: str) -> Path:
        return self.node_state(node) / "pods" / uid
