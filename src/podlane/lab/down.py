"""Taking a lab down: every process by its cgroup, then every mount and file. Works after any crash."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

from podlane.errors import LabError
from podlane.lab import cgroups
from podlane.lab import record as records
from podlane.lab.paths import LabPaths, run_root, state_root
from podlane.model import stores
from podlane.model.stores import StoreKind


def down(name: str) -> bool:
    """Removes all of lab `name`: namespaces go with the processes that hold them.

    Returns whether there was anything. Raises LabError when a process survives SIGKILL.
    """
    paths = LabPaths(name)
    cgroup = cgroups.lab_cgroup(name)
    if not (paths.run.exists() or paths.state.exists() or cgroup.exists()):
        return False
    record = None
    with suppress(LabError):  # an unreadable record: cgroup and paths are enough
        record = records.find(name)
        if record is not None and record.supervisor is not None:
            _end_supervisor(record.supervisor)
    cgroups.kill(cgroup)
    for root in (paths.run, paths.state):
        unmount_below(root)
        shutil.rmtree(root, ignore_errors=False) if root.exists() else None
    for root in (run_root(), state_root()):
        for empty in (root / "labs", root):
            with suppress(OSError):
                empty.rmdir()
    if record is not None and (store := stores.parse(record.config.store)).kind is StoreKind.ETCD:
        from podlane.lab import etcd

        etcd.remove(name, store)
    return True


def unmount_below(root: Path) -> None:
    """Detach whatever is mounted below root in this mount namespace (normally nothing is)."""
    from podlane.kernel.mounts import unmount

    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in reversed(mounted):
        if target == str(root) or target.startswith(f"{root}/"):
            unmount(target)


def _end_supervisor(process: records.ProcessId) -> None:
    """Asked to, it ends its children and collects them, so that no zombie stays; or else it is killed.

    It may not have joined the cgroup yet; dead, it starts nothing more.
    """
    for number, timeout_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0)):
        if not process.alive:
            return
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
        deadline_s = time.monotonic() + timeout_s
        while process.alive and time.monotonic() < deadline_s:
            time.sleep(0.005)
    if process.alive:
        raise LabError(f"process {process.pid} does not end; it may hang in the kernel")
