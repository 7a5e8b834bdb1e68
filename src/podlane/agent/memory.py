"""What this node was, as long as the machine is up: pods are attached after a restart without the API.

A file of the state directory, for one boot and one node name: after a reboot nothing of the network is
there, and what the API says by then may be something else.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from podlane.errors import ConfigError
from podlane.model.addresses import Prefix, prefix

log = logging.getLogger(__name__)

_NAME: Final = "node.json"


class Known(msgspec.Struct, frozen=True):
    """pools: this node's pod prefixes, primary first. mtu_bytes: of pods' links."""

    pools: tuple[Prefix, ...]
    mtu_bytes: int


class _File(msgspec.Struct):
    boot: str
    node: str
    pools: list[str]
    mtu_bytes: int


class Memory:
    """known: what is remembered; None for nothing, and for a file that cannot be read."""

    def __init__(self, state_dir: Path, boot: str, node: str) -> None:
        self._path, self._boot, self._node = state_dir / _NAME, boot, node
        self.known = self._read()

    def keep(self, known: Known) -> None:
        """A file that cannot be written is told: pods then wait for the API after a restart."""
        if known == self.known:
            return
        self.known = known
        file = _File(self._boot, self._node, [str(pool) for pool in known.pools], known.mtu_bytes)
        temporary = self._path.with_name(f".{_NAME}.{os.getpid()}")
        try:
            temporary.write_bytes(msgspec.json.encode(file))
            temporary.replace(self._path)
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror)

    def _read(self) -> Known | None:
        try:
            file = msgspec.json.decode(self._path.read_bytes(), type=_File)
            pools = tuple(prefix(text) for text in file.pools)
        except (OSError, msgspec.MsgspecError, ConfigError):
            return None
        same = (file.boot, file.node) == (self._boot, self._node)
        return Known(pools, file.mtu_bytes) if same and pools and file.mtu_bytes > 0 else None
