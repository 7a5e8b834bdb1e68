"""Which policies select a pod, which of their sets are in use here, and which pods are in those. Pure.

The View keeps one and tells it of every change. It answers without walking the cluster: selectors lie under
one label that whoever they match must have, and pods that no selector tells apart are judged once, as a group
(pod_groups.py).

A policy is **in use** while it selects a pod of this node, a set while a policy in use names it. Only for
sets in use do pods have memberships, so that a node holds what its own pods need. That something came into
use, or went out of it, is a change of its own (`derived`), which the units that depend on it see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from podlane.compile.pod_groups import Anchor, Group, Key, PodGroups, anchors
from podlane.compile.policy_terms import PolicySet, Terms, read, read_subjects
from podlane.compile.tables import PodSet
from podlane.model.objects import Namespace, NetworkPolicy, Pod
from podlane.model.selectors import Selector

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
        for anchor in anchors(selector):
            self._under.setdefault(anchor, {})[key] = selector

    def remove(self, key: K, selector: Selector) -> None:
        for anchor in anchors(selector):
            there = self._under[anchor]
            del there[key]
            if not there:
                del self._under[anchor]

    def matching(self, labels: Mapping[str, str]) -> Iterator[K]:
        places: list[Anchor] = [()]
        for key, value in labels.items():
            places += [(key,), (key, value)]
        for anchor in places:
            for found, selector in self._under.get(anchor, _NONE).items():
                if selector.matches(labels):
                    yield found


_NONE: Final[dict[Any, Selector]] = {}


class PolicyIndex:
    """me: the name of this node."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._terms: dict[Key, Terms] = {}
        self._subjects: dict[str, Anchored[Key]] = {}
        self._pods = PodGroups()
        self._local: dict[str, dict[Key, Mapping[str, str]]] = {}  # labels of this node's pods, by namespace
        self._selected: Counter[Key] = Counter()  # policy -> how many pods of this node it selects
        self._uses: Counter[str] = Counter()  # set -> by how many policies in use it is named
        self._sets: dict[str, PolicySet] = {}  # those in use
        self._own: dict[str, Anchored[str]] = {}  # sets of one namespace's pods
        self._everywhere: Anchored[str] = Anchored()  # sets of pods of every namespace
        self._labelled: dict[str, Selector] = {}  # sets of pods of some namespaces
        self._labels: dict[str, Mapping[str, str]] = {}  # of the namespaces there are
        self._there: dict[str, Anchored[str]] = {}  # by namespace: those of _labelled that select it
        self._sets_version = 0  # grows with whatever decides which sets a group is in
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

    def sets_of(self, pod: Pod) -> tuple[str, ...]:
        """Ids of the PodSets in use that a pod is in, in order."""
        group = self._pods.group_of(pod)
        if group.sets_version != self._sets_version:
            group.sets, group.sets_version = tuple(sorted(self._sets_of(group))), self._sets_version
        return group.sets

    def _sets_of(self, group: Group) -> set[str]:
        labels, namespace = group.labels, group.namespace
        found = set(self._everywhere.matching(labels)) if namespace in self._labels else set()
        if own := self._own.get(namespace):
            found.update(own.matching(labels))
        if self._labelled and namespace in self._labels:
            found.update(self._in_namespace(namespace).matching(labels))
        return found

    def set_in_use(self, set_id: str) -> bool:
        return set_id in self._sets

    def members(self, value: PolicySet) -> list[Key]:
        """The pods that are in a set, or may be: all whose rows its coming or going changes."""
        if not isinstance(value, PodSet):
            return _keys(self._pods.with_port(value.name))
        if value.namespace:
            return _keys(self._pods.matching(value.pods, value.namespace))
        there = {name for name, labels in self._labels.items() if value.namespaces.matches(labels)}
        return _keys(group for group in self._pods.matching(value.pods) if group.namespace in there)

    def pods_of(self, namespace: str) -> list[Key]:
        return _keys(self._pods.of(namespace))

    def subjects_here(self, policy: NetworkPolicy) -> list[Key]:
        """This node's pods that a policy selects, or has selected."""
        return self.local_subjects(policy.namespace, read_subjects(policy))

    def local_subjects(self, namespace: str, subjects: Selector) -> list[Key]:
        """This node's pods of a namespace that a selector matches."""
        here = self._local.get(namespace, {})
        return sorted(key for key, labels in here.items() if subjects.matches(labels))

    # --- what changes ---

    def derived(self) -> list[tuple[InUse, bool]]:
        """What came into use (True) or went out of it since the last call."""
        found = [(what, not before) for what, before in self._before.items() if before != self._is_used(what)]
        self._before = {}
        return found

    def put_namespace(self, old: Namespace | None, new: Namespace | None) -> None:
        name = (new or old).name  # type: ignore[union-attr]
        self._there.pop(name, None)
        self._sets_version += 1
        if new is None:
            self._labels.pop(name, None)
        else:
            self._labels[name] = new.metadata.labels

    def put_pod(self, old: Pod | None, new: Pod | None) -> None:
        key = (new or old).key  # type: ignore[union-attr]
        before, after = self._selecting_here(old), self._selecting_here(new)
        if old is not None and networked(old):
            self._pods.remove(key, old)
        if new is not None and networked(new):
            self._pods.add(key, new)
        if old is not None and self._is_local(old):
            del self._local[key[0]][key]
        if new is not None and self._is_local(new):
            self._local.setdefault(key[0], {})[key] = new.metadata.labels
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
        self._sets_version += 1
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


def _keys(groups: Iterable[Group]) -> list[Key]:
    """Of the pods in them, in order."""
    return sorted(key for group in groups for key in group.keys)
