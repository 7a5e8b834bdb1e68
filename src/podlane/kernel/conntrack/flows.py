"""Reading and deleting connection tracking entries of one namespace."""

from __future__ import annotations

from collections.abc import Iterable

from podlane.errors import KernelNotFoundError
from podlane.kernel.conntrack import codec
from podlane.kernel.conntrack.codec import Entry, Filter
from podlane.kernel.netlink import NETLINK_NETFILTER
from podlane.kernel.netlink_socket import Netlink
from podlane.model.addresses import Family


class Flows:
    """Blocking; for one thread. A dump walks the whole table inside the kernel: keep it off hot paths."""

    def __init__(self, netns_fd: int | None = None) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER, netns_fd)

    def close(self) -> None:
        self._netlink.close()

    def list(self, wanted: Filter) -> list[Entry]:
        """Raises KernelError."""
        found = map(codec.unpack, self._netlink.dump(codec.get(wanted)))
        return [entry for entry in found if entry is not None]

    def marks(self, family: Family) -> set[int]:
        """The marks of all flows of a family. Raises KernelError."""
        return set(map(codec.unpack_mark, self._netlink.dump(codec.get(Filter(family)))))

    def delete(self, entries: Iterable[Entry]) -> int:
        """How many were there. One that ended by itself meanwhile is no error. Raises KernelError."""
        requests = [codec.delete(entry) for entry in entries]
        deleted = 0
        for error in self._netlink.execute(requests) if requests else ():
            if error is None:
                deleted += 1
            elif not isinstance(error, KernelNotFoundError):
                raise error
        return deleted
