"""mount(2) and umount2(2), without a command."""

from __future__ import annotations

import ctypes
import os

from podlane.errors import KernelError

MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises KernelError."""
    if _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    ):
        operation = f"mount {kind or 'bind'} {source} on {target}"
        raise KernelError.of(ctypes.get_errno(), operation)


def unmount(target: str) -> None:
    """Lazily: the mount leaves the tree at once and goes when nobody uses it. Raises KernelError."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH):
        raise KernelError.of(ctypes.get_errno(), f"umount {target}")
