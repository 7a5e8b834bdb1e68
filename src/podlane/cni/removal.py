"""Deleting links: returns when they are out of both namespaces, not when the kernel has freed them.

The kernel takes a link away within a millisecond: name, addresses, routes and /sys entry are gone for
everybody, at both ends, before it lets go of its rtnl lock. The caller's send(2) goes on for an
rcu_barrier of some 16 ms (netdev_run_todo), which frees memory and nothing else. That wait is left to the
thread that sent the request, and another one asks for the link's name until there is none: the kernel
answers between two holders of the lock, so never in the middle of a deletion.

Nothing is owed when a deletion was answered: a process that is killed then ends its wait in the kernel.
While as many deletions wait as have threads, those that come go together, as one group.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from podlane.kernel.rtnl import Rtnl

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 8  # deletions that wait for the kernel, each on a thread of its own
_PAUSE_S: Final = 0.0002


class LinkRemover:
    """netns_fd: the namespace of the links; None for the caller's."""

    def __init__(self, netns_fd: int | None = None) -> None:
        self._netns_fd = netns_fd
        self._watching = Rtnl(netns_fd)
        self._idle: list[Rtnl] = []
        self._deleters = ThreadPoolExecutor(_AT_ONCE, "cni-del")
        self._watchers = ThreadPoolExecutor(_AT_ONCE, "cni-gone")
        self._doomed: dict[str, asyncio.Future[None]] = {}
        self._removals: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Waits for what has begun."""
        while self._removals:
            await asyncio.gather(*self._removals)
        self._watchers.shutdown()
        self._deleters.shutdown()
        for rtnl in (self._watching, *self._idle):
            rtnl.close()

    async def remove(self, device: str) -> None:
        """Those that are gone are no error. Raises KernelError."""
        gone = self._doomed.get(device)
        if gone is None:
            gone = self._doomed[device] = asyncio.get_running_loop().create_future()
        self._begin()
        await asyncio.shield(gone)

    async def remove_all(self, devices: Sequence[str]) -> None:
        await asyncio.gather(*map(self.remove, devices))

    def _begin(self) -> None:
        if self._doomed and len(self._removals) < _AT_ONCE:
            batch, self._doomed = self._doomed, {}
            removal = asyncio.create_task(self._remove(batch))
            self._removals.add(removal)
            removal.add_done_callback(self._ended)

    def _ended(self, removal: asyncio.Task[None]) -> None:
        self._removals.discard(removal)
        self._begin()

    async def _remove(self, batch: dict[str, asyncio.Future[None]]) -> None:
        rtnl = self._idle.pop() if self._idle else Rtnl(self._netns_fd)
        deletion: Future[None] | None = None
        error: BaseException | None = None
        loop = asyncio.get_running_loop()
        try:
            deletion = await loop.run_in_executor(self._watchers, self._take_away, rtnl, list(batch))
        except BaseException as failure:
            error = failure
        for gone in batch.values():
            if error is None:
                gone.set_result(None)
            else:
                gone.set_exception(error)
        if deletion is not None:
            freed = asyncio.wrap_future(deletion)
            await asyncio.wait([freed])
            if (late := freed.exception()) is not None:
                _log.warning("links that are gone were not freed: %s", late)
        self._idle.append(rtnl)

    def _take_away(self, rtnl: Rtnl, names: Sequence[str]) -> Future[None] | None:
        """Returns when none of the links is there: what still waits for the kernel, if anything does.

        Links go by index: one of the same name that comes after this returned is another one.
        """
        indexes = [index for index in map(self._watching.find_index, names) if index]
        if not indexes:
            return None
        deletion = self._deleters.submit(rtnl.delete_indexes, indexes)
        for index in indexes:
            while not deletion.done() and self._watching.has_index(index):
                time.sleep(_PAUSE_S)
        if deletion.done():
            deletion.result()
        return deletion
