"""Addresses that pods of another plugin hold, on a node that changes over to podlane with its pods in place.

host-local (of flannel, kubenet, a bridge of one's own) keeps a file an address, in a directory a network;
who holds one keeps it until its DEL, which the runtime sends to the plugin that made it. Until then podlane
does not give it out. Files from before the boot are of pods that are no more: nobody removed them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from podlane.cni.address_files import DATA_DIR, AddressFiles
from podlane.model.addresses import Address

_STAT: Final = Path("/proc/stat")


class ForeignLeases:
    """data_dir: host-local's dataDir. booted_s: when this boot began; None asks the kernel."""

    def __init__(self, data_dir: str | Path = DATA_DIR, booted_s: float | None = None) -> None:
        self._data_dir = data_dir
        self._booted_s = _boot_time_s() if booted_s is None else booted_s

    def has(self, address: Address) -> bool:
        """Blocking, for as long as one stat(2) a network takes."""
        name = str(address)
        try:
            with os.scandir(self._data_dir) as networks:
                return any(self._is_of_this_boot(os.path.join(each.path, name)) for each in networks)
        except OSError:
            return False  # nobody has leased anything here

    def forget(self, addresses: Iterable[Address], container_id: str) -> None:
        """What the container leased of these is free: it was taken over, and is gone now. Blocking."""
        for address in addresses:
            for network in self._networks_with(str(address)):
                files = AddressFiles(Path(self._data_dir), network)
                with files.locked(make=False) as there:
                    holder = files.holders().get(address) if there else None
                    if holder is not None and holder[0] == container_id:
                        files.give_back(address)

    def _networks_with(self, name: str) -> list[str]:
        try:
            with os.scandir(self._data_dir) as networks:
                return [each.name for each in networks if os.path.exists(os.path.join(each.path, name))]
        except OSError:
            return []

    def _is_of_this_boot(self, path: str) -> bool:
        try:
            return os.stat(path).st_mtime >= self._booted_s
        except OSError:
            return False


def _boot_time_s() -> float:
    line = next(each for each in _STAT.read_text().splitlines() if each.startswith("btime "))
    return float(line.split()[1])
