"""What one node knows, indexed: the read-only side that capabilities compile from.

A `View` holds narrow objects (model/objects.py) and the node's own facts (model/local.py). It answers
by key, by node, by address and by service in constant time, so that a unit never walks the cluster.
`Objects` is the same thing with the one method that writes: `put`. Only the engine has it.

Everything enters as a `Change`: API objects, and what is no API object (attachments made by CNI, the
underlay's link, the configuration itself).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from sys import intern
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, TypeVar

from podlane.compile import facts
from podlane.compile.policy_index import PolicyIndex
from podlane.compile.spoken import demands, sends
from podlane.errors import ConfigError
from podlane.model.addresses import Address, address
from podlane.model.config import NetworkConfig
from podlane.model.local import Attachment, Shares, Standing, Underlay
from podlane.model.objects import (
    SERVICE_NAME_LABEL,
    WEIGHTS,
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    Object,
    Pod,
    Service,
    ServiceCIDR,
)
from podlane.model.packed import LabelledShelf, Shelf
from podlane.model.pools import announced, pool_addresses

# Kinds of changes that are no API object.
ATTACHMENT: Final = "Attachment"
UNDERLAY: Final = "Underlay"
CONFIG: Final = "Config"
SHARES: Final = "Shares"
STANDING: Final = "Standing"
IN_USE: Final = "InUse"  # derived: a policy, or a set of peers, that this node's pods need (policy_index.py)

CLUSTER_WIDE: Final = frozenset({"Node", "Namespace", "ServiceCIDR"})
"""Kinds whose objects have no namespace: their key is their name."""

ZONE_LABEL: Final = "topology.kubernetes.io/zone"

Key = tuple[str, str]
V = TypeVar("V")


class Change(NamedTuple):
    """One thing that came (old is None), went (new is None) or became another.

    kind: a key of model.objects.KINDS, or ATTACHMENT, UNDERLAY, CONFIG, SHARES, STANDING. What enters the
    engine may leave `old` out when `new` is there: the engine fills in what it knew.
    """

    kind: str
    old: Any
    new: Any

    @property
    def object(self) -> Any:
        """The newer of the two; never None."""
        return self.new if self.new is not None else self.old

    @property
    def name(self) -> str:
        """metadata.name of an API object."""
        return str(self.object.name)

    @property
    def sides(self) -> tuple[Any, ...]:
        """old and new, whichever exist: units_of is the union over these."""
        return tuple(side for side in (self.old, self.new) if side is not None)


class Me(NamedTuple):
    """This node: its Node object (None until the API has it), its uplink, the pods attached to it."""

    name: str
    node: Node | None
    underlay: Underlay | None
    attachments: Mapping[Key, Attachment]

    @property
    def zone(self) -> str:
        return self.node.metadata.labels.get(ZONE_LABEL, "") if self.node else ""


class View:
    """Read-only. Mappings are live: do not keep them across changes.

    nodes, namespaces, service_cidrs: by name. pods, services, slices, network_policies: by (namespace, name).
    shares: by service. policies: who is selected by what. standing: by backend and node.
    """

    def __init__(self, node_name: str, config: NetworkConfig) -> None:
        self.config = config
        self._node_name = node_name
        self._nodes: dict[str, Node] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._pods = LabelledShelf(Pod)
        self._services = Shelf(Service)
        self._slices = Shelf(EndpointSlice)
        self._service_cidrs: dict[str, ServiceCIDR] = {}
        self._network_policies: dict[Key, NetworkPolicy] = {}
        self._attachments: dict[Key, Attachment] = {}
        self._shares: dict[Key, Shares] = {}
        self._standing: dict[Key, Standing] = {}
        self._underlay: Underlay | None = None
        self._of_me: dict[Callable[[View], Any], Any] = {}
        self._pods_here: set[Key] = set()
        self._pods_by_address: _Index[str] | None = None  # as soon as somebody asks
        self._slices_by_service: _Index[Key] = _Index()
        self._weighed: _Index[str] = _Index()
        self._balanced: _Index[str] = _Index()  # by address, and all of them under ""
        self._nodes_by_address: _Index[str] = _Index()
        self._nodes_demanding: _Index[str] = _Index()
        self._nodes_sending: _Index[str] = _Index()
        self._attachments_by_address: _Index[str] = _Index()
        self._attachments_by_pod: _Index[Key] = _Index()
        self.policies = PolicyIndex(node_name)
        self.nodes: Mapping[str, Node] = MappingProxyType(self._nodes)
        self.namespaces: Mapping[str, Namespace] = MappingProxyType(self._namespaces)
        self.service_cidrs: Mapping[str, ServiceCIDR] = MappingProxyType(self._service_cidrs)
        self.pods: Mapping[Key, Pod] = MappingProxyType(self._pods)
        self.services: Mapping[Key, Service] = MappingProxyType(self._services)
        self.slices: Mapping[Key, EndpointSlice] = MappingProxyType(self._slices)
        self.network_policies: Mapping[Key, NetworkPolicy] = MappingProxyType(self._network_policies)
        self.shares: Mapping[Key, Shares] = MappingProxyType(self._shares)
        self.standing: Mapping[Key, Standing] = MappingProxyType(self._standing)

    @property
    def balanced(self) -> frozenset[Key]:
        """Keys of the services that have addresses of a LoadBalancerPool."""
        return frozenset(self._balanced.get(""))

    def balanced_at(self, where: Address) -> list[Key]:
        """Keys of those that have this one, in order."""
        return sorted(self._balanced.get(str(where)))

    def nodes_at(self, where: Address) -> list[Node]:
        """The nodes with this InternalIP, in order of name."""
        return [self._nodes[name] for _, name in sorted(self._nodes_by_address.get(str(where)))]

    def of_me(self, work_out: Callable[[View], V]) -> V:
        """What follows from the configuration, this node's Node and its uplink alone: asked for every unit,
        and worked out once for each state of them."""
        try:
            found: V = self._of_me[work_out]
        except KeyError:
            found = self._of_me[work_out] = work_out(self)
        return found

    def nodes_demanding(self, backend: str) -> Collection[Key]:
        """("", name) of the other nodes that have that backend and do not receive by this node's."""
        return self._nodes_demanding.get(backend)

    def nodes_sending(self, backend: str) -> Collection[Key]:
        """("", name) of the other nodes that send to some by that backend."""
        return self._nodes_sending.get(backend)

    @property
    def me(self) -> Me:
        name = self._node_name
        return Me(name, self._nodes.get(name), self._underlay, MappingProxyType(self._attachments))

    def slices_of(self, namespace: str, service: str) -> list[EndpointSlice]:
        """The EndpointSlices labelled with that service, in order of name."""
        return [self._slices[key] for key in sorted(self._slices_by_service.get((namespace, service)))]

    def weighed(self, namespace: str) -> list[Service]:
        """The services there that weigh their endpoints by their pods."""
        return [self._services[key] for key in sorted(self._weighed.get(namespace))]

    def pods_here(self) -> list[Pod]:
        """The pods bound to this node, in order of key."""
        return [self._pods[key] for key in sorted(self._pods_here)]

    def pods_at(self, where: Address) -> list[Pod]:
        """The pods whose status.podIPs has that address; host-network pods share their node's.

        Only where pods weigh their services is this asked. The first time costs as much as there are pods.
        """
        if self._pods_by_address is None:
            self._pods_by_address = _Index()
            for key, pod in self._pods.items():
                for each in pod_addresses(pod):
                    self._pods_by_address.add(str(each), key)
        return [self._pods[key] for key in sorted(self._pods_by_address.get(str(where)))]

    def attachments_at(self, where: Address) -> list[Attachment]:
        return [self._attachments[key] for key in sorted(self._attachments_by_address.get(str(where)))]

    def attachments_of(self, namespace: str, pod: str) -> list[Attachment]:
        """A pod's links on this node, in order of key."""
        return [self._attachments[key] for key in sorted(self._attachments_by_pod.get((namespace, pod)))]

    def objects(self, kind: str) -> Mapping[Any, Any]:
        """Everything of one kind by its key, for taking a list's difference."""
        return MappingProxyType(self._table(kind))

    def knows(self, kind: str, value: Object) -> bool:
        """That very object is there. False may also mean that its fields were written in another order."""
        table, key = self._table(kind), key_of(kind, value)
        if isinstance(table, Shelf):
            return table.holds(key, value)
        return bool(table.get(key) == value)

    def _table(self, kind: str) -> MutableMapping[Any, Any]:
        tables: dict[str, MutableMapping[Any, Any]] = {
            "Node": self._nodes,
            "Namespace": self._namespaces,
            "Pod": self._pods,
            "Service": self._services,
            "EndpointSlice": self._slices,
            "ServiceCIDR": self._service_cidrs,
            "NetworkPolicy": self._network_policies,
            ATTACHMENT: self._attachments,
            SHARES: self._shares,
            STANDING: self._standing,
        }
        return tables[kind]


def key_of(kind: str, value: Any) -> Any:
    """The key of a value in View.objects(kind)."""
    if kind in CLUSTER_WIDE:
        return value.name
    return value.key


def _shared(key: Any) -> Any:
    """With the one text that all objects of a namespace have for it."""
    return (intern(key[0]), key[1]) if isinstance(key, tuple) else key


class Objects(View):
    """The View its owner may write to."""

    def put(self, change: Change) -> Change | None:
        """Store change.new, or forget change.old. Returns what really changed, None for nothing."""
        kind, new = change.kind, change.new
        if kind in (CONFIG, UNDERLAY) or (kind == "Node" and change.name == self._node_name):
            self._of_me.clear()
        if kind == CONFIG:
            return change
        if kind == UNDERLAY:
            old, self._underlay = self._underlay, new
            return None if old == new else Change(kind, old, new)
        table = self._table(kind)
        key = _shared(key_of(kind, change.object))
        if new is not None and isinstance(table, Shelf) and table.holds(key, new):
            return None
        known = table.get(key)
        if known == new:
            return None
        if known is not None:
            self._reindex(kind, key, known, _Index.remove)
        if new is None:
            del table[key]
        else:
            table[key] = new
            self._reindex(kind, key, new, _Index.add)
        self._tell_policies(kind, known, new)
        return Change(kind, known, new)

    def derived(self) -> list[Change]:
        """What followed from the last `put` in what is in use."""
        return [
            Change(IN_USE, None, what) if came else Change(IN_USE, what, None)
            for what, came in self.policies.derived()
        ]

    def _tell_policies(self, kind: str, old: Any, new: Any) -> None:
        if kind == "Pod":
            self.policies.put_pod(old, new)
        elif kind == "Namespace":
            self.policies.put_namespace(old, new)
        elif kind == "NetworkPolicy":
            self.policies.put_policy(old, new)

    def _reindex(self, kind: str, key: Key, value: Any, act: Any) -> None:
        if isinstance(value, Pod):
            if value.spec.node_name == self._node_name:
                (self._pods_here.add if act is _Index.add else self._pods_here.discard)(key)
            if self._pods_by_address is not None:
                for where in pod_addresses(value):
                    act(self._pods_by_address, str(where), key)
        elif isinstance(value, EndpointSlice):
            act(self._slices_by_service, service_of(value), key)
        elif isinstance(value, Service):
            for text in ["", *map(str, pool_addresses(value))] if announced(value) else ():
                act(self._balanced, text, key)
            if WEIGHTS in value.metadata.annotations:
                act(self._weighed, value.namespace, key)
        elif isinstance(value, Node):
            for where in facts.internal_addresses(value):
                act(self._nodes_by_address, str(where), ("", value.name))
            if value.name != self._node_name:
                for backend in demands(value, self.config):
                    act(self._nodes_demanding, backend, ("", value.name))
                for backend in sends(value):
                    act(self._nodes_sending, backend, ("", value.name))
        elif isinstance(value, Attachment):
            for where in value.addresses:
                act(self._attachments_by_address, str(where), key)
            act(self._attachments_by_pod, (value.pod_namespace, value.pod_name), key)


def service_of(piece: EndpointSlice) -> Key:
    """(namespace, service name) a slice belongs to; the name is "" for a slice of no service."""
    return piece.namespace, piece.metadata.labels.get(SERVICE_NAME_LABEL, "")


def pod_addresses(pod: Pod) -> Iterator[Address]:
    """status.podIPs; what is no address is skipped (the API validates it)."""
    for text in [ip.ip for ip in pod.status.pod_ips] or [pod.status.pod_ip]:
        try:
            yield address(text)
        except ConfigError:
            continue


def since(value: Object | None) -> str:
    """When an object was made, for the rule that the older one wins. RFC 3339 in UTC sorts as text."""
    return (value.metadata.creation_timestamp or "") if value is not None else ""


class _Index(Generic[V]):
    """value -> keys of the objects that have it. One is the rule, so it is kept bare."""

    def __init__(self) -> None:
        self._keys: dict[V, Key | set[Key]] = {}

    def add(self, value: V, key: Key) -> None:
        held = self._keys.get(value)
        if held is None:
            self._keys[value] = key
        elif isinstance(held, set):
            held.add(key)
        elif held != key:
            self._keys[value] = {held, key}

    def remove(self, value: V, key: Key) -> None:
        held = self._keys.get(value)
        if held == key:
            del self._keys[value]
        elif isinstance(held, set):
            held.discard(key)
            if len(held) == 1:
                self._keys[value] = held.pop()

    def get(self, value: V) -> Collection[Key]:
        held = self._keys.get(value)
        return () if held is None else held if isinstance(held, set) else (held,)
