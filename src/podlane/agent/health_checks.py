"""Health-check node ports: HTTP that tells a load balancer whether this node has endpoints of a Service.

The answer is 200 while a ready endpoint is here and the node's rules are kept current, else 503; whatever is
asked. The number of endpoints is in a header too, for balancers that share by it. Behaviour: kube-proxy
v1.36, pkg/proxy/healthcheck/service_health.go.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from podlane.agent import http
from podlane.compile.tables import HealthCheck, HealthCheckKey, SetName, Table
from podlane.delta import Delta, merge
from podlane.errors import KernelError
from podlane.kernel.driver import Failure, Report
from podlane.model.addresses import Address, Family, family_of

TABLES: Final = (Table.HEALTH_CHECKS, Table.SETS)

_BACKLOG: Final = 64

Place = tuple[Address, int]


class HealthChecks:
    """A Driver. Opens sockets in the network namespace of the calling thread; they are served on `loop`.

    healthy(): whether services are kept current on this node; set it before anybody asks.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.healthy: Callable[[], bool] = lambda: True
        self._loop = loop
        self._rows: dict[HealthCheckKey, HealthCheck] = {}
        self._addresses: set[Address] = set()
        self._servers: dict[Place, http.Server] = {}

    @property
    def tables(self) -> tuple[Table, ...]:
        return TABLES

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        self._rows = dict(desired.get(Table.HEALTH_CHECKS, {}))
        members = desired.get(Table.SETS, {})
        self._addresses = {m.value.network_address for m in members if _answers(m)}
        return self._settle()

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        merge(self._rows, changes.get(Table.HEALTH_CHECKS))
        if members := changes.get(Table.SETS):
            self._addresses -= {m.value.network_address for m in members.removed if _answers(m)}
            self._addresses |= {m.value.network_address for m in members.added if _answers(m)}
        return self._settle()

    async def close(self) -> None:
        for place in list(self._servers):
            await self._servers.pop(place).close()

    def _settle(self) -> Report:
        """Listen where it is wanted, and nowhere else."""
        wanted = {
            (address, key.port): key
            for key in self._rows
            for address in self._addresses
            if family_of(address) is key.family
        }
        operations, failures = 0, []
        for place in self._servers.keys() - wanted.keys():
            self._run(self._servers.pop(place).close())
            operations += 1
        for place in sorted(wanted.keys() - self._servers.keys(), key=str):
            try:
                self._open(place, wanted[place])
                operations += 1
            except OSError as error:
                where = f"health check on {place[0]} port {place[1]}"
                why = KernelError.of(error.errno or 0, where, error.strerror or str(error))
                failures.append(Failure(Table.HEALTH_CHECKS, wanted[place], why))
        return Report(operations, tuple(failures))

    def _open(self, place: Place, key: HealthCheckKey) -> None:
        listener = socket.socket(key.family.af, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if key.family is Family.IPV6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((str(place[0]), place[1]))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        server = http.Server({}, every=lambda: self._answer(key))
        self._run(server.listen_on(listener))
        self._servers[place] = server

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _answer(self, key: HealthCheckKey) -> http.Answer:
        row = self._rows.get(key)
        if row is None:
            return http.text("this port is being closed", 503)
        return answer(row, self.healthy())


def answer(row: HealthCheck, healthy: bool) -> http.Answer:
    body = {
        "service": {"namespace": row.namespace, "name": row.service},
        "localEndpoints": row.local_endpoints,
        "serviceProxyHealthy": healthy,
    }
    return http.Answer(
        200 if row.local_endpoints and healthy else 503,
        json.dumps(body, indent="\t").encode() + b"\n",
        "application/json",
        (
            ("X-Content-Type-Options", "nosniff"),
            ("X-Load-Balancing-Endpoint-Weight", str(row.local_endpoints)),
        ),
    )


def _answers(member: Any) -> bool:
    return member.set is SetName.NODE_PORT_IPS and not member.value.is_loopback
