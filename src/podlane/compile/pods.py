"""A pod of this node is reached through its own link: one route and one permanent neighbour a family.

A packet for 10.244.1.5 that enters this node, from the tunnel or from a neighbour pod, leaves by the
route 10.244.1.5 dev plXXXX; the permanent neighbour spares the first packet the resolution and cannot
be claimed by another pod. What the pod sends meets its own static default route (cni/). What the node
itself sends to it comes from the node's InternalIP: pods see the node by the address the API shows.
A pod on a bridge has the same rows, with the bridge as their device, and its link is a port of that
(compile/bridge.py).

The unit is the attachment, not the Pod object: the address is used before status.podIPs has it. A Pod of this
node is a unit that has no rows; it says whether an address of its status is not of the node's podCIDRs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from podlane.compile import facts
from podlane.compile.engine import Capability
from podlane.compile.store import Compiled, UnitKey
from podlane.compile.tables import NOTHING, Neighbour, Port, Route, Rows, Sender, Table
from podlane.compile.view import ATTACHMENT, UNDERLAY, Change, View, pod_addresses, since
from podlane.errors import ConfigError
from podlane.model.addresses import family_of, host_prefix
from podlane.model.config import Hairpin, LinkMode
from podlane.model.local import Attachment

NAME: Final = "pods"
POD: Final = "pod"


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if change.kind == ATTACHMENT:
        yield _unit(change.object)
    elif change.kind == "Pod" and any(side.spec.node_name == view.me.name for side in change.sides):
        yield UnitKey(NAME, POD, change.name, change.object.namespace)
    elif change.kind == "Node" and change.name == view.me.name:
        before, after = (facts.internal_addresses(n) if n else [] for n in (change.old, change.new))
        if before != after:
            yield from map(_unit, view.me.attachments.values())
        if change.old is None or change.new is None or change.old.spec != change.new.spec:
            for pod in view.pods_here():
                yield UnitKey(NAME, POD, pod.name, pod.namespace)
    elif change.kind == UNDERLAY and any(side.chosen for side in change.sides):
        yield from map(_unit, view.me.attachments.values())


def compile_unit(key: UnitKey, view: View) -> Rows | Compiled:
    if key.what == POD:
        return _pod(key, view)
    me = view.me
    attachment = me.attachments.get((key.namespace, key.name))
    if attachment is None:
        return NOTHING
    routes: dict[Any, Any] = {}
    neighbours: dict[Any, Any] = {}
    for where in attachment.addresses:
        destination = host_prefix(where)
        source = facts.source_address(me.node, me.underlay, family_of(where)) if me.node else None
        device = attachment.bridge or attachment.device
        routes[destination] = Route(destination, None, device, source)
        neighbours[device, where] = Neighbour(device, where, attachment.mac)
    sender = Sender(attachment.device, attachment.mac, attachment.addresses, attachment.bridge)
    rows = {
        Table.ROUTES: routes,
        Table.NEIGHBOURS: neighbours,
        Table.SENDERS: {attachment.device: sender},
    }
    if not attachment.bridge:
        return rows
    hairpin = view.config.link.hairpin is Hairpin.VETH
    port = Port(attachment.device, attachment.bridge, hairpin)
    return rows | {Table.PORTS: {attachment.device: port}}


def _pod(key: UnitKey, view: View) -> Rows | Compiled:
    """No rows; what is wrong with the addresses that the Pod says it has."""
    pod, node = view.pods.get((key.namespace, key.name)), view.me.node
    if pod is None or node is None or pod.spec.node_name != node.name or pod.spec.host_network:
        return NOTHING
    try:
        own = facts.pod_prefixes(node).values()
    except ConfigError:
        return NOTHING  # the node's own units say so
    ended = pod.status.phase in ("Succeeded", "Failed")
    odd = [w for w in pod_addresses(pod) if not any(w in each for each in own if each.version == w.version)]
    if not own or ended or not odd:
        return NOTHING
    whose, have = ", ".join(map(str, odd)), ", ".join(map(str, own))
    why = f"pod {key.namespace}/{key.name}: {whose} is not of node {node.name}'s podCIDRs {have}"
    return Compiled(NOTHING, since(pod), (f"{why}: other nodes have no route to it; delete the pod",))


CAPABILITY = Capability(NAME, units_of, compile_unit)


def _unit(attachment: Attachment) -> UnitKey:
    return UnitKey(NAME, "attachment", attachment.ifname, attachment.container_id)


def host_device(container_id: str, ifname: str) -> str:
    """The host's end of a pod's link: "pl" and 10 hex digits."""
    return "pl" + hashlib.sha256(f"{container_id}{ifname}".encode()).hexdigest()[:10]


def attachments_from_status(view: View) -> Iterator[Attachment]:
    """What the attachments of this node's pods must be, judged by their status.

    For a compile without the node at hand: container ids and MACs are not in the API, so the pod's uid
    stands for the one and the other is empty.
    """
    link = view.config.link
    bridge = link.bridge if link.mode is LinkMode.BRIDGE else ""
    for pod in view.pods_here():
        where = tuple(pod_addresses(pod))
        if where and not pod.spec.host_network and pod.status.phase not in ("Succeeded", "Failed"):
            identity = pod.metadata.uid or f"{pod.namespace}/{pod.name}"
            device = host_device(identity, "eth0")
            yield Attachment(identity, "eth0", device, "", where, pod.namespace, pod.name, bridge)
