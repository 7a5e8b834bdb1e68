"""Events (core/v1): what the agent has to say of an object, shown by `kubectl describe`.

They are commentary: written beside the work, one at a time; one the API refuses is dropped with a warning. An
Event's name follows from what it says, so nodes that say the same make one, and a restarted agent none.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec

from podlane.agent.complaints import Complaint
from podlane.errors import AlreadyExistsError, ApiError

log = logging.getLogger(__name__)

COMPONENT: Final = "podlane-agent"
MOST_MESSAGE: Final = 1024  # of an Event, by the API
_API_VERSIONS: Final = {"ServiceCIDR": "networking.k8s.io/v1"}


class Api(Protocol):
    async def post(self, path: str, body: bytes) -> bytes: ...


class Events:
    """run() writes what say() was given, for as long as it runs. node: who says it."""

    def __init__(self, api: Api, node: str) -> None:
        self._api, self._node = api, node
        self._said: frozenset[Complaint] = frozenset()
        self._waiting: list[tuple[Complaint, str]] = []
        self._wake = asyncio.Event()

    def say(self, complaints: set[Complaint], uid_of: Any = lambda complaint: "") -> None:
        """All there is to complain of now; what was said before is not said again."""
        if complaints == self._said:
            return
        fresh = complaints - self._said
        self._said = frozenset(complaints)
        self._waiting += [(each, uid_of(each)) for each in sorted(fresh)]
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            waiting, self._waiting = self._waiting, []
            for complaint, uid in waiting:
                about = {"object": f"{complaint.kind} {_name(complaint)}", "error": complaint.reason}
                log.warning("%s %s: %s", complaint.kind, _name(complaint), complaint.message, extra=about)
                await self._write(complaint, uid)

    async def _write(self, complaint: Complaint, uid: str) -> None:
        namespace = complaint.namespace or "default"
        body = msgspec.json.encode(event(complaint, uid, self._node, datetime.now(UTC)))
        try:
            await self._api.post(f"/api/v1/namespaces/{namespace}/events", body)
        except AlreadyExistsError:
            pass  # another node, or this one before it was restarted
        except ApiError as error:
            log.warning("the event about %s %s is lost: %s", complaint.kind, _name(complaint), error)


def event(complaint: Complaint, uid: str, node: str, now: datetime) -> dict[str, Any]:
    """The Event object."""
    involved = {
        "apiVersion": _API_VERSIONS.get(complaint.kind, "v1"),
        "kind": complaint.kind,
        "namespace": complaint.namespace,
        "name": complaint.name,
        "uid": uid,
    }
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{complaint.name}.{complaint.id}",
            "namespace": complaint.namespace or "default",
        },
        "involvedObject": {key: value for key, value in involved.items() if value},
        "reason": complaint.reason,
        "message": complaint.message[:MOST_MESSAGE],
        "type": "Warning",
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }


def _name(complaint: Complaint) -> str:
    return "/".join(filter(None, (complaint.namespace, complaint.name)))
