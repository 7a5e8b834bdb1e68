"""The nft program, for rulesets as text. The only process podlane starts for nftables, and rarely."""

from __future__ import annotations

import errno
import subprocess
from contextlib import nullcontext
from typing import Final

from podlane.errors import KernelError, UnsupportedError
from podlane.kernel import netns, own_ports

PROGRAM: Final = "nft"
_TIMEOUT_S: Final = 120


def load(text: str, netns_fd: int | None = None) -> None:
    """Run `text` as one transaction. Raises KernelError with nft's own words, UnsupportedError without nft.

    A child is born into its parent thread's network namespace.
    """
    try:
        with netns.entered(netns_fd) if netns_fd is not None else nullcontext():
            child = subprocess.Popen(
                [PROGRAM, "-f", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
    except FileNotFoundError:
        raise UnsupportedError(
            "there is no nft on this machine; install the package nftables (1.0.6 or newer)"
        ) from None
    with child, own_ports.child(child.pid):
        try:
            said, _ = child.communicate(text.encode(), timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise KernelError.of(errno.ETIMEDOUT, "nft -f", f"not done in {_TIMEOUT_S} s") from None
    if child.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise KernelError.of(_errno_of(lines), "nft -f", lines[0] if lines else f"status {child.returncode}")


def _errno_of(lines: list[str]) -> int:
    """nft prints strerror() at the end of its first line."""
    words = lines[0].rsplit(": ", 1)[-1] if lines else ""
    known = {"No such file or directory": errno.ENOENT, "File exists": errno.EEXIST}
    known |= {"Operation not permitted": errno.EPERM, "Operation not supported": errno.EOPNOTSUPP}
    return known.get(words, errno.EINVAL)
