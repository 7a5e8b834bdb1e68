"""What one node says to one pod: labels, taints, ports. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from podlane.lab.controllers.facts import labels_of
from podlane.model.selectors import Operator, Requirement

UNSCHEDULABLE = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
NOT_READY = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}


def taints_of(node: Obj) -> list[Obj]:
    """spec.taints, and what its condition means: a node that says it is not ready is tainted."""
    taints = list(node.get("spec", {}).get("taints") or ())
    ready = facts.condition(node, "Ready")
    if ready is not None and ready.get("status") != "True" and NOT_READY not in taints:
        taints.append(NOT_READY)
    return taints


def tolerates(pod: Obj, taint: Mapping[str, Any]) -> bool:
    for t in pod["spec"].get("tolerations") or ():
        if t.get("effect") and t["effect"] != taint.get("effect"):
            continue
        if t.get("key") and t["key"] != taint.get("key"):
            continue
        if t.get("operator") == "Exists":
            return True
        if t.get("key") and (t.get("value") or "") == (taint.get("value") or ""):
            return True
    return False


def untolerated(pod: Obj, node: Obj, effects: tuple[str, ...]) -> Obj | None:
    for taint in taints_of(node):
        if taint.get("effect") in effects and not tolerates(pod, taint):
            return taint
    return None


def matches_node(pod: Obj, node: Obj) -> bool:
    """nodeSelector and required node affinity."""
    labels = labels_of(node)
    if not (pod["spec"].get("nodeSelector") or {}).items() <= labels.items():
        return False
    required = affinity_of(pod, "nodeAffinity").get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(matches_term(term, node) for term in required.get("nodeSelectorTerms") or ())


def matches_term(term: Obj, node: Obj) -> bool:
    """One NodeSelectorTerm; an empty one matches no node."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    named = {"metadata.name": node["metadata"]["name"]}
    labels = labels_of(node)
    return all(_requires(e, labels) for e in expressions) and all(_requires(f, named) for f in fields)


def _requires(expression: Obj, labels: Mapping[str, str]) -> bool:
    try:
        operator = Operator(expression["operator"])
    except ValueError:
        return False
    return Requirement(expression["key"], operator, tuple(expression.get("values") or ())).matches(labels)


def affinity_of(pod: Obj, kind: str) -> Obj:
    return (pod["spec"].get("affinity") or {}).get(kind) or {}


def pod_limit(node: Obj) -> int:
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return int(allocatable.get("pods", 110))


def host_ports(pod: Obj) -> Iterator[tuple[str, str, int]]:
    """(address, protocol, port); the address is 0.0.0.0 for all."""
    for container in pod["spec"].get("containers") or ():
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                yield port.get("hostIP") or "0.0.0.0", port.get("protocol") or "TCP", port["hostPort"]


def ports_clash(one: tuple[str, str, int], other: tuple[str, str, int]) -> bool:
    everywhere = ("0.0.0.0", "::")
    return one[1:] == other[1:] and (one[0] == other[0] or one[0] in everywhere or other[0] in everywhere)
