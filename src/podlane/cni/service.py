"""The whole of CNI on one node, wired: plugin types, notes, the socket, the spool, and the collector."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from podlane.cni.host import AgentHost
from podlane.cni.plugin import Observed, Plugin
from podlane.cni.plugins.base import PluginType
from podlane.cni.server import CniServer
from podlane.errors import PodlaneError

_log = logging.getLogger(__name__)

SPOOL: Final = "cni-spool"
_TIDY_EVERY_S: Final = 60.0


class CniService:
    """state_dir: made if it is not there. netns_fd: the node's namespace; None for the process's own.

    tidy_every_s: how often leaked attachments are collected, and DELs that failed are tried again.
    """

    def __init__(
        self,
        state_dir: Path,
        socket_path: Path,
        boot_id: str,
        types: Mapping[str, PluginType],
        *,
        netns_fd: int | None = None,
        tidy_every_s: float = _TIDY_EVERY_S,
        observed: Observed = lambda verb, code, seconds: None,
    ) -> None:
        self._tidy_every_s = tidy_every_s
        state_dir.mkdir(parents=True, exist_ok=True)
        self._spool = state_dir / SPOOL
        self.host = AgentHost(state_dir, boot_id, types, netns_fd=netns_fd)
        self.plugin = Plugin(self.host, observed)
        self._server = CniServer(socket_path, self.plugin)
        self._collector: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """First what an earlier life left is put in order, then the door is open."""
        await self.host.start()
        await self._collect()
        await self._server.start()
        await self._replay()
        self._collector = asyncio.create_task(self._keep_tidy(), name="cni-collector")

    async def stop_serving(self) -> None:
        """Requests that have come in are answered first."""
        if self._collector is not None:
            self._collector.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collector
        await self._server.stop()

    async def close(self) -> None:
        await self.host.close()

    async def _keep_tidy(self) -> None:
        while True:
            await asyncio.sleep(self._tidy_every_s)
            try:
                await self._collect()
                await self._replay()
            except (PodlaneError, OSError) as error:  # the next time may be better
                _log.warning("leaked attachments were not looked for: %s", error)

    async def _collect(self) -> None:
        for failure in await self.plugin.collect():
            _log.warning("a leaked attachment stays for now: %s", failure)

    async def _replay(self) -> None:
        for failure in await self.plugin.replay(self._spool):
            _log.warning("a DEL that came while no agent was here: %s", failure)
