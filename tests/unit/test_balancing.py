"""What annotations say of a service's balancing, and what becomes of weights."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from podlane.compile import balancing
from podlane.compile.balancing import Wish, entries, wish_of
from podlane.compile.endpoints import Known
from podlane.compile.engine import Compiler, changes_of, compile_node
from podlane.compile.tables import Backend, ListKey, Table
from podlane.compile.view import Change
from podlane.model.addresses import Family, Protocol, address
from podlane.model.config import Balancing, HashBy, NetworkConfig, Services
from podlane.model.objects import (
    WEIGHT,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
    Pod,
    PodIP,
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
    TargetRef,
)

LIST = ("shop", "web", "http", Protocol.TCP, Family.IPV4, "cluster")
PODS = {"web-1": "10.244.1.1", "web-2": "10.244.1.2", "web-canary-1": "10.244.1.9"}


def service(**notes: str) -> Service:
    spec = ServiceSpec(
        cluster_ip="10.96.0.7",
        cluster_ips=["10.96.0.7"],
        ip_families=["IPv4"],
        ports=[ServicePort(80, "http", "TCP", 8080)],
    )
    annotations = {f"podlane.dev/{key.replace('_', '-')}": text for key, text in notes.items()}
    return Service(metadata=ObjectMeta(name="web", namespace="shop", annotations=annotations), spec=spec)


def piece(*names: str, weight: str = "", name: str = "web-x") -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(
            name=name,
            namespace="shop",
            labels={"kubernetes.io/service-name": "web"},
            annotations={WEIGHT: weight} if weight else {},
        ),
        address_type="IPv4",
        endpoints=[
            Endpoint(addresses=[PODS[each]], target_ref=TargetRef("Pod", "shop", each)) for each in names
        ],
        ports=[EndpointPort("http", "TCP", 8080)],
    )


def pods(**weights: str) -> list[Pod]:
    """Every pod with its address."""
    return [pod(name, weights.get(name.replace("-", "_"), "")) for name in PODS]


def shares(*objects: Service | EndpointSlice | Pod, config: NetworkConfig | None = None) -> dict[str, int]:
    """How often each pod is in the compiled list."""
    tables = compile_node(objects, node="n1", config=config or NetworkConfig())
    row = tables[Table.BACKENDS][ListKey(*LIST)]
    names = {where: name for name, where in PODS.items()}
    return dict(Counter(names[str(b.address)] for b in row.backends))


def test_a_service_that_says_nothing_gets_the_default() -> None:
    assert wish_of(service(), Services()) == Wish()
    default = Services(balancing=Balancing.MAGLEV, hash_by=HashBy.ADDRESS_PORT)
    assert wish_of(service(), default) == Wish(Balancing.MAGLEV, HashBy.ADDRESS_PORT)
    assert wish_of(service(balancing="random"), default).balancing is Balancing.RANDOM


@pytest.mark.parametrize(
    ("note", "text", "complaint"),
    [
        ("balancing", "rr", "use random or source-hash or maglev or least-connections"),
        ("hash_by", "cookie", "use address or address-port"),
        ("weights", "web-*", "write PATTERN=WEIGHT"),
        ("weights", "web-*=1001", "weights from 0 to 1000"),
        ("weights", "=1", "write PATTERN=WEIGHT"),
        ("slow_start", "30", "write seconds or minutes"),
        ("slow_start", "61m", "one hour at most"),
    ],
)
def test_what_makes_no_sense_is_told_and_changes_nothing(note: str, text: str, complaint: str) -> None:
    refused: list[str] = []
    assert wish_of(service(**{note: text}), Services(), refused) == Wish()
    (sentence,) = refused
    assert sentence.startswith(f"service shop/web: annotation podlane.dev/{note.replace('_', '-')}: {text!r}")
    assert complaint in sentence


def test_the_first_pattern_that_a_pod_or_its_address_fits_counts() -> None:
    web = service(weights="web-canary-*=1, 10.244.1.2=4, *=9")
    assert shares(web, piece(*PODS), *pods()) == {"web-canary-1": 1, "web-2": 4, "web-1": 9}


def test_a_slice_says_the_weight_of_its_endpoints_unless_a_pattern_does() -> None:
    slices = piece("web-1", "web-2"), piece("web-canary-1", weight="3", name="web-y")
    assert shares(service(), *slices) == {"web-1": 1, "web-2": 1, "web-canary-1": 3}
    assert shares(service(weights="web-canary-*=2"), *slices, *pods())["web-canary-1"] == 2
    assert shares(service(), slices[0], piece("web-canary-1", weight="many")) == {"web-canary-1": 1}


def pod(name: str, weight: str, namespace: str = "shop") -> Pod:
    annotations = {WEIGHT: weight} if weight else {}
    return Pod(
        metadata=ObjectMeta(name=name, namespace=namespace, labels={"app": "web"}, annotations=annotations),
        status=PodStatus(pod_ips=[PodIP(PODS[name])]),
    )


def test_pods_say_their_weights_where_the_service_asks_for_them() -> None:
    every = [pod("web-1", "9", "other"), *pods(web_1="3", web_canary_1="many")]
    assert shares(service(weights="pods"), piece(*PODS), *every) == {
        "web-1": 3,
        "web-2": 1,
        "web-canary-1": 1,
    }
    assert set(shares(service(), piece(*PODS), *every).values()) == {1}


def test_a_pod_that_changes_its_weight_is_followed() -> None:
    web = service(weights="pods")
    web = replace(web, spec=replace(web.spec, selector={"app": "web"}))
    compiler = Compiler("n1", NetworkConfig())
    compiler.apply(changes_of([web, piece("web-1", "web-2"), pod("web-1", "1")]))
    key = ListKey(*LIST)
    for text, entries_ in (("4", 5), ("", 2), ("7", 8)):
        compiler.apply([Change("Pod", None, pod("web-1", text))])
        assert len(compiler.tables[Table.BACKENDS][key].backends) == entries_
    compiler.apply([Change("Pod", pod("web-1", "7"), None)])
    assert len(compiler.tables[Table.BACKENDS][key].backends) == 2


def test_weight_zero_takes_no_new_flows_but_does_not_switch_a_service_off() -> None:
    assert shares(service(weights="web-2=0"), piece(*PODS), *pods()) == {"web-1": 1, "web-canary-1": 1}
    assert shares(service(weights="*=0"), piece("web-1", "web-2")) == {"web-1": 1, "web-2": 1}


def test_weights_have_their_common_divisor_taken_out() -> None:
    assert shares(service(weights="web-1=100, web-2=50"), piece("web-1", "web-2"), *pods()) == {
        "web-1": 2,
        "web-2": 1,
    }


def known(number: int, weight: int | None = None) -> Known:
    return Known(Backend(address(f"10.1.{number >> 8}.{number & 255}"), 80), weight=weight)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any))
def test_a_list_of_weights_is_short_and_true(weights: list[int]) -> None:
    members = [known(n, weight) for n, weight in enumerate(weights)]
    found = entries(Wish(), members)
    assert len(found) <= balancing.MOST_ENTRIES + len(weights)
    counts = Counter(found)
    for each, number in zip(members, weights, strict=True):
        wanted = Fraction(number, sum(weights))
        assert (counts[each.backend] > 0) == (number > 0)
        assert abs(Fraction(counts[each.backend], len(found)) - wanted) <= Fraction(1, 200)


def test_shares_scale_weights() -> None:
    members = [known(1, 2), known(2, 2)]
    found = Counter(entries(Wish(), members, {members[0].backend: 4}))
    assert found == {members[0].backend: 1, members[1].backend: 4}


def test_a_pod_is_known_by_its_address_once_it_has_one() -> None:
    """Its endpoint may be told before it is, or after."""
    web, key = service(weights="web-1=5, *=1"), ListKey(*LIST)
    compiler = Compiler("n1", NetworkConfig())
    compiler.apply(changes_of([web, piece("web-1", "web-2")]))
    assert len(compiler.tables[Table.BACKENDS][key].backends) == 2
    compiler.apply([Change("Pod", None, pod("web-1", ""))])
    assert len(compiler.tables[Table.BACKENDS][key].backends) == 6
    ended = replace(pod("web-1", ""), status=PodStatus(phase="Failed", pod_ips=[PodIP(PODS["web-1"])]))
    compiler.apply([Change("Pod", None, ended)])
    assert len(compiler.tables[Table.BACKENDS][key].backends) == 2
