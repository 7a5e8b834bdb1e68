"""Whether services are kept current on this node: what /livez, /healthz and health-check node ports say.

Healthy is who applies what it is told: no update has waited longer than TIMEOUT_S. /healthz asks for more: a
node that is being deleted, by its Node object or by the cluster autoscaler's taint, shall get no new
connections, and so is told to be unhealthy; /livez, which says whether to restart the agent, is not.
Behaviour: kube-proxy v1.36, pkg/proxy/healthcheck/proxy_health.go.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final

from podlane.agent import http
from podlane.model.addresses import Family
from podlane.model.objects import Node

TIMEOUT_S: Final = 60.0  # twice kube-proxy's sync period
GOING_TAINT: Final = "ToBeDeletedByClusterAutoscaler"


class ProxyHealth:
    """waiting_s(): for how long the oldest update has waited. node(): the own Node as it was last seen.

    node_gone: the API has it no more.
    """

    def __init__(
        self,
        families: Iterable[Family],
        waiting_s: Callable[[], float],
        node: Callable[[], Node | None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._families = list(families)
        self._waiting_s, self._node, self._now = waiting_s, node, now
        self._updated: datetime | None = None
        self.node_gone = False
        self.healthz_codes: Counter[int] = Counter()
        self.livez_codes: Counter[int] = Counter()

    def updated(self) -> None:
        """Everything that was told has been applied."""
        self._updated = self._now()

    @property
    def healthy(self) -> bool:
        return self._waiting_s() <= TIMEOUT_S

    @property
    def eligible(self) -> bool:
        """The node may get new connections."""
        node = self._node()
        if node is None:
            return not self.node_gone
        going = any(taint.key == GOING_TAINT for taint in node.spec.taints)
        return not (self.node_gone or going or node.metadata.deletion_timestamp)

    def healthz(self) -> http.Answer:
        return self._answer(self.healthy and self.eligible, self.healthz_codes)

    def livez(self) -> http.Answer:
        return self._answer(self.healthy, self.livez_codes)

    def _answer(self, good: bool, codes: Counter[int]) -> http.Answer:
        now = self._now()
        updated = (self._updated or now).isoformat()
        body = {
            "lastUpdated": updated,
            "currentTime": now.isoformat(),
            "nodeEligible": self.eligible,
            "status": {f: {"lastUpdated": updated, "healthy": self.healthy} for f in self._families},
        }
        status = 200 if good else 503
        codes[status] += 1
        headers = (("X-Content-Type-Options", "nosniff"),)
        return http.Answer(status, json.dumps(body).encode() + b"\n", "application/json", headers)
