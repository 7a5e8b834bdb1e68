"""Which node a pod goes to: filters that say why not, and scores. Pure.

The order of the filters, their words and the weights of the scores are those of kube-scheduler's default
profile (pkg/scheduler/framework/plugins). Left out: resources other than the number of pods, volumes,
preemption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol, TypeAlias

from podlane.errors import ConfigError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts
from podlane.lab.controllers.facts import ZONE, labels_of
from podlane.lab.controllers.nodefit import (
    UNSCHEDULABLE,
    affinity_of,
    host_ports,
    matches_node,
    matches_term,
    pod_limit,
    ports_clash,
    taints_of,
    tolerates,
    untolerated,
)
from podlane.lab.controllers.ownership import controller_of
from podlane.model import selectors
from podlane.model.selectors import Operator, Requirement

Reason: TypeAlias = str


class Cluster(Protocol):
    """What the scheduler sees. Pods are those bound and not finished."""

    def nodes(self) -> Iterable[Obj]: ...
    def pods_on(self, node: str) -> Iterable[Obj]: ...
    def pods_in(self, namespace: str) -> Iterable[Obj]: ...
    def owned_by(self, uid: str) -> Iterable[Obj]: ...
    def with_anti_affinity(self) -> Iterable[Obj]:
        """Pods whose required anti-affinity keeps others away."""
        ...

    def namespaces(self) -> Mapping[str, Mapping[str, str]]:
        """name -> labels"""
        ...


class Placement(NamedTuple):
    """node: the best one, or "" with the number of nodes each reason rules out."""

    node: str
    total: int
    reasons: Counter[Reason]

    @property
    def message(self) -> str:
        """As kube-scheduler words it."""
        if not self.total:
            return "no nodes available to schedule pods"
        why = ", ".join(sorted(f"{count} {reason}" for reason, count in self.reasons.items()))
        return f"0/{self.total} nodes are available: {why}."


def place(pod: Obj, cluster: Cluster) -> Placement:
    nodes = sorted(cluster.nodes(), key=lambda n: n["metadata"]["name"])
    filters = _filters(pod, nodes, cluster)
    fitting, reasons = [], Counter[Reason]()
    for node in nodes:
        why = next((r for f in filters if (r := f(node)) is not None), None)
        if why is None:
            fitting.append(node)
        else:
            reasons[why] += 1
    if not fitting:
        return Placement("", len(nodes), reasons)
    scores = _scores(pod, fitting, cluster)
    best = min(
        fitting,
        key=lambda n: (
            -scores[n["metadata"]["name"]],
            _count(cluster.pods_on(n["metadata"]["name"])),
            n["metadata"]["name"],
        ),
    )
    return Placement(best["metadata"]["name"], len(nodes), reasons)


# --- filters --------------------------------------------------------------------------------------

Filter: TypeAlias = Callable[[Obj], Reason | None]


def _filters(pod: Obj, nodes: list[Obj], cluster: Cluster) -> list[Filter]:
    """In kube-scheduler's order; each answers why not, or None."""

    def unschedulable(node: Obj) -> Reason | None:
        blocked = node.get("spec", {}).get("unschedulable") and not tolerates(pod, UNSCHEDULABLE)
        return "node(s) were unschedulable" if blocked else None

    def taints(node: Obj) -> Reason | None:
        taint = untolerated(pod, node, ("NoSchedule", "NoExecute"))
        if taint is None:
            return None
        return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value') or ''}}}"

    def affinity(node: Obj) -> Reason | None:
        return None if matches_node(pod, node) else "node(s) didn't match Pod's node affinity/selector"

    def ports(node: Obj) -> Reason | None:
        taken = [t for p in cluster.pods_on(node["metadata"]["name"]) for t in host_ports(p)]
        if any(ports_clash(w, t) for w in wanted_ports for t in taken):
            return "node(s) didn't have free ports for the requested pod ports"
        return None

    def capacity(node: Obj) -> Reason | None:
        full = _count(cluster.pods_on(node["metadata"]["name"])) >= pod_limit(node)
        return "Too many pods" if full else None

    wanted_ports = tuple(host_ports(pod))
    filters: list[Filter] = [unschedulable, taints, affinity]
    if wanted_ports:
        filters.append(ports)
    filters.append(capacity)
    filters += [_spread_filter(pod, c, nodes, cluster) for c in _constraints(pod, "DoNotSchedule")]
    filters += _pod_affinity_filters(pod, nodes, cluster)
    return filters


def _constraints(pod: Obj, when: str) -> list[Obj]:
    return [c for c in pod["spec"].get("topologySpreadConstraints") or () if c["whenUnsatisfiable"] == when]


def _spread_filter(pod: Obj, constraint: Obj, nodes: list[Obj], cluster: Cluster) -> Filter:
    key = constraint["topologyKey"]
    counts = _domain_counts(pod, constraint, nodes, cluster)
    least = min(counts.values(), default=0)
    if len(counts) < (constraint.get("minDomains") or 1):
        least = 0
    own = 1 if _term_selector(constraint, pod).matches(labels_of(pod)) else 0

    def spread(node: Obj) -> Reason | None:
        domain = labels_of(node).get(key)
        if domain is None:
            return "node(s) didn't match pod topology spread constraints (missing required label)"
        if counts.get(domain, 0) + own - least > constraint["maxSkew"]:
            return "node(s) didn't match pod topology spread constraints"
        return None

    return spread


def _domain_counts(pod: Obj, constraint: Obj, nodes: list[Obj], cluster: Cluster) -> dict[str, int]:
    """Domain -> matching pods, over the nodes the constraint counts."""
    key = constraint["topologyKey"]
    honor_affinity = constraint.get("nodeAffinityPolicy", "Honor") == "Honor"
    honor_taints = constraint.get("nodeTaintsPolicy", "Ignore") == "Honor"
    domains: dict[str, str] = {}
    for node in nodes:
        domain = labels_of(node).get(key)
        if domain is None or (honor_affinity and not matches_node(pod, node)):
            continue
        if honor_taints and untolerated(pod, node, ("NoSchedule", "NoExecute")):
            continue
        domains[node["metadata"]["name"]] = domain
    counts = dict.fromkeys(domains.values(), 0)
    selector = _term_selector(constraint, pod)
    for other in cluster.pods_in(pod["metadata"]["namespace"]):
        place_of = domains.get(facts.node_of(other))
        if place_of is not None and not facts.is_deleting(other) and selector.matches(labels_of(other)):
            counts[place_of] += 1
    return counts


def _term_selector(term: Obj, pod: Obj) -> selectors.Selector:
    """labelSelector with matchLabelKeys and mismatchLabelKeys of the incoming pod."""
    try:
        selector = selectors.from_dict(term.get("labelSelector"))
    except ConfigError:
        return selectors.NOTHING
    if selector.nothing:
        return selector
    labels = labels_of(pod)
    more = [
        Requirement(key, operator, (labels[key],))
        for field, operator in (("matchLabelKeys", Operator.IN), ("mismatchLabelKeys", Operator.NOT_IN))
        for key in term.get(field) or ()
        if key in labels
    ]
    return selectors.Selector((*selector.requirements, *more))


# --- affinity between pods ------------------------------------------------------------------------


class _Term:
    """One PodAffinityTerm of `pod`: which pods it speaks of, and in which domain."""

    def __init__(self, term: Obj, pod: Obj, cluster: Cluster) -> None:
        self.key: str = term["topologyKey"]
        self._selector = _term_selector(term, pod)
        names = set(term.get("namespaces") or ())
        chosen = term.get("namespaceSelector")
        if chosen is not None:
            by_label = selectors.from_dict(chosen)
            names |= {n for n, labels in cluster.namespaces().items() if by_label.matches(dict(labels))}
        elif not names:
            names = {pod["metadata"]["namespace"]}
        self.namespaces = names

    def means(self, other: Obj) -> bool:
        return other["metadata"]["namespace"] in self.namespaces and self._selector.matches(labels_of(other))

    def domains(self, cluster: Cluster, where: Mapping[str, Mapping[str, str]]) -> Counter[str]:
        """Domain -> how many pods meant are in it. where: node -> labels."""
        found: Counter[str] = Counter()
        for namespace in self.namespaces:
            for other in cluster.pods_in(namespace):
                domain = where.get(facts.node_of(other), {}).get(self.key)
                if domain is not None and self.means(other):
                    found[domain] += 1
        return found


def required_terms(pod: Obj, kind: str) -> list[Obj]:
    return affinity_of(pod, kind).get("requiredDuringSchedulingIgnoredDuringExecution") or []


def _pod_affinity_filters(pod: Obj, nodes: list[Obj], cluster: Cluster) -> list[Filter]:
    where = {n["metadata"]["name"]: labels_of(n) for n in nodes}
    filters: list[Filter] = []
    wanted = [_Term(t, pod, cluster) for t in required_terms(pod, "podAffinity")]
    avoided = [_Term(t, pod, cluster) for t in required_terms(pod, "podAntiAffinity")]
    if wanted:
        near = [(t.key, t.domains(cluster, where)) for t in wanted]
        # The first of a group that wants to be together may go anywhere.
        first = not any(found for _, found in near) and all(t.means(pod) for t in wanted)

        def attracted(node: Obj) -> Reason | None:
            labels = labels_of(node)
            fits = all(key in labels and (first or found[labels[key]]) for key, found in near)
            return None if fits else "node(s) didn't match pod affinity rules"

        filters.append(attracted)
    if avoided:
        far = [(t.key, t.domains(cluster, where)) for t in avoided]

        def repelled(node: Obj) -> Reason | None:
            labels = labels_of(node)
            clash = any(key in labels and found[labels[key]] for key, found in far)
            return "node(s) didn't match pod anti-affinity rules" if clash else None

        filters.append(repelled)
    closed: set[tuple[str, str]] = set()
    for other in cluster.with_anti_affinity():
        for term in required_terms(other, "podAntiAffinity"):
            theirs = _Term(term, other, cluster)
            domain = where.get(facts.node_of(other), {}).get(theirs.key)
            if domain is not None and theirs.means(pod):
                closed.add((theirs.key, domain))
    if closed:

        def refused(node: Obj) -> Reason | None:
            if closed.isdisjoint(labels_of(node).items()):
                return None
            return "node(s) didn't satisfy existing pods anti-affinity rules"

        filters.append(refused)
    return filters


# --- scores ---------------------------------------------------------------------------------------


def _scores(pod: Obj, nodes: list[Obj], cluster: Cluster) -> dict[str, float]:
    """Node -> score; the weights are the default profile's."""
    total = dict.fromkeys((n["metadata"]["name"] for n in nodes), 0.0)
    for weight, raw, more_is_better in (
        (2, _preferred_nodes(pod, nodes), True),
        (3, _soft_taints(pod, nodes), False),
        (2, _preferred_pods(pod, nodes, cluster), True),
        (2, _crowding(pod, nodes, cluster), False),
    ):
        low, high = min(raw.values(), default=0.0), max(raw.values(), default=0.0)
        if low == high:
            continue
        for name, value in raw.items():
            share = (value - low) / (high - low)
            total[name] += 100 * weight * (share if more_is_better else 1 - share)
    return total


def _preferred_nodes(pod: Obj, nodes: list[Obj]) -> dict[str, float]:
    preferred = affinity_of(pod, "nodeAffinity").get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    return {
        n["metadata"]["name"]: sum(t["weight"] for t in preferred if matches_term(t["preference"], n))
        for n in nodes
    }


def _soft_taints(pod: Obj, nodes: list[Obj]) -> dict[str, float]:
    return {
        n["metadata"]["name"]: sum(
            t.get("effect") == "PreferNoSchedule" and not tolerates(pod, t) for t in taints_of(n)
        )
        for n in nodes
    }


def _preferred_pods(pod: Obj, nodes: list[Obj], cluster: Cluster) -> dict[str, float]:
    where = {n["metadata"]["name"]: labels_of(n) for n in cluster.nodes()}
    raw = dict.fromkeys((n["metadata"]["name"] for n in nodes), 0.0)
    for kind, sign in (("podAffinity", 1), ("podAntiAffinity", -1)):
        for each in affinity_of(pod, kind).get("preferredDuringSchedulingIgnoredDuringExecution") or ():
            term = _Term(each["podAffinityTerm"], pod, cluster)
            found = term.domains(cluster, where)
            for name in raw:
                if (domain := where[name].get(term.key)) is not None:
                    raw[name] += sign * each["weight"] * found[domain]
    return raw


def _crowding(pod: Obj, nodes: list[Obj], cluster: Cluster) -> dict[str, float]:
    """How many pods of the same owner are near: on the node, and in its zone in proportion to its nodes.

    With constraints of its own (ScheduleAnyway) those count instead, as in kube-scheduler.
    """
    constraints = _constraints(pod, "ScheduleAnyway")
    everywhere = list(cluster.nodes())
    raw = dict.fromkeys((n["metadata"]["name"] for n in nodes), 0.0)
    if constraints:
        for constraint in constraints:
            counts = _domain_counts(pod, constraint, everywhere, cluster)
            for node in nodes:
                domain = labels_of(node).get(constraint["topologyKey"])
                raw[node["metadata"]["name"]] += counts.get(domain or "", 0)
        return raw
    siblings = Counter(facts.node_of(p) for p in _siblings(pod, cluster) if not facts.is_deleting(p))
    zone_of = {n["metadata"]["name"]: labels_of(n).get(ZONE, "") for n in everywhere}
    sizes = Counter(zone_of.values())
    in_zone: Counter[str] = Counter()
    for name, count in siblings.items():
        in_zone[zone_of.get(name, "")] += count
    for name in raw:
        zone = zone_of.get(name, "")
        raw[name] = siblings[name] + (in_zone[zone] / sizes[zone] if zone else 0.0)
    return raw


def _siblings(pod: Obj, cluster: Cluster) -> Iterable[Obj]:
    if (ref := controller_of(pod)) is not None:
        return cluster.owned_by(ref["uid"])
    labels = labels_of(pod)
    if not labels:
        return ()
    return [
        p
        for p in cluster.pods_in(pod["metadata"]["namespace"])
        if controller_of(p) is None and labels_of(p) == labels
    ]


def _count(pods: Iterable[Obj]) -> int:
    return sum(1 for _ in pods)
