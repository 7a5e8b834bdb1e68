"""System calls that Python's os module does not have, raw. Each raises KernelError naming what it tried."""

from __future__ import annotations

import ctypes
import os

from podlane.errors import KernelError
from podlane.kernel import mounts

mount = mounts.mount

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 32, 4096, 8192, 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_OPENAT2 = 437  # the same number on every architecture
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x08, 0x10

_SIG_SETMASK = 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.signal.restype = ctypes.c_void_p
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)


def _check(result: int, operation: str) -> int:
    if result < 0:
        raise KernelError.of(ctypes.get_errno(), operation)
    return result


def unmount(target: str) -> None:
    """umount2(2), lazily: the mount goes when nobody uses it any more."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check(
        _libc.syscall(
            ctypes.c_long(number),
            ctypes.c_char_p(os.fsencode(new_root)),
            ctypes.c_char_p(os.fsencode(put_old)),
        ),
        f"pivot_root {new_root}",
    )


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(fd, kind), f"setns({kind:#x})")


def join_namespaces(pid: int, *names: str) -> None:
    """Enter namespaces of process pid, in the order given: names as in /proc/PID/ns (net, mnt, uts, ...).

    `pid` and `pid_for_children` only act on processes forked afterwards (setns(2)).
    """
    fds = []
    for name in names:
        path = f"/proc/{pid}/ns/{name}"
        try:
            fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise KernelError.of(error.errno or 0, f"open {path}") from None
    for fd in fds:
        setns(fd, 0)
        os.close(fd)


def unshare(kinds: int) -> None:
    _check(_libc.unshare(kinds), f"unshare({kinds:#x})")


def set_hostname(name: str) -> None:
    text = name.encode()
    _check(_libc.sethostname(text, len(text)), f"sethostname {name}")


def prctl(option: int, value: int = 0) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl({option}, {value})")


def set_process_name(name: str) -> None:
    """What ps and top call this process: at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _libc.prctl(PR_SET_NAME, buffer, 0, 0, 0)


def block_signals() -> bytes:
    """No signal is delivered until `restore_signals` of what this returns.

    Here and below the C library is asked, not the signal module: that makes an enumeration of every
    number, and a freshly forked process pays for each page it touches.
    """
    everything, before = ctypes.create_string_buffer(b"\xff" * 128, 128), ctypes.create_string_buffer(128)
    _check(_libc.sigprocmask(_SIG_SETMASK, everything, before), "sigprocmask")
    return before.raw


def restore_signals(mask: bytes = bytes(128)) -> None:
    """mask: of `block_signals`; by default nothing is blocked."""
    _check(_libc.sigprocmask(_SIG_SETMASK, mask, None), "sigprocmask")


def default_signals() -> None:
    """Every signal does what it does to a new process: handlers and ignoring are undone."""
    for number in range(1, 65):
        _libc.signal(number, None)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(directory: int, path: str, flags: int) -> int:
    """openat2(2): path below descriptor `directory`, no link of which may lead out of it."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_BENEATH)
    fd: int = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    return _check(fd, f"open {path}")


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def permitted_capabilities() -> int:
    """capget(2) of the calling thread, as a mask."""
    header = _CapHeader(0x20080522, 0)
    data = (_CapData * 2)()
    _check(_libc.capget(ctypes.byref(header), data), "capget")
    return int(data[0].permitted) | int(data[1].permitted) << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling thread; each a mask of 1 << capability."""
    header = _CapHeader(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    data = (_CapData * 2)()
    for word in (0, 1):
        shift = 32 * word
        data[word].effective = effective >> shift & 0xFFFFFFFF
        data[word].permitted = permitted >> shift & 0xFFFFFFFF
        data[word].inheritable = inheritable >> shift & 0xFFFFFFFF
    _check(_libc.capset(ctypes.byref(header), data), "capset")
