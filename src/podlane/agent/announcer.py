"""What this node tells the others: annotations of its own Node object.

Written only where the API says something else, with a merge patch of these keys and nothing more, so that
nobody's write is undone and nothing is written twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping

import msgspec

from podlane.errors import ApiError
from podlane.model.objects import Node
from podlane.watch.backoff import Backoff
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

    def _missing(self) -> dict[str, str]:
        node = self._node()
        if node is None or not self.entitled:
            return {}
        there = node.metadata.annotations
        return {name: text for name, text in self._wanted.items() if there.get(name) != text}
