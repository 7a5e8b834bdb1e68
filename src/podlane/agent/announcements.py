"""Tells the API which load-balancer addresses this node answers for: a condition and an event of the Service.

It is commentary: nothing waits for it, and what the API does not take is tried again until it no longer
holds. `podlane services` and `explain` read the condition.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from podlane.agent.announcer import STRATEGIC_MERGE_PATCH
from podlane.compile.view import View
from podlane.errors import ApiError
from podlane.kernel.announce.driver import AnnounceDriver
from podlane.model.addresses import Address, family_of
from podlane.model.objects import Service
from podlane.model.pools import ANNOUNCED, REASON, announcement, condition_of
from podlane.watch.http import ApiHttp

log = logging.getLogger(__name__)

COMPONENT: Final = "podlane-agent"
RETRY_FIRST_S, RETRY_MOST_S = 0.5, 30.0
LAST_WORD_S: Final = 4.0
"""Who gave an address up says so only if nobody else has spoken by then."""
LOOK_S: Final = 1.0
AGAIN_FIRST_S, AGAIN_MOST_S = 2.0, 300.0
"""After how long it is told again when the API says otherwise: a node that was cut off believes itself
alone, and says so when it is back. Two that never hear each other would go on, so the pause doubles."""
STOOD_S: Final = 60.0
"""What stood for so long is not disputed."""


class Announcements:
    def __init__(self, node: str, view: View, api: ApiHttp) -> None:
        self._node, self._view, self._api = node, view, api
        self._news: asyncio.Queue[tuple[Address, bool]] = asyncio.Queue()
        self._held: dict[Address, _Claim] = {}

    @property
    def held(self) -> tuple[str, ...]:
        return tuple(map(str, self._held))

    def listen(self, driver: AnnounceDriver) -> None:
        """To be called on the loop that `run` is for."""
        loop = asyncio.get_running_loop()

        def changed(where: Address, held: bool) -> None:
            loop.call_soon_threadsafe(self._news.put_nowait, (where, held))

        driver.listen(changed)

    async def run(self) -> None:
        """Without end."""
        async with asyncio.TaskGroup() as group:
            while True:
                for where, held in await self._next():
                    group.create_task(self._tell(where, held))

    async def _next(self) -> list[tuple[Address, bool]]:
        """What is to be told."""
        try:
            where, held = await asyncio.wait_for(self._news.get(), LOOK_S if self._held else None)
        except TimeoutError:
            now_s = time.monotonic()
            return [(where, True) for where, claim in self._held.items() if self._denied(where, claim, now_s)]
        if held:
            self._held[where] = _Claim()
        else:
            self._held.pop(where, None)
        return [(where, held)]

    def _denied(self, where: Address, claim: _Claim, now_s: float) -> bool:
        """Whether it is time to say once more that this node answers."""
        if all(self._stands(service, where) for service in self._services(where)):
            claim.again_s, claim.since_s = 0.0, claim.since_s or now_s
            if now_s - claim.since_s >= STOOD_S:
                claim.pause_s = AGAIN_FIRST_S
            return False
        claim.since_s = 0.0
        if not claim.again_s:
            claim.again_s = now_s + claim.pause_s
        if now_s < claim.again_s:
            return False
        claim.again_s, claim.pause_s = 0.0, min(2 * claim.pause_s, AGAIN_MOST_S)
        return True

    def _stands(self, service: Service, where: Address) -> bool:
        known = condition_of(service, where)
        said = (known.status, known.message) if known is not None else None
        return said == ("True", announcement(self._node, where))

    async def _tell(self, where: Address, held: bool) -> None:
        """Until it is told, or no longer so."""
        if not held:
            await asyncio.sleep(LAST_WORD_S)
        pause_s = RETRY_FIRST_S
        while (where in self._held) is held:
            try:
                for service in list(self._services(where)):
                    await self._tell_of(service, where, held)
                return
            except ApiError as error:
                log.info("announcement of %s: %s", where, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MOST_S)

    def _services(self, where: Address) -> Iterator[Service]:
        for key in self._view.balanced_at(where):
            yield self._view.services[key]

    async def _tell_of(self, service: Service, where: Address, held: bool) -> None:
        if self._stands(service, where) is held:
            return  # it is known, or another has spoken
        message = announcement(self._node, where) if held else f"no node answers for {where}"
        condition = {
            "type": ANNOUNCED[family_of(where)],
            "status": "True" if held else "False",
            "reason": REASON,
            "message": message,
            "lastTransitionTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        path = f"/api/v1/namespaces/{service.namespace}"
        body = msgspec.json.encode({"status": {"conditions": [condition]}})
        try:
            await self._api.patch(f"{path}/services/{service.name}/status", body, STRATEGIC_MERGE_PATCH)
            if held:
                await self._api.post(f"{path}/events", msgspec.json.encode(self._event(service, where)))
        except ApiError as error:
            if error.code != 404:  # it has gone meanwhile
                raise

    def _event(self, service: Service, where: Address) -> dict[str, Any]:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{service.name}.{os.urandom(8).hex()}", "namespace": service.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Service",
                "namespace": service.namespace,
                "name": service.name,
                "uid": service.metadata.uid,
            },
            "type": "Normal",
            "reason": "nodeAssigned",
            "message": f"announcing {where} from node {self._node} (layer 2)",
            "source": {"component": COMPONENT, "host": self._node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


class _Claim:
    """again_s: when the API's word to the contrary is answered; since_s: since when it says what we say; 0
    while it does not."""

    def __init__(self) -> None:
        self.again_s, self.since_s, self.pause_s = 0.0, 0.0, AGAIN_FIRST_S
