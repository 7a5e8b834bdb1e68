"""A NetworkPolicy read once: whom it selects, what each direction allows, and the sets its rules name. Pure.

What the API would have refused, and is here all the same (an old object, another server), allows nothing: the
rest of the policy stands, and the reason is reported. Meaning: the API reference of networking.k8s.io/v1.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

import msgspec

from podlane.compile.tables import Direction, NamedPort, PodSet, Policy, PolicyRule, PortRange
from podlane.errors import ConfigError
from podlane.model import selectors
from podlane.model.addresses import Prefix, Protocol, loose_prefix
from podlane.model.objects import (
    Container,
    EgressRule,
    IngressRule,
    IPBlock,
    LabelSelector,
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    Pod,
)
from podlane.model.selectors import Selector

PolicySet: TypeAlias = PodSet | NamedPort

_PORTS: Final = range(1, 1 << 16)


class Terms(NamedTuple):
    """directions: those for which the policy isolates. sets: by id, of all its rules."""

    subjects: Selector
    directions: dict[Direction, Policy]
    sets: dict[str, PolicySet]
    refused: tuple[str, ...]


def read(policy: NetworkPolicy) -> Terms:
    reader = _Reader(policy)
    subjects = read_subjects(policy, reader.refuse)
    directions = {direction: reader.direction(direction) for direction in isolates(policy)}
    return Terms(subjects, directions, reader.sets, tuple(reader.refused))


def read_subjects(policy: NetworkPolicy, refuse: Callable[[str], object] = str) -> Selector:
    """Whom a policy selects in its namespace; nobody if that cannot be read, which `refuse` is told."""
    try:
        return _selector(policy.spec.pod_selector or LabelSelector(), "spec.podSelector")
    except ConfigError as error:
        refuse(str(error))
        return selectors.NOTHING


def isolates(policy: NetworkPolicy) -> list[Direction]:
    """spec.policyTypes. By default Ingress, and Egress too if there are rules for it."""
    spec = policy.spec
    if spec.policy_types:
        return [d for d in Direction if d.capitalize() in spec.policy_types]
    return [Direction.INGRESS, Direction.EGRESS] if spec.egress else [Direction.INGRESS]


def pod_set(namespace: str, namespaces: Selector, pods: Selector) -> PodSet:
    text = f"{namespace}|{namespaces}|{namespaces.nothing}|{pods}|{pods.nothing}"
    return PodSet(f"pods-{hashlib.sha256(text.encode()).hexdigest()[:16]}", namespace, namespaces, pods)


@lru_cache(maxsize=1024)
def named_port(name: str, protocol: Protocol, local: bool) -> NamedPort:
    """local: of this node's pods alone, which is all that rules for ingress need."""
    text = f"{name}/{protocol}/here" if local else f"{name}/{protocol}"
    return NamedPort(f"port-{hashlib.sha256(text.encode()).hexdigest()[:16]}", name, protocol, local)


def declared_ports(pod: Pod) -> Iterator[tuple[str, str, int]]:
    """(name, protocol, number) of the named ports of containers that run as long as the pod does."""
    for container in _lasting(pod):
        for port in container.ports:
            if port.name:
                yield port.name, port.protocol, port.container_port


def _lasting(pod: Pod) -> Iterator[Container]:
    yield from (each for each in pod.spec.init_containers if each.restart_policy == "Always")
    yield from pod.spec.containers


def _selector(selector: LabelSelector, where: str) -> Selector:
    return selectors.from_dict(msgspec.to_builtins(selector), where)


class _Reader:
    def __init__(self, policy: NetworkPolicy) -> None:
        self._policy = policy
        self.sets: dict[str, PolicySet] = {}
        self.refused: list[str] = []

    def refuse(self, why: str) -> None:
        self.refused.append(f"NetworkPolicy {self._policy.namespace}/{self._policy.name}: {why}")

    def direction(self, direction: Direction) -> Policy:
        rules: Sequence[IngressRule | EgressRule] = getattr(self._policy.spec, direction) or ()
        return Policy(tuple(self._rule(i, rule, direction) for i, rule in enumerate(rules)))

    def _rule(self, index: int, rule: IngressRule | EgressRule, direction: Direction) -> PolicyRule:
        where = f"spec.{direction}[{index}]"
        pods: tuple[str, ...] | None = None
        blocks: tuple[Prefix, ...] | None = None
        if rule.peers:
            key = "from" if isinstance(rule, IngressRule) else "to"
            found = [self._peer(peer, f"{where}.{key}[{i}]") for i, peer in enumerate(rule.peers)]
            pods = tuple(dict.fromkeys(each for each in found if isinstance(each, str)))
            blocks = _merged(prefix for each in found if isinstance(each, list) for prefix in each)
        ranges: tuple[PortRange, ...] | None = None
        named: tuple[str, ...] | None = None
        if rule.ports:
            ports = [self._port(port, direction, f"{where}.ports[{i}]") for i, port in enumerate(rule.ports)]
            ranges = merged_ports(each for each in ports if isinstance(each, PortRange))
            named = tuple(dict.fromkeys(each for each in ports if isinstance(each, str)))
        return PolicyRule(index, pods, blocks, ranges, named)

    def _use(self, value: PolicySet) -> str:
        self.sets[value.id] = value
        return value.id

    def _peer(self, peer: NetworkPolicyPeer, where: str) -> str | list[Prefix] | None:
        try:
            if peer.ip_block is not None:
                return _block(peer.ip_block)
            if peer.pod_selector is None and peer.namespace_selector is None:
                raise ConfigError("must specify a peer")
            pods = _selector(peer.pod_selector or LabelSelector(), "podSelector")
            if peer.namespace_selector is None:
                return self._use(pod_set(self._policy.namespace, selectors.EVERYTHING, pods))
            namespaces = _selector(peer.namespace_selector, "namespaceSelector")
            return self._use(pod_set("", namespaces, pods))
        except ConfigError as error:
            self.refuse(f"{where}: {error}")
            return None

    def _port(self, port: NetworkPolicyPort, direction: Direction, where: str) -> PortRange | str | None:
        try:
            protocol = Protocol(port.protocol or "TCP")
        except ValueError:
            self.refuse(f"{where}: protocol {port.protocol!r}; use TCP, UDP or SCTP")
            return None
        if port.port is None:
            return PortRange(protocol, 0, 65535)
        if isinstance(port.port, str):
            return self._use(named_port(port.port, protocol, direction is Direction.INGRESS))
        last = port.port if port.end_port is None else port.end_port
        if port.port not in _PORTS or last not in _PORTS or last < port.port:
            self.refuse(f"{where}: {port.port} to {last} is no range of ports within 1 to 65535")
            return None
        return PortRange(protocol, port.port, last)


def _block(block: IPBlock) -> list[Prefix]:
    """What is in cidr and in none of the exceptions."""
    left = [loose_prefix(block.cidr)]
    for hole in [loose_prefix(text) for text in block.excepted or ()]:
        left = [part for each in left for part in _without(each, hole)]
    return left


def _without(whole: Prefix, hole: Prefix) -> Iterable[Prefix]:
    if whole.version != hole.version or not whole.overlaps(hole):
        return [whole]
    if whole.prefixlen >= hole.prefixlen:
        return []
    return whole.address_exclude(hole)  # type: ignore[arg-type]


def _merged(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """In canonical order and form."""
    every = list(prefixes)
    return (
        *ipaddress.collapse_addresses(p for p in every if isinstance(p, ipaddress.IPv4Network)),
        *ipaddress.collapse_addresses(p for p in every if isinstance(p, ipaddress.IPv6Network)),
    )


def merged_ports(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Disjoint ranges that do not touch, in order of protocol and port."""
    found: list[PortRange] = []
    for each in sorted(ranges):
        last = found[-1] if found else None
        if last is not None and last.protocol == each.protocol and each.first <= last.last + 1:
            found[-1] = last._replace(last=max(last.last, each.last))
        else:
            found.append(each)
    return tuple(found)
