"""A cluster's objects as a real API server writes them, by number, in bytes: with managed fields, container
specs, conditions and lists of images, for reading past all that is what decoding costs.

    node n          has the pods n, n + NODES, n + 2 NODES …; each in an application of PODS_OF_APP pods
    application a   is a Deployment, every tenth a StatefulSet; two Services select it
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

NODES, PODS, SERVICES, POLICIES, NAMESPACES = 5_000, 50_000, 10_000, 200, 100
PODS_OF_APP = 10
ME = "node-1"
POD_CIDRS = ("10.128.0.0/9", "fd00:10:244::/48")
MADE = "2026-01-01T00:00:00Z"
COMPONENTS = ("web", "api", "worker", "cache", "db")

Json = dict[str, Any]


class Size(NamedTuple):
    nodes: int
    pods: int
    services: int
    policies: int
    namespaces: int = NAMESPACES

    @classmethod
    def of(cls, scale: float) -> Size:
        """Everything but the policies and what a node has itself shrinks with the cluster."""
        return cls(
            max(10, round(NODES * scale)),
            max(100, round(PODS * scale)),
            max(20, round(SERVICES * scale)),
            POLICIES,
        )

    def count(self, kind: str) -> int:
        return {
            "Node": self.nodes,
            "Pod": self.pods,
            "Service": self.services,
            "EndpointSlice": self.services,
            "Namespace": self.namespaces,
            "NetworkPolicy": self.policies,
        }.get(kind, 0)

    @property
    def apps(self) -> int:
        return self.pods // PODS_OF_APP


def _managed(manager: str, fields: Json, subresource: str = "") -> Json:
    entry = {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": MADE,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    return entry | ({"subresource": subresource} if subresource else {})


def _owned(*paths: str) -> Json:
    """FieldsV1 of some paths "a.b.c"."""
    found: Json = {}
    for path in paths:
        here = found
        for part in path.split("."):
            here = here.setdefault(f"f:{part}", {})
        here["."] = {}
    return found


def _template(value: Json) -> Callable[..., bytes]:
    """A function that fills in what the text of `value` has as <name>."""
    parts = json.dumps(value, separators=(",", ":")).replace("%", "%%").replace("<", "%(").replace(">", ")s")
    return lambda **values: (parts % values).encode()


# --- nodes ----------------------------------------------------------------------------------------


def _condition(name: str, status: str) -> Json:
    return {
        "type": name,
        "status": status,
        "lastHeartbeatTime": "<beat>",
        "lastTransitionTime": MADE,
        "reason": f"KubeletHas{name}Known",
        "message": f"kubelet has said of {name} what it knows",
    }


_NODE = _template(
    {
        "metadata": {
            "name": "node-<n>",
            "uid": "aaaaaaaa-0000-4000-8000-<hex>",
            "resourceVersion": "<version>",
            "creationTimestamp": MADE,
            "labels": {
                "beta.kubernetes.io/arch": "amd64",
                "beta.kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": "node-<n>",
                "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "standard-8",
                "topology.kubernetes.io/region": "region-1",
                "topology.kubernetes.io/zone": "zone-<zone>",
            },
            "annotations": {
                "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///run/containerd/containerd.sock",
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                "podlane.dev/underlay": '{\\"device\\":\\"eth0\\",\\"mtu\\":1500,\\"addresses\\":'
                '[\\"<address>/16\\",\\"<address6>/64\\"]}'.replace("\\", ""),
            },
            "managedFields": [
                _managed(
                    "kubelet",
                    _owned(*(f"metadata.labels.{name}" for name in ("arch", "os", "hostname", "instance"))),
                ),
                _managed(
                    "kubelet",
                    _owned(*(f"status.conditions.k{i}.{f}" for i in range(5) for f in ("status", "reason"))),
                    "status",
                ),
                _managed("kube-controller-manager", _owned("spec.podCIDR", "spec.podCIDRs", "metadata.ttl")),
            ],
        },
        "spec": {"podCIDR": "<cidr>", "podCIDRs": ["<cidr>", "<cidr6>"], "providerID": "metal://<hex>"},
        "status": {
            "capacity": {"cpu": "8", "ephemeral-storage": "100Gi", "memory": "32Gi", "pods": "110"},
            "allocatable": {"cpu": "7900m", "ephemeral-storage": "90Gi", "memory": "31Gi", "pods": "110"},
            "conditions": [
                _condition("MemoryPressure", "False"),
                _condition("DiskPressure", "False"),
                _condition("PIDPressure", "False"),
                _condition("Ready", "True"),
            ],
            "addresses": [
                {"type": "InternalIP", "address": "<address>"},
                {"type": "InternalIP", "address": "<address6>"},
                {"type": "Hostname", "address": "node-<n>"},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "machineID": "<hex><hex>",
                "systemUUID": "<hex>",
                "bootID": "<hex>",
                "kernelVersion": "6.1.0-30-amd64",
                "osImage": "Debian GNU/Linux 12 (bookworm)",
                "containerRuntimeVersion": "containerd://2.1.0",
                "kubeletVersion": "v1.36.0",
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": "amd64",
            },
            # A kubelet tells of 50 images.
            "images": [
                {
                    "names": [
                        f"registry.example.com/team/image-{i}@sha256:{i:064x}",
                        f"registry.example.com/team/image-{i}:v1.{i}",
                    ],
                    "sizeBytes": 10_000_000 + i,
                }
                for i in range(50)
            ],
        },
    }
)


def node(number: int, version: int = 1000, beat: str = MADE) -> bytes:
    high, low = number >> 8, number & 255
    if number:
        address, address6 = f"172.28.{high}.{low}", f"fd00:172:28::{number:x}"
    else:
        address, address6 = "172.30.1.1", "fd00:172:30::1"
    return _NODE(
        n=number + 1,
        hex=f"{number:012x}",
        version=version,
        zone=number % 3,
        beat=beat,
        address=address,
        address6=address6,
        cidr=f"10.{128 + high}.{low}.0/24",
        cidr6=f"fd00:10:244:{number:x}::/64",
    )


# --- pods -----------------------------------------------------------------------------------------


def _mount(name: str) -> Json:
    return {"name": name, "readOnly": True, "mountPath": f"/var/run/{name}"}


def _container(name: str, ports: list[Json]) -> Json:
    probe = {
        "httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"},
        "initialDelaySeconds": 5,
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    return {
        "name": name,
        "image": f"registry.example.com/team/{name}:v1.2.3",
        "args": ["--config=/etc/app/config.yaml", "--log-format=json"],
        "ports": ports,
        "env": [
            *({"name": f"SETTING_{i}", "value": f"value of setting {i}"} for i in range(8)),
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
        ],
        "resources": {
            "limits": {"cpu": "1", "memory": "512Mi"},
            "requests": {"cpu": "100m", "memory": "128Mi"},
        },
        "volumeMounts": [_mount("config"), _mount("kube-api-access-x7k2p")],
        "livenessProbe": probe,
        "readinessProbe": probe,
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
        },
    }


def _container_status(name: str) -> Json:
    return {
        "name": name,
        "state": {"running": {"startedAt": MADE}},
        "lastState": {},
        "ready": True,
        "restartCount": 0,
        "image": f"registry.example.com/team/{name}:v1.2.3",
        "imageID": f"registry.example.com/team/{name}@sha256:{'0123456789abcdef' * 4}",
        "containerID": "containerd://<hex><hex><hex><hex><hex>0000",
        "started": True,
        "volumeMounts": [_mount("config"), _mount("kube-api-access-x7k2p")],
    }


def _pod(extra: Json, kind: str) -> Callable[..., bytes]:
    env = [f"spec.containers.app.env.SETTING_{i}.{f}" for i in range(8) for f in ("name", "value")]
    rest = [f"spec.containers.app.{f}" for f in ("args", "image", "ports.http", "resources", "livenessProbe")]
    told = [f"status.conditions.k{i}.{f}" for i in range(5) for f in ("type", "status", "lastProbeTime")]
    return _template(
        {
            "metadata": {
                "name": "<name>",
                "generateName": "app-<app>-6d5f9c7b8-",
                "namespace": "ns-<ns>",
                "uid": "bbbbbbbb-0000-4000-8000-<hex>",
                "resourceVersion": "<version>",
                "creationTimestamp": MADE,
                "labels": {
                    "app": "app-<app>",
                    "app.kubernetes.io/component": "<component>",
                    "app.kubernetes.io/instance": "app-<app>",
                    "app.kubernetes.io/managed-by": "Helm",
                    "app.kubernetes.io/name": "app-<app>",
                    "app.kubernetes.io/version": "1.2.3",
                    "helm.sh/chart": "app-1.2.3",
                    "team": "team-<team>",
                    **extra,
                },
                "annotations": {
                    "checksum/config": "0123456789abcdef" * 4,
                    "kubectl.kubernetes.io/restartedAt": MADE,
                    "prometheus.io/port": "8080",
                    "prometheus.io/scrape": "true",
                },
                "ownerReferences": [
                    {
                        "apiVersion": "apps/v1",
                        "kind": kind,
                        "name": "app-<app>-6d5f9c7b8",
                        "uid": "cccccccc-0000-4000-8000-000000000000",
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
                "managedFields": [
                    _managed("kube-controller-manager", _owned("metadata.labels", *env, *rest)),
                    _managed(
                        "kubelet", _owned(*told, "status.podIP", "status.podIPs", "status.phase"), "status"
                    ),
                ],
            },
            "spec": {
                "volumes": [
                    {"name": "config", "configMap": {"name": "app-<app>", "defaultMode": 420}},
                    {
                        "name": "kube-api-access-x7k2p",
                        "projected": {
                            "sources": [
                                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                                {
                                    "configMap": {
                                        "name": "kube-root-ca.crt",
                                        "items": [{"key": "ca.crt", "path": "ca.crt"}],
                                    }
                                },
                            ],
                            "defaultMode": 420,
                        },
                    },
                ],
                "containers": [
                    _container("app", [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]),
                    _container("proxy", [{"name": "metrics", "containerPort": 9090, "protocol": "TCP"}]),
                ],
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": 30,
                "dnsPolicy": "ClusterFirst",
                "serviceAccountName": "app-<app>",
                "serviceAccount": "app-<app>",
                "nodeName": "<node>",
                "securityContext": {"fsGroup": 1000},
                "schedulerName": "default-scheduler",
                "tolerations": [
                    {
                        "key": f"node.kubernetes.io/{each}",
                        "operator": "Exists",
                        "effect": "NoExecute",
                        "tolerationSeconds": 300,
                    }
                    for each in ("not-ready", "unreachable")
                ],
                "priority": 0,
                "enableServiceLinks": True,
                "preemptionPolicy": "PreemptLowerPriority",
            },
            "status": {
                "phase": "Running",
                "conditions": [
                    {"type": each, "status": "True", "lastProbeTime": None, "lastTransitionTime": "<beat>"}
                    for each in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady")
                ],
                "hostIP": "<host>",
                "hostIPs": [{"ip": "<host>"}],
                "podIP": "<address>",
                "podIPs": [{"ip": "<address>"}, {"ip": "<address6>"}],
                "startTime": MADE,
                "containerStatuses": [_container_status("app"), _container_status("proxy")],
                "qosClass": "Burstable",
            },
        }
    )


_OF_REPLICA_SET = _pod({"pod-template-hash": "6d5f9c7b8"}, "ReplicaSet")
_OF_STATEFUL_SET = _pod(
    {
        "apps.kubernetes.io/pod-index": "<index>",
        "controller-revision-hash": "app-<app>-6d5f9c7b8",
        "statefulset.kubernetes.io/pod-name": "<name>",
    },
    "StatefulSet",
)


def namespace_of(app: int, size: Size) -> int:
    """So that the pods of one node are of many."""
    return (app + app // size.namespaces) % size.namespaces


def _where(number: int, size: Size) -> tuple[int, int]:
    """(number of its node, its place there)"""
    return number % size.nodes, number // size.nodes


def pod_address(number: int, size: Size) -> str:
    where, place = _where(number, size)
    return f"10.{128 + (where >> 8)}.{where & 255}.{place + 2}"


def pod_name(number: int) -> str:
    app, place = divmod(number, PODS_OF_APP)
    return f"app-{app}-{place}" if app % 10 == 0 else f"app-{app}-6d5f9c7b8-{number:05x}"


def pod(number: int, size: Size, version: int = 1000, beat: str = MADE) -> bytes:
    app, place = divmod(number, PODS_OF_APP)
    where, there = _where(number, size)
    write = _OF_STATEFUL_SET if app % 10 == 0 else _OF_REPLICA_SET
    return write(
        name=pod_name(number),
        app=app,
        index=place,
        ns=namespace_of(app, size),
        component=COMPONENTS[app // 7 % len(COMPONENTS)],
        team=app % 7,
        hex=f"{number:012x}",
        version=version,
        beat=beat,
        node=f"node-{where + 1}",
        host=f"172.28.{where >> 8}.{where & 255}",
        address=pod_address(number, size),
        address6=f"fd00:10:244:{where:x}::{there + 2:x}",
    )


# --- services and their endpoints ------------------------------------------------------------------

_SERVICE = _template(
    {
        "metadata": {
            "name": "svc-<n>",
            "namespace": "ns-<ns>",
            "uid": "dddddddd-0000-4000-8000-<hex>",
            "resourceVersion": "<version>",
            "creationTimestamp": MADE,
            "labels": {
                "app": "app-<app>",
                "app.kubernetes.io/managed-by": "Helm",
                "helm.sh/chart": "app-1.2.3",
            },
            "annotations": {
                "meta.helm.sh/release-name": "app-<app>",
                "meta.helm.sh/release-namespace": "ns-<ns>",
            },
            "managedFields": [
                _managed(
                    "helm", _owned("metadata.labels.app", "spec.ports.http", "spec.selector", "spec.type")
                )
            ],
        },
        "spec": {
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
            "selector": {"app": "app-<app>"},
            "clusterIP": "<address>",
            "clusterIPs": ["<address>"],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }
)

_SLICE = _template(
    {
        "metadata": {
            "name": "svc-<n>-abcde",
            "generateName": "svc-<n>-",
            "namespace": "ns-<ns>",
            "uid": "eeeeeeee-0000-4000-8000-<hex>",
            "resourceVersion": "<version>",
            "generation": 7,
            "creationTimestamp": MADE,
            "labels": {
                "app": "app-<app>",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": "svc-<n>",
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": MADE},
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": "svc-<n>",
                    "uid": "dddddddd-0000-4000-8000-<hex>",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
            "managedFields": [
                _managed(
                    "kube-controller-manager",
                    _owned("addressType", "endpoints", "metadata.annotations", "metadata.labels", "ports"),
                )
            ],
        },
        "addressType": "IPv4",
        "endpoints": "<endpoints>",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }
)

_ENDPOINT = _template(
    {
        "addresses": ["<address>"],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "targetRef": {
            "kind": "Pod",
            "namespace": "ns-<ns>",
            "name": "<pod>",
            "uid": "bbbbbbbb-0000-4000-8000-<hex>",
        },
        "nodeName": "node-<node>",
        "zone": "zone-<zone>",
    }
)


def _app_of(service: int, size: Size) -> int:
    return service // 2 % size.apps


def service(number: int, size: Size) -> bytes:
    app = _app_of(number, size)
    return _SERVICE(
        n=number,
        ns=namespace_of(app, size),
        app=app,
        hex=f"{number:012x}",
        version=1000,
        address=f"10.96.{number + 1 >> 8}.{number + 1 & 255}",
    )


def piece(number: int, size: Size, version: int = 1000, other: str = "") -> bytes:
    """The one slice of service `number`. other: an address in the place of its last endpoint's."""
    app = _app_of(number, size)
    endpoints = []
    for place in range(PODS_OF_APP):
        which = app * PODS_OF_APP + place
        where = which % size.nodes
        last = place == PODS_OF_APP - 1
        endpoints.append(
            _ENDPOINT(
                address=other if other and last else pod_address(which, size),
                ns=namespace_of(app, size),
                pod=pod_name(which),
                hex=f"{which:012x}",
                node=where + 1,
                zone=where % 3,
            ).decode()
        )
    text = _SLICE(
        n=number, ns=namespace_of(app, size), app=app, hex=f"{number:012x}", version=version, endpoints="@"
    )
    return text.replace(b'"@"', f"[{','.join(endpoints)}]".encode())


# --- namespaces and policies ------------------------------------------------------------------------


def namespace(number: int) -> bytes:
    labels = {"kubernetes.io/metadata.name": f"ns-{number}", "tier": f"tier-{number % 5}"}
    metadata = {"name": f"ns-{number}", "uid": f"ns-{number}", "creationTimestamp": MADE, "labels": labels}
    return json.dumps({"metadata": metadata, "spec": {"finalizers": ["kubernetes"]}}).encode()


def policy(number: int, size: Size) -> bytes:
    """Of its namespace's components one lets another in, and pods of that component of other namespaces."""
    turn = number // size.namespaces

    def component(offset: int) -> Json:
        return {"matchLabels": {"app.kubernetes.io/component": COMPONENTS[(turn + offset) % len(COMPONENTS)]}}

    tier = {"matchLabels": {"tier": f"tier-{number % 5}"}}
    spec = {
        "podSelector": component(0) if turn % 2 else {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {"from": [{"podSelector": component(1)}], "ports": [{"port": "http", "protocol": "TCP"}]},
            {"from": [{"namespaceSelector": tier, "podSelector": component(2)}], "ports": [{"port": 8080}]},
        ],
        "egress": [
            {"to": [{"podSelector": component(3)}]},
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}], "ports": [{"port": 443}]},
            {"ports": [{"port": 53, "protocol": "UDP"}]},
        ],
    }
    metadata = {
        "name": f"policy-{number}",
        "namespace": f"ns-{number % size.namespaces}",
        "uid": f"policy-{number}",
        "creationTimestamp": MADE,
    }
    return json.dumps({"metadata": metadata, "spec": spec}).encode()


def item(kind: str, number: int, size: Size) -> bytes:
    match kind:
        case "Node":
            return node(number)
        case "Pod":
            return pod(number, size)
        case "Service":
            return service(number, size)
        case "EndpointSlice":
            return piece(number, size)
        case "Namespace":
            return namespace(number)
    return policy(number, size)
