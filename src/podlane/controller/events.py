"""Events (core/v1): what `kubectl describe` shows about an object.

They are written a moment later, off the way of the work itself; the same thing said again raises the
count of the event there is. Events are commentary: one the API refuses is dropped with a warning.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import NamedTuple

from podlane.controller.client import ApiClient, Obj
from podlane.controller.meta import timestamp
from podlane.errors import ApiError

log = logging.getLogger(__name__)

DELAY_S = 1.0
REMEMBERED = 2048

API_VERSIONS = {
    "Deployment": "apps/v1",
    "ReplicaSet": "apps/v1",
    "DaemonSet": "apps/v1",
    "StatefulSet": "apps/v1",
    "Job": "batch/v1",
    "CronJob": "batch/v1",
    "LoadBalancerPool": "podlane.dev/v1alpha1",
}


class _Said(NamedTuple):
    kind: str
    namespace: str
    name: str
    uid: str
    type: str
    reason: str
    message: str
    component: str


class _Count:
    def __init__(self, first: str) -> None:
        self.count, self.first, self.last = 0, first, first
        self.stored = False


class Recorder:
    def __init__(self, client: ApiClient, now: Callable[[], float], *, delay_s: float = DELAY_S) -> None:
        self._client, self._now, self._delay_s = client, now, delay_s
        self._said: dict[_Said, _Count] = {}
        self._pending: dict[_Said, None] = {}
        self._wake = asyncio.Event()

    def normal(self, kind: str, obj: Obj, reason: str, message: str, component: str) -> None:
        self._say(kind, obj, "Normal", reason, message, component)

    def warning(self, kind: str, obj: Obj, reason: str, message: str, component: str) -> None:
        self._say(kind, obj, "Warning", reason, message, component)

    def _say(self, kind: str, obj: Obj, type_: str, reason: str, message: str, component: str) -> None:
        meta = obj["metadata"]
        said = _Said(
            kind,
            meta.get("namespace", ""),
            meta["name"],
            meta.get("uid", ""),
            type_,
            reason,
            message[:1024],
            component,
        )
        now = timestamp(self._now())
        count = self._said.pop(said, None) or _Count(now)
        count.count += 1
        count.last = now
        self._said[said] = count
        while len(self._said) > REMEMBERED:
            self._said.pop(next(iter(self._said)))
        self._pending[said] = None
        self._wake.set()

    async def run(self) -> None:
        """Writes what was said until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._delay_s)
            self._wake.clear()
            pending, self._pending = self._pending, {}
            for said in pending:
                if (count := self._said.get(said)) is not None:
                    await self._write(said, count)

    async def _write(self, said: _Said, count: _Count) -> None:
        namespace = said.namespace or "default"
        digest = hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]
        name = f"{said.name}.{digest}"
        update = {"count": count.count, "lastTimestamp": count.last}
        try:
            if count.stored:
                await self._client.patch("events", name, namespace, update)
                return
            body: Obj = {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": {
                    "apiVersion": API_VERSIONS.get(said.kind, "v1"),
                    "kind": said.kind,
                    "namespace": said.namespace,
                    "name": said.name,
                    "uid": said.uid,
                },
                "type": said.type,
                "reason": said.reason,
                "message": said.message,
                "source": {"component": said.component},
                "reportingComponent": said.component,
                "reportingInstance": "",
                "firstTimestamp": count.first,
                **update,
            }
            count.stored = True
            await self._client.create("events", body, namespace)
        except ApiError as error:
            # 409: said by an earlier incarnation of this process; 404: expired, or its namespace went away.
            count.stored = error.code == 409
            if error.code not in (404, 409, 403):
                log.warning("event %s %s/%s: %s", said.reason, namespace, said.name, error)
