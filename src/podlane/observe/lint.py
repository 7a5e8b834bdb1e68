"""What in NetworkPolicies cannot mean what it seems to mean. Pure.

Nothing here is refused by the API: a selector that matches nobody may match somebody tomorrow. It is said
so that a mistake is seen before it is missed.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from podlane.compile.policy_index import networked
from podlane.compile.policy_sim import Judge, PolicyFlow
from podlane.compile.policy_terms import Terms, declared_ports, read
from podlane.compile.tables import Direction, NamedPort, PodSet
from podlane.compile.view import pod_addresses
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Prefix, Protocol, loose_prefix
from podlane.model.config import NetworkConfig
from podlane.model.objects import NetworkPolicy, Pod
from podlane.observe.cluster import Cluster
from podlane.observe.explanation import API_VERSION
from podlane.observe.matrix import judge_of


class Finding(Struct, frozen=True):
    """where: a field of the policy, as spec.ingress[0]; "" for the whole."""

    namespace: str
    policy: str
    where: str
    message: str

    def __str__(self) -> str:
        place = f"{self.namespace}/{self.policy}" + (f" {self.where}" if self.where else "")
        return f"{place}: {self.message}"


class Findings(Struct, frozen=True, rename="camel"):
    findings: list[Finding]
    api_version: str = API_VERSION
    kind: str = "PolicyFindings"

    def json(self) -> bytes:
        return msgspec.json.encode(self)


def lint(cluster: Cluster, config: NetworkConfig) -> Findings:
    policies = sorted((o for o in cluster.objects if isinstance(o, NetworkPolicy)), key=lambda o: o.key)
    looking = _Looking(cluster, config)
    return Findings([each for policy in policies for each in looking.at(policy)] + list(looking.dns()))


class _Looking:
    def __init__(self, cluster: Cluster, config: NetworkConfig) -> None:
        self._cluster, self._config = cluster, config
        self._pods = [pod for _, pod in sorted(cluster.pods.items()) if networked(pod)]

    def at(self, policy: NetworkPolicy) -> Iterator[Finding]:
        terms = read(policy)

        def say(where: str, message: str) -> Finding:
            return Finding(policy.namespace, policy.name, where, message)

        for sentence in terms.refused:
            yield say("", sentence.partition(": ")[2])
        if policy.namespace not in self._cluster.namespaces:
            yield say("", f"there is no namespace {policy.namespace}")
        elif not self._selected(policy, terms):
            yield say("spec.podSelector", f"it selects none of the pods of {policy.namespace}")
        for direction, found in terms.directions.items():
            for rule in found.rules:
                where = f"spec.{direction}[{rule.index}]"
                for name in (*(rule.peers or ()), *(rule.named or ())):
                    value = terms.sets[name]
                    if isinstance(value, PodSet) and not any(self._is_in(value, pod) for pod in self._pods):
                        yield say(where, f"nobody is among {value}")
                    elif isinstance(value, NamedPort) and not self._named(value, policy, terms, direction):
                        yield say(where, f"no pod that it is about has a {value}")
        yield from (say(where, message) for where, message in self._virtual(policy))

    def _selected(self, policy: NetworkPolicy, terms: Terms) -> list[Pod]:
        return [
            pod
            for pod in self._pods
            if pod.namespace == policy.namespace and terms.subjects.matches(pod.metadata.labels)
        ]

    def _is_in(self, value: PodSet, pod: Pod) -> bool:
        if not value.pods.matches(pod.metadata.labels):
            return False
        if value.namespace:
            return pod.namespace == value.namespace
        home = self._cluster.namespaces.get(pod.namespace)
        return home is not None and value.namespaces.matches(home.metadata.labels)

    def _named(self, value: NamedPort, policy: NetworkPolicy, terms: Terms, direction: Direction) -> bool:
        """The port is the receiver's: of the selected pods, or of anybody."""
        among = self._selected(policy, terms) if direction is Direction.INGRESS else self._pods
        wanted = value.name, value.protocol.value
        return any((name, protocol) == wanted for pod in among for name, protocol, _ in declared_ports(pod))

    def _virtual(self, policy: NetworkPolicy) -> Iterator[tuple[str, str]]:
        """Blocks of service addresses: what is judged has an endpoint's address."""
        prefixes = list(self._config.cluster_services.values())
        for index, rule in enumerate(policy.spec.egress or ()):
            for peer in rule.peers or ():
                try:
                    block = loose_prefix(peer.ip_block.cidr) if peer.ip_block else None
                except ConfigError:
                    continue
                if block is not None and any(_within(block, each) for each in prefixes):
                    why = "rules are compared with the addresses of endpoints, so it never fits"
                    yield f"spec.egress[{index}]", f"{block} is of services: {why}"

    def dns(self) -> Iterator[Finding]:
        """Pods that may send, but ask nobody for a name."""
        judges: dict[str, Judge] = {}
        told: set[tuple[str, str]] = set()
        servers = self._name_servers()
        for pod in self._pods:
            node = pod.spec.node_name
            sender = next(pod_addresses(pod), None)
            if not node or sender is None:
                continue
            if node not in judges:
                judges[node] = judge_of(self._cluster, node, self._config)
            judge = judges[node]
            to = next((a for a in servers if a.version == sender.version), sender + 1)
            flow = PolicyFlow(sender, to, Protocol.UDP, 53)
            decision = judge.decide(flow, Direction.EGRESS)
            tried = list(judge.tried(flow, decision.policies or ()))
            open_to_names = any(each.fits if servers else each.port for each in tried)
            if not decision.policies or open_to_names or not tried:
                continue  # without any rule nothing is meant to be sent
            for key in decision.policies:
                if key[1:] not in told:
                    told.add((key.namespace, key.name))
                    who = f"{pod.namespace}/{pod.name} may send"
                    why = f"{who}, but no rule lets it ask for names (UDP and TCP 53)"
                    yield Finding(key.namespace, key.name, "spec.egress", why)

    def _name_servers(self) -> list[Address]:
        service = self._cluster.services.get(("kube-system", "kube-dns"))
        if service is None:
            return []
        return [a for pod in self._cluster.endpoint_pods(service) for a in pod_addresses(pod)]


def _within(inner: Prefix, outer: Prefix) -> bool:
    same = inner.version == outer.version and inner.prefixlen >= outer.prefixlen
    return same and inner.network_address in outer
