"""The EndpointSlice mirroring controller: Endpoints that people write, as slices (KEP-752).

A Service without a selector has the Endpoints somebody made for it; proxies read slices only. Left alone:
Endpoints labelled endpointslice.kubernetes.io/skip-mirror=true, those that are leader election locks, and
those of services with a selector.
"""

from __future__ import annotations

from typing import Any, ClassVar

from podlane.lab.client import Obj
from podlane.lab.controllers import facts, slicing
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.controllers.endpointslice import SLICES, write
from podlane.lab.controllers.facts import labels_of
from podlane.lab.informer import Key, key_of

MANAGER = "endpointslicemirroring-controller.k8s.io"
SKIP = "endpointslice.kubernetes.io/skip-mirror"
LEADER = "control-plane.alpha.kubernetes.io/leader"
MAX_PER_SUBSET = 1000


class Mirroring(Controller):
    resource: ClassVar[str] = "endpoints"
    settle_s = 0.005

    def __init__(self, context: Context) -> None:
        self.services = context.informer("services")
        self.slices = context.informer(SLICES)
        super().__init__(context)

    def subscribe(self) -> None:
        self.services.subscribe(self._service_changed)
        self.slices.subscribe(self._slice_changed)

    def _service_changed(self, old: Obj | None, new: Obj | None) -> None:
        service = new or old
        if service is not None and _selector(old) != _selector(new):
            self.soon(key_of(service))

    def _slice_changed(self, old: Obj | None, new: Obj | None) -> None:
        for each in (old, new):
            labels = labels_of(each) if each is not None else {}
            name = labels.get(slicing.SERVICE_NAME)
            if each is not None and name and labels.get(slicing.MANAGED_BY) == MANAGER:
                self.soon((each["metadata"]["namespace"], name))

    async def reconcile(self, key: Key) -> float | None:
        namespace, name = key
        endpoints = self.objects.get(name, namespace)
        if endpoints is None or facts.is_deleting(endpoints):
            return None  # the slices go with their owner
        existing = [
            s
            for s in self.slices.owned_by(endpoints["metadata"]["uid"])
            if labels_of(s).get(slicing.MANAGED_BY) == MANAGER and not facts.is_deleting(s)
        ]
        if not self._mirrored(endpoints):
            for each in existing:
                await self.context.delete(SLICES, each)
            return None
        reserved = (slicing.SERVICE_NAME, slicing.MANAGED_BY)
        labels = {k: v for k, v in labels_of(endpoints).items() if k not in reserved}
        labels |= {slicing.SERVICE_NAME: name, slicing.MANAGED_BY: MANAGER}
        plan = slicing.plan(existing, desired_of(endpoints), labels)
        owner = {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "name": name,
            "uid": endpoints["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        annotations = facts.annotations_of(endpoints)
        trigger = annotations.get(slicing.TRIGGER_TIME) or facts.timestamp(self.context.now())
        await write(self.context, plan, owner, namespace, trigger)
        return None

    def _mirrored(self, endpoints: Obj) -> bool:
        service = self.services.get(endpoints["metadata"]["name"], endpoints["metadata"]["namespace"])
        return (
            service is not None
            and not service["spec"].get("selector")
            and labels_of(endpoints).get(SKIP) != "true"
            and LEADER not in facts.annotations_of(endpoints)
        )


def _selector(service: Obj | None) -> Any:
    """None: no service; (): a service without selector."""
    return None if service is None else tuple((service["spec"].get("selector") or {}).items())


def desired_of(endpoints: Obj) -> slicing.Desired:
    desired: slicing.Desired = {}
    for subset in endpoints.get("subsets") or ():
        ports = [
            {"name": p.get("name") or "", "protocol": p.get("protocol") or "TCP", "port": p["port"]}
            | ({"appProtocol": p["appProtocol"]} if p.get("appProtocol") else {})
            for p in subset.get("ports") or ()
        ]
        left = MAX_PER_SUBSET
        for field, ready in (("addresses", True), ("notReadyAddresses", False)):
            for address in (subset.get(field) or ())[:left]:
                left -= 1
                group = slicing.group_of(slicing.family_of_ip(address["ip"]), ports)
                members = desired.setdefault(group, [])
                endpoint = _endpoint(address, ready)
                if slicing.identity(endpoint) not in map(slicing.identity, members):
                    members.append(endpoint)
    return desired


def _endpoint(address: Obj, ready: bool) -> Obj:
    endpoint: Obj = {"addresses": [address["ip"]], "conditions": {"ready": ready}}
    for field in ("hostname", "nodeName", "targetRef"):
        if address.get(field):
            endpoint[field] = address[field]
    return endpoint
