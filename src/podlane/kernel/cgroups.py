"""cgroup v2: where it is, who is in it, and being in one for a moment.

A socket belongs for good to the cgroup that its process is in when it is made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from podlane.errors import UnsupportedError


def mount_point() -> Path:
    """Where cgroup v2 is mounted (alone, or beside v1). Raises UnsupportedError."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise UnsupportedError(
        "cgroup v2 is not mounted: podlane keeps every lab process in one cgroup subtree; "
        "`mount -t cgroup2 none /sys/fs/cgroup/unified` mounts it"
    )


def processes(path: Path) -> list[int]:
    """Every process of the subtree."""
    found: list[int] = []
    for directory, _, files in os.walk(path):
        if "cgroup.procs" in files:
            with suppress(OSError):  # it was removed meanwhile
                found += map(int, Path(directory, "cgroup.procs").read_text().split())
    return found


def namespaces(path: Path) -> Iterator[tuple[int, int]]:
    """Each network namespace that processes of the subtree are in: a descriptor, valid until the next is
    asked for, and the inode."""
    seen: set[int] = set()
    for pid in processes(path):
        with suppress(OSError):  # it has ended
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                inode = os.fstat(fd).st_ino
                if inode not in seen:
                    seen.add(inode)
                    yield fd, inode
            finally:
                os.close(fd)


def of(pid: int | str = "self") -> Path:
    """The directory of a process. Raises UnsupportedError without cgroup v2, OSError when it has ended."""
    return mount_point() / Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].strip().lstrip("/")


@contextmanager
def joined(path: Path | None) -> Iterator[None]:
    """The calling process, all of it, is in that cgroup; None: where it is. The body must not await. Raises
    OSError."""
    if path is None:
        yield
        return
    home, me = of(), str(os.getpid())
    (path / "cgroup.procs").write_text(me)
    try:
        yield
    finally:
        (home / "cgroup.procs").write_text(me)
