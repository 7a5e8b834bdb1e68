"""The ranges that service addresses come from, and the record of each address (KEP-1880).

    ServiceCIDR   is Ready while it may be used. Deleted, it stays, not Ready, as long as an address of it is
                  held that no other range has, so that no Service is left with an address of no range.
    IPAddress     one for every ClusterIP, made by the API with the Service. Here what is not so is repaired:
                  one that is missing is made again, one whose Service does not have the address goes after
                  a minute (a Service that is just being made has its address first).

pkg/controller/servicecidrs and pkg/registry/core/service/ipallocator/controller of Kubernetes v1.36.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any, ClassVar, Final

from podlane.errors import AlreadyExistsError, ConfigError, ConflictError
from podlane.lab.api.allocation import ADDRESSES, CIDRS, DEFAULT_CIDR, address_object, cidr_object, ips_of
from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.informer import Key, WorkQueue, key_of
from podlane.model.addresses import Address, Prefix, address

FINALIZER: Final = "networking.k8s.io/service-cidr-finalizer"
READY: Final = "Ready"
MANAGED_BY: Final = "ipaddress.kubernetes.io/managed-by"
MANAGER: Final = "ipallocator.k8s.io"
GRACE_S: Final = 60.0
COMPONENT: Final = "ipallocator-repair-controller"


class ServiceCIDRs(Controller):
    resource: ClassVar[str] = CIDRS
    workers: ClassVar[int] = 1

    def __init__(self, context: Context) -> None:
        self.addresses = context.informer(ADDRESSES)
        super().__init__(context)

    def subscribe(self) -> None:
        self.addresses.subscribe(self._address_changed)

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        """One range more may let another one go."""
        super().changed(old, new)
        for each in self.objects.list():
            if facts.is_deleting(each):
                self.soon(key_of(each))

    def _address_changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is not None:
            return
        for each in self.objects.list():
            if facts.is_deleting(each):
                self.soon(key_of(each))

    async def run(self) -> None:
        self.queue.add(("", DEFAULT_CIDR))
        await super().run()

    async def reconcile(self, key: Key) -> float | None:
        cidr = self.objects.get(key[1])
        try:
            if cidr is None:
                if key[1] == DEFAULT_CIDR:
                    await self.context.create(CIDRS, cidr_object(self.context.config))
            elif not facts.is_deleting(cidr):
                await self._use(cidr)
            else:
                await self._release(cidr)
        except (AlreadyExistsError, ConflictError):
            return 0.05  # our view is behind
        return None

    async def _use(self, cidr: Obj) -> None:
        if FINALIZER not in _finalizers(cidr):
            cidr = await self._finalizers(cidr, [*_finalizers(cidr), FINALIZER])
        await self._ready(cidr, True, "", "Kubernetes Service CIDR is ready")

    async def _release(self, cidr: Obj) -> None:
        if FINALIZER not in _finalizers(cidr):
            return
        if self._held(cidr):
            why = (
                "There are still IPAddresses referencing the ServiceCIDR, "
                "please remove them or create a new ServiceCIDR"
            )
            await self._ready(cidr, False, "Terminating", why)
            return
        await self._finalizers(cidr, [each for each in _finalizers(cidr) if each != FINALIZER])

    def _held(self, cidr: Obj) -> bool:
        """An address of this range, and of no other, is in use."""
        mine = _prefixes(cidr)
        others = [
            prefix
            for each in self.objects.list()
            if key_of(each) != key_of(cidr) and not facts.is_deleting(each)
            for prefix in _prefixes(each)
        ]
        for each in self.addresses.list():
            where = _address(each["metadata"]["name"])
            if where is not None and _within(where, mine) and not _within(where, others):
                return True
        return False

    async def _finalizers(self, cidr: Obj, wanted: list[str]) -> Obj:
        metadata = {**cidr["metadata"], "finalizers": wanted}
        return await self.context.update(CIDRS, {**cidr, "metadata": metadata})

    async def _ready(self, cidr: Obj, ready: bool, reason: str, message: str) -> None:
        status = "True" if ready else "False"
        before = facts.condition(cidr, READY)
        if before is not None and (before["status"], before.get("reason", "")) == (status, reason):
            return
        condition = {
            "type": READY,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": facts.timestamp(self.context.now()),
        }
        await self.context.status(CIDRS, cidr, {**(cidr.get("status") or {}), "conditions": [condition]})


class ServiceAddresses(Controller):
    """Services and their IPAddresses agree. Keys are Services; `orphans` has the addresses' names."""

    resource: ClassVar[str] = "services"

    def __init__(self, context: Context) -> None:
        self.addresses = context.informer(ADDRESSES)
        self.orphans: WorkQueue[str] = WorkQueue(ADDRESSES, self._look_at_address, workers=1)
        super().__init__(context)

    def subscribe(self) -> None:
        self.addresses.subscribe(self._address_changed)

    def _address_changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is not None:
            self.orphans.add(new["metadata"]["name"])
        elif old is not None and (owner := _owner(old)) is not None:
            self.soon(owner)

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        super().changed(old, new)
        for ip in ips_of(old) if old is not None else ():
            self.orphans.add(ip)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.queue.run(), name="services")
            group.create_task(self.orphans.run(), name="addresses")

    @property
    def idle(self) -> bool:
        return self.queue.idle and self.orphans.idle

    async def reconcile(self, key: Key) -> float | None:
        service = self.objects.get(key[1], key[0])
        for ip in ips_of(service) if service is not None else ():
            where = _address(ip)
            if service is None or where is None:
                continue
            found = self.addresses.get(str(where))
            if found is None:
                try:
                    await self.context.create(ADDRESSES, address_object(where, service))
                except AlreadyExistsError:
                    return 0.05  # our view is behind
                message = f"Cluster IP [{where.version}]: {where} is not allocated; repairing"
                self._warn(service, "ClusterIPNotAllocated", message)
            elif _owner(found) != key:
                message = f"the IPAddress {where} is not this Service's: recreate the Service"
                self._warn(service, "ClusterIPAlreadyAllocated", message)
        return None

    def _warn(self, service: Obj, reason: str, message: str) -> None:
        self.context.events.warning("Service", service, reason, message, COMPONENT)

    async def _look_at_address(self, name: str) -> float | None:
        found = self.addresses.get(name)
        if found is None or facts.labels_of(found).get(MANAGED_BY) != MANAGER:
            return None
        owner = _owner(found)
        service = self.objects.get(owner[1], owner[0]) if owner is not None else None
        if service is not None and name in {str(_address(ip)) for ip in ips_of(service)}:
            return None
        age_s = self.context.now() - facts.seconds(found["metadata"]["creationTimestamp"])
        if age_s < GRACE_S:
            return GRACE_S - age_s
        await self.context.delete(ADDRESSES, found)
        return None


def _owner(found: Obj) -> Key | None:
    """(namespace, name) of the Service that an IPAddress is of."""
    parent = (found.get("spec") or {}).get("parentRef") or {}
    if parent.get("group", "") or parent.get("resource") != "services":
        return None
    return parent.get("namespace", ""), parent.get("name", "")


def _finalizers(cidr: Obj) -> list[str]:
    return list(cidr["metadata"].get("finalizers") or ())


def _prefixes(cidr: Obj) -> list[Prefix]:
    return [ip_network(text) for text in (cidr.get("spec") or {}).get("cidrs") or ()]


def _within(where: Address, prefixes: Iterable[Any]) -> bool:
    return any(each.version == where.version and where in each for each in prefixes)


def _address(text: str) -> Address | None:
    try:
        return address(text)
    except ConfigError:
        return None
