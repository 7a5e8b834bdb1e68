"""Network namespaces: entering one for a moment, making one, opening sockets and files inside.

setns(2) acts on the calling thread only. Every function here enters and leaves without yielding, so
a caller never finds itself in another namespace. If the way back fails the process ends at once:
going on in the wrong namespace would send packets where none may go.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from podlane.errors import KernelError
from podlane.kernel import sysctl

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
SELF = "/proc/thread-self/ns/net"  # not /proc/self: that is the main thread

_libc = ctypes.CDLL(None, use_errno=True)


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """setns(2) for the calling thread. Raises KernelError."""
    if _libc.setns(fd, kind):
        raise KernelError.of(ctypes.get_errno(), f"setns({fd})")


def unshare(kinds: int) -> None:
    """unshare(2) for the calling thread. Raises KernelError."""
    if _libc.unshare(kinds):
        raise KernelError.of(ctypes.get_errno(), f"unshare({kinds:#x})")


@contextmanager
def entered(fd: int) -> Iterator[None]:
    """The calling thread is inside namespace fd. The body must not await or switch threads."""
    home = os.open(SELF, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd)
        try:
            yield
        finally:
            if _libc.setns(home, CLONE_NEWNET):
                os._exit(70)
    finally:
        os.close(home)


def inside(fd: int, function: Callable[[], T]) -> T:
    """function() with the calling thread inside namespace fd."""
    with entered(fd):
        return function()


def socket_in(fd: int, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of namespace fd; it stays there whichever thread uses it."""
    with entered(fd):
        return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)


def open_pid(pid: int) -> int:
    """A descriptor of the network namespace of process pid. Raises KernelError."""
    return open_path(f"/proc/{pid}/ns/net")


def open_path(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError.of(error.errno or 0, f"open {path}") from None


def new() -> int:
    """A descriptor of a new, empty namespace (lo is down). It goes when the last holder closes it."""
    made: list[int | BaseException] = []

    def make() -> None:
        try:
            unshare(CLONE_NEWNET)
            made.append(os.open(SELF, os.O_RDONLY | os.O_CLOEXEC))
        except BaseException as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    result = made[0]
    if isinstance(result, BaseException):
        raise result
    return result


def read_sysctl(fd: int, name: str) -> str:
    """name: as `net/ipv4/ip_forward`."""
    with entered(fd):
        return read_own_sysctl(name)


def read_own_sysctl(name: str) -> str:
    """Of the calling thread's namespace. Raises FileNotFoundError."""
    found = sysctl.read(name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"/proc/sys/{name}")
    return found


def write_sysctl(fd: int, name: str, value: str | int) -> None:
    """Raises KernelError. /proc/sys/net shows the namespace of the thread that opens it."""
    with entered(fd):
        write_own_sysctl(name, value)


def write_own_sysctl(name: str, value: str | int) -> None:
    """Of the calling thread's namespace. Raises KernelError (KernelNotFoundError for none of that name)."""
    sysctl.write(name, str(value))
