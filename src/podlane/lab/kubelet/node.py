"""The Node object of a lab node. Pure."""

from __future__ import annotations

import os

from podlane import __version__
from podlane.lab.client import Obj
from podlane.lab.controllers.facts import timestamp
from podlane.lab.kubelet.context import NodeFacts
from podlane.lab.runtime import quantities

KUBELET_VERSION = "v1.36.0"  # of the API whose types are served
MAX_PODS = 110
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def node_object(facts: NodeFacts, system: os.uname_result) -> Obj:
    """What is registered; podCIDRs are given by a controller."""
    architecture = _ARCHITECTURES.get(system.machine, system.machine)
    labels = {
        "kubernetes.io/hostname": facts.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": architecture,
        "topology.kubernetes.io/zone": facts.zone,
        "topology.kubernetes.io/region": "lab",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": facts.name, "labels": labels},
        "spec": {},
    }


def node_status(facts: NodeFacts, old: Obj, system: os.uname_result, boot_id: str, now_s: float) -> Obj:
    """old: the status there is; conditions of others stay. A lab node promises more than the machine has:
    ordinary manifests should fit, and nothing is reserved."""
    resources = {**quantities.NODE_DEFAULTS, "pods": str(MAX_PODS)}
    return {
        **old,
        "capacity": resources,
        "allocatable": resources,
        "conditions": _conditions(old.get("conditions") or [], now_s),
        "addresses": [
            *({"type": "InternalIP", "address": a} for a in facts.addresses),
            {"type": "Hostname", "address": facts.name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "machineID": boot_id.replace("-", ""),
            "systemUUID": boot_id,
            "bootID": boot_id,
            "kernelVersion": system.release,
            "osImage": "podlane lab node",
            "containerRuntimeVersion": f"podlane://{__version__}",
            "kubeletVersion": KUBELET_VERSION,
            "kubeProxyVersion": KUBELET_VERSION,
            "operatingSystem": "linux",
            "architecture": _ARCHITECTURES.get(system.machine, system.machine),
        },
    }


_CONDITIONS = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
)


def _conditions(old: list[Obj], now_s: float) -> list[Obj]:
    now = timestamp(now_s)
    by_type = {c["type"]: c for c in old}
    ours = []
    for type_, status, reason, message in _CONDITIONS:
        before = by_type.pop(type_, {})
        since = before.get("lastTransitionTime", now) if before.get("status") == status else now
        ours.append(
            {
                "type": type_,
                "status": status,
                "lastHeartbeatTime": now,
                "lastTransitionTime": since,
                "reason": reason,
                "message": message,
            }
        )
    return [*by_type.values(), *ours]
