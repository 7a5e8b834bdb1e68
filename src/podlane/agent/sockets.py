"""What the agent tells of services at the socket: /sockets as JSON, and counters for /metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from podlane.agent import http, report
from podlane.compile.tables import Backend
from podlane.kernel.bpf.sockets import SocketDriver, Use
from podlane.observe.exposition import Metric


class SocketPages:
    """Both read the kernel, on another thread."""

    def __init__(self, node: str, driver: SocketDriver) -> None:
        self._node, self._driver = node, driver

    async def page(self) -> http.Answer:
        uses = await asyncio.to_thread(lambda: list(self._driver.uses()))
        sockets = [_row(use) for use in uses]
        head = {"apiVersion": report.API_VERSION, "kind": "SocketList", "node": self._node}
        return http.as_json({**head, "sockets": sockets})

    async def metrics(self) -> str:
        chosen = await asyncio.to_thread(self._driver.chosen)
        samples = [
            (
                {
                    "namespace": key.namespace,
                    "service": key.service,
                    "port": key.port,
                    "protocol": key.protocol,
                    "endpoint": str(backend),
                },
                float(count),
            )
            for (key, backend), count in sorted(chosen.items())
        ]
        return report.exposition(
            Metric(
                "socket_choices_total",
                "counter",
                "How often the socket was given an endpoint: connections, and datagram sockets.",
                samples,
            ),
            Metric(
                "sockets_ended_total",
                "counter",
                "Sockets ended because their endpoint is gone.",
                [({}, self._driver.ending.deleted)],
            ),
        )


def _row(use: Use) -> dict[str, Any]:
    seen, key = use.seen, use.list
    return {
        "networkNamespace": use.netns,
        "protocol": seen.protocol,
        "local": _end(Backend(*seen.local)),
        "address": _end(seen.bound.service),
        "endpoint": _end(seen.bound.backend),
        "service": {"namespace": key.namespace, "name": key.service, "port": key.port} if key else None,
    }


def _end(backend: Backend) -> dict[str, Any]:
    return {"address": str(backend.address), "port": backend.port}
