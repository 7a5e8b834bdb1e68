"""The EndpointSlice controller: the pods behind every Service with a selector, in slices.

What a client of a service reaches is exactly what stands in these slices. slicing.py decides; here the
changes are collected for a moment, written, and only if something differs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from podlane.errors import NotFoundError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts, slicing
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.controllers.facts import ZONE, labels_of
from podlane.lab.informer import Key, WorkQueue, key_of

SLICES = "endpointslices.discovery.k8s.io"
MANAGER = "endpointslice-controller.k8s.io"

SETTLE_S = 0.005
SETTLE_POD_S = 0.002  # more, for every pod the service has
SETTLE_MOST_S = 0.5


class ServicePods:
    """Which services a change of a pod or node concerns, and how soon it is to be told."""

    def __init__(self, context: Context) -> None:
        self.services = context.informer("services")
        self.pods = context.informer("pods")
        self.nodes = context.informer("nodes")
        self._sizes: dict[Key, int] = {}

    def subscribe(self, queue: WorkQueue[Key]) -> None:
        """The keys of the services to look at are added to queue.

        An endpoint that goes is told almost at once. Those that come are collected, the longer the more
        there are already: every rewrite of a large service is work for every node.
        """

        def pod_changed(old: Obj | None, new: Obj | None) -> None:
            if old is not None and new is not None and _pod_facts(old) == _pod_facts(new):
                return
            going = old is not None and _answers(old) and (new is None or not _answers(new))
            for pod in (old, new):
                if pod is not None:
                    for service in self.services.list(pod["metadata"]["namespace"]):
                        if selects(service, pod):
                            key = key_of(service)
                            queue.add_after(key, SETTLE_S if going else self.settle_s(key))

        def node_changed(old: Obj | None, new: Obj | None) -> None:
            if _zone(old) == _zone(new):
                return
            name = ((new or old) or {})["metadata"]["name"]
            for pod in self.pods.on_node(name):
                pod_changed(None, pod)

        self.pods.subscribe(pod_changed)
        self.nodes.subscribe(node_changed)

    def of(self, service: Obj) -> list[Obj]:
        found = [p for p in self.pods.list(service["metadata"]["namespace"]) if selects(service, p)]
        self._sizes[key_of(service)] = len(found)
        return found

    def settle_s(self, key: Key) -> float:
        return min(SETTLE_S + SETTLE_POD_S * self._sizes.get(key, 0), SETTLE_MOST_S)

    def forget(self, key: Key) -> None:
        """The service is no more."""
        self._sizes.pop(key, None)

    def zone_of(self, node: str) -> str:
        return _zone(self.nodes.get(node))


def _answers(pod: Obj) -> bool:
    return facts.is_ready(pod) and not facts.is_deleting(pod)


def selects(service: Obj, pod: Obj) -> bool:
    selector = service["spec"].get("selector")
    return bool(selector) and bool(selector.items() <= labels_of(pod).items())


def _zone(node: Obj | None) -> str:
    return labels_of(node).get(ZONE, "") if node is not None else ""


def _pod_facts(pod: Obj) -> Any:
    spec = pod["spec"]
    return (
        labels_of(pod),
        facts.ips_of(pod),
        facts.is_ready(pod),
        facts.is_deleting(pod),
        facts.is_finished(pod),
        facts.node_of(pod),
        spec.get("hostname"),
        spec.get("subdomain"),
        pod["metadata"].get("uid"),
    )


def service_labels(service: Obj, manager: str) -> dict[str, str]:
    """Labels of the slices of a service: its own but the reserved ones, its name, and who writes them."""
    reserved = (slicing.SERVICE_NAME, slicing.MANAGED_BY, slicing.HEADLESS)
    labels = {k: v for k, v in labels_of(service).items() if k not in reserved}
    labels[slicing.SERVICE_NAME] = service["metadata"]["name"]
    labels[slicing.MANAGED_BY] = manager
    if slicing.is_headless(service):
        labels[slicing.HEADLESS] = ""
    return labels


def trigger_time(service: Obj, pods: list[Obj], now_s: float) -> str:
    """When the latest of the changes these endpoints follow from happened, as far as objects tell."""
    times = [facts.created_s(service)]
    for pod in pods:
        times.append(facts.seconds((facts.condition(pod, "Ready") or {}).get("lastTransitionTime")))
    return facts.timestamp(max((t for t in times if t <= now_s), default=now_s))


class EndpointSlices(Controller):
    resource: ClassVar[str] = "services"

    def __init__(self, context: Context) -> None:
        self.slices = context.informer(SLICES)
        self.members = ServicePods(context)
        super().__init__(context)

    def subscribe(self) -> None:
        self.members.subscribe(self.queue)
        self.slices.subscribe(self._slice_changed)

    def _slice_changed(self, old: Obj | None, new: Obj | None) -> None:
        """Somebody else wrote or deleted one of ours; or we did, so this is no reason to hurry."""
        for each in (old, new):
            if each is not None and labels_of(each).get(slicing.MANAGED_BY) == MANAGER:
                name = labels_of(each).get(slicing.SERVICE_NAME)
                if name:
                    key = (each["metadata"]["namespace"], name)
                    self.queue.add_after(key, self.members.settle_s(key))

    async def reconcile(self, key: Key) -> float | None:
        namespace, name = key
        service = self.objects.get(name, namespace)
        if service is None or facts.is_deleting(service):
            self.members.forget(key)
            return None  # the slices go with their owner
        if not service["spec"].get("selector") or service["spec"].get("type") == "ExternalName":
            return None
        pods = self.members.of(service)
        existing = [
            s
            for s in self.slices.owned_by(service["metadata"]["uid"])
            if labels_of(s).get(slicing.MANAGED_BY) == MANAGER and not facts.is_deleting(s)
        ]
        desired = slicing.desired_of(service, pods, self.members.zone_of)
        plan = slicing.plan(existing, desired, service_labels(service, MANAGER))
        if not plan:
            return None
        owner = {
            "apiVersion": "v1",
            "kind": "Service",
            "name": name,
            "uid": service["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        await write(self.context, plan, owner, namespace, trigger_time(service, pods, self.context.now()))
        return None


async def write(context: Context, plan: slicing.Plan, owner: Obj, namespace: str, trigger: str) -> None:
    """Creations first and deletions last: no endpoint is out of all slices in between."""
    for each in plan.create:
        meta = {
            **each["metadata"],
            "generateName": f"{owner['name']}-",
            "namespace": namespace,
            "annotations": {slicing.TRIGGER_TIME: trigger},
            "ownerReferences": [owner],
        }
        await context.create(SLICES, {**each, "metadata": meta}, namespace)
    for each in plan.update:
        annotations = {**facts.annotations_of(each), slicing.TRIGGER_TIME: trigger}
        meta = {**each["metadata"], "annotations": annotations}
        try:
            await context.update(SLICES, {**each, "metadata": meta})
        except NotFoundError:
            continue  # its DELETED event brings us back
    for each in plan.delete:
        await context.delete(SLICES, each)
