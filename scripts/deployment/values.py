"""What an installation may choose, with the defaults: the chart's values.yaml, and the manifests' values.

A key is either a value, or words that a chart fills in: both make the same objects (objects.py).
"""

from __future__ import annotations

from typing import Any

VERSION = "0.1.0"

AGENT_PORT, CONTROLLER_PORT = 9585, 9586

DEFAULTS: dict[str, Any] = {
    "namespace": "podlane-system",
    "image": {"repository": "podlane/podlane", "tag": VERSION, "pullPolicy": "IfNotPresent"},
    # NetworkConfig. The CIDRs are kubeadm's habit and flannel's.
    "config": {
        "apiVersion": "podlane.dev/v1alpha1",
        "kind": "NetworkConfig",
        "ipFamilies": ["IPv4"],
        "podCIDRs": ["10.244.0.0/16"],
        "serviceCIDRs": ["10.96.0.0/12"],
        "backend": {"type": "vxlan"},
    },
    # Where the API is before its service address works: needed where no kube-proxy runs.
    "apiServer": {"host": "", "port": ""},
    "agent": {
        "services": "on",
        "policy": "on",
        "hostPID": False,
        "capabilities": ["NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SYS_ADMIN"],
        "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}},
        "extraArgs": [],
    },
    "controller": {
        "replicas": 2,
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
    },
}

COMMENTS = {
    "image": "The image of the Containerfile.",
    "config": "NetworkConfig (docs/), which becomes the ConfigMap; a change rolls the agents, node by node.",
    "apiServer": "Of the API server, as 192.0.2.10 and 6443. Needed where no kube-proxy runs.",
    "agent": "services: off beside kube-proxy. services.mode socket: hostPID, and the capability SYS_PTRACE.",
    "controller": "Of several one leads.",
}
