"""Deleting links: those that wait while others are deleted go together.

One deletion waits some 16 ms for RCU, and a group of any size waits once. It has a thread of its own, so
that it holds up no attachment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from podlane.kernel.rtnl import Rtnl


class LinkRemover:
    """netns_fd: the namespace of the links; None for the caller's."""

    def __init__(self, netns_fd: int | None = None) -> None:
        self._rtnl, self._thread = Rtnl(netns_fd), ThreadPoolExecutor(1, "cni-del")
        self._doomed: dict[str, asyncio.Future[None]] = {}
        self._removal: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Waits for what has begun."""
        if self._removal is not None:
            await self._removal
        self._thread.shutdown()
        self._rtnl.close()

    async def remove(self, device: str) -> None:
        """Those that are gone are no error. Raises KernelError."""
        gone = self._doomed.get(device)
        if gone is None:
            gone = self._doomed[device] = asyncio.get_running_loop().create_future()
        if self._removal is None:
            self._removal = asyncio.create_task(self._remove_doomed())
        await asyncio.shield(gone)

    async def remove_all(self, devices: Sequence[str]) -> None:
        await asyncio.gather(*map(self.remove, devices))

    async def _remove_doomed(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._doomed:
                batch, self._doomed = self._doomed, {}
                error: BaseException | None = None
                try:
                    await loop.run_in_executor(self._thread, self._rtnl.delete_links, list(batch))
                except BaseException as failure:
                    error = failure
                for gone in batch.values():
                    if error is None:
                        gone.set_result(None)
                    else:
                        gone.set_exception(error)
        finally:
            self._removal = None
