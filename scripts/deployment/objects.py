"""Everything that `kubectl apply` makes, as objects: one source for deploy/podlane.yaml, Kustomize and Helm.

`values` are those of values.py, or a chart's words in their places (render.py): nothing here looks into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.deployment.values import AGENT_PORT, CONTROLLER_PORT

from podlane.controller import rights

Object = dict[str, Any]
Values = Any

CONFIG_MAP = "podlane"
CONFIG_KEY = "config.yaml"

# name -> path, the same inside and outside: what the agent tells a container runtime must hold there, too.
HOST_PATHS = {
    "run": ("/run/podlane", "DirectoryOrCreate"),
    "state": ("/var/lib/podlane", "DirectoryOrCreate"),
    "cni-bin": ("/opt/cni/bin", "DirectoryOrCreate"),
    "cni-conf": ("/etc/cni/net.d", "DirectoryOrCreate"),
    # Leases of the reference plugins: another network's that goes, and types that name host-local.
    "cni-state": ("/var/lib/cni", "DirectoryOrCreate"),
    # Namespaces of pods that others.takeOver leads over to podlane.
    "netns": ("/run/netns", "DirectoryOrCreate"),
    # Others' rules in iptables; what neighbours of flanneld's read.
    "xtables-lock": ("/run/xtables.lock", "FileOrCreate"),
    "flannel": ("/run/flannel", "DirectoryOrCreate"),
    # services.mode socket
    "bpf": ("/sys/fs/bpf", "Directory"),
}
# What a runtime mounts there later is seen too.
_PROPAGATION = {name: {"mountPropagation": "HostToContainer"} for name in ("bpf", "netns")}
PROC_SYS = "/host/proc/sys"
# A container's own /proc/sys is read-only, and of its cgroups it sees its own alone.
ELSEWHERE = {
    "proc-sys-net": ("/proc/sys/net", f"{PROC_SYS}/net"),
    "cgroups": ("/sys/fs/cgroup", "/host/sys/fs/cgroup"),
}


def namespace(values: Values) -> Object:
    labels = {
        **rights.PART_OF,
        # The agents are of the node's network: no profile but this one lets them be.
        "pod-security.kubernetes.io/enforce": "privileged",
    }
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": values["namespace"], "labels": labels},
    }


def accounts(values: Values) -> list[Object]:
    return list(rights.objects(values["namespace"]))


def agent(values: Values, annotations: Object) -> Object:
    """annotations: of the pods: another one rolls them."""
    chosen = values["agent"]
    arguments = [
        "agent",
        "--node-name=$(NODE_NAME)",
        "--config=/etc/podlane/config.yaml",
        "--cni-bin-dir=/opt/cni/bin",
        "--cni-conf-dir=/etc/cni/net.d",
        f"--proc-sys={PROC_SYS}",
        "--cgroup=/host/sys/fs/cgroup",
        f"--metrics-address=:{AGENT_PORT}",
        f"--services={chosen['services']}",
        f"--policy={chosen['policy']}",
    ]
    mounts = [{"name": "config", "mountPath": "/etc/podlane", "readOnly": True}]
    mounts += [
        {"name": name, "mountPath": path, **_PROPAGATION.get(name, {})}
        for name, (path, _) in HOST_PATHS.items()
    ]
    mounts += [{"name": name, "mountPath": inside} for name, (_, inside) in ELSEWHERE.items()]
    volumes: list[Object] = [_config_volume()]
    for name, (path, kind) in HOST_PATHS.items():
        volumes.append({"name": name, "hostPath": {"path": path, "type": kind}})
    volumes += [
        {"name": name, "hostPath": {"path": path, "type": "Directory"}}
        for name, (path, _) in ELSEWHERE.items()
    ]
    container = {
        "name": "agent",
        **_image(values),
        "args": [*arguments, *_more(chosen["extraArgs"])],
        "env": [_field("NODE_NAME", "spec.nodeName"), *_api(values)],
        "ports": [{"name": "metrics", "containerPort": AGENT_PORT, "hostPort": AGENT_PORT}],
        "resources": chosen["resources"],
        "securityContext": {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsUser": 0,
            "capabilities": {"drop": ["ALL"], "add": chosen["capabilities"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # An agent that starts reads the node first; its liveness is asked for afterwards.
        "startupProbe": _probe("/livez", 2, 60),
        "livenessProbe": _probe("/livez", 10, 6),
        "readinessProbe": _probe("/readyz", 5, 2),
        "volumeMounts": mounts,
    }
    labels = _labels("agent")
    pod = {
        "serviceAccountName": rights.AGENT,
        "priorityClassName": "system-node-critical",
        "hostNetwork": True,
        "hostPID": chosen["hostPID"],
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        # A node gets its network whatever is the matter with it.
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 30,
        "containers": [container],
        "volumes": volumes,
    }
    # Where AppArmor is, the usual profile would keep the agent from what its capabilities let it.
    told = {"container.apparmor.security.beta.kubernetes.io/agent": "unconfined", **annotations}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": _meta(values, rights.AGENT, "agent"),
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {"metadata": {"labels": _all(labels), "annotations": told}, "spec": pod},
        },
    }


def controller(values: Values, annotations: Object) -> Object:
    """Beside the nodes' network, not on it: it may be what gives nodes their pod CIDRs."""
    chosen, labels = values["controller"], _labels("controller")
    container = {
        "name": "controller",
        **_image(values),
        "args": [
            "controller",
            "--config=/etc/podlane/config.yaml",
            "--lease-namespace=$(POD_NAMESPACE)",
            f"--metrics-address=:{CONTROLLER_PORT}",
        ],
        "env": [_field("POD_NAMESPACE", "metadata.namespace"), *_api(values)],
        "ports": [{"name": "metrics", "containerPort": CONTROLLER_PORT, "hostPort": CONTROLLER_PORT}],
        "resources": chosen["resources"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "livenessProbe": _probe("/livez", 10, 6),
        "readinessProbe": _probe("/readyz", 5, 6),
        "volumeMounts": [{"name": "config", "mountPath": "/etc/podlane", "readOnly": True}],
    }
    apart = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    pod = {
        "serviceAccountName": rights.CONTROLLER,
        "priorityClassName": "system-cluster-critical",
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [
            {"key": f"node-role.kubernetes.io/{role}", "operator": "Exists", "effect": "NoSchedule"}
            for role in ("control-plane", "master")
        ]
        + [
            # Its work may be what these wait for.
            {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoSchedule"}
            for what in ("not-ready", "network-unavailable")
        ],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [_config_volume()],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(values, rights.CONTROLLER, "controller"),
        "spec": {
            "replicas": chosen["replicas"],
            "selector": {"matchLabels": labels},
            # Two of one node would want one port: an old one goes before a new one comes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": _all(labels), "annotations": annotations}, "spec": pod},
        },
    }


def budget(values: Values) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _meta(values, rights.CONTROLLER, "controller"),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _labels("controller")}},
    }


def config_map(values: Values, text: Any, api: Object) -> Object:
    """text: the NetworkConfig; api: where the API is, if that is to be told."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _meta(values, CONFIG_MAP, "agent"),
        "data": {CONFIG_KEY: text, **api},
    }


def uninstall(values: Values) -> Object:
    """What the agents leave behind goes, node by node: Ready where it is done."""
    labels = _labels("uninstall")
    container = {
        "name": "uninstall",
        **_image(values),
        "args": [
            "uninstall",
            "--force",
            "--cni-bin-dir=/opt/cni/bin",
            "--cni-conf-dir=/etc/cni/net.d",
            f"--proc-sys={PROC_SYS}",
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsUser": 0,
            "capabilities": {"drop": ["ALL"], "add": values["agent"]["capabilities"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in HOST_PATHS.items()]
        + [{"name": "proc-sys-net", "mountPath": ELSEWHERE["proc-sys-net"][1]}],
    }
    rest = {
        "name": "done",
        **_image(values),
        "command": ["sleep", "infinity"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    volumes = [
        {"name": name, "hostPath": {"path": path, "type": kind}} for name, (path, kind) in HOST_PATHS.items()
    ]
    pod = {
        "automountServiceAccountToken": False,
        "hostNetwork": True,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 0,
        "initContainers": [container],
        "containers": [rest],
        "volumes": [
            *volumes,
            {"name": "proc-sys-net", "hostPath": {"path": "/proc/sys/net", "type": "Directory"}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": _meta(values, "podlane-uninstall", "uninstall"),
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": _all(labels)}, "spec": pod},
        },
    }


def _image(values: Values) -> Object:
    image = values["image"]
    return {"image": f"{image['repository']}:{image['tag']}", "imagePullPolicy": image["pullPolicy"]}


def _labels(component: str) -> Object:
    return {"app.kubernetes.io/name": "podlane", "app.kubernetes.io/component": component}


def _all(labels: Object) -> Object:
    return {**labels, **rights.PART_OF}


def _meta(values: Values, name: str, component: str) -> Object:
    return {"name": name, "namespace": values["namespace"], "labels": _all(_labels(component))}


def _config_volume() -> Object:
    items = [{"key": CONFIG_KEY, "path": CONFIG_KEY}]
    return {"name": "config", "configMap": {"name": CONFIG_MAP, "items": items}}


def _probe(path: str, every_s: int, failures: int) -> Object:
    port = {"path": path, "port": "metrics"}
    return {"httpGet": port, "periodSeconds": every_s, "failureThreshold": failures, "timeoutSeconds": 5}


def _field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _api(values: Values) -> Iterator[Object]:
    """Where a ConfigMap has no such key, the kubelet says where the API's service is."""
    for name, key in (("KUBERNETES_SERVICE_HOST", "api-host"), ("KUBERNETES_SERVICE_PORT", "api-port")):
        ref = {"name": CONFIG_MAP, "key": key, "optional": True}
        yield {"name": name, "valueFrom": {"configMapKeyRef": ref}}


def _more(arguments: Any) -> list[Any]:
    return arguments if isinstance(arguments, list) else [arguments]
