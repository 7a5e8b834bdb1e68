"""Kubernetes objects, as narrow as the network needs them.

Decoded straight from the API's JSON by msgspec; unknown fields are skipped, so an object of a newer
Kubernetes is no error. Objects are frozen and compare by value: an update that changes nothing here
(a heartbeat, a condition nobody reads) is dropped where it enters. `metadata.resourceVersion` is
therefore not part of the objects; the reflector keeps it.

Field meanings: Kubernetes API reference v1.36.
"""

from __future__ import annotations

import msgspec
from msgspec import field


class _Narrow(msgspec.Struct, frozen=True, rename="camel", kw_only=True, gc=False, omit_defaults=True):
    pass


class OwnerReference(_Narrow, frozen=True):
    kind: str
    name: str
    uid: str = ""
    controller: bool | None = None


class ObjectMeta(_Narrow, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class Object(_Narrow, frozen=True):
    metadata: ObjectMeta = ObjectMeta()

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)"""
        return self.metadata.namespace, self.metadata.name


# --- core/v1 Node ---------------------------------------------------------------------------------


class NodeAddress(_Narrow, frozen=True):
    type: str
    address: str


class Taint(_Narrow, frozen=True):
    key: str
    effect: str = ""


class NodeSpec(_Narrow, frozen=True):
    pod_cidr: str = field(default="", name="podCIDR")
    pod_cidrs: list[str] = field(default_factory=list, name="podCIDRs")
    taints: list[Taint] = []


class NodeStatus(_Narrow, frozen=True):
    addresses: list[NodeAddress] = []


class Node(Object, frozen=True):
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


# --- core/v1 Namespace ----------------------------------------------------------------------------


class Namespace(Object, frozen=True):
    pass


# --- core/v1 Pod ----------------------------------------------------------------------------------


class ContainerPort(_Narrow, frozen=True):
    container_port: int
    name: str = ""
    protocol: str = "TCP"
    host_port: int = 0
    host_ip: str = field(default="", name="hostIP")


class Container(_Narrow, frozen=True):
    """restart_policy: "Always" for an init container that stays (a sidecar)."""

    name: str
    ports: list[ContainerPort] = []
    restart_policy: str | None = None


class PodSpec(_Narrow, frozen=True):
    node_name: str = ""
    host_network: bool = False
    containers: list[Container] = []
    init_containers: list[Container] = []


class PodIP(_Narrow, frozen=True):
    ip: str


class PodStatus(_Narrow, frozen=True):
    phase: str = ""
    pod_ip: str = field(default="", name="podIP")
    pod_ips: list[PodIP] = field(default_factory=list, name="podIPs")


class Pod(Object, frozen=True):
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


# --- core/v1 Service ------------------------------------------------------------------------------


class ServicePort(_Narrow, frozen=True):
    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: int | str | None = None
    node_port: int = 0


class ClientIPConfig(_Narrow, frozen=True):
    timeout_seconds: int | None = None


class SessionAffinityConfig(_Narrow, frozen=True):
    client_ip: ClientIPConfig | None = field(default=None, name="clientIP")


class ServiceSpec(_Narrow, frozen=True):
    type: str = "ClusterIP"
    selector: dict[str, str] | None = None
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: list[str] = field(default_factory=list, name="clusterIPs")
    ip_families: list[str] = []
    ports: list[ServicePort] = []
    external_ips: list[str] = field(default_factory=list, name="externalIPs")
    load_balancer_source_ranges: list[str] = []
    external_traffic_policy: str = ""
    internal_traffic_policy: str = ""
    health_check_node_port: int = 0
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    publish_not_ready_addresses: bool = False


class LoadBalancerIngress(_Narrow, frozen=True):
    ip: str = ""
    hostname: str = ""
    ip_mode: str | None = None


class LoadBalancerStatus(_Narrow, frozen=True):
    ingress: list[LoadBalancerIngress] = []


class Condition(_Narrow, frozen=True):
    type: str
    status: str = "Unknown"
    reason: str = ""
    message: str = ""


class ServiceStatus(_Narrow, frozen=True):
    load_balancer: LoadBalancerStatus = LoadBalancerStatus()
    conditions: list[Condition] = []


class Service(Object, frozen=True):
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


# --- discovery.k8s.io/v1 EndpointSlice ------------------------------------------------------------


class EndpointConditions(_Narrow, frozen=True):
    """None means what the API says it means: ready and serving true, terminating false."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ForZone(_Narrow, frozen=True):
    name: str


class EndpointHints(_Narrow, frozen=True):
    for_zones: list[ForZone] = []
    for_nodes: list[ForZone] = []


class TargetRef(_Narrow, frozen=True):
    kind: str = ""
    namespace: str = ""
    name: str = ""


class Endpoint(_Narrow, frozen=True):
    addresses: list[str] = []
    conditions: EndpointConditions = EndpointConditions()
    node_name: str | None = None
    zone: str | None = None
    hostname: str | None = None
    hints: EndpointHints | None = None
    target_ref: TargetRef | None = None


class EndpointPort(_Narrow, frozen=True):
    name: str | None = None
    protocol: str = "TCP"
    port: int | None = None


class EndpointSlice(Object, frozen=True):
    address_type: str = ""
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None


# --- networking.k8s.io/v1 ServiceCIDR --------------------------------------------------------------


class ServiceCIDRSpec(_Narrow, frozen=True):
    cidrs: list[str] = []


class ServiceCIDR(Object, frozen=True):
    spec: ServiceCIDRSpec = ServiceCIDRSpec()


WEIGHT = "podlane.dev/weight"  # of a slice's endpoints, or of a pod
WEIGHTS = "podlane.dev/weights"  # of a service's endpoints; its value may be the next:
WEIGHTS_BY_PODS = "pods"
HEAVIEST = 1000


def weight_of(value: EndpointSlice | Pod) -> int | None:
    """None when it says nothing, or nothing that makes sense."""
    text = value.metadata.annotations.get(WEIGHT, "")
    return int(text) if text.isascii() and text.isdigit() and int(text) <= HEAVIEST else None


SERVICE_NAME_LABEL = "kubernetes.io/service-name"


# --- networking.k8s.io/v1 NetworkPolicy -----------------------------------------------------------


class LabelSelectorRequirement(_Narrow, frozen=True):
    key: str = ""
    operator: str = ""
    values: list[str] | None = None


class LabelSelector(_Narrow, frozen=True):
    """metav1.LabelSelector. Empty: everything; where one is absent (None) depends on the field."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelSelectorRequirement] | None = None


class IPBlock(_Narrow, frozen=True):
    cidr: str = ""
    excepted: list[str] | None = field(default=None, name="except")


class NetworkPolicyPeer(_Narrow, frozen=True):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = field(default=None, name="ipBlock")


class NetworkPolicyPort(_Narrow, frozen=True):
    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class IngressRule(_Narrow, frozen=True):
    """NetworkPolicyIngressRule; None and [] of either field mean anyone, and every port."""

    peers: list[NetworkPolicyPeer] | None = field(default=None, name="from")
    ports: list[NetworkPolicyPort] | None = None


class EgressRule(_Narrow, frozen=True):
    """NetworkPolicyEgressRule, as IngressRule."""

    peers: list[NetworkPolicyPeer] | None = field(default=None, name="to")
    ports: list[NetworkPolicyPort] | None = None


class NetworkPolicySpec(_Narrow, frozen=True):
    pod_selector: LabelSelector | None = None
    ingress: list[IngressRule] | None = None
    egress: list[EgressRule] | None = None
    policy_types: list[str] | None = None


class NetworkPolicy(Object, frozen=True):
    spec: NetworkPolicySpec = NetworkPolicySpec()


KINDS: dict[str, type[Object]] = {
    "Node": Node,
    "Namespace": Namespace,
    "Pod": Pod,
    "Service": Service,
    "EndpointSlice": EndpointSlice,
    "ServiceCIDR": ServiceCIDR,
    "NetworkPolicy": NetworkPolicy,
}
