"""The status of each LoadBalancerPool: what of it is used, whether it can be, and whether anybody is told.

Ready        False: Invalid, or Overlaps another pool, which is older, or the cluster's own prefixes
Announced    False: announced by BGP alone, and bgp.peers names no router; absent where that is no matter
event Exhausted    the last address of a family was given
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final, Protocol

from podlane.controller.allocation import Addresses
from podlane.controller.client import Obj
from podlane.controller.context import Context, Controller
from podlane.controller.informer import Key, key_of
from podlane.controller.meta import condition, with_condition
from podlane.model import pools
from podlane.model.addresses import Family
from podlane.model.pools import Pool, Way

COMPONENT: Final = "podlane-controller"
READY, ANNOUNCED = "Ready", "Announced"
_MOST: Final = 2**53 - 1  # what every JSON reader takes for an integer


class Giver(Protocol):
    """Who gives the addresses. faults: pools that cannot be read, and why; used: called with the name of a
    pool whose use changed."""

    addresses: Addresses
    faults: dict[str, str]
    used: Callable[[str], None]


class PoolStatuses(Controller):
    resource: ClassVar[str] = pools.RESOURCE
    settle_s: ClassVar[float] = 0.1

    def __init__(self, context: Context, giver: Giver) -> None:
        self._giver = giver
        super().__init__(context)
        giver.used = lambda name: self.soon(("", name))

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is not None and (old is None or old.get("spec") != new.get("spec")):
            self.soon(key_of(new))

    async def reconcile(self, key: Key) -> float | None:
        document = self.objects.get(key[1])
        if document is None:
            return None
        pool = self._giver.addresses.pools.get(key[1])
        status = self._counts(document, pool) if pool is not None else {}
        conditions = self._ready(document)
        quiet = pool is not None and pool.announce == (Way.BGP,) and not self.context.config.bgp.peers
        if quiet or condition(document, ANNOUNCED) is not None:
            conditions = with_condition(conditions, ANNOUNCED, *_announced(quiet), self.context.now())
        for each in conditions:
            self._tell(document, each)
        await self.context.status(self.resource, document, {**status, "conditions": conditions})
        return None

    def _counts(self, document: Obj, pool: Pool) -> Obj:
        """What is used of each family; that nothing is left is told when it becomes so."""
        before: Obj = document.get("status") or {}
        counts: Obj = {}
        for family in Family:
            use = self._giver.addresses.use(pool, family)
            left = max(0, min(use.available, _MOST))
            counts |= {f"assigned{family}": use.assigned, f"available{family}": left}
            if not left and use.assigned and before.get(f"available{family}") != 0:
                words = f"all {use.assigned} {family} addresses are given; add a range to spec.addresses"
                self.context.events.warning(pools.KIND, document, "Exhausted", words, COMPONENT)
        return counts

    def _ready(self, document: Obj) -> list[Obj]:
        name = document["metadata"]["name"]
        fault, overlaps = self._giver.faults.get(name), self._giver.addresses.refused.get(name)
        reason = "Invalid" if fault else "Overlaps" if overlaps else "InUse"
        why = fault or overlaps
        return with_condition(
            (document.get("status") or {}).get("conditions") or (),
            READY,
            "False" if why else "True",
            reason,
            why or "its addresses may be given to services",
            self.context.now(),
        )

    def _tell(self, document: Obj, new: Obj) -> None:
        old = condition(document, new["type"]) or {}
        if new["status"] == "False" and old.get("message") != new["message"]:
            self.context.events.warning(pools.KIND, document, new["reason"], new["message"], COMPONENT)


def _announced(quiet: bool) -> tuple[str, str, str]:
    """status, reason, message"""
    if quiet:
        return "False", "NoPeers", "announce is bgp alone, and NetworkConfig bgp.peers names no router"
    return "True", "Told", "the network around is told of its addresses"
