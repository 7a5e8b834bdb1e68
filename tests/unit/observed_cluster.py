"""Three nodes and a few pods and services, as objects, for tests of what observe tells."""

from __future__ import annotations

from typing import Any

from podlane.model.addresses import address
from podlane.model.objects import (
    SERVICE_NAME_LABEL,
    Container,
    ContainerPort,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    Object,
    ObjectMeta,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
    TargetRef,
)
from podlane.observe.cluster import Cluster

OUTSIDE = (address("198.51.100.10"), address("2001:db8:100::10"))


def node(i: int) -> Node:
    return Node(
        metadata=ObjectMeta(name=f"node-{i}"),
        spec=NodeSpec(pod_cidrs=[f"10.244.{i}.0/24", f"fd00:10:244:{i}::/64"]),
        status=NodeStatus(
            addresses=[
                NodeAddress(type="InternalIP", address=f"172.30.1.{10 + i}"),
                NodeAddress(type="InternalIP", address=f"fd00:172:30::1:{i}"),
            ]
        ),
    )


def pod(name: str, on: int, host: int, port: int = 0, phase: str = "Running", **spec: Any) -> Pod:
    ips = [PodIP(ip=f"10.244.{on}.{host}"), PodIP(ip=f"fd00:10:244:{on}::{host}")]
    if spec.get("host_network"):
        ips = [PodIP(ip=f"172.30.1.{10 + on}"), PodIP(ip=f"fd00:172:30::1:{on}")]
    ports = [ContainerPort(container_port=port, name="http")] if port else []
    return Pod(
        metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}"),
        spec=PodSpec(node_name=f"node-{on}", containers=[Container(name="c", ports=ports)], **spec),
        status=PodStatus(phase=phase, pod_ip=ips[0].ip, pod_ips=ips),
    )


def service(name: str, last: int, port: int = 80, node_port: int = 0, **spec: Any) -> Service:
    given = {
        "type": "NodePort" if node_port else "ClusterIP",
        "cluster_ip": f"10.96.0.{last}",
        "cluster_ips": [f"10.96.0.{last}", f"fd00:10:96::{last}"],
        "ip_families": ["IPv4", "IPv6"],
        "ports": [ServicePort(name="http", port=port, node_port=node_port, target_port=port)],
    }
    return Service(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=ServiceSpec(**(given | spec)),
    )


def endpoint(of: Pod, which: int = 0, ready: bool = True, **conditions: bool) -> Endpoint:
    return Endpoint(
        addresses=[of.status.pod_ips[which].ip],
        conditions=EndpointConditions(ready=ready, **conditions),
        node_name=of.spec.node_name,
        target_ref=TargetRef(kind="Pod", namespace="default", name=of.name),
    )


def slices(name: str, port: int, *members: Pod, unready: tuple[Pod, ...] = ()) -> list[EndpointSlice]:
    return [
        EndpointSlice(
            metadata=ObjectMeta(
                name=f"{name}-{which}", namespace="default", labels={SERVICE_NAME_LABEL: name}
            ),
            address_type=family,
            endpoints=[endpoint(m, which) for m in members]
            + [endpoint(m, which, ready=False) for m in unready],
            ports=[EndpointPort(name="http", port=port)],
        )
        for which, family in enumerate(("IPv4", "IPv6"))
    ]


WEB1, WEB2, SICK = pod("web-1", 2, 3, 80), pod("web-2", 3, 3, 80), pod("web-3", 1, 9, 80)
CLIENT, HOSTED = pod("client", 1, 2), pod("hosted", 3, 0, 9100, host_network=True)


def objects() -> list[Object]:
    return [
        *(node(i) for i in (1, 2, 3)),
        *(WEB1, WEB2, SICK, CLIENT, HOSTED),
        pod("done", 1, 7, phase="Succeeded"),
        service("web", 80),
        *slices("web", 80, WEB1, WEB2, unready=(SICK,)),
        service("open", 81, node_port=30080),
        *slices("open", 80, WEB1),
        service("local", 82, internal_traffic_policy="Local"),
        *slices("local", 80, WEB1),
        service("empty", 83),
        service("headless", 0, cluster_ip="None", cluster_ips=["None"]),
        *slices("headless", 80, WEB1),
        service("hosted", 84, 9100),
        *slices("hosted", 9100, HOSTED),
        service("selfish", 85),
        *slices("selfish", 80, CLIENT),
    ]


def cluster() -> Cluster:
    return Cluster(objects(), OUTSIDE)
