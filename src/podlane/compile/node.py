"""The sets of prefixes and addresses that decide who is a pod, who is a node, and who is neither.

    service-cidrs    an address in here that no service holds is dropped
    pod-cidrs        sources that are pods: not masqueraded towards a ClusterIP
    cluster-cidrs    what a pod reaches under its own address: pods, services, nonMasqueradeCIDRs
    node-ips         every node's InternalIPs: a pod reaches these under its own address too
    node-port-ips    this node's InternalIPs: they answer node ports

The configuration names pod and service prefixes as wholes. A node whose podCIDR lies outside of them
(a cluster that grew a second range) adds its own, so that its pods are pods here as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from podlane.compile import facts
from podlane.compile.engine import Capability
from podlane.compile.store import Compiled, UnitKey
from podlane.compile.tables import NOTHING, Rows, SetMember, SetName, Table
from podlane.compile.view import CONFIG, Change, View, since
from podlane.errors import ConfigError
from podlane.model.addresses import Prefix, family_of, host_prefix

NAME: Final = "node"
CLUSTER: Final = UnitKey(NAME, "cluster")


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if change.kind == CONFIG:
        yield CLUSTER
    elif change.kind == "Node":
        yield UnitKey(NAME, "node", change.name)


def compile_unit(key: UnitKey, view: View) -> Rows | Compiled:
    return _cluster(view) if key == CLUSTER else _node(key.name, view)


def _cluster(view: View) -> Rows:
    pods, services = view.config.pods.values(), view.config.cluster_services.values()
    return _sets(
        *((SetName.SERVICE_CIDRS, each) for each in services),
        *((SetName.POD_CIDRS, each) for each in pods),
        *((SetName.CLUSTER_CIDRS, each) for each in (*pods, *services, *view.config.non_masquerade)),
    )


def _node(name: str, view: View) -> Rows | Compiled:
    node = view.nodes.get(name)
    if node is None:
        return NOTHING
    families = view.config.ip_families
    mine = name == view.me.name
    members: list[tuple[SetName, Prefix]] = []
    for where in facts.internal_addresses(node):
        if family_of(where) in families:
            members.append((SetName.NODE_IPS, host_prefix(where)))
            if mine:
                members.append((SetName.NODE_PORT_IPS, host_prefix(where)))
    try:
        prefixes = facts.pod_prefixes(node)
    except ConfigError as error:
        return Compiled(_sets(*members), since(node), (f"node {name}: spec.podCIDRs: {error}",))
    whole = view.config.pods
    for family, pods in prefixes.items():
        if family in whole and not pods.subnet_of(whole[family]):  # type: ignore[arg-type]
            members += [(SetName.POD_CIDRS, pods), (SetName.CLUSTER_CIDRS, pods)]
    return Compiled(_sets(*members), since(node))


def _sets(*members: tuple[SetName, Prefix]) -> Rows:
    rows = [SetMember(name, value) for name, value in members]
    return {Table.SETS: {row: row for row in rows}} if rows else NOTHING


CAPABILITY = Capability(NAME, units_of, compile_unit)
