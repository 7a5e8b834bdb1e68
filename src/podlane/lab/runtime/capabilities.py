"""Linux capabilities of containers: which are left, and dropping the others (capabilities(7)).

DEFAULT is what Docker and containerd leave to root in a container, without MKNOD: a device node would
open the host's disks, and there is no device cgroup here. HOST_WIDE are those that reach
beyond the pod's own namespaces; no manifest gets them, for it must not be able to harm the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from podlane.errors import KernelError
from podlane.lab.runtime import syscalls

NUMBERS = {
    name: number
    for number, name in enumerate(
        (
            "CHOWN",
            "DAC_OVERRIDE",
            "DAC_READ_SEARCH",
            "FOWNER",
            "FSETID",
            "KILL",
            "SETGID",
            "SETUID",
            "SETPCAP",
            "LINUX_IMMUTABLE",
            "NET_BIND_SERVICE",
            "NET_BROADCAST",
            "NET_ADMIN",
            "NET_RAW",
            "IPC_LOCK",
            "IPC_OWNER",
            "SYS_MODULE",
            "SYS_RAWIO",
            "SYS_CHROOT",
            "SYS_PTRACE",
            "SYS_PACCT",
            "SYS_ADMIN",
            "SYS_BOOT",
            "SYS_NICE",
            "SYS_RESOURCE",
            "SYS_TIME",
            "SYS_TTY_CONFIG",
            "MKNOD",
            "LEASE",
            "AUDIT_WRITE",
            "AUDIT_CONTROL",
            "SETFCAP",
            "MAC_OVERRIDE",
            "MAC_ADMIN",
            "SYSLOG",
            "WAKE_ALARM",
            "BLOCK_SUSPEND",
            "AUDIT_READ",
            "PERFMON",
            "BPF",
            "CHECKPOINT_RESTORE",
        )
    )
}
DEFAULT = (
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)
# What a manifest may have, privileged or not: containers share the user namespace of the host, where the
# others get out (SYS_ADMIN mounts, DAC_READ_SEARCH opens by handle, SYS_PTRACE catches joiners).
GRANTABLE = frozenset((*DEFAULT, "IPC_LOCK", "IPC_OWNER", "LEASE", "NET_ADMIN", "NET_BROADCAST"))
HOST_WIDE = frozenset(NUMBERS) - GRANTABLE


def left(add: Iterable[str], drop: Iterable[str]) -> list[str]:
    """securityContext.capabilities applied to the default; ALL means every one, the CAP_ prefix may be there.

    Unknown names are ignored, as container runtimes do with capabilities their kernel does not know.
    """
    added, dropped = ({name.upper().removeprefix("CAP_") for name in names} for names in (add, drop))
    have = set(NUMBERS) if "ALL" in added else set(DEFAULT)
    have = set() if "ALL" in dropped and "ALL" not in added else have - dropped
    return sorted((have | (added - {"ALL"})) & GRANTABLE)


def refused(add: Iterable[str]) -> list[str]:
    """Those of securityContext.capabilities.add that no container gets here."""
    return sorted({name.upper().removeprefix("CAP_") for name in add} & HOST_WIDE)


def mask(names: Iterable[str]) -> int:
    value = 0
    for name in names:
        value |= 1 << NUMBERS[name]
    return value


def bound(allowed: int) -> None:
    """Drop everything else from the bounding set, so that no exec brings it back. Irrevocable."""
    for number in range(_last() + 1):
        if not allowed >> number & 1:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)


def assume(allowed: int) -> None:
    """The calling process keeps these of the capabilities it has, and no more."""
    kept = allowed & syscalls.permitted_capabilities()
    syscalls.capset(kept, kept, 0)


def _last() -> int:
    """The highest capability this kernel knows."""
    try:
        return int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    except (OSError, ValueError) as error:
        raise KernelError.of(2, "read /proc/sys/kernel/cap_last_cap", str(error)) from None
