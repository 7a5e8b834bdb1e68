"""Addresses from LoadBalancerPools for Services of type LoadBalancer.

    Service ──claim_of──> Addresses.settle ──> finalizer and annotations, then status.loadBalancer.ingress
    no address to be had ──> event AllocationFailed; asked again when a pool or another service changes

The finalizer and the annotation `podlane.dev/allocated-from-pool` are written before the address shows, so
that none is forgotten; they go last. What the API says is taken over at the start, so a restart moves no
address. Which node answers for an address is the agents' business (compile/announce.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import ClassVar, Final

from podlane.controller.addresses_announced import Announced, outdated
from podlane.controller.allocation import Addresses, Claim, Given, RefusedError
from podlane.controller.client import Obj
from podlane.controller.context import Context, Controller, Runnable
from podlane.controller.informer import Key, key_of
from podlane.controller.meta import annotations_of, is_deleting, labels_of
from podlane.controller.pool_statuses import PoolStatuses
from podlane.errors import ConfigError
from podlane.model import pools
from podlane.model.addresses import Address, Family, address, family_of
from podlane.model.pools import (
    ALLOCATED_FROM,
    ANNOUNCED_BY,
    ANNOUNCING_NODES,
    CLASS_NODE,
    CLASS_POOL,
    FINALIZER,
)

COMPONENT: Final = "podlane-controller"
POOLS, NODES = "pools", "nodes"

# The same said with the annotations of MetalLB, so that manifests written for it work.
_ALIASES: Final = {
    pools.WANTED_ADDRESSES: "metallb.io/loadBalancerIPs",
    pools.WANTED_POOL: "metallb.io/address-pool",
    pools.SHARING_KEY: "metallb.io/allow-shared-ip",
}


def server_of(service: Obj, *, any_pool: bool) -> str | None:
    """Who gives the Service its addresses: POOLS, NODES (their own), or None: nobody here."""
    spec = service["spec"]
    if spec.get("type") != "LoadBalancer" or is_deleting(service):
        return None
    by_class = {None: POOLS if any_pool else NODES, CLASS_POOL: POOLS, CLASS_NODE: NODES}
    return by_class.get(spec.get("loadBalancerClass") or None)


def ingress_of(service: Obj) -> list[Obj]:
    return ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []


class LoadBalancers(Controller):
    resource: ClassVar[str] = "services"

    def __init__(self, context: Context) -> None:
        self.addresses = Addresses()
        self.faults: dict[str, str] = {}
        """Pools that cannot be read, and why."""
        self.used: Callable[[str], None] = lambda pool: None
        """Called with the name of a pool whose use changed."""
        self.pools = context.informer(pools.RESOURCE)
        self.nodes = context.informer("nodes")
        self.namespaces = context.informer("namespaces")
        self._waiting: set[Key] = set()
        self._told: dict[Key, str] = {}  # why there is no address, as it was said last
        super().__init__(context)

    @property
    def waiting(self) -> int:
        """How many services no address could be given."""
        return len(self._waiting)

    def subscribe(self) -> None:
        self.pools.subscribe(self._pool_changed)
        self.nodes.subscribe(self._node_changed)
        self.namespaces.subscribe(self._namespace_changed)

    # --- what happened ---

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None:
            if old is not None:
                self._waiting.discard(key_of(old))
                self._told.pop(key_of(old), None)
                self._freed(self.addresses.release(key_of(old)))
            return
        key = key_of(new)
        if ALLOCATED_FROM in annotations_of(new) and not self.addresses.given(key) and _balanced(new):
            # Allocated in an earlier life. Whether it may keep them is decided when it is reconciled.
            self.addresses.adopt(
                self._roughly(new), pools.addresses(i.get("ip", "") for i in ingress_of(new))
            )
        if _balanced(new) or (old is not None and _balanced(old)) or _touched(new):
            self.queue.add(key)

    def _pool_changed(self, old: Obj | None, new: Obj | None) -> None:
        if old is not None and new is not None and old.get("spec") == new.get("spec"):
            return
        found, self.faults = [], {}
        for each in self.pools.list():
            try:
                if not is_deleting(each):
                    found.append(pools.parse(each))
            except ConfigError as error:
                self.faults[each["metadata"]["name"]] = str(error)
        config = self.context.config
        taken = {f"the pods' {family} prefix": p for family, p in config.pods.items()}
        taken |= {f"the services' {family} prefix": p for family, p in config.cluster_services.items()}
        self.addresses.set_pools(found, taken)
        for each in self.pools.list():
            self.used(each["metadata"]["name"])
        self._all()

    def _node_changed(self, old: Obj | None, new: Obj | None) -> None:
        before, after = (_own_addresses(each) if each is not None else [] for each in (old, new))
        if before != after:
            self.addresses.reserve(key_of(new or old or {})[1], after)
            if any(self.addresses.pool_of(where) for where in before):
                self._wake()

    def _namespace_changed(self, old: Obj | None, new: Obj | None) -> None:
        if old is not None and new is not None and labels_of(old) != labels_of(new):
            for service in self.objects.list(new["metadata"]["name"]):
                if _balanced(service):
                    self.queue.add(key_of(service))

    def _all(self) -> None:
        for service in self.objects.list():
            if _balanced(service) or _touched(service):
                self.queue.add(key_of(service))

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for key in waiting:
            self.queue.add(key)

    def _freed(self, addresses: tuple[Address, ...]) -> None:
        if addresses:
            self._tell(addresses)
            self._wake()

    def _tell(self, addresses: tuple[Address, ...]) -> None:
        for where in addresses:
            if (pool := self.addresses.pool_of(where)) is not None:
                self.used(pool.name)

    # --- one service ---

    async def reconcile(self, key: Key) -> float | None:
        service = self.objects.get(key[1], key[0])
        if service is None:
            return None
        if server_of(service, any_pool=bool(len(self.pools))) != POOLS:
            await self._release(service)
            return None
        had = self.addresses.given(key)
        try:
            given = self.addresses.settle(self._claim(service))
        except (RefusedError, ConfigError) as error:
            self._freed(self.addresses.release(key))
            self._freed(had)
            self._waiting.add(key)
            if self._told.get(key) != str(error):  # looked at again for others' sake, it says nothing new
                self._told[key] = str(error)
                self.context.events.warning("Service", service, "AllocationFailed", str(error), COMPONENT)
            await self._release(service)
            return None
        self._waiting.discard(key)
        self._told.pop(key, None)
        if given.addresses != had:
            self._tell(given.addresses)
            self._freed(tuple(set(had) - set(given.addresses)))
        await self._show(service, given)
        return None

    async def _show(self, service: Obj, given: Given) -> None:
        pool = self.addresses.pools[given.pool]
        ways = ",".join(pool.announce)
        marks = {ALLOCATED_FROM: pool.name, ANNOUNCING_NODES: str(pool.nodes), ANNOUNCED_BY: ways}
        service = await self._mark(service, marks)
        ingress = [{"ip": str(where), "ipMode": "VIP"} for where in given.addresses]
        if ingress != ingress_of(service):
            before = ", ".join(each.get("ip", "") for each in ingress_of(service))
            await self._ingress(service, ingress)
            message = f"Assigned {', '.join(map(str, given.addresses))} from pool {pool.name}"
            message += f" in place of {before}" if before else ""
            self.context.events.normal("Service", service, "IPAllocated", message, COMPONENT)

    async def _release(self, service: Obj) -> None:
        """Takes back what was given, and the marks of it last."""
        self._freed(self.addresses.release(key_of(service)))
        if not _touched(service):
            return  # of another controller, or of none
        if ingress_of(service):  # of another type by now, too
            before = ", ".join(each.get("ip", "") for each in ingress_of(service))
            if not is_deleting(service):
                self.context.events.normal(
                    "Service", service, "IPReleased", f"{before} taken back", COMPONENT
                )
            service = await self._ingress(service, [])
        await self._mark(service, {})

    async def _ingress(self, service: Obj, ingress: list[Obj]) -> Obj:
        """What agents said of the addresses before goes along."""
        status = dict(service.get("status") or {})
        status["loadBalancer"] = {"ingress": ingress} if ingress else {}
        there = {i["ip"] for i in ingress}
        conditions = [c for c in status.pop("conditions", None) or () if not outdated(c, there)]
        if conditions:
            status["conditions"] = conditions
        return await self.context.status("services", service, status)

    async def _mark(self, service: Obj, marks: dict[str, str]) -> Obj:
        """The finalizer and our annotations as they shall be; without marks none of them."""
        held, kept = annotations_of(service), service["metadata"].get("finalizers") or []
        wanted = {name: marks.get(name) or None for name in (ALLOCATED_FROM, ANNOUNCING_NODES, ANNOUNCED_BY)}
        finalizers = [*kept, FINALIZER] if marks and FINALIZER not in kept else list(kept)
        if not marks:
            finalizers = [each for each in kept if each != FINALIZER]
        annotations = {name: value for name, value in wanted.items() if held.get(name) != value}
        if not annotations and finalizers == kept:
            return service
        patch: Obj = {"annotations": annotations, "finalizers": finalizers}
        return await self.context.patch("services", service, {"metadata": patch})

    # --- what a service asks for ---

    def _roughly(self, service: Obj) -> Claim:
        """Also of a service whose annotations say nothing that can be read."""
        try:
            return self._claim(service)
        except (ConfigError, RefusedError):
            return Claim(key_of(service), ())

    def _claim(self, service: Obj) -> Claim:
        """Raises ConfigError or RefusedError for what contradicts itself."""
        spec, key = service["spec"], key_of(service)
        families = tuple(Family(each) for each in spec.get("ipFamilies") or ())
        namespace = self.namespaces.get(key[0])
        local = spec.get("externalTrafficPolicy") == "Local"
        selector = json.dumps(spec.get("selector") or {}, sort_keys=True)
        return Claim(
            key,
            families,
            spec.get("ipFamilyPolicy") != "PreferDualStack",
            labels_of(service),
            labels_of(namespace) if namespace is not None else {},
            wanted_of(service, families),
            _said(service, pools.WANTED_POOL),
            _said(service, pools.SHARING_KEY),
            frozenset((p.get("protocol") or "TCP", p["port"]) for p in spec.get("ports") or ()),
            f"Local {selector}" if local else "Cluster",
            service["metadata"].get("creationTimestamp") or "",
        )


def wanted_of(service: Obj, families: tuple[Family, ...]) -> tuple[Address, ...]:
    """The addresses a Service asks for. Raises RefusedError for what cannot be had together."""
    said = _said(service, pools.WANTED_ADDRESSES)
    by_field = service["spec"].get("loadBalancerIP") or ""
    if said and by_field and by_field not in said:
        raise RefusedError(
            f"the annotation asks for {said}, spec.loadBalancerIP for {by_field}; leave one out"
        )
    wanted = [address(text.strip()) for text in (said or by_field).split(",") if text.strip()]
    for where in wanted:
        if family_of(where) not in families:
            raise RefusedError(f"it asks for {where}, but its ipFamilies are {', '.join(families)}")
    if len({family_of(where) for where in wanted}) < len(wanted):
        raise RefusedError(f"it asks for {', '.join(map(str, wanted))}: one address a family at most")
    return tuple(wanted)


def _said(service: Obj, annotation: str) -> str:
    found = annotations_of(service)
    return found.get(annotation) or found.get(_ALIASES[annotation]) or ""


def _balanced(service: Obj) -> bool:
    return bool(service["spec"].get("type") == "LoadBalancer")


def _touched(service: Obj) -> bool:
    return ALLOCATED_FROM in annotations_of(service)


def _own_addresses(node: Obj) -> list[Address]:
    addresses = (node.get("status") or {}).get("addresses") or ()
    return pools.addresses(a["address"] for a in addresses if a.get("type") in ("InternalIP", "ExternalIP"))


def make(context: Context) -> list[Runnable]:
    balancers = LoadBalancers(context)
    return [balancers, PoolStatuses(context, balancers), Announced(context)]


__all__ = ["NODES", "POOLS", "LoadBalancers", "PoolStatuses", "make", "server_of"]
