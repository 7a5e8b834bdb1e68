"""The objects of a cluster by name and by address, and what a target stands for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from podlane.compile import facts
from podlane.compile.endpoints import nodes_with_endpoints
from podlane.compile.view import pod_addresses, service_of, since
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Protocol, family_of
from podlane.model.objects import EndpointSlice, Namespace, NetworkPolicy, Node, Object, Pod, Service
from podlane.model.pools import announced, announcing_nodes, may_announce, pool_addresses
from podlane.observe.targets import Target, TargetKind, close

ENDED: Final = ("Succeeded", "Failed")


class Party(Struct, frozen=True):
    """One end of a conversation: a target, and the object it names.

    node: the node it is on, "" for a service, for what is outside, and for a pod without one.
    addresses: its own, primary family first; a service's ClusterIPs.
    """

    target: Target
    addresses: tuple[Address, ...]
    node: str = ""
    pod: Pod | None = None
    service: Service | None = None

    def __str__(self) -> str:
        return str(self.target)

    def address(self, family: Family) -> Address | None:
        return next((a for a in self.addresses if family_of(a) is family), None)

    @property
    def families(self) -> list[Family]:
        return list(dict.fromkeys(family_of(a) for a in self.addresses))


class Cluster:
    """nodes by name; pods and services by (namespace, name). outside: addresses of the host beyond."""

    def __init__(self, objects: Iterable[Object], outside: Iterable[Address] = ()) -> None:
        self.objects = tuple(objects)
        self.outside = tuple(outside)
        self.nodes: dict[str, Node] = {o.name: o for o in self.objects if isinstance(o, Node)}
        self.pods: dict[tuple[str, str], Pod] = {o.key: o for o in self.objects if isinstance(o, Pod)}
        self.services: dict[tuple[str, str], Service] = {
            o.key: o for o in self.objects if isinstance(o, Service)
        }
        self.namespaces: dict[str, Namespace] = {o.name: o for o in self.objects if isinstance(o, Namespace)}
        self.has_policies = any(isinstance(o, NetworkPolicy) for o in self.objects)
        self._slices: dict[tuple[str, str], list[EndpointSlice]] = {}
        for piece in sorted((o for o in self.objects if isinstance(o, EndpointSlice)), key=lambda o: o.key):
            self._slices.setdefault(service_of(piece), []).append(piece)
        self._nodes_at = {a: node for node in self.nodes.values() for a in facts.chosen_addresses(node)}
        self._nodes_at |= {a: node for node in self.nodes.values() for a in facts.internal_addresses(node)}
        self._pods_at: dict[Address, Pod] = {}
        for pod in self.pods.values():
            for where in pod_addresses(pod):
                if pod.status.phase not in ENDED and not pod.spec.host_network:
                    self._pods_at[where] = pod

    def slices_of(self, service: Service) -> list[EndpointSlice]:
        """In order of name."""
        return self._slices.get(service.key, [])

    def service(self, namespace: str, name: str) -> Service:
        """Raises ConfigError naming what there is."""
        target = Target(TargetKind.SERVICE, name, namespace)
        found: Service = _find(self.services, target, "service", self.pods, "pod")
        return found

    def telling_by_bgp(self, service: Service) -> list[str]:
        """The nodes that tell routers of its pool's addresses, where the pool says so; in order of name."""
        try:
            selector = announcing_nodes(service)
        except ConfigError:
            return []
        local = service.spec.external_traffic_policy == "Local"
        having = nodes_with_endpoints(self.slices_of(service)) if local else self.nodes.keys()
        return sorted(n for n, node in self.nodes.items() if n in having and may_announce(node, selector))

    def node_at(self, where: Address) -> Node | None:
        """The node with that InternalIP, or that other nodes send to there."""
        return self._nodes_at.get(where)

    def balanced_at(self, where: Address) -> Service | None:
        """The oldest service that has an address of a LoadBalancerPool."""
        having = [s for s in self.services.values() if announced(s) and where in pool_addresses(s)]
        return min(having, key=lambda s: (since(s), s.key), default=None)

    def pods_at(self, where: Address) -> list[Pod]:
        """Every pod with that address, those of the node's own network included."""
        return [pod for _, pod in sorted(self.pods.items()) if where in pod_addresses(pod)]

    def pod_at(self, where: Address) -> Pod | None:
        """The pod whose own address it is (host-network pods have none)."""
        return self._pods_at.get(where)

    def name_of(self, where: Address) -> str:
        """What an address belongs to, in the words of targets; "" when nobody has it."""
        if pod := self.pod_at(where):
            return f"{pod.namespace}/pod/{pod.name}"
        if node := self.node_at(where):
            return f"node/{node.name}"
        return "outside" if where in self.outside else ""

    def party(self, target: Target) -> Party:
        """Raises ConfigError naming what there is."""
        match target.kind:
            case TargetKind.POD:
                pod = _find(self.pods, target, "pod", self.services, "svc")
                return Party(target, tuple(pod_addresses(pod)), pod.spec.node_name, pod=pod)
            case TargetKind.SERVICE:
                service = _find(self.services, target, "service", self.pods, "pod")
                return Party(target, self._virtual(service, target), service=service)
            case TargetKind.NODE:
                return self._node(target)
            case TargetKind.OUTSIDE:
                if not self.outside:
                    raise ConfigError(
                        "outside: this cluster has no host beyond it known here; give an address"
                    )
                return Party(target, self.outside)
        assert target.address is not None
        where = target.address
        if pod_there := self.pod_at(where):
            return Party(target, (where,), pod_there.spec.node_name, pod=pod_there)
        node = self.node_at(where)
        return Party(target, (where,), node.name if node else "")

    def _node(self, target: Target) -> Party:
        node = self.nodes.get(target.name)
        if node is None:
            known = ", ".join(sorted(self.nodes)[:8]) or "none"
            raise ConfigError(f"there is no node {target.name!r}; known: {known}")
        return Party(target, tuple(facts.internal_addresses(node)), node.name)

    def _virtual(self, service: Service, target: Target) -> tuple[Address, ...]:
        spec = service.spec
        if spec.type == "ExternalName":
            raise ConfigError(
                f"{target} is an ExternalName service: a name in DNS, which no packet is sent to"
            )
        if spec.cluster_ip in ("", "None"):
            pods = [f"{n.namespace}/pod/{n.name}" for n in self.endpoint_pods(service)]
            hint = f"; its endpoints are {', '.join(pods[:4])}" if pods else "; it has no endpoints either"
            raise ConfigError(f"{target} is headless, it has no address of its own{hint}")
        from podlane.model.addresses import address

        return tuple(address(text) for text in spec.cluster_ips or [spec.cluster_ip])

    def endpoint_pods(self, service: Service) -> Iterator[Pod]:
        """The pods its slices refer to, each once."""
        seen = set()
        for piece in self.slices_of(service):
            for endpoint in piece.endpoints or ():
                ref = endpoint.target_ref
                if ref and ref.kind == "Pod" and ref.name not in seen:
                    seen.add(ref.name)
                    if pod := self.pods.get((service.namespace, ref.name)):
                        yield pod


def _find(
    known: Mapping[tuple[str, str], Any],
    target: Target,
    word: str,
    others: Mapping[tuple[str, str], Any],
    other_word: str,
) -> Any:
    found = known.get((target.namespace, target.name))
    if found is not None:
        return found
    here = [name for namespace, name in known if namespace == target.namespace]
    elsewhere = [namespace for namespace, name in known if name == target.name]
    if elsewhere:
        hint = f"; there is {elsewhere[0]}/{target.kind}/{target.name}"
    elif (target.namespace, target.name) in others:
        hint = f"; there is {target.namespace}/{other_word}/{target.name}"
    elif near := close(target.name, here):
        hint = f"; did you mean {near!r}?"
    elif here:
        hint = f"; there are {', '.join(sorted(here)[:6])}"
    else:
        hint = f"; there is no {word} in that namespace"
    raise ConfigError(f"there is no {word} {target.name!r} in namespace {target.namespace!r}{hint}")


def port_of(destination: Party, target: Target) -> tuple[int, Protocol]:
    """The port and protocol that are meant: said, by name, or the only sensible ones.

    0 when the destination declares none (any port). Raises ConfigError for a name nobody has, and for a
    service's port that it does not have only if it was given by name: a number may be tried.
    """
    known = (
        [(p.name, p.port, p.protocol) for p in destination.service.spec.ports] if destination.service else []
    )
    if destination.pod is not None:
        known = [
            (p.name, p.container_port, p.protocol) for c in destination.pod.spec.containers for p in c.ports
        ]
    fitting = [k for k in known if target.protocol is None or k[2] == target.protocol]
    if isinstance(target.port, str):
        named = [k for k in fitting if k[0] == target.port]
        if not named:
            names = ", ".join(f"{n or '(no name)'}={p}/{proto}" for n, p, proto in known) or "none"
            raise ConfigError(f"{destination} has no port named {target.port!r}; its ports: {names}")
        fitting = named
    elif target.port is not None:
        same = [k for k in fitting if k[1] == target.port]
        return target.port, target.protocol or _protocol(same[0][2] if same else "TCP")
    if fitting:
        return fitting[0][1], _protocol(fitting[0][2])
    return 0, target.protocol or Protocol.TCP


def _protocol(text: str) -> Protocol:
    return Protocol(text) if text in Protocol.__members__ else Protocol.TCP


def family_for(source: Party, destination: Party, wanted: Family | None = None) -> Family:
    """The family both ends have: the destination's first. Raises ConfigError."""
    for family in [wanted] if wanted else destination.families:
        if family in destination.families and (family in source.families or not source.families):
            return family
    if not destination.addresses:
        raise ConfigError(f"{destination} has no address yet")
    theirs, ours = "/".join(destination.families), "/".join(source.families)
    what = f"no {wanted} address" if wanted else f"only {theirs} and {source} only {ours}"
    raise ConfigError(f"{destination} has {what}: there is no common family")
