"""The end of a packet's way, in an explanation: who gets it, and the way back. Pure."""

from __future__ import annotations

from podlane.compile.services_sim import holds
from podlane.compile.tables import Backend, SetName, Table
from podlane.model.addresses import Address, Protocol
from podlane.model.objects import Pod
from podlane.observe.explanation import Outcome, WayEnds, learnt, learnt_row, match, pod_route, route_row
from podlane.observe.walk import Walk


def to_pod(
    walk: Walk,
    node: str,
    sender: Address | None,
    backend: Backend,
    protocol: Protocol,
    masquerade: bool = False,
) -> str:
    """Returns who gets it. sender: as the pod sees it; None for an address of its own node."""
    to = backend.address
    route = pod_route(walk.tables(node), to)
    if route is None:
        why = f"{node} has no pod with the address {to}"
        walk.add("delivery", node, why)
        raise WayEnds(Outcome.NO_ROUTE, why)
    pod = walk.cluster.pod_at(to)
    name = f"{pod.namespace}/pod/{pod.name}" if pod else f"the pod at {to}"
    row = [] if walk.stages and walk.stages[-1].stage == "route" else [route_row(route)]
    declared, silent = _listens(pod, protocol, backend.port)
    walk.add("delivery", node, f"{name} has {to}{declared or silent}", *row)
    _reply(walk, node, sender, masquerade)
    return f"{name} on {node} gets it from {sender or node}{silent}"


def to_node(
    walk: Walk, node: str, to: Address, port: int, sender: Address | None = None, masquerade: bool = False
) -> str:
    """Returns who gets it. sender: None where the way back needs no telling."""
    walk.add("delivery", node, f"{node} itself has {to}" + (f", port {port}" if port else ""))
    if sender is not None:
        _reply(walk, node, sender, masquerade)
    return f"{node} gets it" + (f" from {sender}" if sender is not None else "")


def _reply(walk: Walk, node: str, sender: Address | None, masquerade: bool) -> None:
    """The way back begins on `node`; NAT is undone where it was done."""
    undone = "; NAT is undone there" if masquerade or walk.translated else ""
    if sender is None:
        walk.add("reply", node, "to this node, which undoes its NAT")
        return
    route = match(walk.tables(node), sender)
    brought = learnt(walk.tables(node), sender) if route is None else None
    if route is not None:
        walk.add("reply", node, f"to {sender}{undone}", route_row(route))
    elif brought is not None:
        walk.add("reply", node, f"to {sender}, by BGP{undone}", learnt_row(brought))
    elif holds(walk.tables(node).get(Table.SETS, {}), SetName.POD_CIDRS, sender):
        walk.add("reply", node, f"no route back to {sender}")
        raise WayEnds(Outcome.DROPPED, f"it arrives, but {node} has no route back to {sender}")
    else:
        walk.add("reply", node, f"to {sender} by the node's own route{undone}")


def _listens(pod: Pod | None, protocol: Protocol, port: int) -> tuple[str, str]:
    """(which container declares the port, or else that none does)"""
    if pod is None or not port:
        return "", ""
    for container in pod.spec.containers:
        if any(p.container_port == port and p.protocol == protocol for p in container.ports):
            return f"; container {container.name} declares port {port}/{protocol}", ""
    return (
        "",
        f"; no container declares port {port}/{protocol}: unless one listens all the same, it is refused",
    )
