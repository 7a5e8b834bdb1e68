"""umount2(2), without a command."""

from __future__ import annotations

import ctypes
import os

from podlane.errors import KernelError

MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def unmount(target: str) -> None:
    """Lazily: the mount leaves the tree at once and goes when nobody uses it. Raises KernelError."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH):
        raise KernelError.of(ctypes.get_errno(), f"umount {target}")
