"""What the agent finds out about endpoints: how long they have been there, and how many connections this
node has with them. It enters the compiler as changes (model/local.py: Shares).

An endpoint of a service with slow start begins with a sixteenth of its weight in the very generation that
brings it. What is there when the agent starts, or when a service is first told to start slowly, is old.

Connections are counted from time to time, in this node's own connection tracking: every node evens out what
it sends itself. Only flows to the services in question are read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final

from podlane.compile.balancing import Wish, weighed, weight, wish_of
from podlane.compile.endpoints import Known, endpoints
from podlane.compile.rebalancing import age_share, combined, load_shares, matters
from podlane.compile.services import ours
from podlane.compile.tables import Backend
from podlane.compile.view import SHARES, Change, View, service_of
from podlane.errors import ConfigError, KernelError
from podlane.kernel.conntrack.codec import Entry, Filter
from podlane.kernel.conntrack.flows import Flows
from podlane.model.addresses import Family, Protocol, address, family_of
from podlane.model.config import Balancing, Services
from podlane.model.local import WHOLE_SHARE, Shares
from podlane.model.objects import Service

log = logging.getLogger(__name__)

Key = tuple[str, str]
Read = Callable[[list[Filter]], list[Entry]]

_RAMP_PAUSE_S: Final = 1.0
_MANY_FILTERS: Final = 16
_OVER: Final = ("TIME_WAIT", "CLOSE", "LAST_ACK")


class Rebalancing:
    """settled(): whether what comes now is new. read: flows that match any of some filters; None for those of
    the calling thread's namespace."""

    def __init__(
        self, view: View, config: Services, settled: Callable[[], bool], read: Read | None = None
    ) -> None:
        self._view, self._config, self._settled = view, config, settled
        self._read = read or read_flows
        self._wishes: dict[Key, Wish] = {}
        self._since_s: dict[Key, dict[Backend, float]] = {}
        self._loads: dict[Key, dict[Backend, int]] = {}
        self._shares: dict[Key, dict[Backend, int]] = {}
        self._wake = asyncio.Event()

    # --- as news come in ---

    def follow(self, change: Change, now_s: float) -> Iterator[Change]:
        """Called after `change` has entered the view; what follows from it, for the same generation."""
        if change.kind == "Service":
            yield from self._service(change, now_s)
        elif change.kind == "EndpointSlice" and (key := service_of(change.object)) in self._wishes:
            self._age(key, now_s if self._settled() else -float("inf"))
            yield from self._told(key, now_s)

    def _service(self, change: Change, now_s: float) -> Iterator[Change]:
        service: Service | None = change.new
        key = change.object.key
        wish = wish_of(service, self._config) if service is not None and ours(service) else Wish()
        if wish.watched:
            if key not in self._wishes:
                self._wishes[key] = wish
                self._age(key, -float("inf"))
            self._wishes[key] = wish
            if wish.balancing is not Balancing.LEAST_CONNECTIONS:
                self._loads.pop(key, None)
            self._wake.set()
            yield from self._told(key, now_s)
        elif self._wishes.pop(key, None) is not None:
            self._since_s.pop(key, None)
            self._loads.pop(key, None)
            if self._shares.pop(key, None):
                yield Change(SHARES, Shares(*key), None)

    def _age(self, key: Key, new_s: float) -> None:
        """Note since when each ready endpoint has been there; new_s: for those not seen before."""
        known = self._since_s.get(key, {})
        ready = (each for each in self._known(key) if each.ready)
        self._since_s[key] = {each.backend: known.get(each.backend, new_s) for each in ready}
        self._wake.set()

    def _known(self, key: Key) -> Iterator[Known]:
        for there in endpoints(self._view.slices_of(*key)).values():
            yield from there.values()

    def _told(self, key: Key, now_s: float) -> Iterator[Change]:
        """The shares of a service, if they differ from those told last by enough."""
        slow_start_s, since_s = self._wishes[key].slow_start_s, self._since_s.get(key, {})
        ages = {
            backend: age_share(now_s - began_s, slow_start_s) if slow_start_s else WHOLE_SHARE
            for backend, began_s in since_s.items()
        }
        loads = {backend: share for backend, share in self._loads.get(key, {}).items() if backend in ages}
        new, old = combined(ages, loads), self._shares.get(key, {})
        if matters(old, new):
            self._shares[key] = new
            told = tuple((each.address, each.port, share) for each, share in sorted(new.items()))
            yield Change(SHARES, None, Shares(*key, told)) if told else Change(SHARES, Shares(*key), None)

    # --- as time goes by ---

    async def run(self, submit: Callable[[list[Change]], object]) -> None:
        """Without end."""
        counted_s = -float("inf")
        while True:
            pause_s = self._pause_s(time.monotonic(), counted_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_s)
            self._wake.clear()
            if not self._settled():
                await asyncio.sleep(_RAMP_PAUSE_S)
                continue
            now_s = time.monotonic()
            if now_s - counted_s >= self._config.rebalance_seconds and (counting := self.counting()):
                counted_s = now_s
                try:
                    found = await asyncio.to_thread(self._read, self.filters(counting))
                    self.count(counting, found)
                except KernelError as error:
                    log.warning("connections could not be counted: %s", error)
            if changes := [change for key in list(self._wishes) for change in self._told(key, now_s)]:
                submit(changes)

    def _pause_s(self, now_s: float, counted_s: float) -> float | None:
        """Until the next look; None: nothing changes by itself."""
        due: list[float] = []
        if self.counting():
            due.append(max(0.0, counted_s + self._config.rebalance_seconds - now_s))
        if any(
            now_s - began_s < self._wishes[key].slow_start_s + _RAMP_PAUSE_S
            for key, since_s in self._since_s.items()
            for began_s in since_s.values()
        ):
            due.append(_RAMP_PAUSE_S)
        return min(due, default=None)

    def counting(self) -> list[Key]:
        """Services whose connections count."""
        return [key for key, w in self._wishes.items() if w.balancing is Balancing.LEAST_CONNECTIONS]

    def filters(self, keys: Iterable[Key]) -> list[Filter]:
        """What to read for them: the flows to each of their addresses, or all if these are many."""
        found = dict.fromkeys(each for key in keys for each in self._ways_in(key))
        if len(found) <= _MANY_FILTERS:
            return list(found)
        return list(dict.fromkeys(Filter(each.family, each.protocol) for each in found))

    def _ways_in(self, key: Key) -> Iterator[Filter]:
        service = self._view.services.get(key)
        if service is None:
            return
        spec = service.spec
        texts = [*(spec.cluster_ips or [spec.cluster_ip]), *spec.external_ips]
        texts += [ingress.ip for ingress in service.status.load_balancer.ingress if ingress.ip]
        for port in spec.ports:
            protocol = Protocol(port.protocol).number if port.protocol in list(Protocol) else 0
            for text in texts:
                with suppress(ConfigError):  # the compiler refuses it, with words
                    where = address(text)
                    yield Filter(family_of(where), protocol, where, port.port)
            if port.node_port:
                yield from (Filter(family, protocol, None, port.node_port) for family in Family)

    def count(self, keys: Iterable[Key], found: Iterable[Entry]) -> None:
        """Turn connections into shares."""
        open_ = {(each.original, each.id): each for each in found if each.state not in _OVER}.values()
        counts = Counter(Backend(each.reply.source, each.reply.source_port) for each in open_)
        for key in keys:
            wish, service = self._wishes.get(key), self._view.services.get(key)
            if wish is None or service is None:
                continue
            loads: dict[Backend, int] = {}
            known = endpoints(self._view.slices_of(*key))
            for there in weighed(wish, service, known, self._view.pods_at).values():
                weights = {each.backend: weight(wish, each) for each in there.values() if each.ready}
                loads |= load_shares(counts, weights)
            self._loads[key] = loads


def read_flows(filters: list[Filter]) -> list[Entry]:
    """In the calling thread's namespace. Raises KernelError."""
    flows = Flows()
    try:
        return [entry for each in filters for entry in flows.list(each)]
    finally:
        flows.close()
