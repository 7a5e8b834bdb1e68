"""The lab's cgroup v2 subtree: everything a lab runs is in it, so that everything can be ended at once.

<cgroup2>/podlane/LAB/            supervisor, control process, fabric
<cgroup2>/podlane/LAB/NODE/       the node's anchor, agent and node commands
<cgroup2>/podlane/LAB/NODE/pods/  its pods
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from podlane.errors import LabError
from podlane.kernel.cgroups import mount_point, processes

__all__ = ["PARENT", "join", "kill", "lab_cgroup", "make", "mount_point", "processes"]

PARENT = "podlane"


def lab_cgroup(lab: str) -> Path:
    return mount_point() / PARENT / lab


def make(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def join(path: Path) -> None:
    """Move the calling process into path."""
    (path / "cgroup.procs").write_text(str(os.getpid()))


def kill(path: Path, timeout_s: float = 10.0) -> None:
    """End every process of the subtree with SIGKILL and remove the cgroups. Raises LabError on a survivor."""
    if not path.is_dir():
        return
    (path / "cgroup.kill").write_text("1")
    _wait_empty(path, time.monotonic() + timeout_s)
    for directory, _, _ in os.walk(path, topdown=False):
        os.rmdir(directory)
    parent = path.parent
    if parent.name == PARENT and not any(p.is_dir() for p in parent.iterdir()):
        parent.rmdir()


def _wait_empty(path: Path, deadline_s: float) -> None:
    """cgroup.events changes (POLLPRI) when the last process of the subtree is gone (cgroup v2 docs, 2-4)."""
    with open(path / "cgroup.events") as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while True:
            events.seek(0)
            if "populated 0" in events.read():
                return
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise LabError(
                    f"processes {processes(path)} in {path} did not end; they may hang in the kernel"
                )
            poll.poll(left_s * 1000)
