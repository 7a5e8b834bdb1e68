"""What NetworkPolicy says of a flow, for people: rule by rule, and the change that is nearest. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from podlane.compile.policy_sim import Decision, Judge, PolicyFlow, Tried
from podlane.compile.tables import Direction, NamedPort, PodSet, PolicyKey, PolicyRule, Table
from podlane.model.objects import Namespace, Pod
from podlane.model.selectors import Operator, Selector
from podlane.observe.cluster import Cluster
from podlane.observe.explanation import Row, Stage, Tables


class Told(NamedTuple):
    """stage: None in a cluster without policies. why: the end of the way, if it ends here."""

    stage: Stage | None
    decision: Decision
    why: str


def policy_stage(
    cluster: Cluster, node: str, tables: Tables, judge: Judge, flow: PolicyFlow, direction: Direction
) -> Told:
    decision = judge.decide(flow, direction)
    if decision.guard is None or not cluster.has_policies:
        return Told(None, decision, "")
    namespace, name = decision.guard.pod
    verdict = "allowed" if decision.allowed else "denied"
    detail = f"{direction} of {namespace}/pod/{name}: {verdict}, {decision.why}"
    reader = _Reader(cluster, tables, flow, direction)
    tried = list(judge.tried(flow, decision.policies or ()))
    rows = list(reader.rows(decision, tried))
    if decision.allowed:
        return Told(Stage(f"{direction} policy", node, detail, rows), decision, "")
    why = f"NetworkPolicy denies it: {direction} of {namespace}/pod/{name}: {decision.why}"
    if nearest := reader.nearest(tried, decision.policies or ()):
        rows.append(Row(f"nearest: {nearest}", "nearest", {"change": nearest}))
        why += f"; nearest: {nearest}"
    return Told(Stage(f"{direction} policy", node, detail, rows), decision, why)


class _Miss(NamedTuple):
    """A change that would let the flow pass. cost: the fewer, the nearer."""

    cost: int
    text: str


class _Reader:
    def __init__(self, cluster: Cluster, tables: Tables, flow: PolicyFlow, direction: Direction) -> None:
        self._cluster, self._tables, self._flow, self._direction = cluster, tables, flow, direction
        self._sets = tables.get(Table.POLICY_SETS, {})
        self._peer = flow.source if direction is Direction.INGRESS else flow.destination

    @property
    def _asked(self) -> str:
        return f"{self._flow.port}/{self._flow.protocol}" if self._flow.protocol else "no port at all"

    # --- the rules, one by one ---

    def rows(self, decision: Decision, tried: list[Tried]) -> Iterator[Row]:
        with_rules = {each.policy for each in tried}
        for key in decision.policies or ():
            if key not in with_rules:
                yield self._row(key, None, "has no rule for this direction: it allows nothing")
        for each in tried:
            peer, port = ("yes" if fits else "no" for fits in (each.peer, each.port))
            said = f"peer {self._peers(each.rule)}: {peer}; port {self._ports(each.rule)}: {port}"
            yield self._row(each.policy, each, said)

    def _row(self, key: PolicyKey, tried: Tried | None, said: str) -> Row:
        place = f"{key.namespace}/{key.name}" + (f" rule {tried.rule.index}" if tried else "")
        row: dict[str, Any] = {"namespace": key.namespace, "name": key.name, "said": said}
        if tried is not None:
            row |= {"rule": tried.rule.index, "peer": tried.peer, "port": tried.port}
        return Row(f"{place}: {said}", Table.POLICIES.value, row)

    def _peers(self, rule: PolicyRule) -> str:
        if rule.peers is None:
            return "anyone"
        named = [str(self._sets[each]) for each in rule.peers if each in self._sets]
        blocks = [str(each) for each in rule.blocks or ()]
        if len(blocks) > 4:
            blocks[3:] = [f"and {len(blocks) - 3} other prefixes"]
        return " or ".join([*named, *blocks]) or "nobody"

    def _ports(self, rule: PolicyRule) -> str:
        if rule.ports is None:
            return "any"
        shown = []
        for protocol, low, high in rule.ports:
            numbers = str(low) if low == high else "any" if low == 0 else f"{low}-{high}"
            shown.append(f"{numbers}/{protocol}")
        shown += [f"{value.name}/{value.protocol}" for value in self._named(rule)]
        return " or ".join(shown) or "none"

    def _named(self, rule: PolicyRule) -> list[NamedPort]:
        return [self._sets[each] for each in rule.named or () if each in self._sets]

    # --- what would do ---

    def nearest(self, tried: list[Tried], policies: tuple[PolicyKey, ...]) -> str:
        misses = [miss for each in tried for miss in self._misses(each)]
        if misses:
            return min(misses).text
        key = next(iter(policies), None)
        if key is None:
            return ""
        peer = self._cluster.name_of(self._peer) or str(self._peer)
        where = f"{key.namespace}/{key.name} or a policy of its own"
        return f"a rule for {peer} with port {self._asked}, in {where}"

    def _misses(self, tried: Tried) -> Iterator[_Miss]:
        place = f"rule {tried.rule.index} of {tried.policy.namespace}/{tried.policy.name}"
        if tried.peer:
            yield _Miss(1, f"{place} opens port {self._ports(tried.rule)} to it, asked was {self._asked}")
        elif tried.port:
            for each in tried.rule.peers or ():
                value = self._sets.get(each)
                if isinstance(value, PodSet):
                    yield from self._labels(value, place)

    def _labels(self, wanted: PodSet, place: str) -> Iterator[_Miss]:
        """How far the peer is from being one of the set."""
        pod = self._cluster.pod_at(self._peer)
        if pod is None:
            return
        who = f"{pod.namespace}/pod/{pod.name}"
        lacking = _lacking(wanted.pods, pod)
        if wanted.namespace and wanted.namespace != pod.namespace:
            text = f"{place} means pods of namespace {wanted.namespace}, and {who} is in {pod.namespace}"
            yield _Miss(3 + len(lacking), text)
            return
        home = self._cluster.namespaces.get(pod.namespace)
        elsewhere = [] if wanted.namespace else _lacking(wanted.namespaces, home)
        changes = [f"{each} on {who}" for each in lacking]
        changes += [f"{each} on namespace {pod.namespace}" for each in elsewhere]
        if changes:
            yield _Miss(2 * len(changes), f"label {' and '.join(changes)}: then {place} allows it")


def _lacking(selector: Selector, labelled: Pod | Namespace | None) -> list[str]:
    """Which labels to change so that the selector matches."""
    labels = labelled.metadata.labels if labelled is not None else {}
    found = []
    for each in selector.requirements:
        if not each.matches(labels):
            match each.operator:
                case Operator.IN:
                    found.append(f"{each.key}={each.values[0]}")
                case Operator.EXISTS:
                    found.append(f"{each.key} (any value)")
                case _:
                    found.append(f"no {each.key}={labels.get(each.key, '')}")
    return found
