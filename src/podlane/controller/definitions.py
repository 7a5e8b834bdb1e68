"""The CustomResourceDefinitions of podlane's own kinds, as `deploy/crds/` has them and a lab starts with."""

from __future__ import annotations

from typing import Any, Final

_ADDRESSES: Final = r"^[0-9a-fA-F:.]+(/[0-9]{1,3}|\s*-\s*[0-9a-fA-F:.]+)?$"


def _number(what: str, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "format": "int64", "description": what, **more}


def _selector(what: str) -> dict[str, Any]:
    """metav1.LabelSelector"""
    return {
        "type": "object",
        "description": what,
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
            "matchExpressions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"type": "string"},
                        "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                        "values": {"type": "array", "items": {"type": "string"}},
                    },
                },
            },
        },
    }


_CONDITIONS: Final[dict[str, Any]] = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
    "items": {
        "type": "object",
        "required": ["type", "status"],
        "properties": {
            "type": {"type": "string"},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {"type": "string"},
            "message": {"type": "string"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": {"type": "integer", "format": "int64"},
        },
    },
}

_POOL_SPEC: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["addresses"],
    "properties": {
        "addresses": {
            "type": "array",
            "description": "Prefixes (192.0.2.0/24) and ranges (192.0.2.10-192.0.2.20) of either family.",
            "minItems": 1,
            "maxItems": 256,
            "items": {"type": "string", "pattern": _ADDRESSES, "maxLength": 100},
        },
        "autoAssign": {
            "type": "boolean",
            "default": True,
            "description": "Whether services get addresses of it without asking for the pool or an address.",
        },
        "avoidBuggyIPs": {
            "type": "boolean",
            "default": False,
            "description": "Leave out IPv4 addresses that end in .0 or .255.",
        },
        "serviceSelector": _selector("Which services may have its addresses, by their labels."),
        "namespaceSelector": _selector("Which namespaces' services may, by the namespaces' labels."),
        "nodeSelector": _selector("Which nodes may announce its addresses."),
        "announce": {
            "type": "array",
            "description": "How its addresses become known: l2 (ARP, NDP) from one node, bgp to the routers "
            "of bgp.peers. Without it l2, and bgp where bgp.advertise has LoadBalancerIP.",
            "minItems": 1,
            "x-kubernetes-list-type": "set",
            "items": {"type": "string", "enum": ["l2", "bgp"]},
        },
        "namespaceQuota": _number(
            "How many of its addresses the services of one namespace may have; 0: any number.",
            minimum=0,
            default=0,
        ),
    },
}

_POOL_STATUS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        **{
            f"{what}{family}": _number(f"{family} addresses of it that {words}.")
            for what, words in (("assigned", "services have"), ("available", "nobody has"))
            for family in ("IPv4", "IPv6")
        },
        "conditions": _CONDITIONS,
    },
}


def _column(name: str, path: str, type_: str = "string", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": type_, "jsonPath": path, **more}


LOAD_BALANCER_POOL: Final[dict[str, Any]] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "loadbalancerpools.podlane.dev"},
    "spec": {
        "group": "podlane.dev",
        "scope": "Cluster",
        "names": {
            "kind": "LoadBalancerPool",
            "listKind": "LoadBalancerPoolList",
            "plural": "loadbalancerpools",
            "singular": "loadbalancerpool",
            "shortNames": ["lbpool"],
        },
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    _column("Addresses", ".spec.addresses"),
                    _column("Ready", ".status.conditions[?(@.type=='Ready')].status"),
                    _column("Assigned IPv4", ".status.assignedIPv4", "integer"),
                    _column("Available IPv4", ".status.availableIPv4", "integer"),
                    _column("Assigned IPv6", ".status.assignedIPv6", "integer", priority=1),
                    _column("Available IPv6", ".status.availableIPv6", "integer", priority=1),
                    _column("Age", ".metadata.creationTimestamp", "date"),
                ],
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "description": "Addresses that services of type LoadBalancer may get.",
                        "required": ["spec"],
                        "properties": {
                            "apiVersion": {"type": "string"},
                            "kind": {"type": "string"},
                            "metadata": {"type": "object"},
                            "spec": _POOL_SPEC,
                            "status": _POOL_STATUS,
                        },
                    }
                },
            }
        ],
    },
}

ALL: Final = (LOAD_BALANCER_POOL,)
