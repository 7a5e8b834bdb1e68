"""The compiler, broken on purpose: the oracle must notice each time, or it could not notice a mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from msgspec.structs import replace

from podlane.compile import policy, policy_index, policy_sim, policy_terms
from podlane.compile.tables import Direction, Policy, PortRange
from podlane.model import selectors
from podlane.model.addresses import Protocol, loose_prefix
from tests.property.policy_strategies import NAMESPACES, Json, World, address, place, worlds
from tests.property.test_policy_oracle import agree, compile_world

Patch = Callable[[pytest.MonkeyPatch], None]


def _rule(change: Callable[[Any], Any]) -> Patch:
    """Every rule that is read is changed."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        right = policy_terms._Reader.direction

        def wrong(self: Any, direction: Direction) -> Policy:
            return Policy(tuple(change(rule) for rule in right(self, direction).rules))

        monkeypatch.setattr(policy_terms._Reader, "direction", wrong)

    return patch


def _no_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_terms, "_block", lambda block: [loose_prefix(block.cidr)])


def _no_end_port(rule: Any) -> Any:
    if rule.ports is None:
        return rule
    ports = [p if p.first == 0 else PortRange(p.protocol, p.first, p.first) for p in rule.ports]
    return replace(rule, ports=tuple(ports))


def _tcp_alone(rule: Any) -> Any:
    if rule.ports is None:
        return rule
    return replace(rule, ports=tuple(p._replace(protocol=Protocol.TCP) for p in rule.ports))


def _ports_or_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_sim.Tried, "fits", property(lambda self: self.peer or self.port))


def _always_both_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_terms, "isolates", lambda _: list(Direction))


def _egress_needs_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(found: Any) -> list[Direction]:
        types = found.spec.policy_types or ["Ingress"]
        return [d for d in Direction if d.capitalize() in types]

    monkeypatch.setattr(policy_terms, "isolates", wrong)


def _own_namespace_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    right = policy_terms.pod_set
    monkeypatch.setattr(policy_terms, "pod_set", lambda _, names, pods: right("", names, pods))


def _namespaces_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    right = policy_terms.pod_set
    wrong = lambda ns, _, pods: right(ns, selectors.EVERYTHING, pods)  # noqa: E731
    monkeypatch.setattr(policy_terms, "pod_set", wrong)


def _pods_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    right = policy_terms.pod_set
    wrong = lambda ns, names, _: right(ns, names, selectors.EVERYTHING)  # noqa: E731
    monkeypatch.setattr(policy_terms, "pod_set", wrong)


def _ended_pods_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their addresses are given to others in these worlds' updates."""
    wrong = lambda pod: not pod.spec.host_network  # noqa: E731
    for module in (policy, policy_index):
        monkeypatch.setattr(module, "networked", wrong)


def _host_network_is_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda pod: pod.status.phase == "Running"  # noqa: E731
    for module in (policy, policy_index):
        monkeypatch.setattr(module, "networked", wrong)


def _init_containers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda pod: [*pod.spec.init_containers, *pod.spec.containers]  # noqa: E731
    monkeypatch.setattr(policy_terms, "_lasting", wrong)


def _sidecars_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_terms, "_lasting", lambda pod: pod.spec.containers)


def _names_whatever_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    right = policy_terms.named_port
    wrong = lambda name, _, local: right(name, Protocol.TCP, local)  # noqa: E731
    for module in (policy, policy_terms):
        monkeypatch.setattr(module, "named_port", wrong)


def _one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    right = policy._addresses
    monkeypatch.setattr(policy, "_addresses", lambda pod, view: right(pod, view)[:1])


def _first_rule_only(monkeypatch: pytest.MonkeyPatch) -> None:
    right = policy_terms._Reader.direction
    wrong = lambda self, d: Policy(right(self, d).rules[:1])  # noqa: E731
    monkeypatch.setattr(policy_terms._Reader, "direction", wrong)


def _first_policy_only(monkeypatch: pytest.MonkeyPatch) -> None:
    right = policy._isolating
    wrong = lambda *args: (right(*args) or ())[:1] or None  # noqa: E731
    monkeypatch.setattr(policy, "_isolating", wrong)


MUTANTS: dict[str, Patch] = {
    "exceptions of ipBlock are ignored": _no_exceptions,
    "endPort is ignored": _rule(_no_end_port),
    "every protocol is TCP": _rule(_tcp_alone),
    "no peers means nobody": _rule(lambda r: replace(r, peers=r.peers or (), blocks=r.blocks or ())),
    "no ports means none": _rule(lambda r: replace(r, ports=r.ports or (), named=r.named or ())),
    "peer or port will do": _ports_or_peers,
    "policyTypes are ignored": _always_both_types,
    "rules for egress do not isolate by themselves": _egress_needs_a_type,
    "a podSelector alone means every namespace": _own_namespace_forgotten,
    "namespaceSelector is ignored": _namespaces_forgotten,
    "podSelector is ignored": _pods_forgotten,
    "ipBlock is ignored": _rule(lambda r: replace(r, blocks=r.blocks and ())),
    "pods on the node's network are peers": _host_network_is_peer,
    "init containers' ports count": _init_containers_count,
    "sidecars' ports do not count": _sidecars_do_not_count,
    "a port's name counts for TCP alone": _names_whatever_the_protocol,
    "one family only": _one_family,
    "the first rule only": _first_rule_only,
    "the first policy only": _first_policy_only,
}


def corner() -> World:
    """What generated worlds have now and then: a port's name in a sidecar, and in a container that ends."""
    declared = {
        "containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 80}]}],
        "initContainers": [
            {"name": "first", "ports": [{"name": "http", "containerPort": 443}]},
            {"name": "beside", "restartPolicy": "Always", "ports": [{"name": "other", "containerPort": 82}]},
        ],
    }

    def pod(index: int) -> Json:
        node, number = place(index)
        where = NAMESPACES[index % 3]
        return {
            "metadata": {"name": f"p{index}", "namespace": where, "labels": {"app": "abc"[index // 2]}},
            "spec": {"nodeName": f"n{node}", **declared},
            "status": {"phase": "Running", "podIPs": [{"ip": address(node, number, f)} for f in (4, 6)]},
        }

    names = {"ports": [{"port": "http"}, {"port": "other"}]}
    friends = {"namespaceSelector": {"matchLabels": {"team": "red"}}, "podSelector": APP_A}
    some = {"from": [friends], "ports": [{"port": 80, "endPort": 81}]}
    return {
        "Namespace": [
            {"metadata": {"name": name, "labels": {"team": team}}}
            for name, team in zip(NAMESPACES, ("red", "blue", "red"), strict=True)
        ],
        "Pod": [pod(index) for index in range(6)],
        "NetworkPolicy": [
            {"metadata": {"name": "first", "namespace": "x"}, "spec": {"ingress": [names]}},
            {"metadata": {"name": "first", "namespace": "y"}, "spec": {"ingress": [some]}},
        ],
    }


APP_A = {"matchLabels": {"app": "a"}}


class _Noticed(Exception):
    pass


def noticed() -> bool:
    @seed(85)
    @settings(
        deadline=None,
        max_examples=200,
        phases=[Phase.explicit, Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @example(corner())
    @given(world=worlds())
    def look(world: World) -> None:
        try:
            agree(world, compile_world(world))
        except AssertionError:
            raise _Noticed from None

    try:
        look()
    except _Noticed:
        return True
    return False


def test_the_corner_itself_is_right() -> None:
    agree(corner(), compile_world(corner()))


@pytest.mark.parametrize("what", MUTANTS)
def test_a_mistake_is_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[what](monkeypatch)
    assert noticed()
