"""The sets of prefixes and addresses that decide who is a pod, who is a node, and who is neither.

    service-cidrs    an address in here that no service holds is dropped: the configuration's prefixes, and
                     those of the API's ServiceCIDRs (KEP-1880)
    pod-cidrs        sources that are pods: not masqueraded towards a ClusterIP
    cluster-cidrs    what a pod reaches under its own address: pods, services, nonMasqueradeCIDRs
    node-ips         every node's InternalIPs: a pod reaches these under its own address too
    node-port-ips    what answers node ports: this node's InternalIPs, or those of its addresses that lie
                     within services.nodePortAddresses; with services.localhostNodePorts 127.0.0.1 too

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
from podlane.compile.view import CONFIG, UNDERLAY, Change, View, since
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Prefix, address, family_of, host_prefix, prefix

NAME: Final = "node"
CLUSTER: Final = UnitKey(NAME, "cluster")
NODE_PORTS: Final = UnitKey(NAME, "node-ports")

LOOPBACK: Final = address("127.0.0.1")


def units_of(change: Change, view: View) -> Iterator[UnitKey]:
    if change.kind == CONFIG:
        yield CLUSTER
        yield NODE_PORTS
    elif change.kind == UNDERLAY:
        yield NODE_PORTS
    elif change.kind == "ServiceCIDR":
        yield UnitKey(NAME, "service-cidr", change.name)
    elif change.kind == "Node":
        yield UnitKey(NAME, "node", change.name)
        if change.name == view.me.name:
            yield NODE_PORTS


def compile_unit(key: UnitKey, view: View) -> Rows | Compiled:
    if key == CLUSTER:
        return _cluster(view)
    if key == NODE_PORTS:
        return _sets(*((SetName.NODE_PORT_IPS, host_prefix(each)) for each in node_port_addresses(view)))
    return _node(key.name, view) if key.what == "node" else _service_cidr(key.name, view)


def node_port_addresses(view: View) -> list[Address]:
    """What answers node ports on this node."""
    families, services = view.config.ip_families, view.config.services
    within = services.node_port_prefixes
    node, underlay = view.me.node, view.me.underlay
    found = facts.internal_addresses(node) if node is not None else []
    if within is not None:
        every = underlay.node_addresses if underlay is not None and underlay.node_addresses else found
        found = [each for each in every if any(each in one for one in within if one.version == each.version)]
    mine = [each for each in found if family_of(each) in families]
    return [*mine, LOOPBACK] if services.localhost_node_ports else mine


def _service_cidr(name: str, view: View) -> Rows | Compiled:
    found = view.service_cidrs.get(name)
    if found is None:
        return NOTHING
    members: list[tuple[SetName, Prefix]] = []
    refused: list[str] = []
    for text in found.spec.cidrs:
        try:
            each = prefix(text)
        except ConfigError as error:
            refused.append(f"servicecidr {name}: spec.cidrs: {error}")
            continue
        if family_of(each) in view.config.ip_families:
            members += [(SetName.SERVICE_CIDRS, each), (SetName.CLUSTER_CIDRS, each)]
    return Compiled(_sets(*members), since(found), tuple(refused))


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
    members: list[tuple[SetName, Prefix]] = []
    for where in facts.internal_addresses(node):
        if family_of(where) in families:
            members.append((SetName.NODE_IPS, host_prefix(where)))
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


CAPABILITY = Capability(NAME, units_of, compile_unit, reads=frozenset({"Node", "ServiceCIDR"}))
