"""Services and EndpointSlices as an API server writes them, by number: any amount, in bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from podlane.model.objects import KINDS, Object
from podlane.watch.reflector import Reflector, Replace, Source

NODES = 100
PORT = 8080
_MADE = "2026-01-01T00:00:00Z"
_PAGE = 500


def virtual_ip(number: int) -> str:
    return f"10.{96 + (number + 1 >> 16)}.{number + 1 >> 8 & 255}.{number + 1 & 255}"


def endpoint_ip(number: int) -> str:
    return f"10.{128 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def endpoint(number: int, address: str = "") -> dict[str, Any]:
    return {
        "addresses": [address or endpoint_ip(number)],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": f"node-{number % NODES + 1}",
        "zone": f"zone-{number % 3}",
        "targetRef": {
            "kind": "Pod",
            "namespace": "default",
            "name": f"deployment-5d8f7c9b4-{number:x}",
            "uid": f"11111111-2222-3333-4444-{number:012x}",
        },
    }


def service(number: int) -> dict[str, Any]:
    address = virtual_ip(number)
    return {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {
            "name": f"service-{number}",
            "namespace": "default",
            "uid": f"11111111-2222-3333-5555-{number:012x}",
            "resourceVersion": str(1000 + number),
            "creationTimestamp": _MADE,
            "labels": {"app": f"service-{number}"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": f"service-{number}"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": PORT}],
        },
        "status": {"loadBalancer": {}},
    }


def piece(number: int, endpoints: list[dict[str, Any]], version: int = 0) -> dict[str, Any]:
    """The one slice of service `number`."""
    name = f"service-{number}"
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": f"{name}-abcde",
            "generateName": f"{name}-",
            "namespace": "default",
            "uid": f"11111111-2222-3333-6666-{number:012x}",
            "resourceVersion": str(version or 1000 + number),
            "generation": 1,
            "creationTimestamp": _MADE,
            "labels": {
                "app": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name,
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": _MADE},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": name, "controller": True}],
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
    }


def endpoints_of(number: int, count: int) -> list[dict[str, Any]]:
    return [endpoint(number * count + place) for place in range(count)]


def node(name: str, address: str) -> dict[str, Any]:
    return {
        "kind": "Node",
        "metadata": {"name": name, "resourceVersion": "1", "creationTimestamp": _MADE},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def modified(value: dict[str, Any]) -> bytes:
    """One line of a watch."""
    return json.dumps({"type": "MODIFIED", "object": value}).encode()


class Cluster:
    """services with `endpoints` endpoints each, seen from one node."""

    def __init__(
        self, services: int, endpoints: int, me: str = "node-1", address: str = "172.30.1.1"
    ) -> None:
        self.services, self.endpoints = services, endpoints
        self._me = node(me, address)

    def count(self, kind: str) -> int:
        return {"Service": self.services, "EndpointSlice": self.services, "Node": 1}.get(kind, 0)

    def item(self, kind: str, number: int) -> dict[str, Any]:
        if kind == "Service":
            return service(number)
        if kind == "EndpointSlice":
            return piece(number, endpoints_of(number, self.endpoints))
        return self._me

    def page(self, kind: str, start: int, most: int = _PAGE) -> bytes:
        """Part of a list; `continue` is the number of the next object."""
        end = min(self.count(kind), start + most)
        metadata = {"resourceVersion": "1000000", "continue": str(end) if end < self.count(kind) else ""}
        items = [self.item(kind, number) for number in range(start, end)]
        return json.dumps({"metadata": metadata, "items": items}).encode()

    def objects(self, kind: str) -> tuple[Reflector[Object], Sequence[Object]]:
        """What an agent holds after its list: decoded page by page by a reflector, ready for events."""
        reflector: Reflector[Object] = Reflector(Source(kind), KINDS[kind])
        found: Replace[Object] | None = None
        for start in self._starts(kind):
            found = reflector.page(self.page(kind, start))
        assert found is not None
        return reflector, found.objects

    def _starts(self, kind: str) -> Iterator[int]:
        yield from range(0, max(1, self.count(kind)), _PAGE)
