"""Which endpoints a service port uses on this node: the rows of kube-proxy's topology tests, as data."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from podlane.compile.endpoints import Known, Place, endpoints, select
from podlane.compile.tables import Backend
from podlane.model.addresses import Family, Protocol, address
from podlane.model.objects import (
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
)

HERE = Place("here", "zone-a")


def known(spec: str) -> Known:
    """`NUMBER[@NODE][ FLAG...]`: flags are unready, unserving, terminating, zone:Z, node:N."""
    name, *flags = spec.split()
    number, _, node = name.partition("@")
    terminating = "terminating" in flags
    return Known(
        Backend(address(f"10.0.0.{number}"), 80),
        node=node,
        ready="unready" not in flags and not terminating,
        serving="unserving" not in flags and "unready" not in flags,
        terminating=terminating,
        zone_hints=frozenset(f[5:] for f in flags if f.startswith("zone:")),
        node_hints=frozenset(f[5:] for f in flags if f.startswith("node:")),
    )


class Case(NamedTuple):
    name: str
    have: list[str]
    cluster: list[int] | None
    local: list[int] | None
    any: bool = True
    place: Place = HERE


CASES = [
    Case("no endpoints", [], [], [], any=False),
    Case("all ready", ["1", "2"], [1, 2], []),
    Case("unready is left out", ["1", "2 unready"], [1], []),
    Case("nothing but unready", ["1 unready", "2@here unready"], [], [], any=False),
    # hints of zones
    Case("own zone", ["1 zone:zone-a", "2 zone:zone-b", "3 zone:zone-a"], [1, 3], []),
    Case("one endpoint for two zones", ["1 zone:zone-a zone:zone-b", "2 zone:zone-b"], [1], []),
    Case("no hint for this zone", ["1 zone:zone-b", "2 zone:zone-c"], [1, 2], []),
    Case("one endpoint without a hint voids all", ["1 zone:zone-a", "2"], [1, 2], []),
    Case("the node has no zone", ["1 zone:zone-a", "2 zone:zone-b"], [1, 2], [], place=Place("here")),
    Case("an unready endpoint's missing hint is nothing", ["1 zone:zone-a", "2 unready"], [1], []),
    Case("only an unready endpoint is for this zone", ["1 zone:zone-a unready", "2 zone:zone-b"], [2], []),
    # hints of nodes
    Case("own node", ["1 node:here zone:zone-a", "2 node:there zone:zone-a"], [1], []),
    Case(
        "no hint for this node falls to the zone", ["1 node:x zone:zone-a", "2 node:y zone:zone-b"], [1], []
    ),
    Case("one without a node hint falls to the zone", ["1 node:here zone:zone-b", "2 zone:zone-a"], [2], []),
    Case("hints say nothing of here", ["1 node:x zone:zone-b", "2 node:y zone:zone-b"], [1, 2], []),
    # local
    Case("local", ["1@here", "2@there", "3@here"], [1, 2, 3], [1, 3]),
    Case("hints do not narrow local", ["1@here zone:zone-b", "2@there zone:zone-a"], [2], [1]),
    Case("hostname must match exactly", ["1@here.example", "2@HERE"], [1, 2], []),
    # terminating
    Case("terminating only when nothing is ready", ["1", "2 terminating"], [1], []),
    Case("all terminating", ["1 terminating", "2 terminating"], [1, 2], []),
    Case("terminating and no longer serving", ["1 terminating unserving", "2 terminating"], [2], []),
    Case(
        "the fallback ignores hints", ["1 terminating zone:zone-b", "2 terminating zone:zone-c"], [1, 2], []
    ),
    Case("unready and terminating", ["1 unready", "2@here terminating"], [2], [2]),
    Case("local terminating, ready elsewhere", ["1@here terminating", "2@there"], [2], [1]),
    Case("local ready before local terminating", ["1@here", "2@here terminating"], [1], [1]),
    Case("local list alone", ["1@there"], None, []),
    Case("local list alone, nothing usable", ["1@there unready"], None, [], any=False),
    Case("cluster list alone", ["1@here", "2@there"], [1, 2], None),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_selection(case: Case) -> None:
    every = [known(spec) for spec in case.have]
    found = select(
        {each.backend: each for each in reversed(every)},
        case.place,
        uses_cluster=case.cluster is not None,
        uses_local=case.local is not None,
    )

    def numbers(chosen: Any) -> list[int] | None:
        return None if chosen is None else [int(str(e.address).rsplit(".", 1)[1]) for e in chosen]

    assert (numbers(found.cluster), numbers(found.local), found.any) == (case.cluster, case.local, case.any)


# --- slices ---------------------------------------------------------------------------------------

HTTP = ("http", Protocol.TCP, Family.IPV4)


def piece(
    *found: Endpoint, name: str = "a", ports: Any = None, family: str = "IPv4", **labels: str
) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(name=name, labels={k.replace("_", "/"): v for k, v in labels.items()}),
        address_type=family,
        endpoints=list(found),
        ports=ports if ports is not None else [EndpointPort("http", "TCP", 8080)],
    )


def at(where: str, **conditions: bool) -> Endpoint:
    return Endpoint(addresses=[where], conditions=EndpointConditions(**conditions))


def backends(*pieces: EndpointSlice) -> dict[Any, list[str]]:
    return {
        key: [f"{b.address}:{b.port}" for b in found] for key, found in endpoints(pieces).items() if found
    }


def test_slices_of_one_service_are_merged() -> None:
    two = backends(piece(at("10.0.0.1")), piece(at("10.0.0.2"), at("10.0.0.1"), name="b"))
    assert two == {HTTP: ["10.0.0.1:8080", "10.0.0.2:8080"]}


def test_a_named_port_may_have_other_numbers_in_other_slices() -> None:
    found = backends(
        piece(at("10.0.0.1")), piece(at("10.0.0.2"), name="b", ports=[EndpointPort("http", "TCP", 9090)])
    )
    assert found == {HTTP: ["10.0.0.1:8080", "10.0.0.2:9090"]}


def test_name_and_protocol_tell_ports_apart() -> None:
    ports = [EndpointPort("dns", "UDP", 53), EndpointPort("dns", "TCP", 53), EndpointPort("", "TCP", 80)]
    found = backends(piece(at("10.0.0.1"), ports=ports))
    assert set(found) == {
        ("dns", Protocol.UDP, Family.IPV4),
        ("dns", Protocol.TCP, Family.IPV4),
        ("", Protocol.TCP, Family.IPV4),
    }


@pytest.mark.parametrize(
    "port",
    [EndpointPort(None, "TCP", 80), EndpointPort("http", "TCP", None), EndpointPort("http", "ICMP", 80)],
    ids=["null name", "null number", "unknown protocol"],
)
def test_unusable_ports_are_ignored(port: EndpointPort) -> None:
    assert backends(piece(at("10.0.0.1"), ports=[port])) == {}


@pytest.mark.parametrize(
    "slice_",
    [
        piece(at("example.com"), family="FQDN"),
        piece(at("10.0.0.1"), **{"service.kubernetes.io_headless": ""}),
        piece(Endpoint(addresses=[])),
        piece(at("no-address")),
        piece(at("fd00::1")),
        EndpointSlice(address_type="IPv4"),
    ],
    ids=["FQDN", "headless", "no address", "not an address", "other family", "no ports, no endpoints"],
)
def test_unusable_slices_and_endpoints_are_ignored(slice_: EndpointSlice) -> None:
    assert backends(slice_) == {}


def test_only_the_first_address_counts_and_zeros_are_decimal() -> None:
    assert backends(piece(Endpoint(addresses=["010.000.000.009", "10.0.0.8"]))) == {HTTP: ["10.0.0.9:8080"]}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_seen_twice_the_terminating_sight_does_not_count(order: tuple[str, str]) -> None:
    going, staying = at("10.0.0.1", ready=False, terminating=True), at("10.0.0.1", ready=True)
    both = {"a": piece(going, name="a"), "b": piece(staying, name="b")}
    (found,) = endpoints(both[name] for name in order)[HTTP].values()
    assert found.ready
    assert not found.terminating


def test_absent_conditions_mean_ready_serving_not_terminating() -> None:
    found = endpoints([piece(at("10.0.0.1"))])[HTTP][Backend(address("10.0.0.1"), 8080)]
    assert (found.ready, found.serving, found.terminating) == (True, True, False)
