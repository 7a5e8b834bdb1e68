"""What admission and the pod strategy give a new pod: service account, priority, tolerations, QoS class.

The admission plugins of kube-apiserver that every cluster has: ServiceAccount (the name only: there are no
token volumes), Priority, DefaultTolerationSeconds; and the QoS class of pkg/apis/core/v1/helper/qos.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from podlane.lab.api import status
from podlane.lab.api.resources import BUILTIN
from podlane.lab.api.store import Transaction
from podlane.lab.client import Obj

_PODS = next(r for r in BUILTIN if r.storage == "pods")
_CLASSES = "priorityclasses.scheduling.k8s.io"
_SYSTEM = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_TOLERATION_S = 300
_COMPUTE = ("cpu", "memory")
_SUFFIXES = {
    "n": "1e-9",
    "u": "1e-6",
    "m": "1e-3",
    "": "1",
    "k": "1e3",
    "M": "1e6",
    "G": "1e9",
    "T": "1e12",
    "P": "1e15",
    "E": "1e18",
    **{f"{letter}i": str(1024 ** (i + 1)) for i, letter in enumerate("KMGTPE")},
}


def admit(pod: Obj, transaction: Transaction) -> None:
    """In place. Raises ApiError(403) for a priority class that is not there."""
    spec = pod["spec"]
    if not spec.get("serviceAccountName"):
        spec["serviceAccountName"] = spec.get("serviceAccount") or "default"
    spec["serviceAccount"] = spec["serviceAccountName"]
    _prioritise(pod, spec, transaction)
    tolerations = spec.setdefault("tolerations", [])
    for key in _TAINTS:
        if not any(t.get("key") in (key, None, "") and _on_execute(t) for t in tolerations):
            tolerations.append(
                {
                    "key": key,
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": _TOLERATION_S,
                }
            )
    pod["status"]["qosClass"] = qos(spec)


def _on_execute(toleration: Obj) -> bool:
    return toleration.get("effect") in ("NoExecute", None, "")


def _prioritise(pod: Obj, spec: Obj, transaction: Transaction) -> None:
    name = spec.get("priorityClassName")
    value, preemption = 0, "PreemptLowerPriority"
    if name in _SYSTEM:
        value = _SYSTEM[name]
    elif name:
        record = transaction.get(_CLASSES, "", name)
        if record is None:
            raise status.forbidden(
                _PODS, pod["metadata"]["name"], f"no PriorityClass with name {name} was found"
            )
        value = record.obj["value"]
        preemption = record.obj.get("preemptionPolicy") or preemption
    else:
        for record in transaction.records(_CLASSES):
            if record.obj.get("globalDefault"):
                spec["priorityClassName"], value = record.name, record.obj["value"]
                preemption = record.obj.get("preemptionPolicy") or preemption
    spec["priority"] = value
    spec.setdefault("preemptionPolicy", preemption)


def qos(spec: Obj) -> str:
    """Guaranteed: every container has limits, equal to its requests; BestEffort: none has either."""
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    resources = [c.get("resources") or {} for c in containers]
    if not any(_compute(r.get(k)) for r in resources for k in ("limits", "requests")):
        return "BestEffort"
    for found in resources:
        limits, requests = _compute(found.get("limits")), _compute(found.get("requests"))
        if len(limits) != len(_COMPUTE) or any(requests.get(k, limits[k]) != limits[k] for k in limits):
            return "Burstable"
    return "Guaranteed"


def _compute(resources: Any) -> dict[str, Decimal]:
    """cpu and memory that are not zero."""
    found = {k: _quantity(v) for k, v in (resources or {}).items() if k in _COMPUTE}
    return {k: v for k, v in found.items() if v}


def _quantity(text: Any) -> Decimal:
    plain = str(text)
    number = plain.rstrip("numkMGTPEi")
    try:
        return Decimal(number) * Decimal(_SUFFIXES[plain[len(number) :]])
    except (InvalidOperation, KeyError):
        return Decimal(0)  # validation refuses it in a moment
