"""What the agents and the controller may do at the API: as `deploy/` has it, and a lab's agents live by.

The least that works. A call the daemons begin to make needs its rule here, or every lab answers it with 403.

What RBAC cannot say is which Node an agent may write: one agent's token can patch the annotations and the
status of every Node (the Node authorizer is the kubelets' own). Nothing here reads a Secret or a ConfigMap:
the kubelet brings those that a daemon needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

NAMESPACE: Final = "podlane-system"
AGENT: Final = "podlane-agent"
CONTROLLER: Final = "podlane-controller"
LEASE: Final = "podlane-controller"
PART_OF: Final = {"app.kubernetes.io/part-of": "podlane"}

Object = dict[str, Any]

_GROUP: Final = "rbac.authorization.k8s.io"
_READ: Final = ("list", "watch")


def _rule(group: str, resources: Iterable[str], verbs: Iterable[str], names: Iterable[str] = ()) -> Object:
    """rbac/v1 PolicyRule"""
    found: Object = {"apiGroups": [group], "resources": list(resources)}
    if names:
        found["resourceNames"] = list(names)
    return {**found, "verbs": list(verbs)}


AGENT_RULES: Final = (
    # What a node's tables are compiled from.
    _rule("", ("namespaces", "nodes", "pods", "services"), _READ),
    _rule("discovery.k8s.io", ("endpointslices",), _READ),
    _rule("networking.k8s.io", ("networkpolicies", "servicecidrs"), _READ),
    # What a node tells the others (annotations), and of itself (conditions).
    _rule("", ("nodes",), ("get", "patch")),
    _rule("", ("nodes/status",), ("patch",)),
    # Which load-balancer addresses it answers for.
    _rule("", ("services/status",), ("patch",)),
    _rule("", ("events",), ("create", "patch")),
)

CONTROLLER_RULES: Final = (
    _rule("", ("namespaces", "nodes", "services"), _READ),
    _rule("podlane.dev", ("loadbalancerpools",), _READ),
    # Node CIDRs where the cluster has none, and conditions of Nodes.
    _rule("", ("nodes", "nodes/status"), ("patch",)),
    # Load-balancer addresses: the finalizer, and the status.
    _rule("", ("services",), ("patch",)),
    _rule("", ("services/status",), ("patch", "update")),
    _rule("podlane.dev", ("loadbalancerpools/status",), ("patch", "update")),
    _rule("", ("events",), ("create", "patch")),
)

LEASE_RULES: Final = (
    # RBAC knows no name when an object is made.
    _rule("coordination.k8s.io", ("leases",), ("create",)),
    _rule("coordination.k8s.io", ("leases",), ("get", "update"), (LEASE,)),
)


def objects(namespace: str = NAMESPACE) -> Iterator[Object]:
    """Service accounts, roles and bindings, in the order in which they are to be made."""
    for name in (AGENT, CONTROLLER):
        yield _object("v1", "ServiceAccount", name, namespace)
    for name, rules in ((AGENT, AGENT_RULES), (CONTROLLER, CONTROLLER_RULES)):
        yield _object(f"{_GROUP}/v1", "ClusterRole", name) | {"rules": list(rules)}
        yield _object(f"{_GROUP}/v1", "ClusterRoleBinding", name) | _bound("ClusterRole", name, namespace)
    yield _object(f"{_GROUP}/v1", "Role", CONTROLLER, namespace) | {"rules": list(LEASE_RULES)}
    yield _object(f"{_GROUP}/v1", "RoleBinding", CONTROLLER, namespace) | _bound(
        "Role", CONTROLLER, namespace
    )


def _object(api_version: str, kind: str, name: str, namespace: str = "") -> Object:
    meta: Object = {"name": name}
    if namespace:
        meta["namespace"] = namespace
    return {"apiVersion": api_version, "kind": kind, "metadata": {**meta, "labels": dict(PART_OF)}}


def _bound(kind: str, name: str, namespace: str) -> Object:
    return {
        "roleRef": {"apiGroup": _GROUP, "kind": kind, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }
