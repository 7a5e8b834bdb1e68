"""NetworkPolicy: which of this node's pods are isolated, what is allowed to them, and who the peers are.

    a pod's link          one Guard: for each direction the policies that select the pod, or none
    a policy in use here  one Policy a direction, and the sets its rules name
    a pod, here or there  one Peer: its addresses, and the sets in use that it is in

A pod is told of by its attachment before the API has its address, and its addresses here are those of its
attachments. A link whose pod the API does not show (yet, or any more) lets nothing through; one that no
Kubernetes pod has is none of policy's. Pods on their node's own network are neither subjects nor peers, and
what has ended is forgotten at once: its address will be another's.

Semantics: the API reference of networking.k8s.io/v1, and sig-network's conformance suite for what it leaves
open. Packets are judged by their addresses after a service's translation and before any masquerade.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from podlane.compile.engine import Capability
from podlane.compile.policy_index import InUse, networked
from podlane.compile.policy_terms import declared_ports, named_port
from podlane.compile.store import Compiled, UnitKey
from podlane.compile.tables import (
    NOTHING,
    Direction,
    Guard,
    Peer,
    PeerPort,
    PodKey,
    PolicyKey,
    Rows,
    Table,
)
from podlane.compile.view import ATTACHMENT, IN_USE, Change, Key, View, pod_addresses, since
from podlane.model.addresses import Address, Protocol
from podlane.model.local import Attachment
from podlane.model.objects import Pod

NAME: Final = "policy"
_PROTOCOLS: Final = {protocol.value: protocol for protocol in Protocol}


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if change.kind == ATTACHMENT:
        each: Attachment = change.object
        yield _link(each)
        if each.pod_name:
            yield _pod((each.pod_namespace, each.pod_name))
    elif change.kind == "Pod":
        # Most pods of a cluster are nobody's peer here, and have no rows.
        if any(_concerns(side, view) for side in change.sides):
            yield _pod(change.object.key)
        yield from map(_link, view.attachments_of(*change.object.key))
    elif change.kind == "NetworkPolicy":
        yield UnitKey(NAME, "policy", change.name, change.object.namespace)
        if len(change.sides) == 1 or _isolation(change.old) != _isolation(change.new):
            yield from _links_of_subjects(change, view)
    elif change.kind == "Namespace":
        if len(change.sides) == 1 or change.old.metadata.labels != change.new.metadata.labels:
            yield from map(_pod, view.policies.pods_of(change.name))
    elif change.kind == IN_USE:
        what: InUse = change.object
        if what.set is None:
            yield UnitKey(NAME, "policy", what.policy[1], what.policy[0])
        else:
            yield from map(_pod, view.policies.members(what.set))


def compile_unit(key: UnitKey, view: View) -> Rows | Compiled:
    match key.what:
        case "link":
            return _compile_link((key.namespace, key.name), view)
        case "policy":
            return _compile_policy((key.namespace, key.name), view)
    return _compile_pod((key.namespace, key.name), view)


CAPABILITY = Capability(
    NAME, units_of, compile_unit, reads=frozenset({"Node", "Namespace", "Pod", "NetworkPolicy"})
)


def _link(attachment: Attachment) -> UnitKey:
    return UnitKey(NAME, "link", attachment.ifname, attachment.container_id)


def _pod(key: Key) -> UnitKey:
    return UnitKey(NAME, "pod", key[1], key[0])


def _isolation(policy: Any) -> Any:
    """What decides on whom a policy isolates, and for which direction."""
    spec = policy.spec
    return spec.pod_selector, spec.policy_types, bool(spec.egress)


def _links_of_subjects(change: Change, view: View) -> Iterator[UnitKey]:
    for side in change.sides:
        for key in view.policies.subjects_here(side):
            yield from map(_link, view.attachments_of(*key))


# --- a link ---------------------------------------------------------------------------------------


def _compile_link(key: Key, view: View) -> Rows:
    attachment = view.me.attachments.get(key)
    if attachment is None:
        return NOTHING
    key = PodKey(attachment.pod_namespace, attachment.pod_name)
    pod = view.pods.get(key)
    known = not key.name or (pod is not None and pod.spec.node_name == view.me.name and networked(pod))
    ingress, egress = (_isolating(pod, direction, view) if known else () for direction in Direction)
    guard = Guard(key, attachment.device, attachment.addresses, attachment.bridge, ingress, egress, known)
    return {Table.GUARDS: {guard.device: guard}}


def _isolating(pod: Pod | None, direction: Direction, view: View) -> tuple[PolicyKey, ...] | None:
    """None: no policy isolates the pod in that direction."""
    found = []
    for key in view.policies.selecting(pod) if pod is not None else ():
        terms = view.policies.terms(key)
        if terms is not None and direction in terms.directions:
            found.append(PolicyKey(direction, *key))
    return tuple(found) or None


# --- a policy -------------------------------------------------------------------------------------


def _compile_policy(key: Key, view: View) -> Rows | Compiled:
    terms = view.policies.terms(key)
    if terms is None:
        return NOTHING
    rows: Rows = NOTHING
    if view.policies.in_use(key):
        rows = {
            Table.POLICY_SETS: dict(terms.sets),
            Table.POLICIES: {PolicyKey(d, *key): policy for d, policy in terms.directions.items()},
        }
    return Compiled(rows, since(view.network_policies.get(key)), terms.refused)


# --- a pod ----------------------------------------------------------------------------------------


def _compile_pod(key: Key, view: View) -> Rows:
    pod = view.pods.get(key)
    if pod is None or not networked(pod):
        return NOTHING
    addresses = _addresses(pod, view)
    sets = view.policies.sets_of(pod)
    ports = tuple(sorted(set(_ports(pod, view))))
    if not addresses or not (sets or ports):
        return NOTHING
    return {Table.PEERS: {PodKey(*key): Peer(addresses, sets, ports)}}


def _addresses(pod: Pod, view: View) -> tuple[Address, ...]:
    """Those of its attachments here; what status.podIPs says may be older."""
    here = [a for each in view.attachments_of(*pod.key) for a in each.addresses]
    if pod.spec.node_name != view.me.name:
        here = []
    return tuple(dict.fromkeys(here or pod_addresses(pod)))


def _ports(pod: Pod, view: View) -> Iterator[PeerPort]:
    here = pod.spec.node_name == view.me.name
    for name, protocol, number in declared_ports(pod):
        if protocol in _PROTOCOLS:
            for local in (False, True) if here else (False,):
                set_id = named_port(name, _PROTOCOLS[protocol], local).id
                if view.policies.set_in_use(set_id):
                    yield PeerPort(set_id, number)


def _concerns(pod: Pod, view: View) -> bool:
    """It has a row, or had one as long as it was like that."""
    return networked(pod) and (bool(view.policies.sets_of(pod)) or any(_ports(pod, view)))
