"""A container's root: an overlay over the host's, with its own /proc, /sys, /dev, /run and /tmp.

    lower   the host's root, as it is; programs, libraries and /etc come from there
    upper   a tmpfs of this container alone: what it writes is gone with it

What must not be seen (credentials, other pods' volumes) is covered by empty directories. Mounts of the host
below its root (a separate /usr or /opt) are shown read-only: an overlay does not see into them.

The way in is pivot_root(2), after which the host's root is unmounted; there is no way back out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from podlane.errors import KernelError, KernelNotFoundError
from podlane.lab.runtime import syscalls
from podlane.lab.runtime.syscalls import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
)
from podlane.lab.supervisor.protocol import ContainerSpec, Mount

OLD_ROOT = "/.podlane-host"
SIZE = "size=1g,mode=755"

# (name, major, minor); what the OCI runtime specification asks for.
_DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
# Root without capabilities may still write there by file mode: core_pattern alone would give away the host.
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_MASKED = (
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
# Kinds of file systems that are no part of a host's root tree.
_NOT_DATA = frozenset(
    (
        *("proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "ramfs", "cgroup", "cgroup2", "mqueue", "overlay"),
        *("debugfs", "tracefs", "bpf", "securityfs", "pstore", "configfs", "hugetlbfs", "autofs", "nsfs"),
        *("fusectl", "efivarfs", "binfmt_misc", "rpc_pipefs", "selinuxfs"),
        # A server that does not answer would hold up every container.
        *("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs"),
    )
)
# Directories of the root whose mounts no program is in, or that a container has of its own.
_APART = frozenset(("proc", "sys", "dev", "run", "tmp", "boot", "mnt", "media", "snap"))


def enter(spec: ContainerSpec, place: str) -> None:
    """The calling process, in a mount namespace of its own, gets the container's root.

    place: an empty directory of the host, used by every container in its own namespace.
    Raises KernelError; the process must then end.
    """
    syscalls.mount("none", "/", flags=MS_REC | MS_PRIVATE)
    host_mounts = _data_mounts()
    sources = [_open_source(mount) for mount in spec.mounts]
    syscalls.mount("podlane", place, "tmpfs", MS_NOSUID | MS_NODEV, SIZE)
    for directory in ("upper", "work", "root"):
        os.mkdir(f"{place}/{directory}")
    root = f"{place}/root"
    syscalls.mount(
        "overlay",
        root,
        "overlay",
        MS_NODEV,
        f"lowerdir=/,upperdir={place}/upper,workdir={place}/work",
    )
    os.mkdir(root + OLD_ROOT, 0o700)
    os.chdir(root)
    syscalls.pivot_root(".", root + OLD_ROOT)
    os.chdir("/")
    _system(spec)
    for path in host_mounts:
        _bind(OLD_ROOT + path, path, read_only=True)
    for path in (*spec.hidden, "/root"):
        if os.path.isdir(path) and path not in ("/run", "/tmp"):
            _tmpfs(path, "mode=700,size=64m")
    for number, (mount, source) in enumerate(zip(spec.mounts, sources, strict=True)):
        if mount.of_host:
            source = _discarding(source, f"{OLD_ROOT}{place}/volume-{number}")
        _volume(mount, _beneath(source, mount.sub_path))
    # Only now: until here the sources' names led through it.
    syscalls.unmount(OLD_ROOT)
    os.rmdir(OLD_ROOT)
    for path in _READ_ONLY:
        if os.path.exists(path):
            _bind(path, path, read_only=True)
    if spec.privileged:  # of these the kernel shows what is the network namespace's own
        _bind("/proc/sys/net", "/proc/sys/net", read_only=False)
    for path in _MASKED:
        _mask(path)
    if spec.cwd:  # a workingDir that is not there is made, as container runtimes do
        os.makedirs(spec.cwd, exist_ok=True)
    if spec.read_only_root:
        syscalls.mount("none", "/", flags=MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NODEV)


def _system(spec: ContainerSpec) -> None:
    """/proc of the PID namespace, /sys of the network namespace, /dev, /run and /tmp of the container."""
    syscalls.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    syscalls.mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    _tmpfs("/run", "mode=755,size=256m")
    _tmpfs("/tmp", "mode=1777,size=1g")
    os.makedirs("/run/lock", exist_ok=True)
    os.chmod("/run/lock", 0o1777)
    syscalls.mount("dev", "/dev", "tmpfs", MS_NOSUID, "mode=755,size=64k")
    mask = os.umask(0)
    try:
        for name, major, minor in _DEVICES:
            os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.mkdir("/dev/pts", 0o755)
        os.mkdir("/dev/shm", 0o1777)
        os.mkdir("/dev/mqueue", 0o1777)
    finally:
        os.umask(mask)
    for name, target in _LINKS:
        os.symlink(target, f"/dev/{name}")
    syscalls.mount(
        "devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"
    )
    syscalls.mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=64m")
    with contextlib.suppress(KernelError):  # a kernel without POSIX message queues
        syscalls.mount("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _tmpfs(path: str, options: str) -> None:
    syscalls.mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, options)


def _bind(source: str, target: str, *, read_only: bool, nodev: bool = True) -> None:
    syscalls.mount(source, target, flags=MS_BIND)
    # Flags of a bind mount are set by a second call (mount(2)); a stricter source keeps its own.
    flags = MS_REMOUNT | MS_BIND | MS_NOSUID | (MS_NODEV if nodev else 0) | (MS_RDONLY if read_only else 0)
    syscalls.mount("none", target, flags=flags)


def _mask(path: str) -> None:
    """Empty, whatever it is."""
    if os.path.isdir(path):
        syscalls.mount("tmpfs", path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=0,mode=555")
    elif os.path.exists(path):
        syscalls.mount("/dev/null", path, flags=MS_BIND)


def _open_source(mount: Mount) -> int:
    """A descriptor of what is to be mounted, before the host's root is out of reach."""
    try:
        return os.open(mount.source, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError.of(error.errno or 0, f"volume {mount.source}") from None


def _beneath(base: int, sub_path: str) -> int:
    """Takes descriptor `base` over."""
    if not sub_path:
        return base
    try:
        return _open_or_make_beneath(base, sub_path)
    finally:
        os.close(base)


def _open_or_make_beneath(base: int, path: str) -> int:
    """A descriptor of path below descriptor base; directories that are not there are made."""
    try:
        return syscalls.open_beneath(base, path, os.O_PATH)
    except KernelNotFoundError:
        parent, _, name = path.rstrip("/").rpartition("/")
        above = _open_or_make_beneath(base, parent) if parent else os.dup(base)
        try:
            os.mkdir(name, 0o755, dir_fd=above)
        finally:
            os.close(above)
        return syscalls.open_beneath(base, path, os.O_PATH)


def _volume(mount: Mount, source: int) -> None:
    """Mounts what descriptor `source` stands for; links in the target's path are the container's own."""
    target = os.path.realpath(mount.target)
    if stat.S_ISDIR(os.fstat(source).st_mode):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    _bind(f"/proc/self/fd/{source}", target, read_only=mount.read_only)
    os.close(source)


def _discarding(source: int, place: str) -> int:
    """A descriptor of what looks like directory `source`, with a layer for writes in directory `place`, which
    is made. Mounts below it are not in it, nor do its sockets lead anywhere. A file is copied.
    """
    os.makedirs(place)
    path = f"/proc/self/fd/{source}"
    if stat.S_ISDIR(os.fstat(source).st_mode):
        for directory in ("upper", "work", "root"):
            os.mkdir(f"{place}/{directory}")
        layers = f"lowerdir={path},upperdir={place}/upper,workdir={place}/work"
        syscalls.mount("overlay", f"{place}/root", "overlay", MS_NODEV | MS_NOSUID, layers)
        copy = f"{place}/root"
    else:
        copy = f"{place}/file"
        shutil.copy(path, copy)
    os.close(source)
    return os.open(copy, os.O_PATH | os.O_CLOEXEC)


def _data_mounts() -> Sequence[str]:
    """Directories of the host where another file system of its own is mounted, outermost first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        path, kind = fields.split()[4], rest.split()[0]
        if path == "/" or kind in _NOT_DATA or kind.startswith("fuse") or path.split("/")[1] in _APART:
            continue
        if os.path.isdir(path):
            found.append(path)
    return found
