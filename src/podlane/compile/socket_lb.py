"""Which frontends are answered at the socket in services.mode socket, and by which list. Pure.

Who connects on a node, from a pod or from the node itself, has its service address replaced by an endpoint
before a packet is sent. The choice is made from the same lists as in mode nftables, which stays in place for
everything that is not held here: what comes from outside, raw packets, SCTP, and whatever shall be refused
or dropped. Why a frontend is not held is said in words, for `podlane explain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from podlane.compile.services_sim import Action, Flow, Verdict
from podlane.compile.tables import (
    BackendList,
    Frontend,
    FrontendClass,
    ListKey,
    NodePortKey,
    SetMember,
    SetName,
    Table,
)
from podlane.model.addresses import Address, Protocol, host_prefix
from podlane.model.config import Balancing

_PROTOCOLS = (Protocol.TCP, Protocol.UDP)


class AtSocket(NamedTuple):
    """list: who answers, None where nftables does; why: for a reader, then."""

    list: ListKey | None
    why: str = ""


def list_for(protocol: Protocol, row: Frontend) -> AtSocket:
    """The list that would answer, whatever is in it. Everybody here is a pod or the node, so that
    externalTrafficPolicy Local leads to its short circuit."""
    if protocol not in _PROTOCOLS:
        return AtSocket(None, f"{protocol} has no hooks at the socket")
    if row.guarded:
        return AtSocket(None, "loadBalancerSourceRanges are judged by the packet's source")
    if row.backends is None:
        return AtSocket(None, "refusing and dropping is nftables' part")
    return AtSocket(row.short_circuit if row.kind is FrontendClass.EXTERNAL_LOCAL else row.backends)


def why_not(row: BackendList | None) -> str:
    """Why a list is not held; "" if it is."""
    if row is None or not row.backends:
        return "the list is empty, and refusing is nftables' part"
    if row.balancing is not Balancing.RANDOM:
        return f"balancing {row.balancing} is nftables' part"
    return ""


def at_socket(protocol: Protocol, row: Frontend, lists: Mapping[ListKey, BackendList]) -> AtSocket:
    """What the socket does with one frontend."""
    found = list_for(protocol, row)
    if found.list is None:
        return found
    why = why_not(lists.get(found.list))
    return AtSocket(None, why) if why else found


def node_port_address(row: SetMember) -> Address | None:
    """The address of this node at which node ports are held. Every pod has a loopback of its own, and of a
    whole network only nftables can say what in it is this node's."""
    where = row.value.network_address
    fits = row.set is SetName.NODE_PORT_IPS and row.value.num_addresses == 1 and not where.is_loopback
    return where if fits else None


def _held(tables: Mapping[Table, Mapping[Any, Any]], where: Address) -> bool:
    row = SetMember(SetName.NODE_PORT_IPS, host_prefix(where))
    return row in tables.get(Table.SETS, {}) and node_port_address(row) is not None


def resolve(tables: Mapping[Table, Mapping[Any, Any]], flow: Flow, verdict: Verdict) -> Verdict:
    """What becomes of nftables' verdict when the sender is a process of the node: the socket is first."""
    key = verdict.frontend
    if key is None or verdict.action is Action.PASS:
        return verdict
    row: Frontend = tables[Table.NODE_PORTS if isinstance(key, NodePortKey) else Table.FRONTENDS][key]
    lists = tables.get(Table.BACKENDS, {})
    at = at_socket(key.protocol, row, lists)
    if isinstance(key, NodePortKey) and not _held(tables, flow.destination):
        at = AtSocket(None, "not for this address of the node")
    if at.list is None:
        return verdict._replace(why=f"{verdict.why} (nftables, not the socket: {at.why})")
    found: BackendList = lists[at.list]
    return verdict._replace(
        action=Action.TRANSLATE,
        why="chosen at the socket, before a packet is sent",
        backends=frozenset(found.backends),
        masquerade=False,
        hairpin=frozenset(),
        list=at.list,
        affinity_timeout_s=found.affinity_timeout_s,
        at_socket=True,
    )
