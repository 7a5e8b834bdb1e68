"""What policy says of a flow's first packet: one node's tables, read as the kernel's chains read them.

`explain`, `check` and the tests ask here; the rows are those that name the kernel's sets and chains
(kernel/nft/policy_chains.py). Egress is judged by the tables of the source's node, ingress by those of the
destination's, each for itself. Answers and what is related to an allowed flow always pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from podlane.compile.tables import Direction, Guard, PolicyKey, PolicyRule, Table
from podlane.model.addresses import Address, Protocol


class PolicyFlow(NamedTuple):
    """A flow after a service's translation and before masquerade. protocol None: any other, ICMP say."""

    source: Address
    destination: Address
    protocol: Protocol | None
    port: int = 0


class Tried(NamedTuple):
    """One rule, and which of its two halves fits the flow."""

    policy: PolicyKey
    rule: PolicyRule
    peer: bool
    port: bool

    @property
    def fits(self) -> bool:
        return self.peer and self.port


class Decision(NamedTuple):
    """guard: None where no pod of this node is concerned. policies: those that isolate the pod, None if none
    does. by: the rule that allows."""

    allowed: bool
    why: str
    guard: Guard | None = None
    policies: tuple[PolicyKey, ...] | None = None
    by: Tried | None = None


class Judge:
    """Reads tables once, for any number of decisions. They must not change meanwhile."""

    def __init__(self, tables: Mapping[Table, Mapping[Any, Any]]) -> None:
        self._policies = tables.get(Table.POLICIES, {})
        self._guards: dict[Address, Guard] = {}
        self._sets: dict[Address, set[str]] = {}
        self._ports: set[tuple[Address, str, int]] = set()
        for guard in tables.get(Table.GUARDS, {}).values():
            self._guards.update(dict.fromkeys(guard.addresses, guard))
        for peer in tables.get(Table.PEERS, {}).values():
            for where in peer.addresses:
                self._sets.setdefault(where, set()).update(peer.sets)
                self._ports.update((where, port.set, port.number) for port in peer.ports)
        named = tables.get(Table.POLICY_SETS, {})
        self._protocols = {key: getattr(value, "protocol", None) for key, value in named.items()}

    def decide(self, flow: PolicyFlow, direction: Direction) -> Decision:
        own = flow.source if direction is Direction.EGRESS else flow.destination
        guard = self._guards.get(own)
        if guard is None:
            return Decision(True, f"{own} is no pod's address here")
        if flow.source == flow.destination:
            return Decision(True, "a pod always reaches itself", guard)
        policies = guard.policies(direction)
        if policies is None:
            return Decision(True, f"no policy isolates {guard.pod[0]}/{guard.pod[1]} for {direction}", guard)
        if not guard.known:
            why = f"the API shows no running pod {guard.pod[0]}/{guard.pod[1]} on this node"
            return Decision(False, why, guard, policies)
        for tried in self.tried(flow, policies):
            if tried.fits:
                why = f"rule {tried.rule.index} of {tried.policy.namespace}/{tried.policy.name} allows it"
                return Decision(True, why, guard, policies, tried)
        names = ", ".join(f"{key.namespace}/{key.name}" for key in policies)
        return Decision(False, f"isolated for {direction} by {names}, and no rule allows it", guard, policies)

    def tried(self, flow: PolicyFlow, policies: tuple[PolicyKey, ...]) -> Iterator[Tried]:
        """Every rule of these policies, in their order."""
        for key in policies:
            for rule in self._policies[key].rules:
                yield Tried(key, rule, self._peer(rule, flow, key.direction), self._port(rule, flow))

    def _peer(self, rule: PolicyRule, flow: PolicyFlow, direction: Direction) -> bool:
        if rule.peers is None:
            return True
        peer = flow.source if direction is Direction.INGRESS else flow.destination
        if not self._sets.get(peer, set()).isdisjoint(rule.peers):
            return True
        return any(each.version == peer.version and peer in each for each in rule.blocks or ())

    def _port(self, rule: PolicyRule, flow: PolicyFlow) -> bool:
        if rule.ports is None:
            return True
        if any(r.protocol is flow.protocol and r.first <= flow.port <= r.last for r in rule.ports):
            return True
        return any(
            self._protocols.get(name) is flow.protocol and (flow.destination, name, flow.port) in self._ports
            for name in rule.named or ()
        )
