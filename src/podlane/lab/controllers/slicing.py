"""Which endpoints a Service has, and in which EndpointSlice each one lives. Pure.

KEP-752; pkg and staging/src/k8s.io/endpointslice of Kubernetes v1.36. Endpoints of one address family whose
pods resolve the service's ports alike share slices of at most 100; an endpoint stays in the slice it is
in, so that one pod's change rewrites one slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec

from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from podlane.lab.controllers.facts import labels_of

MAX_ENDPOINTS = 100
SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
HEADLESS = "service.kubernetes.io/headless"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"


class Group(NamedTuple):
    """Endpoints that may share a slice. ports: the slice's ports as canonical JSON."""

    family: str
    ports: bytes


Desired: TypeAlias = dict[Group, list[Obj]]


class Plan(NamedTuple):
    """Slices to create (without metadata), to update (the whole new object), to delete."""

    create: list[Obj]
    update: list[Obj]
    delete: list[Obj]

    def __bool__(self) -> bool:
        return bool(self.create or self.update or self.delete)


# --- pods to endpoints ----------------------------------------------------------------------------


def families_of(service: Obj) -> list[str]:
    """Address families of a service, primary first."""
    spec = service["spec"]
    if spec.get("ipFamilies"):
        return list(spec["ipFamilies"])
    address = spec.get("clusterIP") or ""
    return ["IPv6" if ":" in address else "IPv4"]


def family_of_ip(text: str) -> str:
    return "IPv6" if ":" in text else "IPv4"


def is_headless(service: Obj) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


def has_endpoints(pod: Obj) -> bool:
    """Terminating pods too, as long as they have addresses; finished ones never."""
    return bool(facts.ips_of(pod)) and not facts.is_finished(pod)


def target_port(pod: Obj, port: Obj) -> int | None:
    """The number a service port means on this pod; None if the pod has no port of that name."""
    target = port.get("targetPort")
    if isinstance(target, str) and target:
        spec = pod["spec"]
        sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
        for container in (*(spec.get("containers") or ()), *sidecars):
            for each in container.get("ports") or ():
                same = (each.get("protocol") or "TCP") == (port.get("protocol") or "TCP")
                if each.get("name") == target and same:
                    return int(each["containerPort"])
        return None
    return int(target or port["port"])


def ports_of(service: Obj, pod: Obj) -> list[Obj]:
    """The EndpointPorts of a slice that holds pod."""
    found = []
    for port in service["spec"].get("ports") or ():
        number = target_port(pod, port)
        if number is None:
            continue
        entry: Obj = {
            "name": port.get("name") or "",
            "port": number,
            "protocol": port.get("protocol") or "TCP",
        }
        if port.get("appProtocol"):
            entry["appProtocol"] = port["appProtocol"]
        found.append(entry)
    return found


def endpoint_of(service: Obj, pod: Obj, family: str, zone: str) -> Obj | None:
    """pod as an endpoint of one family; None if it has no such address. zone: of its node, "" unknown."""
    addresses = [ip for ip in facts.ips_of(pod) if family_of_ip(ip) == family]
    if not addresses:
        return None
    meta, spec = pod["metadata"], service["spec"]
    serving, terminating = facts.is_ready(pod), facts.is_deleting(pod)
    ready = bool(spec.get("publishNotReadyAddresses")) or (serving and not terminating)
    endpoint: Obj = {
        "addresses": addresses,
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": {
            "kind": "Pod",
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
        },
    }
    if node := facts.node_of(pod):
        endpoint["nodeName"] = node
    if zone:
        endpoint["zone"] = zone
    if (hostname := hostname_in(service, pod)) is not None:
        endpoint["hostname"] = hostname
    if ready and (hints := _hints(spec.get("trafficDistribution"), node, zone)):
        endpoint["hints"] = hints
    return endpoint


def hostname_in(service: Obj, pod: Obj) -> str | None:
    """The pod's own name below the service's, if it asks for one (spec.hostname and spec.subdomain)."""
    spec = pod["spec"]
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        return str(spec["hostname"])
    return None


def _hints(distribution: str | None, node: str, zone: str) -> Obj:
    """KEP-4444, KEP-3015: prefer the client's zone, or its node."""
    hints: Obj = {}
    if distribution in ("PreferClose", "PreferSameZone", "PreferSameNode") and zone:
        hints["forZones"] = [{"name": zone}]
    if distribution == "PreferSameNode" and node:
        hints["forNodes"] = [{"name": node}]
    return hints


def group_of(family: str, ports: Iterable[Obj]) -> Group:
    plain = [{k: v for k, v in p.items() if v is not None} for p in ports]
    entries = sorted(plain, key=lambda p: (p.get("name") or "", p.get("protocol") or "", p.get("port") or 0))
    return Group(family, msgspec.json.encode(entries, order="sorted"))


def desired_of(service: Obj, pods: Iterable[Obj], zone_of: Callable[[str], str]) -> Desired:
    """Every endpoint of a service. zone_of: node name -> zone or ""."""
    desired: Desired = {}
    families = families_of(service)
    for pod in pods:
        if not has_endpoints(pod):
            continue
        ports = ports_of(service, pod)
        for family in families:
            endpoint = endpoint_of(service, pod, family, zone_of(facts.node_of(pod)))
            if endpoint is not None:
                desired.setdefault(group_of(family, ports), []).append(endpoint)
    for family in families:
        if not any(group.family == family for group in desired):
            # One empty slice says: this service has been looked at, and nothing answers.
            desired[Group(family, b"[]")] = []
    return desired


# --- endpoints to slices --------------------------------------------------------------------------


def identity(endpoint: Obj) -> Any:
    """What makes two states of an endpoint the same endpoint."""
    return (endpoint.get("targetRef") or {}).get("uid") or "", tuple(endpoint.get("addresses") or ())


def plan(existing: Iterable[Obj], desired: Desired, labels: Mapping[str, str]) -> Plan:
    """The writes that turn existing slices (of one owner) into desired ones, all carrying labels."""
    by_group: dict[Group, list[Obj]] = {}
    result = Plan([], [], [])
    for each in sorted(existing, key=lambda s: s["metadata"]["name"]):
        group = group_of(each["addressType"], each.get("ports") or ())
        if group in desired:
            by_group.setdefault(group, []).append(each)
        else:
            result.delete.append(each)
    for group in sorted(desired):
        _plan_group(group, by_group.get(group, []), desired[group], labels, result)
    return _reuse(result)


def _reuse(wanted: Plan) -> Plan:
    """An empty slice that would go becomes one that would be made: a first endpoint is one write."""
    create, delete, update = [], list(wanted.delete), list(wanted.update)
    for new in wanted.create:
        family = new["addressType"]
        spare = next((d for d in delete if d["addressType"] == family and not d.get("endpoints")), None)
        if spare is None:
            create.append(new)
            continue
        delete.remove(spare)
        meta = _labelled(spare, new["metadata"]["labels"])
        update.append({**spare, "metadata": meta, "endpoints": new["endpoints"], "ports": new["ports"]})
    return Plan(create, update, delete)


def _labelled(each: Obj, labels: Mapping[str, str]) -> Obj:
    """Its metadata with labels on top of what others put there."""
    old = {k: v for k, v in labels_of(each).items() if k != HEADLESS}
    return {**each["metadata"], "labels": {**old, **labels}}


def _plan_group(
    group: Group, existing: list[Obj], endpoints: list[Obj], labels: Mapping[str, str], result: Plan
) -> None:
    missing = {identity(e): e for e in endpoints}
    kept: list[list[Obj]] = []
    changed: list[bool] = []
    for each in existing:
        held: list[Obj] = []
        for old in each.get("endpoints") or ():
            if (new := missing.pop(identity(old), None)) is not None:
                held.append(new)
        kept.append(held)
        changed.append(
            not same_endpoints(held, each.get("endpoints") or ())
            or any(labels_of(each).get(k) != v for k, v in labels.items())
            or (HEADLESS in labels_of(each)) != (HEADLESS in labels)
        )
    # New ones go where a write happens anyway, then into the fullest slice with room, then into new slices.
    waiting = list(missing.values())
    for index, written in enumerate(changed):
        if written and waiting:
            room = MAX_ENDPOINTS - len(kept[index])
            kept[index] += waiting[:room]
            waiting = waiting[room:]
    for index in sorted(range(len(kept)), key=lambda i: -len(kept[i])):
        if 0 < len(waiting) <= MAX_ENDPOINTS - len(kept[index]):
            kept[index] += waiting
            changed[index] = True
            waiting = []
    for start in range(0, len(waiting), MAX_ENDPOINTS):
        result.create.append(_slice(group, waiting[start : start + MAX_ENDPOINTS], labels))
    full = sum(1 for held in kept if held) + bool(waiting)
    for each, held, written in zip(existing, kept, changed, strict=True):
        if not held and full:
            result.delete.append(each)
            continue
        full += not held  # of several empty slices one stays
        if written:
            result.update.append({**each, "metadata": _labelled(each, labels), "endpoints": held})
    if not full:
        result.create.append(_slice(group, [], labels))


def same_endpoints(new: Sequence[Obj], old: Sequence[Obj]) -> bool:
    """Equal but for order, and for fields the API shows as null."""
    return len(new) == len(old) and {identity(e): _plain(e) for e in new} == {
        identity(e): _plain(e) for e in old
    }


def _plain(endpoint: Obj) -> Obj:
    return {k: v for k, v in endpoint.items() if v not in (None, {}, [])}


def _slice(group: Group, endpoints: list[Obj], labels: Mapping[str, str]) -> Obj:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"labels": dict(labels)},
        "addressType": group.family,
        "endpoints": endpoints,
        "ports": msgspec.json.decode(group.ports),
    }
