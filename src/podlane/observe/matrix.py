"""Who reaches whom: every pod and every declared port of every other, by policy's own tables. Pure.

Only policy is asked; that there are routes and listeners is `explain`'s and `check`'s business. The host
outside stands for what is beyond the cluster, where one is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct, field

from podlane.compile import policy
from podlane.compile.engine import compile_node
from podlane.compile.policy_index import networked
from podlane.compile.policy_sim import Judge, PolicyFlow
from podlane.compile.tables import Direction
from podlane.compile.view import pod_addresses
from podlane.model.addresses import Address, Protocol, family_of
from podlane.model.config import NetworkConfig
from podlane.model.objects import KINDS, Object, Pod
from podlane.observe.cluster import Cluster
from podlane.observe.explanation import API_VERSION

OUTSIDE = "outside"
NAME_LABEL = "kubernetes.io/metadata.name"


class Pair(Struct, frozen=True):
    """port: as 8080/TCP; `any` of a pod that declares none stands for a port that no rule names."""

    source: str = field(name="from")
    target: str = field(name="to")
    port: str
    allowed: bool

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} {self.port}"


class Matrix(Struct, frozen=True, rename="camel"):
    pairs: list[Pair]
    api_version: str = API_VERSION
    kind: str = "Matrix"

    def json(self) -> bytes:
        return msgspec.json.encode(self)


class Difference(Struct, frozen=True, rename="camel"):
    """What a change would open and close; pods that come or go with it are not compared."""

    opens: list[Pair]
    closes: list[Pair]
    api_version: str = API_VERSION
    kind: str = "MatrixDifference"

    def json(self) -> bytes:
        return msgspec.json.encode(self)


def matrix(cluster: Cluster, config: NetworkConfig, namespace: str | None = None) -> Matrix:
    """namespace: only what concerns its pods, as one end or the other."""
    pods = [p for _, p in sorted(cluster.pods.items()) if networked(p) and any(pod_addresses(p))]
    nodes = {p.spec.node_name for p in pods}
    judges = {node: judge_of(cluster, node, config) for node in nodes}
    found: list[Pair] = []
    for target in pods:
        for source in (None, *pods) if cluster.outside else pods:
            if source is target or namespace not in (
                None,
                target.namespace,
                source.namespace if source else "",
            ):
                continue
            found += _pairs(cluster, judges, source, target)
    return Matrix(found)


def judge_of(cluster: Cluster, node: str, config: NetworkConfig) -> Judge:
    return Judge(compile_node(cluster.objects, node=node, config=config, only=[policy.CAPABILITY]))


def _pairs(cluster: Cluster, judges: dict[str, Judge], source: Pod | None, target: Pod) -> Iterator[Pair]:
    ends = _ends(cluster, source, target)
    if ends is None:
        return
    name = f"{source.namespace}/{source.name}" if source else OUTSIDE
    for protocol, number in ports_of(target) or [(Protocol.TCP, 0)]:
        flow = PolicyFlow(*ends, protocol, number)
        allowed = judges[target.spec.node_name].decide(flow, Direction.INGRESS).allowed
        if source is not None:
            allowed = allowed and judges[source.spec.node_name].decide(flow, Direction.EGRESS).allowed
        port = f"{number}/{protocol}" if number else "any"
        yield Pair(name, f"{target.namespace}/{target.name}", port, allowed)


def ports_of(pod: Pod) -> list[tuple[Protocol, int]]:
    every = [(p.protocol, p.container_port) for c in pod.spec.containers for p in c.ports]
    return sorted({(Protocol(p), n) for p, n in every if p in Protocol.__members__}, key=lambda each: each[1])


def _ends(cluster: Cluster, source: Pod | None, target: Pod) -> tuple[Address, Address] | None:
    """In the first family that both have."""
    senders = list(pod_addresses(source)) if source is not None else list(cluster.outside)
    for to in pod_addresses(target):
        for sender in senders:
            if family_of(sender) is family_of(to):
                return sender, to
    return None


def planned(manifests: Iterable[dict[str, Any]]) -> Iterator[Object]:
    """Manifests as the API would have them, as far as policy is concerned: other kinds are left out."""
    for each in manifests:
        kind, meta = each.get("kind", ""), dict(each.get("metadata", {}))
        if kind == "Namespace":
            meta["labels"] = {**meta.get("labels", {}), NAME_LABEL: meta.get("name", "")}
        elif kind in ("NetworkPolicy", "Pod"):
            meta.setdefault("namespace", "default")
        else:
            continue
        yield msgspec.convert({**each, "metadata": meta}, KINDS[kind])


def changed(cluster: Cluster, objects: Iterable[Object]) -> Cluster:
    """The cluster as it would be with these objects in it."""
    new = {(type(each).__name__, each.key): each for each in objects}
    kept = [each for each in cluster.objects if (type(each).__name__, each.key) not in new]
    return Cluster([*kept, *new.values()], cluster.outside)


def difference(before: Matrix, after: Matrix) -> Difference:
    known = {(p.source, p.target, p.port): p.allowed for p in before.pairs}
    moved = [p for p in after.pairs if known.get((p.source, p.target, p.port), p.allowed) != p.allowed]
    return Difference([p for p in moved if p.allowed], [p for p in moved if not p.allowed])


# --- for people -----------------------------------------------------------------------------------


def matrix_lines(told: Matrix) -> Iterator[str]:
    """A line for each port: who may send to it."""
    by_port: dict[tuple[str, str], list[Pair]] = {}
    for pair in told.pairs:
        by_port.setdefault((pair.target, pair.port), []).append(pair)
    wide = max((len(f"{target} {port}") for target, port in by_port), default=0)
    for (target, port), pairs in by_port.items():
        yield f"{f'{target} {port}':<{wide}}  {_who(pairs)}"


def _who(pairs: list[Pair]) -> str:
    may = [p.source for p in pairs if p.allowed]
    may_not = [p.source for p in pairs if not p.allowed]
    if not may_not:
        return "from everyone"
    if not may:
        return "from nobody"
    if len(may) > len(may_not):
        return f"from everyone but {', '.join(may_not)}"
    return f"from {', '.join(may)}"


def difference_lines(told: Difference) -> Iterator[str]:
    for word, pairs in (("opens", told.opens), ("closes", told.closes)):
        yield f"{word} {len(pairs) or 'nothing'}"
        yield from (f"  {pair}" for pair in pairs)
