"""What is tried covers every pod, every pair of nodes and every service, and does not grow with pods²."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest

from podlane.model.addresses import Family, Protocol
from podlane.observe.check_plan import KINDS, Step, plan
from podlane.observe.ground import Ground, Member, Port, Ready, Served

FOUR, SIX = Family.IPV4, Family.IPV6


def member(
    node: int, number: int, *, listens: bool = True, families: tuple[Family, ...] = (FOUR, SIX)
) -> Member:
    own = {
        FOUR: ipaddress.ip_address(f"10.244.{node}.{number}"),
        SIX: ipaddress.ip_address(f"fd00:244:{node}::{number}"),
    }
    ports = tuple(Port("c", 80, Protocol.TCP, family, json=True) for family in families) if listens else ()
    return Member(
        f"default/pod/p{node}-{number}", f"node-{node}", tuple(own[f] for f in families), ("c",), ports
    )


def ground(nodes: int, pods: int, *services: Served, silent: int = 0) -> Ground:
    """Each node has `pods` pods that listen, and `silent` that do not."""
    members = [
        member(n, p, listens=p <= pods) for n in range(1, nodes + 1) for p in range(1, pods + silent + 1)
    ]
    return Ground(
        {
            f"node-{n}": (ipaddress.ip_address(f"172.30.1.{n}"), ipaddress.ip_address(f"fd00:172::{n}"))
            for n in range(1, nodes + 1)
        },
        tuple(members),
        services,
        (ipaddress.ip_address("198.51.100.10"),),
    )


def served(**changes: object) -> Served:
    ready = (Ready("node-1", ("default", "p1-1"), json=True, served=True),)
    given = {
        "name": "default/svc/web",
        "address": ipaddress.ip_address("10.96.0.1"),
        "port": 80,
        "protocol": Protocol.TCP,
        "node_port": 30080,
        "public": (),
        "endpoints": ready,
    }
    return Served(**(given | changes))  # type: ignore[arg-type]


def of(steps: list[Step], kind: str, family: Family = FOUR) -> list[Step]:
    return [s for s in steps if s.kind == kind and s.family is family]


def node_of(pod: str) -> str:
    return "node-" + pod.rpartition("/")[2][1:].partition("-")[0]


@pytest.mark.parametrize("family", [FOUR, SIX])
@pytest.mark.parametrize(("nodes", "pods", "silent"), [(2, 1, 0), (3, 4, 2), (5, 1, 3), (4, 9, 0)])
def test_every_pod_sends_and_is_sent_to_and_every_ordered_pair_is_crossed(
    nodes: int, pods: int, silent: int, family: Family
) -> None:
    known = ground(nodes, pods, silent=silent)
    steps = plan(known)
    cross = of(steps, "pod-pod-cross-node", family)
    assert {s.source for s in cross} == {m.name for m in known.members}
    assert {s.target.removesuffix(":80") for s in cross} == {m.name for m in known.members if m.ports}
    pairs = {(node_of(s.source), node_of(s.target.removesuffix(":80"))) for s in cross}
    assert pairs == {(a, b) for a in known.nodes for b in known.nodes if a != b}
    same = of(steps, "pod-pod-same-node", family)
    if pods + silent > 1:
        assert {s.target.removesuffix(":80") for s in same} == {m.name for m in known.members if m.ports}
    assert all(node_of(s.source) == node_of(s.target.removesuffix(":80")) for s in same)
    assert all(s.source != s.target.removesuffix(":80") for s in same + cross)
    assert {(s.source, s.target) for s in of(steps, "pod-node", family)} >= {
        (m.name, f"node/{m.node}") for m in known.members
    }
    assert {s.target.removesuffix(":80") for s in of(steps, "node-pod", family)} == {
        m.name for m in known.members if m.ports
    }


def test_nothing_is_tried_twice_and_kinds_come_in_order() -> None:
    steps = plan(ground(4, 3, served(), silent=1))
    assert max(Counter(steps).values()) == 1
    kinds = [KINDS.index(s.kind) for s in steps]
    assert kinds == sorted(kinds)


def test_twenty_nodes_and_two_hundred_pods_stay_few() -> None:
    steps = plan(ground(20, 10, served()))
    assert 20 * 19 <= len(of(steps, "pod-pod-cross-node")) <= 20 * 19 + 2 * 200
    assert len(of(steps, "pod-pod-same-node")) <= 2 * 200
    assert len(of(steps, "pod-node")) == len(of(steps, "node-pod")) == 200 + 20 * 19
    assert len(of(steps, "node-service")) == len(of(steps, "pod-service")) == 20
    more = plan(ground(20, 20, served()))
    assert len(more) < 2 * len(steps)


def test_a_service_is_asked_from_every_node_and_only_its_pods_may_answer() -> None:
    steps = plan(ground(3, 2, served()))
    assert [s.source for s in of(steps, "node-service")] == ["node/node-1", "node/node-2", "node/node-3"]
    assert [node_of(s.source) for s in of(steps, "pod-service")] == ["node-1", "node-2", "node-3"]
    assert [s.target for s in of(steps, "outside-nodeport")] == [f"node/node-{n}:30080" for n in (1, 2, 3)]
    for kind in ("node-service", "pod-service", "outside-nodeport"):
        assert all(s.allowed == {("default", "p1-1")} for s in of(steps, kind))


def test_local_policies_leave_out_nodes_without_an_endpoint() -> None:
    steps = plan(ground(3, 1, served(internal_local=True)))
    assert [s.source for s in of(steps, "node-service")] == ["node/node-1"]
    assert len(of(steps, "outside-nodeport")) == 3
    steps = plan(ground(3, 1, served(external_local=True)))
    assert len(of(steps, "node-service")) == 3
    assert [s.target for s in of(steps, "outside-nodeport")] == ["node/node-1:30080"]


def test_programs_of_ones_own_are_only_connected_to_and_their_datagrams_left_alone() -> None:
    own = (Ready("node-1", ("default", "p1-1"), json=False, served=True),)
    steps = plan(ground(2, 1, served(endpoints=own)))
    assert all(not s.json and not s.allowed for s in of(steps, "node-service"))
    steps = plan(ground(2, 1, served(endpoints=own, protocol=Protocol.UDP)))
    assert of(steps, "node-service") == []


def test_load_balancer_addresses_are_asked_from_outside() -> None:
    steps = plan(ground(2, 1, served(public=(ipaddress.ip_address("203.0.113.7"),))))
    (step,) = of(steps, "outside-loadbalancer")
    assert (step.place, step.target, step.port) == ("outside", "default/svc/web:80", 80)


def test_a_load_balancer_address_of_a_node_is_answered_as_that_node_would() -> None:
    own = tuple(a for n in ("node-1", "node-2") for a in ground(2, 1).nodes[n] if a.version == 4)
    steps = of(plan(ground(2, 1, served(public=own))), "outside-loadbalancer")
    assert [s.target for s in steps] == [f"default/svc/web:80 at node/node-{n}" for n in (1, 2)]
    steps = of(plan(ground(2, 1, served(public=own, external_local=True))), "outside-loadbalancer")
    assert [s.target for s in steps] == ["default/svc/web:80 at node/node-1"]


def test_containers_of_one_pod_reach_each_others_ports_over_localhost() -> None:
    ports = tuple(
        Port(name, number, Protocol.TCP, family, json=True)
        for name, number in (("a", 80), ("b", 81))
        for family in (FOUR, SIX)
    )
    hidden = Port("b", 82, Protocol.TCP, FOUR, json=False, loopback=False)
    two = Member("default/pod/two", "node-1", member(1, 1).addresses, ("a", "b", "c"), (*ports, hidden))
    steps = plan(
        Ground({"node-1": (ipaddress.ip_address("172.30.1.1"), ipaddress.ip_address("fd00::1"))}, (two,), ())
    )
    assert [(s.source, s.target, str(s.address)) for s in of(steps, "container-localhost")] == [
        ("default/pod/two/a", "default/pod/two/b:81", "127.0.0.1"),
        ("default/pod/two/b", "default/pod/two/a:80", "127.0.0.1"),
        ("default/pod/two/c", "default/pod/two/a:80", "127.0.0.1"),
        ("default/pod/two/c", "default/pod/two/b:81", "127.0.0.1"),
    ]
    assert {str(s.address) for s in of(steps, "container-localhost", SIX)} == {"::1"}


def test_what_is_not_there_is_not_tried() -> None:
    assert plan(Ground({}, (), ())) == []
    alone = plan(ground(1, 1))
    assert {s.kind for s in alone} == {"pod-node", "node-pod"}
    six_only = Ground(
        {"node-1": (ipaddress.ip_address("fd00::1"),)}, (member(1, 1, families=(SIX,)),), (), ()
    )
    assert {s.family for s in plan(six_only)} == {SIX}
