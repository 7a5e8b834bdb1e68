"""The whole of CNI on one node, wired: plugin types, notes, the socket, the spool, and the collector."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from podlane.cni.host import AgentHost
from podlane.cni.plugin import Plugin
from podlane.cni.plugins.base import PluginType
from podlane.cni.server import CniServer

_log = logging.getLogger(__name__)

SPOOL: Final = "cni-spool"
_COLLECT_EVERY_S: Final = 60.0


class CniService:
    """state_dir: made if it is not there. netns_fd: the node's namespace; None for the process's own."""

    def __init__(
        self,
        state_dir: Path,
        socket_path: Path,
        boot_id: str,
        types: Mapping[str, PluginType],
        *,
        netns_fd: int | None = None,
    ) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        self._spool = state_dir / SPOOL
        self.host = AgentHost(state_dir, boot_id, types, netns_fd=netns_fd)
        self.plugin = Plugin(self.host)
        self._server = CniServer(socket_path, self.plugin)
        self._collector: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """First what an earlier life left is put in order, then the door is open."""
        await self.host.start()
        await self._collect()
        await self._server.start()
        for failure in await self.plugin.replay(self._spool):
            _log.warning("a DEL that came while no agent was here: %s", failure)
        self._collector = asyncio.create_task(self._keep_collecting(), name="cni-collector")

    async def stop_serving(self) -> None:
        """Requests that have come in are answered first."""
        if self._collector is not None:
            self._collector.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collector
        await self._server.stop()

    async def close(self) -> None:
        await self.host.close()

    async def _keep_collecting(self) -> None:
        while True:
            await asyncio.sleep(_COLLECT_EVERY_S)
            await self._collect()

    async def _collect(self) -> None:
        for failure in await self.plugin.collect():
            _log.warning("a leaked attachment stays for now: %s", failure)
