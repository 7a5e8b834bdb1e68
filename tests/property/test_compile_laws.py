"""The two laws of compile/engine.py, for every capability there is.

1. Any sequence of changes, in any batches, ends in the same rows as a fresh compile, and the deltas
   handed out on the way lead there too.
2. The units compiled and the rows compared for one change do not grow with the cluster.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from podlane.compile.engine import Capability, Compiler, capabilities
from podlane.compile.tables import Table
from podlane.compile.view import ATTACHMENT, UNDERLAY, Change, key_of
from podlane.model.addresses import address
from podlane.model.config import NetworkConfig
from podlane.model.local import Attachment, Underlay
from podlane.model.objects import (
    Container,
    ContainerPort,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    IngressRule,
    LabelSelector,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Namespace,
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicySpec,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from podlane.model.pools import ALLOCATED_FROM
from tests.property.cluster_strategies import CONFIGS, ME, changes

EVERY = [*([one] for one in capabilities()), list(capabilities())]
NAMES = [*(one.name for one in capabilities()), "all together"]
each_capability = pytest.mark.parametrize("only", EVERY, ids=NAMES)


def final_state(history: list[Change]) -> list[Change]:
    """The changes that bring in only what is there at the end."""
    state: dict[Any, Change] = {}
    for change in history:
        where = (change.kind, key_of(change.kind, change.object) if change.kind != UNDERLAY else None)
        state.pop(where, None)
        if change.new is not None:
            state[where] = change
    return list(state.values())


def plain(tables: Any) -> dict[Table, dict[Any, Any]]:
    return {table: dict(rows) for table, rows in tables.items() if rows}


@each_capability
@settings(deadline=None, max_examples=60)
@given(config=st.sampled_from(CONFIGS), batches=st.lists(st.lists(changes(), max_size=4), max_size=10))
def test_any_history_ends_in_the_fresh_compile(
    only: list[Capability], config: NetworkConfig, batches: list[list[Change]]
) -> None:
    compiler = Compiler(ME, config, only)
    replayed: dict[Table, dict[Any, Any]] = {table: {} for table in Table}
    for batch in batches:
        for table, delta in compiler.apply(batch).items():
            rows = replayed[table]
            for key, old in delta.removed.items():
                assert rows.pop(key) == old
            for key, change in delta.changed.items():
                assert rows[key] == change.old
                rows[key] = change.new
            assert not rows.keys() & delta.added.keys()
            rows.update(delta.added)
    history = [change for batch in batches for change in batch]
    fresh = Compiler(ME, config, only)
    fresh.apply(final_state(history))
    assert plain(compiler.tables) == plain(fresh.tables)
    assert compiler.refused == fresh.refused
    assert sorted(map(str, compiler.contradictions)) == sorted(map(str, fresh.contradictions))
    if batches:
        assert plain(replayed) == plain(compiler.tables)


@each_capability
@settings(deadline=None, max_examples=30)
@given(config=st.sampled_from(CONFIGS), history=st.lists(changes(), max_size=8), data=st.data())
def test_the_order_of_arrival_does_not_matter(
    only: list[Capability], config: NetworkConfig, history: list[Change], data: st.DataObject
) -> None:
    state = final_state(history)
    one, other = Compiler(ME, config, only), Compiler(ME, config, only)
    one.apply(state)
    other.apply(data.draw(st.permutations(state)))
    assert plain(one.tables) == plain(other.tables)


def node(number: int, zone: str = "a") -> Node:
    low, high = number % 250, number // 250
    return Node(
        metadata=ObjectMeta(name=f"n{number}", labels={"topology.kubernetes.io/zone": zone}),
        spec=NodeSpec(pod_cidrs=[f"10.244.{number}.0/24", f"fd00:10:244:{number:x}::/64"]),
        status=NodeStatus(
            addresses=[
                NodeAddress("InternalIP", f"172.30.{high + 1}.{low + 1}"),
                NodeAddress("InternalIP", f"fd00:172:30::{number + 1:x}"),
            ]
        ),
    )


def service(number: int) -> Service:
    return Service(
        metadata=ObjectMeta(name=f"s{number}", namespace="default"),
        spec=ServiceSpec(
            cluster_ip=f"10.96.1.{number}",
            cluster_ips=[f"10.96.1.{number}"],
            ip_families=["IPv4"],
            ports=[ServicePort(80, "http", "TCP", 8080)],
        ),
    )


def balanced(number: int) -> Service:
    """A service with an address of a pool, for which this node is a candidate among 5 and among 59."""
    made = service(number)
    metadata = replace(made.metadata, annotations={ALLOCATED_FROM: "public"})
    status = ServiceStatus(LoadBalancerStatus([LoadBalancerIngress("192.0.2.8")]))
    return replace(made, metadata=metadata, spec=replace(made.spec, type="LoadBalancer"), status=status)


def piece(number: int, *endings: int) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(
            name=f"s{number}-x", namespace="default", labels={"kubernetes.io/service-name": f"s{number}"}
        ),
        address_type="IPv4",
        endpoints=[Endpoint(addresses=[f"10.244.{number}.{e}"], node_name=f"n{number}") for e in endings],
        ports=[EndpointPort("http", "TCP", 8080)],
    )


def attachment(number: int) -> Attachment:
    where = (address(f"10.244.1.{number}"), address(f"fd00:10:244:1::{number:x}"))
    mac = f"02:00:00:00:00:{number:02x}"
    return Attachment(f"c{number}", "eth0", f"pl{number}", mac, where, "default", f"p{number}")


LOCAL = (1, 2, 3)  # pods of this node, in every cluster


def pod(number: int, app: int = 0) -> Pod:
    return Pod(
        metadata=ObjectMeta(name=f"p{number}", namespace="default", labels={"app": f"a{app or number}"}),
        spec=PodSpec(
            node_name=ME if number in LOCAL else f"n{number}",
            containers=[Container(name="c", ports=[ContainerPort(8080, "http")])],
        ),
        status=PodStatus(phase="Running", pod_ips=[PodIP(f"10.244.{number}.2")]),
    )


def policy(number: int, *peers: int, subject: int = 0) -> NetworkPolicy:
    """Of pods of one label, who lets in those of the next one, or of others."""

    def of(app: int) -> LabelSelector:
        return LabelSelector({"app": f"a{app}"})

    let_in = [NetworkPolicyPeer(of(peer)) for peer in peers or (number + 1,)]
    return NetworkPolicy(
        metadata=ObjectMeta(name=f"np{number}", namespace="default"),
        spec=NetworkPolicySpec(
            pod_selector=of(subject or number),
            ingress=[IngressRule(let_in, [NetworkPolicyPort(port="http")])],
        ),
    )


def cluster(size: int, only: list[Capability]) -> Compiler:
    compiler = Compiler(ME, NetworkConfig(), only)
    compiler.apply(Change("Node", None, node(n)) for n in range(1, size))
    compiler.apply([Change(UNDERLAY, None, Underlay("eth0", 1500))])
    compiler.apply(Change("Service", None, service(n)) for n in range(1, size))
    compiler.apply(Change("EndpointSlice", None, piece(n, 2, 3)) for n in range(1, size))
    compiler.apply(Change(ATTACHMENT, None, attachment(n)) for n in range(2, size))
    compiler.apply([Change("Namespace", None, Namespace(metadata=ObjectMeta(name="default")))])
    compiler.apply(Change("NetworkPolicy", None, policy(n)) for n in range(1, size))
    compiler.apply(Change("Pod", None, pod(n)) for n in range(1, size))
    return compiler


ONE_CHANGE = {
    "a node joins": Change("Node", None, node(200)),
    "a node leaves": Change("Node", node(3), None),
    "a node moves to another zone": Change("Node", node(3), node(3, zone="b")),
    "a service comes": Change("Service", None, service(200)),
    "a service goes": Change("Service", service(3), None),
    "a service comes with an address of a pool": Change("Service", None, balanced(200)),
    "an endpoint comes": Change("EndpointSlice", piece(3, 2, 3), piece(3, 2, 3, 4)),
    "a slice goes": Change("EndpointSlice", piece(3, 2, 3), None),
    "a pod is attached": Change(ATTACHMENT, None, attachment(200)),
    "a pod is detached": Change(ATTACHMENT, attachment(3), None),
    "a pod that is nobody's peer comes": Change("Pod", None, pod(200)),
    "a pod that is a peer comes": Change("Pod", None, pod(200, app=4)),
    "a peer becomes somebody else": Change("Pod", pod(4), pod(4, app=200)),
    "a peer goes": Change("Pod", pod(4), None),
    "a pod of this node becomes somebody else": Change("Pod", pod(3), pod(3, app=4)),
    "a policy comes that selects nobody here": Change("NetworkPolicy", None, policy(200)),
    "a policy comes that selects a pod here": Change("NetworkPolicy", None, policy(200, 5, subject=3)),
    "a policy in use changes": Change("NetworkPolicy", policy(3), policy(3, 4, 5)),
    "a policy in use goes": Change("NetworkPolicy", policy(3), None),
}


@each_capability
@pytest.mark.parametrize("what", ONE_CHANGE)
def test_work_for_one_change_does_not_grow_with_the_cluster(only: list[Capability], what: str) -> None:
    def work(size: int) -> tuple[int, int]:
        compiler = cluster(size, only)
        units, rows = compiler.units_compiled, compiler.rows_compared
        compiler.apply([ONE_CHANGE[what]])
        return compiler.units_compiled - units, compiler.rows_compared - rows

    assert work(60) == work(6)


def test_a_pod_that_is_nobodys_peer_costs_no_unit() -> None:
    only = [one for one in capabilities() if one.name == "policy"]
    compiler = cluster(60, only)
    units = compiler.units_compiled
    compiler.apply([Change("Pod", None, pod(200))])
    assert compiler.units_compiled == units
    compiler.apply([Change("Pod", None, pod(200, app=4))])
    assert compiler.units_compiled == units + 1
    assert [key.name for key in compiler.tables[Table.PEERS]] == ["p1", "p2", "p3", "p4", "p200"]


@each_capability
def test_what_changes_nothing_costs_nothing(only: list[Capability]) -> None:
    compiler = cluster(6, only)
    units = compiler.units_compiled
    same = [("Node", node(3)), (ATTACHMENT, attachment(3)), ("Pod", pod(3)), ("NetworkPolicy", policy(3))]
    assert compiler.apply(Change(kind, None, value) for kind, value in same) == {}
    assert compiler.units_compiled == units
