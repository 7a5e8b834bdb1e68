"""Addresses for Services of type LoadBalancer where there is no pool: those of the nodes themselves.

Every Ready node's InternalIPs of the service's families become status.loadBalancer.ingress (as the load
balancer of k3s and Cilium's Node IPAM do it); with externalTrafficPolicy Local only of nodes that have a
ready endpoint. With a LoadBalancerPool they are for loadBalancerClass podlane.dev/node alone
(controller/load_balancers.py); a Service of any other class is another controller's, and is left alone.

All of them share the nodes' addresses, so a port belongs to one Service: the one that has it keeps it, of
two that ask at once the older gets it. The other waits, with an event.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from podlane.controller import load_balancers
from podlane.lab.client import Obj
from podlane.lab.controllers import facts, slicing
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.controllers.endpointslice import SLICES
from podlane.lab.controllers.facts import labels_of
from podlane.lab.informer import Key, key_of
from podlane.model import pools

COMPONENT = "service-controller"


class LoadBalancers(Controller):
    resource: ClassVar[str] = "services"

    def __init__(self, context: Context) -> None:
        self.nodes = context.informer("nodes")
        self.slices = context.informer(SLICES)
        self.pools = context.informer(pools.RESOURCE)
        super().__init__(context)

    def subscribe(self) -> None:
        self.nodes.subscribe(self._node_changed)
        self.slices.subscribe(self._slice_changed)
        self.pools.subscribe(self._pool_changed)

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if any(each is not None and self._ours(each) for each in (old, new)):
            self._all()  # a port may have become free, or be taken

    def _pool_changed(self, old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None:
            for service in self.objects.list():
                if service["spec"].get("type") == "LoadBalancer":
                    self.queue.add(key_of(service))

    def _node_changed(self, old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None or _node_facts(old) != _node_facts(new):
            self._all()

    def _slice_changed(self, old: Obj | None, new: Obj | None) -> None:
        for piece in (old, new):
            if piece is not None and (name := labels_of(piece).get(slicing.SERVICE_NAME)):
                key = piece["metadata"]["namespace"], name
                service = self.objects.get(name, key[0])
                if service is not None and self._ours(service) and _local(service):
                    self.soon(key)

    def _all(self) -> None:
        for service in self.objects.list():
            if self._ours(service):
                self.queue.add(key_of(service))

    def _ours(self, service: Obj) -> bool:
        server = load_balancers.server_of(service, any_pool=bool(len(self.pools)))
        return server == load_balancers.NODES

    async def reconcile(self, key: Key) -> float | None:
        service = self.objects.get(key[1], key[0])
        if service is None:
            return None
        ingress: list[Obj] = []
        if not self._ours(service):
            if not self._given_before(service):
                return None  # of another type, the API has taken the addresses away
        elif (rival := self._rival(service)) is None:
            ingress = [{"ip": ip, "ipMode": "VIP"} for ip in self._addresses(service)]
        else:
            namespace, name = key_of(rival)
            message = (
                f"service {namespace}/{name} has the same port on the nodes' addresses; use another port"
            )
            self.context.events.warning("Service", service, "AllocationFailed", message, COMPONENT)
        status = dict(service.get("status") or {})
        balancer = dict(status.get("loadBalancer") or {})
        if ingress == (balancer.pop("ingress", None) or []):
            return None
        status["loadBalancer"] = {**balancer, "ingress": ingress} if ingress else balancer
        await self.context.status("services", service, status)
        return None

    def _rival(self, service: Obj) -> Obj | None:
        """Another service whose port it is."""
        ports, mine = _ports(service), _claim(service)
        for other in self.objects.list():
            if (
                self._ours(other)
                and key_of(other) != key_of(service)
                and not ports.isdisjoint(_ports(other))
                and _claim(other) < mine
            ):
                return other
        return None

    def _given_before(self, service: Obj) -> bool:
        """It has addresses of ours from when there was no pool, and the pools have given it none."""
        spec, own = service["spec"], {a for node in self.nodes.list() for a in _node_facts(node)[2]}
        left = {i.get("ip") for i in load_balancers.ingress_of(service)}
        unclaimed = pools.ALLOCATED_FROM not in (service["metadata"].get("annotations") or {})
        return bool(spec.get("type") == "LoadBalancer" and unclaimed and left and left <= own)

    def _addresses(self, service: Obj) -> Iterator[str]:
        nodes = sorted(self.nodes.list(), key=lambda n: (len(n["metadata"]["name"]), n["metadata"]["name"]))
        for family in slicing.families_of(service):
            having = self._with_endpoints(service, family) if _local(service) else None
            for node in nodes:
                ready, excluded, addresses = _node_facts(node)
                if ready and not excluded and (having is None or node["metadata"]["name"] in having):
                    yield from (a for a in addresses if slicing.family_of_ip(a) == family)

    def _with_endpoints(self, service: Obj, family: str) -> set[str]:
        """The nodes that have a ready endpoint."""
        namespace, name = key_of(service)
        return {
            endpoint.get("nodeName") or ""
            for piece in self.slices.list(namespace)
            if labels_of(piece).get(slicing.SERVICE_NAME) == name and piece["addressType"] == family
            for endpoint in piece.get("endpoints") or ()
            if (endpoint.get("conditions") or {}).get("ready") is not False
        }


def _local(service: Obj) -> bool:
    return bool(service["spec"].get("externalTrafficPolicy") == "Local")


def _ports(service: Obj) -> set[tuple[str, int]]:
    return {(p.get("protocol") or "TCP", p["port"]) for p in service["spec"].get("ports") or ()}


def _claim(service: Obj) -> tuple[bool, float, Key]:
    """The least has the better right."""
    has = bool(((service.get("status") or {}).get("loadBalancer") or {}).get("ingress"))
    return not has, facts.created_s(service), key_of(service)


def _node_facts(node: Obj) -> tuple[bool, bool, tuple[str, ...]]:
    """(may be used, is excluded by label, its addresses)"""
    ready = (facts.condition(node, "Ready") or {}).get("status") == "True" and not facts.is_deleting(node)
    addresses = (node.get("status") or {}).get("addresses") or ()
    internal = tuple(a["address"] for a in addresses if a.get("type") == "InternalIP")
    return ready, pools.EXCLUDE_LABEL in labels_of(node), internal
