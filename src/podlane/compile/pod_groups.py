"""Pods as selectors see them: in groups that no selector tells apart. Pure.

A cluster has ten times as many pods as sets of labels: what a workload made is one group, and is judged once.
Groups are found by namespace, by the names of their ports, and by label. By a label's key only if somebody
has asked for that key: of the dozen labels of a pod few are ever selected by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeAlias

import msgspec

from podlane.compile.policy_terms import declared_ports
from podlane.model.objects import Pod
from podlane.model.selectors import Operator, Selector

Key: TypeAlias = tuple[str, str]
Anchor: TypeAlias = tuple[str, ...]
Port: TypeAlias = tuple[str, str, int]

_canonical = msgspec.msgpack.Encoder(order="deterministic").encode


class Group:
    """keys: of the pods in it. sets: of policy_index.py, as of `sets_version`."""

    __slots__ = ("identity", "keys", "labels", "namespace", "ports", "sets", "sets_version")

    def __init__(
        self, identity: bytes, namespace: str, labels: Mapping[str, str], ports: tuple[Port, ...]
    ) -> None:
        self.identity, self.namespace, self.labels, self.ports = identity, namespace, labels, ports
        self.keys: set[Key] = set()
        self.sets: tuple[str, ...] = ()
        self.sets_version = -1


def anchors(selector: Selector) -> list[Anchor]:
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


class PodGroups:
    def __init__(self) -> None:
        self._groups: dict[bytes, Group] = {}
        self._by_namespace: dict[str, dict[bytes, Group]] = {}
        self._by_port: dict[str, dict[bytes, Group]] = {}
        self._by_label: dict[str, dict[str, dict[bytes, Group]]] = {}  # of the keys asked for
        # One change asks for one pod several times.
        self._asked_for: Pod | None = None
        self._group = Group(b"", "", {}, ())

    def group_of(self, pod: Pod) -> Group:
        """The pod's, or one like it that nobody is in."""
        if pod is not self._asked_for:
            self._asked_for, self._group = pod, self._find(pod)
        return self._group

    def _find(self, pod: Pod) -> Group:
        ports = tuple(sorted(set(declared_ports(pod))))
        labels, namespace = pod.metadata.labels, pod.namespace
        identity = hashlib.blake2b(_canonical((namespace, labels, ports)), digest_size=16).digest()
        found = self._groups.get(identity)
        return found if found is not None else Group(identity, namespace, labels, ports)

    def add(self, key: Key, pod: Pod) -> None:
        group = self.group_of(pod)
        if not group.keys:
            self._groups[group.identity] = group
            for place in self._places(group):
                place[group.identity] = group
        group.keys.add(key)

    def remove(self, key: Key, pod: Pod) -> None:
        group = self.group_of(pod)
        group.keys.discard(key)
        if not group.keys and self._groups.pop(group.identity, None) is not None:
            for place in self._places(group):
                del place[group.identity]

    def of(self, namespace: str) -> Iterator[Group]:
        yield from self._by_namespace.get(namespace, _NONE).values()

    def with_port(self, name: str) -> Iterator[Group]:
        yield from self._by_port.get(name, _NONE).values()

    def matching(self, selector: Selector, namespace: str = "") -> Iterator[Group]:
        """Of one namespace, or of all."""
        candidates = self.of(namespace) if namespace else self._perhaps(selector)
        for group in candidates:
            if selector.matches(group.labels):
                yield group

    def _perhaps(self, selector: Selector) -> Iterable[Group]:
        """A superset of those that match, as small as an index can tell."""
        where = anchors(selector)
        if not all(len(anchor) == 2 for anchor in where):
            return self._groups.values()
        return [each for key, value in where for each in self._labelled(key).get(value, _NONE).values()]

    def _labelled(self, key: str) -> dict[str, dict[bytes, Group]]:
        found = self._by_label.get(key)
        if found is None:
            found = self._by_label[key] = {}
            for group in self._groups.values():
                if key in group.labels:
                    found.setdefault(group.labels[key], {})[group.identity] = group
        return found

    def _places(self, group: Group) -> Iterator[dict[bytes, Group]]:
        yield self._by_namespace.setdefault(group.namespace, {})
        for name in {name for name, _, _ in group.ports}:
            yield self._by_port.setdefault(name, {})
        for key, by_value in self._by_label.items():
            if key in group.labels:
                yield by_value.setdefault(group.labels[key], {})


_NONE: Final[dict[bytes, Group]] = {}
