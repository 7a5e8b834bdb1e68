"""lab.json: what exists of a lab, written before it is made, so that a crash leaves enough to undo it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from podlane.errors import LabError
from podlane.lab.paths import LabPaths, run_root
from podlane.model.config import NetworkConfig


class ProcessId(Struct, frozen=True):
    """A process that cannot be mistaken for a later one: started is field 22 of /proc/PID/stat."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started


def zone(rack: int) -> str:
    """What its nodes' label topology.kubernetes.io/zone says."""
    return f"rack-{rack}"


class NodeRecord(Struct, frozen=True):
    """addresses: InternalIPs, primary family first. pid: the process that holds its namespaces."""

    name: str
    pid: int
    rack: int
    addresses: list[str]

    @property
    def zone(self) -> str:
        return zone(self.rack)


class LabRecord(Struct, frozen=True, kw_only=True):
    """pids: the anchors that hold the namespaces `fabric`, `control` and `outside`.

    outside: addresses of the host beyond the cluster. started: Unix seconds.
    """

    name: str
    config: NetworkConfig
    cgroup: str
    started: float
    supervisor: ProcessId | None = None
    api_port: int = 0
    pids: dict[str, int] = {}
    nodes: list[NodeRecord] = []
    outside: list[str] = []

    @property
    def paths(self) -> LabPaths:
        return LabPaths(self.name)

    @property
    def running(self) -> bool:
        return self.supervisor is not None and self.supervisor.alive

    def node(self, name: str) -> NodeRecord:
        """Raises LabError naming the nodes there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(n.name for n in self.nodes)
        raise LabError(f"lab {self.name!r} has no node {name!r}; it has {known}")


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat, in clock ticks since boot; 0 for no process or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def process_id(pid: int) -> ProcessId:
    return ProcessId(pid, start_time(pid))


def save(record: LabRecord) -> None:
    """Atomically: a reader sees the old record or the new one."""
    path = record.paths.record
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    os.replace(temporary, path)


def find(name: str) -> LabRecord | None:
    """The record of lab `name`, running or not; None when nothing of it exists."""
    path = LabPaths(name).record
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabRecord)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise LabError(
            f"{path}: not readable ({error}); `podlane down {name}` removes what is left"
        ) from None


def load(name: str) -> LabRecord:
    """A running lab. Raises LabError saying what would work."""
    record = find(name)
    if record is None:
        others = ", ".join(names()) or "none"
        raise LabError(f"there is no lab {name!r} (labs here: {others}); `podlane up {name}` makes it")
    if not record.running:
        raise LabError(
            f"lab {name!r} is not running any more; `podlane down {name}` removes what is left of it"
        )
    return record


def names() -> list[str]:
    """Labs that exist on this machine, running or not."""
    root = run_root() / "labs"
    return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
