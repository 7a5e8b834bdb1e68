"""What this node tells the others: annotations of its own Node object.

Written only where the API says something else, with a merge patch of these keys and nothing more, so that
nobody's write is undone and nothing is written twice. Who undoes ours is answered less and less.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping

import msgspec

from podlane.errors import ApiError
from podlane.model.objects import Node
from podlane.watch.backoff import Backoff
from podlane.watch.contest import FREE, Contest
from podlane.watch.http import ApiHttp

log = logging.getLogger(__name__)

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"


class Announcer:
    """node: this node's Node as last seen. `say` what shall be there; `look` again when the Node changed."""

    def __init__(self, api: ApiHttp, node: Callable[[], Node | None]) -> None:
        self._api, self._node = api, node
        self._wanted: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._contest = Contest()
        self._later: asyncio.TimerHandle | None = None
        self.entitled = True
        """Whether the Node is known to be this machine's own; otherwise nothing is written."""
        self.error = ""

    def say(self, annotations: Mapping[str, str]) -> None:
        self._wanted.update(annotations)
        self.look()

    def look(self) -> None:
        if self._missing():
            self._changed.set()

    @property
    def pending(self) -> int:
        """How many annotations the API does not show yet."""
        return len(self._missing())

    async def run(self) -> None:
        """Without end."""
        backoff = Backoff(random.Random())
        while True:
            await self._changed.wait()
            self._changed.clear()
            node, missing = self._node(), self._missing()
            if node is None or not missing:
                continue
            write = (node.name, *missing), tuple(missing.values())
            if wait_s := self._contest.wait_s(*write, time.monotonic()):
                self.error = f"somebody else writes {', '.join(missing)} of Node {node.name}, too"
                self._look_later(wait_s)
                continue
            body = msgspec.json.encode({"metadata": {"annotations": missing}})
            try:
                await self._api.patch(f"/api/v1/nodes/{node.name}", body, MERGE_PATCH)
            except ApiError as error:
                self.error = f"the annotations of Node {node.name} cannot be written: {error}"
                log.info("%s", self.error)
                await asyncio.sleep(backoff.next_s())
                self._changed.set()
            else:
                self.error = ""
                backoff.succeeded()
                if self._contest.wrote(*write, time.monotonic()) == FREE:
                    names = ", ".join(missing)
                    log.warning("%s of Node %s were written %d times over", names, node.name, FREE)

    def _look_later(self, pause_s: float) -> None:
        if self._later is not None:
            self._later.cancel()
        self._later = asyncio.get_running_loop().call_later(pause_s, self._changed.set)

    def _missing(self) -> dict[str, str]:
        node = self._node()
        if node is None or not self.entitled:
            return {}
        there = node.metadata.annotations
        return {name: text for name, text in self._wanted.items() if there.get(name) != text}
