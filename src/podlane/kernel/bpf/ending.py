"""Ends sockets that are connected to endpoints that are gone.

A connected socket never asks again where its service is: without this it would wait for an answer until
its timeouts end, a datagram socket for ever. Only sockets that a program of ours connected are ended, and
of those only the ones whose endpoint is no more. Sockets that send to a service without being connected
need nothing: their next datagram finds another endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from podlane.kernel import cgroups
from podlane.kernel.bpf.sock_diag import Seen, Sockets
from podlane.kernel.bpf.socket_state import Gone as Wanted
from podlane.kernel.sweeping import Gone, Sweeping
from podlane.model.addresses import Address, Protocol

Open: TypeAlias = Callable[[int], Sockets]
"""Sockets of the namespace that a descriptor is of."""


class Found(NamedTuple):
    """netns: inode of the socket's namespace."""

    netns: int
    seen: Seen


class Ending(Sweeping[Wanted, Found]):
    """cgroup: whose processes' namespaces are looked through; open_sockets: how. gone: see Sweeping."""

    def __init__(self, cgroup: Path, open_sockets: Open, gone: Gone | None) -> None:
        super().__init__("sockets", Wanted, gone)
        self._cgroup, self._open = cgroup, open_sockets

    def seen(self) -> Iterator[Found]:
        """Every socket that is connected to a service."""
        for fd, inode in cgroups.namespaces(self._cgroup):
            with self._open(fd) as sockets:
                yield from (Found(inode, each) for each in sockets.seen())

    def _find(self, wanted: Wanted) -> tuple[list[Found], list[Found]]:
        stale = [f for f in self.seen() if wanted.has(f.seen.bound, f.seen.protocol)]
        certain = [each for each in stale if each.seen.protocol is Protocol.UDP]
        return certain, [each for each in stale if each.seen.protocol is Protocol.TCP]

    def _delete(self, things: Iterable[Found]) -> int:
        by_namespace: dict[int, list[Seen]] = {}
        for each in things:
            by_namespace.setdefault(each.netns, []).append(each.seen)
        if not by_namespace:
            return 0
        ended = 0
        for fd, inode in cgroups.namespaces(self._cgroup):
            if inode in by_namespace:
                with self._open(fd) as sockets:
                    ended += sockets.end(by_namespace[inode])
        return ended

    def _endpoint(self, thing: Found) -> Address:
        return thing.seen.bound.backend.address
