"""A directory on a BPF file system, in which maps and links are kept while no process holds them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from podlane.errors import KernelError
from podlane.kernel.mounts import mount

DEFAULT: Final = "/sys/fs/bpf/podlane"

_MAGIC: Final = 0xCAFE4A11  # linux/magic.h, BPF_FS_MAGIC
_libc = ctypes.CDLL(None, use_errno=True)


def is_bpffs(path: Path) -> bool:
    """statfs(2). False for what is not there."""
    answer = (ctypes.c_long * 32)()
    if _libc.statfs(os.fsencode(path), ctypes.byref(answer)):
        return False
    return bool(answer[0] == _MAGIC)


def make(directory: Path) -> None:
    """Make the directory; where no BPF file system is, mount one in the caller's mount namespace: on the
    parent if that is made for it (/sys/fs/bpf), else on the directory itself. Raises KernelError."""
    if directory.parent == Path("/sys/fs/bpf") and not is_bpffs(directory.parent):
        mount("bpf", str(directory.parent), "bpf")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError.of(error.errno or 0, f"mkdir {directory}") from None
    if not is_bpffs(directory):
        mount("bpf", str(directory), "bpf")
