"""Writing a pod's status to the API: only what has changed, and changes that come close together at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from podlane.errors import ApiError, ConflictError, NotFoundError
from podlane.lab.client import Obj
from podlane.lab.kubelet.context import NodeContext
from podlane.lab.kubelet.status import PodState, pod_status

log = logging.getLogger(__name__)

SETTLE_S = 0.1  # changes nobody waits for are written together
AGAIN_S = 1.0


class StatusWriter:
    """pod: its newest version. `run` writes until cancelled; `changed` says that state has changed."""

    def __init__(self, node: NodeContext, pod: Callable[[], Obj], state: PodState) -> None:
        self._node, self._pod, self._state = node, pod, state
        self._dirty, self._urgent = asyncio.Event(), asyncio.Event()

    def changed(self, *, urgent: bool) -> None:
        """urgent: somebody waits for it (a pod that is ready, or is no more)."""
        self._dirty.set()
        if urgent:
            self._urgent.set()

    async def run(self) -> None:
        """Returns when the pod is no more in the API."""
        while True:
            await self._dirty.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), SETTLE_S)
            self._dirty.clear()
            self._urgent.clear()
            try:
                await self.write()
            except NotFoundError:
                return
            except ApiError as error:
                log.warning("status of pod %s: %s", self._pod()["metadata"]["name"], error)
                self._dirty.set()
                await asyncio.sleep(AGAIN_S)

    async def write(self) -> None:
        """Now, if it differs. Raises ApiError; NotFoundError when this pod is gone."""
        pod = self._pod()
        meta = pod["metadata"]
        while True:
            wanted = pod_status(pod, self._state, time.time())
            if wanted == (pod.get("status") or {}):
                return
            try:
                updated = {**pod, "status": wanted}
                written = await self._node.client.update("pods", updated, subresource="status")
            except ConflictError:
                pod = await self._node.client.get("pods", meta["name"], meta["namespace"])
                if pod["metadata"]["uid"] != meta["uid"]:
                    raise NotFoundError(f"pod {meta['name']} is another one now") from None
                continue
            self._node.world.pods.wrote(written)
            return
