"""The Endpoints controller: the older API, one object a service, primary family only.

Deprecated since Kubernetes v1.33, still read by many. At most 1000 addresses; more are cut off, with the
annotation endpoints.kubernetes.io/over-capacity: truncated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec

from podlane.errors import AlreadyExistsError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts, slicing
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.controllers.endpointslice import ServicePods, trigger_time
from podlane.lab.controllers.facts import labels_of
from podlane.lab.informer import Key

MANAGED_BY = "endpoints.kubernetes.io/managed-by"
MANAGER = "endpoint-controller"
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
MAX_ADDRESSES = 1000


class EndpointsController(Controller):
    resource: ClassVar[str] = "services"

    def __init__(self, context: Context) -> None:
        self.endpoints = context.informer("endpoints")
        self.members = ServicePods(context)
        super().__init__(context)

    def subscribe(self) -> None:
        self.members.subscribe(self.queue)
        self.endpoints.subscribe(self._endpoints_changed)

    def _endpoints_changed(self, old: Obj | None, new: Obj | None) -> None:
        obj = new or old
        if obj is not None and (new is None or labels_of(obj).get(MANAGED_BY) == MANAGER):
            key = (obj["metadata"]["namespace"], obj["metadata"]["name"])
            self.queue.add_after(key, self.members.settle_s(key))

    async def reconcile(self, key: Key) -> float | None:
        namespace, name = key
        service = self.objects.get(name, namespace)
        found = self.endpoints.get(name, namespace)
        if service is None:
            self.members.forget(key)
            # They have no owner reference: here is who removes them.
            if found is not None and labels_of(found).get(MANAGED_BY) == MANAGER:
                await self.context.delete("endpoints", found)
            return None
        spec = service["spec"]
        if facts.is_deleting(service) or not spec.get("selector") or spec.get("type") == "ExternalName":
            return None
        pods = self.members.of(service)
        subsets, truncated = subsets_of(service, pods)
        labels = {k: v for k, v in labels_of(service).items() if k != slicing.HEADLESS}
        labels[MANAGED_BY] = MANAGER
        if slicing.is_headless(service):
            labels[slicing.HEADLESS] = ""
        if found is None:
            await self._create(service, subsets, labels, truncated, pods)
            return None
        cut = facts.annotations_of(found).get(OVER_CAPACITY) == "truncated"
        if same_subsets(found, subsets) and labels_of(found) == labels and cut == truncated:
            return None
        annotations = self._annotations(facts.annotations_of(found), truncated, service, pods)
        meta = {**found["metadata"], "labels": labels, "annotations": annotations}
        await self.context.update("endpoints", {**found, "metadata": meta, "subsets": subsets})
        return None

    async def _create(
        self, service: Obj, subsets: list[Obj], labels: dict[str, str], truncated: bool, pods: list[Obj]
    ) -> None:
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        meta = {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": self._annotations({}, truncated, service, pods),
        }
        body: Obj = {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": subsets}
        try:
            await self.context.create("endpoints", body, namespace)
        except AlreadyExistsError:
            return  # its event brings us back

    def _annotations(
        self, old: dict[str, str], truncated: bool, service: Obj, pods: list[Obj]
    ) -> dict[str, str]:
        annotations = {k: v for k, v in old.items() if k != OVER_CAPACITY}
        if truncated:
            annotations[OVER_CAPACITY] = "truncated"
        annotations[slicing.TRIGGER_TIME] = trigger_time(service, pods, self.context.now())
        return annotations


def subsets_of(service: Obj, pods: Iterable[Obj]) -> tuple[list[Obj], bool]:
    """(subsets in canonical order, whether addresses were left out)"""
    family = slicing.families_of(service)[0]
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    by_ports: dict[bytes, tuple[list[Obj], list[Obj]]] = {}
    for pod in pods:
        address = _address_of(service, pod, family)
        if address is None or facts.is_finished(pod) or (facts.is_deleting(pod) and not publish):
            continue
        ports = slicing.ports_of(service, pod)
        if service["spec"].get("ports") and not ports:
            continue
        key = msgspec.json.encode([{k: v for k, v in p.items() if v != ""} for p in ports], order="sorted")
        ready, not_ready = by_ports.setdefault(key, ([], []))
        (ready if publish or facts.is_ready(pod) else not_ready).append(address)
    room = MAX_ADDRESSES
    truncated = sum(len(r) + len(n) for r, n in by_ports.values()) > room
    subsets = []
    for key in sorted(by_ports):
        subset: Obj = {}
        for field, addresses in zip(("addresses", "notReadyAddresses"), by_ports[key], strict=True):
            chosen = sorted(addresses, key=lambda a: (a["ip"], a["targetRef"]["uid"]))[:room]
            room -= len(chosen)
            if chosen:
                subset[field] = chosen
        if ports := msgspec.json.decode(key):
            subset["ports"] = ports
        if subset.get("addresses") or subset.get("notReadyAddresses"):
            subsets.append(subset)
    return subsets, truncated


def _address_of(service: Obj, pod: Obj, family: str) -> Obj | None:
    ip = next((i for i in facts.ips_of(pod) if slicing.family_of_ip(i) == family), None)
    if ip is None:
        return None
    meta = pod["metadata"]
    address: Obj = {
        "ip": ip,
        "targetRef": {
            "kind": "Pod",
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
        },
    }
    if node := facts.node_of(pod):
        address["nodeName"] = node
    if (hostname := slicing.hostname_in(service, pod)) is not None:
        address["hostname"] = hostname
    return address


def same_subsets(found: Obj, wanted: list[Obj]) -> bool:
    return bool(_plain(found.get("subsets") or []) == _plain(wanted))


def _plain(value: Any) -> Any:
    """Without fields the API shows as null or empty."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v not in (None, [], {})}
    return [_plain(v) for v in value] if isinstance(value, list) else value
