"""Which conversations to try, so that few of them cover much. Pure.

    every pod sends once and is sent to once, on its own node and across nodes
    every ordered pair of nodes is crossed: pod to pod, pod to node, node to pod
    every port of every service is asked from every node, and from one pod of every node
    every node port is asked on every node from outside, and so is every load-balancer address
    every container of a pod reaches every served port of its fellow containers over localhost

All of it once a family. The number grows with pods + nodes², not with pods².
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import Final

from msgspec import Struct

from podlane.model.addresses import Address, Family, Protocol, family_of
from podlane.observe.ground import LOOPBACK, Ground, Member, Port, Ready, Served

OUTSIDE: Final = "outside"
# In the order in which they are tried and shown.
KINDS: Final = (
    "container-localhost",
    "pod-pod-same-node",
    "pod-pod-cross-node",
    "pod-node",
    "node-pod",
    "pod-service",
    "node-service",
    "outside-nodeport",
    "outside-loadbalancer",
    "outside-ingress",
    "dns",
    "no-nat",
)


class Step(Struct, frozen=True):
    """One conversation to try.

    place: whose namespace sends (a pod, node/NAME or outside); source: who is said to. json: the peer answers
    who it is and who asked. port 0: a listener of our own on the node. allowed: the pods that may
    answer, as (namespace, name); empty for any. own: the address that the peer must see, if that is
    known (no-nat).
    """

    kind: str
    place: str
    source: str
    target: str
    address: Address
    port: int
    protocol: Protocol = Protocol.TCP
    json: bool = False
    allowed: frozenset[tuple[str, str]] = frozenset()
    own: Address | None = None

    @property
    def family(self) -> Family:
        return family_of(self.address)


def plan(ground: Ground) -> list[Step]:
    families = dict.fromkeys(family_of(a) for addresses in ground.nodes.values() for a in addresses)
    steps = [
        step
        for family in families
        for found in (
            _localhost(ground, family),
            _same_node(ground, family),
            _cross_node(ground, family),
            _pod_node(ground, family),
            _node_pod(ground, family),
        )
        for step in found
    ]
    for served in ground.services:
        steps += _service(ground, served)
        steps += _from_outside(ground, served)
    return sorted(steps, key=lambda s: KINDS.index(s.kind))


def _localhost(ground: Ground, family: Family) -> Iterator[Step]:
    for member in ground.members:
        for caller in member.containers:
            for port in member.ports:
                if port.family is family and port.loopback and port.container not in ("", caller):
                    yield Step(
                        "container-localhost",
                        member.name,
                        f"{member.name}/{caller}",
                        f"{member.name}/{port.container}:{port.number}{_suffix(port.protocol)}",
                        LOOPBACK[family],
                        port.number,
                        port.protocol,
                        port.json,
                    )


def _by_node(members: Iterable[Member], ground: Ground) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {node: [] for node in ground.nodes}
    for member in members:
        found[member.node].append(member)
    return found


def _senders(ground: Ground, family: Family) -> dict[str, list[Member]]:
    return _by_node((m for m in ground.members if m.address(family)), ground)


def _listeners(ground: Ground, family: Family) -> dict[str, list[Member]]:
    return _by_node((m for m in ground.members if m.address(family) and m.port(family)), ground)


def _same_node(ground: Ground, family: Family) -> Iterator[Step]:
    senders, listeners = _senders(ground, family), _listeners(ground, family)
    for node in ground.nodes:
        pairs: dict[tuple[str, str], tuple[Member, Member]] = {}
        here, there = senders[node], listeners[node]
        for number, sender in enumerate(here):
            # The next in the ring that is not the sender itself.
            others = [t for t in there if t.name != sender.name]
            if others:
                target = others[number % len(others)]
                pairs[sender.name, target.name] = sender, target
        reached = {target for _, target in pairs}
        for target in there:
            sender_for = next((s for s in here if s.name != target.name), None)
            if target.name not in reached and sender_for is not None:
                pairs[sender_for.name, target.name] = sender_for, target
        for sender, target in pairs.values():
            yield _pod_to_pod("pod-pod-same-node", sender, target, family)


def _cross_node(ground: Ground, family: Family) -> Iterator[Step]:
    senders, listeners = _senders(ground, family), _listeners(ground, family)
    pairs: dict[tuple[str, str], tuple[Member, Member]] = {}

    def take(sender: Member, target: Member) -> None:
        pairs[sender.name, target.name] = sender, target

    next_sender = {node: cycle(members) for node, members in senders.items() if members}
    next_target = {node: cycle(members) for node, members in listeners.items() if members}
    for a, sending in next_sender.items():
        for b, answering in next_target.items():
            if a != b:
                take(next(sending), next(answering))
    sent, reached = {s for s, _ in pairs}, {t for _, t in pairs}
    for node, members in senders.items():
        targets = cycle([t for b, found in listeners.items() if b != node for t in found] or [None])
        for sender, target in zip((m for m in members if m.name not in sent), targets, strict=False):
            if target is not None:
                take(sender, target)
                reached.add(target.name)
    for node, members in listeners.items():
        sources = cycle([s for a, found in senders.items() if a != node for s in found] or [None])
        for target, source in zip((m for m in members if m.name not in reached), sources, strict=False):
            if source is not None:
                take(source, target)
    for sender, target in pairs.values():
        yield _pod_to_pod("pod-pod-cross-node", sender, target, family)


def _pod_to_pod(kind: str, sender: Member, target: Member, family: Family) -> Step:
    port, to = _port(target, family), target.address(family)
    assert to is not None
    return Step(
        kind,
        sender.name,
        sender.name,
        f"{target.name}:{port.number}{_suffix(port.protocol)}",
        to,
        port.number,
        port.protocol,
        port.json,
        frozenset({_key(target)}),
        sender.address(family),
    )


def _pod_node(ground: Ground, family: Family) -> Iterator[Step]:
    """Each pod to its own node; one pod of each node to every other node."""
    for node, members in _senders(ground, family).items():
        turn = cycle(members)
        for sender in members:
            yield from _to_node(sender, node, ground, family)
        for other in ground.nodes:
            if other != node and members:
                yield from _to_node(next(turn), other, ground, family)


def _to_node(sender: Member, node: str, ground: Ground, family: Family) -> Iterator[Step]:
    to = next((a for a in ground.nodes[node] if family_of(a) is family), None)
    if to is not None:
        own = sender.address(family)
        yield Step("pod-node", sender.name, sender.name, f"node/{node}", to, 0, json=True, own=own)


def _node_pod(ground: Ground, family: Family) -> Iterator[Step]:
    """Each node to all its own pods, as a kubelet asks them, and to one pod of every other node."""
    listeners = _listeners(ground, family)
    turns = {node: cycle(members) for node, members in listeners.items() if members}
    for node in ground.nodes:
        for other, turn in turns.items():
            for target in listeners[other] if other == node else [next(turn)]:
                port, to = _port(target, family), target.address(family)
                assert to is not None
                yield Step(
                    "node-pod",
                    f"node/{node}",
                    f"node/{node}",
                    f"{target.name}:{port.number}{_suffix(port.protocol)}",
                    to,
                    port.number,
                    port.protocol,
                    port.json,
                    frozenset({_key(target)}),
                )


def _service(ground: Ground, served: Served) -> Iterator[Step]:
    family = family_of(served.address)
    senders = _senders(ground, family)
    target = f"{served.name}:{served.port}{_suffix(served.protocol)}"
    for number, node in enumerate(ground.nodes):
        answering = served.answering(node, external=False)
        if not answering or (served.protocol is Protocol.UDP and not all(e.json for e in answering)):
            continue
        places = [("node-service", f"node/{node}")]
        if senders[node]:
            # Another pod each time, so that services together make many pods send.
            places.append(("pod-service", senders[node][(number + served.port) % len(senders[node])].name))
        for kind, place in places:
            yield _asked(kind, place, target, served.address, served.port, served.protocol, answering)


def _from_outside(ground: Ground, served: Served) -> Iterator[Step]:
    family = family_of(served.address)
    if not any(family_of(a) is family for a in ground.outside):
        return
    suffix = _suffix(served.protocol)
    for node, addresses in ground.nodes.items():
        to = next((a for a in addresses if family_of(a) is family), None)
        answering = served.answering(node, external=True)
        if served.node_port and to is not None and answering:
            target = f"node/{node}:{served.node_port}{suffix}"
            yield _asked(
                "outside-nodeport", OUTSIDE, target, to, served.node_port, served.protocol, answering
            )
    for where in served.public:
        # A node's own address enters the service there; any other may at every node.
        owner = next((name for name, addresses in ground.nodes.items() if where in addresses), "")
        answering = served.answering(owner, external=True) if owner else served.endpoints
        target = f"{served.name}:{served.port}{suffix}" + (f" at node/{owner}" if owner else "")
        if answering:
            yield _asked(
                "outside-loadbalancer", OUTSIDE, target, where, served.port, served.protocol, answering
            )


def _asked(
    kind: str,
    place: str,
    target: str,
    to: Address,
    port: int,
    protocol: Protocol,
    answering: tuple[Ready, ...],
) -> Step:
    json = all(e.json for e in answering)
    allowed = frozenset(e.pod for e in answering if e.pod is not None) if json else frozenset()
    return Step(kind, place, place, target, to, port, protocol, json, allowed)


def _port(member: Member, family: Family) -> Port:
    port = member.port(family)
    assert port is not None  # it is one of _listeners
    return port


def _key(member: Member) -> tuple[str, str]:
    namespace, _, name = member.name.split("/")
    return namespace, name


def _suffix(protocol: Protocol) -> str:
    return "" if protocol is Protocol.TCP else f"/{protocol.lower()}"
