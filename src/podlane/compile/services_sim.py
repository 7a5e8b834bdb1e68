"""What the first packet of a flow meets in the service tables: the skeleton's rules, in Python.

`explain` names the service stage with it, and tests hold it against real packets. It walks the rows
in the order in which the kernel's chains do (kernel/nft/skeleton.py).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

from podlane.compile import hashing
from podlane.compile.tables import (
    Backend,
    BackendList,
    Frontend,
    FrontendClass,
    FrontendKey,
    ListKey,
    NodePortKey,
    SetMember,
    SetName,
    Table,
)
from podlane.model.addresses import Address, Protocol, family_of, host_prefix


class Flow(NamedTuple):
    """A flow's first packet as it enters this node. from_node: a process of this node sends it (or a
    pod on the node's own network), so that its source is one of the node's addresses."""

    source: Address
    destination: Address
    protocol: Protocol
    port: int
    from_node: bool = False


class Action(enum.StrEnum):
    PASS = "pass"  # no service: it goes on to its own destination
    TRANSLATE = "translate"  # to one of the backends
    REFUSED = "refused"  # TCP reset or ICMP port unreachable
    DROP = "drop"  # nothing comes back


class Verdict(NamedTuple):
    """backends: any of these may be chosen, with equal chance for each time it is in the list.
    masquerade: the source becomes an address of this node. hairpin: backends that are the source
    itself, masqueraded even where the others are not. affinity_timeout_s: 0, or how long a client
    stays with its choice. frontend: the row that decided, None where a set did; why: for a reader.
    hashed: the one of the backends that this client falls to, where the list is chosen from by hash of its
    address. at_socket: chosen before a packet is sent (compile/socket_lb.py).
    """

    action: Action
    why: str
    backends: frozenset[Backend] = frozenset()
    masquerade: bool = False
    hairpin: frozenset[Backend] = frozenset()
    frontend: FrontendKey | NodePortKey | None = None
    list: ListKey | None = None
    affinity_timeout_s: int = 0
    hashed: Backend | None = None
    at_socket: bool = False

    def masquerades(self, backend: Backend) -> bool:
        return self.masquerade or backend in self.hairpin


def resolve(tables: Mapping[Table, Mapping[Any, Any]], flow: Flow) -> Verdict:
    """The verdict of one node's tables."""
    sets, frontends = tables.get(Table.SETS, {}), tables.get(Table.FRONTENDS, {})
    key: FrontendKey | NodePortKey = FrontendKey(flow.destination, flow.protocol, flow.port)
    row: Frontend | None = frontends.get(key)
    if row is None and holds(sets, SetName.NODE_PORT_IPS, flow.destination):
        key = NodePortKey(family_of(flow.destination), flow.protocol, flow.port)
        row = tables.get(Table.NODE_PORTS, {}).get(key)
    if row is not None:
        return _frontend(tables, flow, key, row)
    if holds(sets, SetName.CLUSTER_IPS, flow.destination):
        return Verdict(Action.REFUSED, "the address is a service's, but no service serves this port")
    if holds(sets, SetName.SERVICE_CIDRS, flow.destination):
        return Verdict(Action.DROP, "the address is a service address that no service holds")
    return _outward(sets, flow)


def holds(sets: Mapping[SetMember, Any], name: SetName, where: Address) -> bool:
    """The address is a member of the named set, or within one."""
    if SetMember(name, host_prefix(where)) in sets:
        return True
    return any(
        member.set is name and member.value.version == where.version and where in member.value
        for member in sets
    )


def _frontend(
    tables: Mapping[Table, Mapping[Any, Any]], flow: Flow, key: FrontendKey | NodePortKey, row: Frontend
) -> Verdict:
    sets = tables.get(Table.SETS, {})
    from_pod = holds(sets, SetName.POD_CIDRS, flow.source)
    match row.kind:
        case FrontendClass.REJECT:
            return Verdict(Action.REFUSED, "the service has no endpoint on any node", frontend=key)
        case FrontendClass.DROP:
            return Verdict(
                Action.DROP, "its traffic policy is Local and this node has no endpoint", frontend=key
            )
        case FrontendClass.INTERNAL:
            why = "ClusterIP" if from_pod else "ClusterIP, from no pod: the source becomes this node"
            masquerade, chosen = not from_pod, row.backends
        case FrontendClass.EXTERNAL:
            why, masquerade, chosen = "the source becomes this node", True, row.backends
        case FrontendClass.EXTERNAL_LOCAL if from_pod or flow.from_node:
            who = "a pod" if from_pod else "the node"
            why = f"externalTrafficPolicy Local, but from {who}: any node's endpoints"
            masquerade, chosen = not from_pod, row.short_circuit
        case FrontendClass.EXTERNAL_LOCAL:
            why, masquerade, chosen = "externalTrafficPolicy Local: the source stays", False, row.backends
    lists: Mapping[ListKey, BackendList] = tables.get(Table.BACKENDS, {})
    if row.guarded and row.backends is not None:
        sources = lists.get(row.backends, _EMPTY).sources
        if not any(flow.source.version == s.version and flow.source in s for s in sources):
            allowed = ", ".join(map(str, sources)) or "nobody"
            why = f"loadBalancerSourceRanges let in {allowed}, and {flow.source} is not among them"
            return Verdict(Action.DROP, why, frontend=key, list=row.backends)
        why += "; its source is within loadBalancerSourceRanges"
    found = lists.get(chosen, _EMPTY) if chosen is not None else _EMPTY
    if not found.backends:
        if row.kind is FrontendClass.EXTERNAL_LOCAL and chosen == row.backends:
            why = "externalTrafficPolicy is Local and this node has no endpoint"
            return Verdict(Action.DROP, why, frontend=key, list=chosen)
        return Verdict(Action.REFUSED, "the service has no endpoint on any node", frontend=key, list=chosen)
    backends = frozenset(found.backends)
    return Verdict(
        Action.TRANSLATE,
        why,
        backends,
        masquerade,
        frozenset(b for b in backends if b.address == flow.source and _local(sets, b)),
        key,
        chosen,
        found.affinity_timeout_s,
        hashing.chosen(found, flow.source),
    )


def _local(sets: Mapping[SetMember, Any], backend: Backend) -> bool:
    return SetMember(SetName.LOCAL_ENDPOINTS, host_prefix(backend.address)) in sets


def _outward(sets: Mapping[SetMember, Any], flow: Flow) -> Verdict:
    leaves = (
        holds(sets, SetName.POD_CIDRS, flow.source)
        and not holds(sets, SetName.CLUSTER_CIDRS, flow.destination)
        and not holds(sets, SetName.NODE_IPS, flow.destination)
    )
    why = "no service; a pod leaves the cluster under this node's address" if leaves else "no service"
    return Verdict(Action.PASS, why, masquerade=leaves)


_EMPTY = BackendList(())
