"""What one node's kernel should hold: plain, frozen, comparable rows with symbolic keys.

Numbers the kernel needs (list ids, marks, interface indexes) are no part of a row: the drivers bind
them. `Rows` is what one unit compiles to; the store (compile/store.py) merges the rows of all units.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple, TypeAlias

from msgspec import Struct

from podlane.model.addresses import Address, Family, Interface, Prefix, Protocol
from podlane.model.backends import BackendType
from podlane.model.bgp import BgpRule
from podlane.model.config import Balancing
from podlane.model.selectors import Selector


class Table(enum.StrEnum):
    """In the order in which a generation is applied; removals run in reverse."""

    POLICY_SETS = "policy-sets"  # id -> PodSet or NamedPort
    PEERS = "peers"  # PodKey -> Peer
    POLICIES = "policies"  # PolicyKey -> Policy
    GUARDS = "guards"  # device name -> Guard
    SENDERS = "senders"  # device name -> Sender
    TUNNEL_SOURCES = "tunnel-sources"  # (UDP port, address or None) -> TunnelSource
    BRIDGES = "bridges"  # device name -> BridgeLink
    PORTS = "ports"  # device name -> Port
    LINKS = "links"  # device name -> VxlanLink
    NEIGHBOURS = "neighbours"  # (device, address) -> Neighbour
    FDB = "fdb"  # (device, mac) -> FdbEntry
    TUNNELS = "tunnels"  # device name -> Tunnel
    TUNNEL_PEERS = "tunnel-peers"  # public key, or node name -> TunnelPeer
    ROUTES = "routes"  # Prefix -> Route
    PEER_WAYS = "peer-ways"  # node name -> PeerWay; it is in no kernel, but told
    SPEAKER = "speaker"  # "bgp" -> BgpSpeaker
    BGP_PEERS = "bgp-peers"  # (name, Family) -> BgpPeer
    ORIGINATED = "originated"  # Prefix -> Prefix, what this node's speaker announces
    LEARNT = "learnt"  # Prefix -> Learnt
    SETS = "sets"  # SetMember -> SetMember
    BACKENDS = "backends"  # ListKey -> BackendList
    FRONTENDS = "frontends"  # FrontendKey -> Frontend
    NODE_PORTS = "node-ports"  # NodePortKey -> Frontend
    HEALTH_CHECKS = "health-checks"  # HealthCheckKey -> HealthCheck
    ANNOUNCEMENTS = "announcements"  # Address -> Announcement


# --- links, neighbours, routes --------------------------------------------------------------------


class BridgeLink(Struct, frozen=True):
    """A bridge whose ports are pods' links.

    mac: deterministic, so that it does not follow its ports. addresses: pods' gateways, with the length of
    the node's CIDR; they bring no route of their own.
    """

    name: str
    mac: str
    mtu_bytes: int
    addresses: tuple[Interface, ...]


class Sender(Struct, frozen=True):
    """What a pod's link may send as: its addresses, and as a port of `bridge` its MAC address."""

    device: str
    mac: str
    addresses: tuple[Address, ...]
    bridge: str = ""


class TunnelSource(Struct, frozen=True):
    """A host that may send to this node's VXLAN port. address None: the port itself, where others are
    dropped.
    """

    port: int
    address: Address | None = None


class Port(Struct, frozen=True):
    """A pod's link as port of a bridge. hairpin: frames may leave it by the port they came in."""

    device: str
    bridge: str
    hairpin: bool


class VxlanLink(Struct, frozen=True):
    """A VXLAN device (RFC 7348) with learning off: every peer is an entry of FDB.

    mac: deterministic, set at creation (udev must find nothing to change). local: outer source.
    addresses: what the device itself carries, as the source of packets the node masquerades. gbp: packet
    marks are carried along as Group Policy ID (draft-smith-vxlan-group-policy).
    """

    name: str
    vni: int
    port: int
    underlay: str
    local: Address
    mac: str
    mtu_bytes: int
    addresses: tuple[Prefix, ...]
    gbp: bool = False


class Neighbour(Struct, frozen=True):
    """A permanent neighbour entry: `address` on `device` has link-layer address `mac`."""

    device: str
    address: Address
    mac: str


class FdbEntry(Struct, frozen=True):
    """Frames for `mac` on VXLAN `device` are sent to the host `remote`."""

    device: str
    mac: str
    remote: Address


class Route(Struct, frozen=True):
    """One row of the routing table podlane owns (protocol 85, main table).

    destination: prefix; via: next hop or None when on-link; device: link name; source: preferred
    source address for what the node itself sends; onlink: the next hop need not be on a connected
    subnet; mtu_bytes: path MTU, 0 for the device's own.
    """

    destination: Prefix
    via: Address | None
    device: str
    source: Address | None = None
    onlink: bool = False
    mtu_bytes: int = 0


class Tunnel(Struct, frozen=True):
    """A device without Ethernet whose peers are rows of TUNNEL_PEERS; packets are led to it by plain routes.

    kind: what wraps them, as backend.type names it. port: of UDP, where packets for this node come in, 0 for
    none. local: outer source. addresses: as VxlanLink has them. underlay: the uplink, where it matters.
    """

    name: str
    kind: BackendType
    port: int
    local: Address
    mtu_bytes: int
    addresses: tuple[Prefix, ...]
    underlay: str = ""


class TunnelPeer(Struct, frozen=True):
    """Another node at the far end: what is sent into `device` for one of `pods` goes to `remote`.

    sources: the node's own addresses, which it may send from as well as from pods'.
    """

    device: str
    node: str
    remote: Address
    port: int
    pods: tuple[Prefix, ...]
    sources: tuple[Prefix, ...]


class PeerWay(Struct, frozen=True):
    """How another node's pods are sent to: by which backend, or DIRECT where the tunnel is left out.

    ways: by family, in the order of the node's podCIDRs.
    """

    node: str
    ways: tuple[tuple[Family, str], ...]


DIRECT = "direct"


class BgpSpeaker(Struct, frozen=True):
    """This node's BGP speaker (RFC 4271). sources: its own address of each family, primary first.

    accepted: what it takes from other nodes: prefixes within these, but none within `own`. bfd: sessions
    are watched by BFD (RFC 5880). restart_s: how long others keep its routes when it is away (RFC 4724),
    0 for not at all. interface: the uplink. cluster_id: of a route reflector (RFC 4456). communities: what
    routers are told with prefixes of pods, and with addresses of services.
    """

    router_id: str
    as_number: int
    interface: str
    sources: tuple[Address, ...]
    own: tuple[Prefix, ...]
    accepted: tuple[Prefix, ...]
    bfd: bool
    restart_s: int
    cluster_id: str = ""
    pod_communities: tuple[str, ...] = ()
    service_communities: tuple[str, ...] = ()


class BgpPeer(Struct, frozen=True):
    """One session. on_link: the neighbour is on a subnet of the uplink. node: it is a node of the cluster,
    of which pods' prefixes are taken and nothing else; of other peers everything is, but what rules reject.

    address None: whoever has the AS number on `interface`, by link-local addresses; one session is for both
    families then. client: this node reflects to it what it learns of others.
    """

    address: Address | None
    as_number: int
    password: str
    on_link: bool
    node: bool
    port: int = 179
    interface: str = ""
    client: bool = False
    bfd: bool = False
    import_rules: tuple[BgpRule, ...] = ()
    export_rules: tuple[BgpRule, ...] = ()
    local_preference: int = 100
    prepend: int = 0


class Learnt(Struct, frozen=True):
    """A prefix that a BGP session is to bring, announced by the node that has `via`."""

    destination: Prefix
    via: Address


# --- services -------------------------------------------------------------------------------------


class SetName(enum.StrEnum):
    CLUSTER_IPS = "cluster-ips"  # every ClusterIP, every pool's address: a port nobody serves is refused
    SERVICE_CIDRS = "service-cidrs"  # an address nobody holds is dropped
    POD_CIDRS = "pod-cidrs"  # sources that are pods (the local detector)
    CLUSTER_CIDRS = "cluster-cidrs"  # destinations a pod reaches without masquerade
    NODE_IPS = "node-ips"  # all nodes' own addresses: never masqueraded either
    NODE_PORT_IPS = "node-port-ips"  # this node's addresses that answer node ports; loopback's by config
    LOCAL_ENDPOINTS = "local-endpoints"  # this node's endpoints: hairpin needs masquerade


class SetMember(NamedTuple):
    """An address or prefix in a named set; the family of the value says in which table."""

    set: SetName
    value: Prefix


class ListKey(NamedTuple):
    """Names one list of endpoints: those a service port uses for one scope and family.

    scope: "cluster" (all nodes' endpoints by topology) or "local" (this node's only).
    """

    namespace: str
    service: str
    port: str
    protocol: Protocol
    family: Family
    scope: str


class Backend(bytes):
    """An endpoint's address and port: their octets, in network byte order.

    A cluster has more of these than of anything else, and they are hashed, compared and sorted at every
    turn: octets are a third of the memory of a tuple of objects, and all of that is done in C. Their order
    is that of address, then port, within a family.
    """

    __slots__ = ()

    def __new__(cls, where: Address, port: int) -> Backend:
        return super().__new__(cls, where.packed + port.to_bytes(2, "big"))

    @classmethod
    def packed(cls, octets: bytes) -> Backend:
        """octets: 4 or 16 of the address, 2 of the port."""
        return super().__new__(cls, octets)

    @property
    def address(self) -> Address:
        return ip_address(self[:-2])

    @property
    def port(self) -> int:
        return int.from_bytes(self[-2:], "big")

    def __str__(self) -> str:
        return f"{self.address} {self.port}"

    def __repr__(self) -> str:
        return f"Backend({self.address}, {self.port})"


class BackendList(Struct, frozen=True):
    """Endpoints in their order of index; equal endpoints repeat by weight.

    affinity_timeout_s: 0 for no session affinity (ClientIP). still_serving: endpoints that no new flow
    chooses but whose flows are left alone: for UDP those that still answer, else all that are known.
    sources: who may come in by the list's guarded frontends. balancing: how one is chosen; slots: size
    of the hashes' table (compile/hashing.py), by_port: they take the client's port as well.
    """

    backends: tuple[Backend, ...]
    affinity_timeout_s: int = 0
    still_serving: tuple[Backend, ...] = ()
    sources: tuple[Prefix, ...] = ()
    balancing: Balancing = Balancing.RANDOM
    by_port: bool = False
    slots: int = 0


class FrontendKey(NamedTuple):
    address: Address
    protocol: Protocol
    port: int


class NodePortKey(NamedTuple):
    family: Family
    protocol: Protocol
    port: int


class FrontendClass(enum.StrEnum):
    """What happens to the first packet of a flow (behaviour table of kube-proxy v1.36)."""

    INTERNAL = "internal"  # ClusterIP: masquerade unless the source is a pod
    EXTERNAL = "external"  # node port, external or load-balancer address: masquerade always
    EXTERNAL_LOCAL = "external-local"  # externalTrafficPolicy Local: pods and the node short-circuit
    DROP = "drop"  # traffic policy Local without a local endpoint
    REJECT = "reject"  # no endpoint anywhere


class Frontend(Struct, frozen=True):
    """A virtual address and port, and the list that answers for it.

    backends: the list new flows choose from. short_circuit: EXTERNAL_LOCAL only, the cluster-wide
    list that pods and the node itself use instead. None for DROP and REJECT. guarded: EXTERNAL and
    EXTERNAL_LOCAL only, the sources of `backends` alone may come in, and others get no answer.
    """

    kind: FrontendClass
    backends: ListKey | None
    short_circuit: ListKey | None = None
    guarded: bool = False


class HealthCheckKey(NamedTuple):
    family: Family
    port: int


class HealthCheck(Struct, frozen=True):
    """Answered over HTTP on the node's addresses of one family (node-port-ips): how many ready endpoints
    of a Service this node has."""

    namespace: str
    service: str
    local_endpoints: int


# --- network policy -------------------------------------------------------------------------------


class Direction(enum.StrEnum):
    """As seen from the pod that a policy selects."""

    INGRESS = "ingress"
    EGRESS = "egress"


class PodSet(Struct, frozen=True):
    """Pods by their labels, in `namespace`, or (if that is "") in the namespaces that `namespaces` selects.

    id: a digest of the rest, and so the name of the kernel's set; members say it in Peer.sets.
    """

    id: str
    namespace: str
    namespaces: Selector
    pods: Selector

    def __str__(self) -> str:
        pods = f"pods {self.pods}" if self.pods.requirements else "all pods"
        if self.namespace:
            return f"{pods} in namespace {self.namespace}"
        where = f"namespaces {self.namespaces}" if self.namespaces.requirements else "every namespace"
        return f"{pods} in {where}"


class NamedPort(Struct, frozen=True):
    """What a name of container ports stands for, pod by pod. local: of this node's pods alone."""

    id: str
    name: str
    protocol: Protocol
    local: bool = False

    def __str__(self) -> str:
        return f"port {self.name}/{self.protocol}"


class PodKey(NamedTuple):
    namespace: str
    name: str


class PeerPort(NamedTuple):
    """set: the id of a NamedPort; number: what it is in this pod."""

    set: str
    number: int


class Peer(Struct, frozen=True):
    """A pod, of this node or of another, as policies in use here see it. sets: ids of PodSets, sorted."""

    addresses: tuple[Address, ...]
    sets: tuple[str, ...]
    ports: tuple[PeerPort, ...] = ()


class PolicyKey(NamedTuple):
    """One direction of one NetworkPolicy."""

    direction: Direction
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.direction} of {self.namespace}/{self.name}"


class PortRange(NamedTuple):
    """Both ends are within."""

    protocol: Protocol
    first: int
    last: int


class PolicyRule(Struct, frozen=True):
    """One item of spec.ingress or spec.egress: a peer AND a port must fit.

    peers: ids of PodSets, blocks: prefixes (exceptions are taken out); both None: anyone. ports, named (ids
    of NamedPorts): both None: everything, ICMP too. Of the empty rules that are left when nothing of a list
    can be used, none fits anything.
    """

    index: int
    peers: tuple[str, ...] | None
    blocks: tuple[Prefix, ...] | None
    ports: tuple[PortRange, ...] | None
    named: tuple[str, ...] | None


class Policy(Struct, frozen=True):
    """A policy that selects a pod of this node: what it allows."""

    rules: tuple[PolicyRule, ...]


class Guard(Struct, frozen=True):
    """What watches over one link of a pod. ingress, egress: the policies of which one must allow; None:
    not isolated; (): nothing is allowed (known is False: the API does not show the pod yet).

    bridge: of which the link is a port; then the pod is told by its addresses instead of by the device.
    """

    pod: PodKey
    device: str
    addresses: tuple[Address, ...]
    bridge: str
    ingress: tuple[PolicyKey, ...] | None
    egress: tuple[PolicyKey, ...] | None
    known: bool = True

    def policies(self, direction: Direction) -> tuple[PolicyKey, ...] | None:
        return self.ingress if direction is Direction.INGRESS else self.egress


# --- load-balancer addresses ----------------------------------------------------------------------


class Candidate(NamedTuple):
    """A node that may answer for an address. identity: what its agent signs with, a Node's uid."""

    node: str
    identity: str


class Announcement(Struct, frozen=True):
    """This node may answer ARP and NDP for an address on its uplink.

    candidates: in the order of their right to it; this node, `me`, does if all before it are silent.
    """

    address: Address
    device: str
    me: Candidate
    candidates: tuple[Candidate, ...]

    @property
    def before(self) -> tuple[Candidate, ...]:
        return self.candidates[: self.candidates.index(self.me)]


Rows: TypeAlias = Mapping[Table, Mapping[Any, Any]]
NOTHING: Rows = {}
