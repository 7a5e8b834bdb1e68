"""Which policies select a pod, which of their sets are in use here, and which pods are in those. Pure.

The View keeps one and tells it of every change. It answers without walking the cluster: selectors lie under
one label that whoever they match must have, pods under each of theirs.

A policy is **in use** while it selects a pod of this node, a set while a policy in use names it. Only for
sets in use do pods have memberships, so that a node holds what its own pods need. That something came into
use, or went out of it, is a change of its own (`derived`), which the units that depend on it see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from podlane.compile.policy_terms import PolicySet, Terms, declared_ports, read, read_subjects
from podlane.compile.tables import PodSet
from podlane.model.objects import Namespace, NetworkPolicy, Pod
from podlane.model.selectors import Operator, Selector

Key: TypeAlias = tuple[str, str]
Anchor: TypeAlias = tuple[str, ...]
K = TypeVar("K")

ENDED: Final = ("Succeeded", "Failed")


class InUse(NamedTuple):
    """What came into use or went out of it: a set, or (set is None) a policy."""

    policy: Key
    set: PolicySet | None = None


def networked(pod: Pod) -> bool:
    """It has an address of its own, and still needs it: subject and peer of policies."""
    return not pod.spec.host_network and pod.status.phase not in ENDED


class Anchored(Generic[K]):
    """Selectors, found by the labels they might match."""

    def __init__(self) -> None:
        self._under: dict[Anchor, dict[K, Selector]] = {}

    def add(self, key: K, selector: Selector) -> None:
        for anchor in _anchors(selector):
            self._under.setdefault(anchor, {})[key] = selector

    def remove(self, key: K, selector: Selector) -> None:
        for anchor in _anchors(selector):
            there = self._under[anchor]
            del there[key]
            if not there:
                del self._under[anchor]

    def matching(self, labels: Mapping[str, str]) -> Iterator[K]:
        anchors: list[Anchor] = [()]
        for key, value in labels.items():
            anchors += [(key,), (key, value)]
        for anchor in anchors:
            for found, selector in self._under.get(anchor, _NONE).items():
                if selector.matches(labels):
                    yield found


_NONE: Final[dict[Any, Selector]] = {}


def _anchors(selector: Selector) -> list[Anchor]:
    """Where a selector lies: of these, whoever it matches has exactly one."""
    if selector.nothing:
        return []
    for each in selector.requirements:
        if each.operator is Operator.IN:
            return [(each.key, value) for value in each.values]
    for each in selector.requirements:
        if each.operator is Operator.EXISTS:
            return [(each.key,)]
    return [()]


class _Pods:
    """Pods by namespace, by label and by the names of their ports."""

    def __init__(self) -> None:
        self.by_key: dict[Key, Pod] = {}
        self._places: dict[tuple[str, ...], set[Key]] = {}

    def put(self, key: Key, pod: Pod | None) -> None:
        old = self.by_key.pop(key, None)
        if old is not None:
            for place in _places(old):
                keys = self._places[place]
                keys.discard(key)
                if not keys:
                    del self._places[place]
        if pod is not None and networked(pod):
            self.by_key[key] = pod
            for place in _places(pod):
                self._places.setdefault(place, set()).add(key)

    def of(self, namespace: str) -> set[Key]:
        return self._places.get(("namespace", namespace), set())

    def with_port(self, name: str) -> set[Key]:
        return self._places.get(("port", name), set())

    def perhaps(self, selector: Selector) -> Collection[Key]:
        """A superset of the pods that match, as small as an index can tell."""
        anchors = _anchors(selector)
        if not all(len(anchor) == 2 for anchor in anchors):
            return self.by_key
        return [key for anchor in anchors for key in self._places.get(("label", *anchor), ())]

    def matching(self, selector: Selector, namespace: str = "") -> Iterator[Key]:
        """Of one namespace, or of all."""
        candidates = self.perhaps(selector)
        inside = self.of(namespace) if namespace else self.by_key.keys()
        smaller = inside if len(inside) < len(candidates) else candidates
        for key in smaller:
            if key in inside and selector.matches(self.by_key[key].metadata.labels):
                yield key


def _places(pod: Pod) -> Iterator[tuple[str, ...]]:
    yield "namespace", pod.namespace
    for key, value in pod.metadata.labels.items():
        yield "label", key, value
    for name in {name for name, _, _ in declared_ports(pod)}:
        yield "port", name


class PolicyIndex:
    """me: the name of this node."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._terms: dict[Key, Terms] = {}
        self._subjects: dict[str, Anchored[Key]] = {}
        self._pods = _Pods()
        self._local: dict[str, set[Key]] = {}  # this node's pods by namespace
        self._selected: Counter[Key] = Counter()  # policy -> how many pods of this node it selects
        self._uses: Counter[str] = Counter()  # set -> by how many policies in use it is named
        self._sets: dict[str, PolicySet] = {}  # those in use
        self._own: dict[str, Anchored[str]] = {}  # sets of one namespace's pods
        self._everywhere: Anchored[str] = Anchored()  # sets of pods of every namespace
        self._labelled: dict[str, Selector] = {}  # sets of pods of some namespaces
        self._labels: dict[str, Mapping[str, str]] = {}  # of the namespaces there are
        self._there: dict[str, Anchored[str]] = {}  # by namespace: those of _labelled that select it
        self._before: dict[InUse, bool] = {}

    # --- what is known ---

    def terms(self, policy: Key) -> Terms | None:
        return self._terms.get(policy)

    def in_use(self, policy: Key) -> bool:
        return self._selected[policy] > 0

    def selecting(self, pod: Pod) -> list[Key]:
        """The policies that select a pod, in order of name."""
        subjects = self._subjects.get(pod.namespace)
        return sorted(subjects.matching(pod.metadata.labels)) if subjects and networked(pod) else []

    def sets_of(self, pod: Pod) -> list[str]:
        """Ids of the PodSets in use that a pod is in, in order."""
        labels, namespace = pod.metadata.labels, pod.namespace
        found = set(self._everywhere.matching(labels)) if namespace in self._labels else set()
        if own := self._own.get(namespace):
            found.update(own.matching(labels))
        if self._labelled and namespace in self._labels:
            found.update(self._in_namespace(namespace).matching(labels))
        return sorted(found)

    def set_in_use(self, set_id: str) -> bool:
        return set_id in self._sets

    def members(self, value: PolicySet) -> Iterator[Key]:
        """The pods that are in a set, or may be: all whose rows its coming or going changes."""
        if not isinstance(value, PodSet):
            yield from sorted(self._pods.with_port(value.name))
        elif value.namespace:
            yield from sorted(self._pods.matching(value.pods, value.namespace))
        else:
            yield from sorted(
                key
                for key in self._pods.matching(value.pods)
                if value.namespaces.matches(self._labels.get(key[0]))
            )

    def pods_of(self, namespace: str) -> list[Key]:
        return sorted(self._pods.of(namespace))

    def subjects_here(self, policy: NetworkPolicy) -> list[Key]:
        """This node's pods that a policy selects, or has selected."""
        return self.local_subjects(policy.namespace, read_subjects(policy))

    def local_subjects(self, namespace: str, subjects: Selector) -> list[Key]:
        """This node's pods of a namespace that a selector matches."""
        here = self._local.get(namespace, ())
        return sorted(key for key in here if subjects.matches(self._pods.by_key[key].metadata.labels))

    # --- what changes ---

    def derived(self) -> list[tuple[InUse, bool]]:
        """What came into use (True) or went out of it since the last call."""
        found = [(what, not before) for what, before in self._before.items() if before != self._is_used(what)]
        self._before = {}
        return found

    def put_namespace(self, old: Namespace | None, new: Namespace | None) -> None:
        name = (new or old).name  # type: ignore[union-attr]
        self._there.pop(name, None)
        if new is None:
            self._labels.pop(name, None)
        else:
            self._labels[name] = new.metadata.labels

    def put_pod(self, old: Pod | None, new: Pod | None) -> None:
        key = (new or old).key  # type: ignore[union-attr]
        before, after = self._selecting_here(old), self._selecting_here(new)
        self._pods.put(key, new)
        self._local.setdefault(key[0], set()).discard(key)
        if self._is_local(new):
            self._local[key[0]].add(key)
        for policy in after - before:
            self._count(policy, +1)
        for policy in before - after:
            self._count(policy, -1)

    def put_policy(self, old: NetworkPolicy | None, new: NetworkPolicy | None) -> None:
        key = (new or old).key  # type: ignore[union-attr]
        namespace = key[0]
        subjects = self._subjects.setdefault(namespace, Anchored())
        before, selected = self._terms.pop(key, None), self._selected.pop(key, 0)
        self._remember(InUse(key), selected > 0)
        if before is not None:
            subjects.remove(key, before.subjects)
        if new is not None:
            terms = self._terms[key] = read(new)
            subjects.add(key, terms.subjects)
            count = len(self.local_subjects(namespace, terms.subjects))
            if count:
                self._selected[key] = count
                self._use(key, terms, +1)
        # After the new, so that what both use stays in use.
        if before is not None and selected:
            self._use(key, before, -1)

    # --- helpers ---

    def _is_local(self, pod: Pod | None) -> bool:
        return pod is not None and pod.spec.node_name == self._me and networked(pod)

    def _selecting_here(self, pod: Pod | None) -> set[Key]:
        return set(self.selecting(pod)) if pod is not None and self._is_local(pod) else set()

    def _is_used(self, what: InUse) -> bool:
        return self.in_use(what.policy) if what.set is None else what.set.id in self._sets

    def _remember(self, what: InUse, before: bool) -> None:
        self._before.setdefault(what, before)

    def _count(self, policy: Key, change: int) -> None:
        before = self._selected[policy]
        self._remember(InUse(policy), before > 0)
        self._selected[policy] = before + change
        if not before:
            self._use(policy, self._terms[policy], +1)
        elif not before + change:
            del self._selected[policy]
            self._use(policy, self._terms[policy], -1)

    def _use(self, policy: Key, terms: Terms, change: int) -> None:
        for set_id, value in terms.sets.items():
            before = self._uses[set_id]
            self._remember(InUse(("", ""), value), before > 0)
            self._uses[set_id] = before + change
            if not before:
                self._sets[set_id] = value
                self._lay(value, add=True)
            elif not before + change:
                del self._uses[set_id], self._sets[set_id]
                self._lay(value, add=False)

    def _lay(self, value: PolicySet, *, add: bool) -> None:
        if not isinstance(value, PodSet):
            return
        if value.namespace:
            _put(self._own.setdefault(value.namespace, Anchored()), value, add=add)
        elif value.namespaces.empty:
            _put(self._everywhere, value, add=add)
        else:
            if add:
                self._labelled[value.id] = value.namespaces
            else:
                del self._labelled[value.id]
            for namespace, there in self._there.items():
                if value.namespaces.matches(self._labels[namespace]):
                    _put(there, value, add=add)

    def _in_namespace(self, namespace: str) -> Anchored[str]:
        there = self._there.get(namespace)
        if there is None:
            there = self._there[namespace] = Anchored()
            for set_id, namespaces in self._labelled.items():
                value = self._sets[set_id]
                if namespaces.matches(self._labels[namespace]) and isinstance(value, PodSet):
                    there.add(set_id, value.pods)
        return there


def _put(index: Anchored[str], value: PodSet, *, add: bool) -> None:
    (index.add if add else index.remove)(value.id, value.pods)
