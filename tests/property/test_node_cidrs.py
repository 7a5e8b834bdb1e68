"""Laws of the node CIDR allocator."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.controller.node_cidrs import ExhaustedError, NodeCidrs
from podlane.controller.prefix_index import PrefixIndex
from podlane.model.addresses import Family, family_of
from podlane.model.config import NetworkConfig

SMALL = {
    "pod_cidrs": ["10.0.0.0/26", "fd00::/60"],
    "node_cidr_mask_sizes": [29, 64],  # 8 parts of IPv4, 16 of IPv6
}
configs = st.sampled_from(
    [[Family.IPV4, Family.IPV6], [Family.IPV6, Family.IPV4], [Family.IPV4], [Family.IPV6]]
).map(lambda families: NetworkConfig(ip_families=families, **SMALL))
actions = st.lists(
    st.tuples(st.sampled_from(["allocate", "release", "adopt"]), st.integers(0, 11), st.integers(0, 7)),
    max_size=40,
)


@given(configs, actions)
def test_nodes_never_share_and_always_have_every_family(
    config: NetworkConfig, story: list[tuple[str, int, int]]
) -> None:
    cidrs = NodeCidrs(config)
    foreign: set[str] = set()
    for action, number, part in story:
        node = f"n{number}"
        match action:
            case "allocate":
                before = cidrs.nodes
                try:
                    found = cidrs.allocate(node)
                except ExhaustedError:
                    assert cidrs.nodes == before
                    assert len([n for n in before if before[n]]) >= min(8, 16)
                    continue
                if node not in foreign:
                    assert [family_of(p) for p in found] == config.ip_families
                assert cidrs.allocate(node) == found
            case "release":
                cidrs.release(node)
                foreign.discard(node)
            case "adopt" if not cidrs.nodes.get(node) and Family.IPV4 in config.ip_families:
                text = f"10.0.0.{8 * part}/29"
                if all(text not in map(str, owned) for owned in cidrs.nodes.values()):
                    cidrs.adopt(node, [text])
                    foreign.add(node)
    for (_, one), (_, other) in combinations(cidrs.nodes.items(), 2):
        for a in one:
            assert not any(a.version == b.version and a.overlaps(b) for b in other)
    for owned in cidrs.nodes.values():
        for each in owned:
            assert each.subnet_of(config.pods[family_of(each)])  # type: ignore[arg-type]


@given(configs)
def test_a_new_allocator_that_adopts_continues_where_the_old_one_was(config: NetworkConfig) -> None:
    first = NodeCidrs(config)
    for number in range(5):
        first.allocate(f"n{number}")
    second = NodeCidrs(config)
    for node, owned in first.nodes.items():
        second.adopt(node, map(str, owned))
    assert second.nodes == first.nodes
    fresh = second.allocate("new")
    assert all(fresh[0] != owned[0] for owned in first.nodes.values())


def test_exhaustion_names_the_prefix_and_what_would_help() -> None:
    cidrs = NodeCidrs(NetworkConfig(ip_families=[Family.IPV4], **SMALL))
    for number in range(8):
        cidrs.allocate(f"n{number}")
    with pytest.raises(ExhaustedError, match=r"all 8 parts \(/29\) of 10\.0\.0\.0/26 are taken"):
        cidrs.allocate("one too many")
    cidrs.release("n3")
    assert str(cidrs.allocate("one too many")[0]) == "10.0.0.24/29"


def test_a_returned_part_is_used_last() -> None:
    cidrs = NodeCidrs(NetworkConfig(ip_families=[Family.IPV4], **SMALL))
    gone = cidrs.allocate("a")
    cidrs.release("a")
    assert cidrs.allocate("b") != gone


@given(st.lists(st.tuples(st.integers(24, 32), st.integers(0, 127), st.integers(0, 3)), max_size=12))
def test_prefixes_of_any_size_block_what_they_touch_and_nothing_else(
    claims: list[tuple[int, int, int]],
) -> None:
    cidrs = NodeCidrs(NetworkConfig(ip_families=[Family.IPV4], **SMALL))
    for bits, at, owner in claims:
        base = int(ip_address("10.0.0.0")) + (at >> (32 - bits) << (32 - bits))
        cidrs.adopt(f"node-{owner}", [f"{ip_address(base)}/{bits}"])
    held = {each for owned in cidrs.nodes.values() for each in owned}
    parts = list(ip_network("10.0.0.0/26").subnets(new_prefix=29))
    free = [each for each in parts if not any(each.overlaps(one) for one in held)]
    assert cidrs.use() == {Family.IPV4: (8 - len(free), len(free))}
    given = [cidrs.allocate(f"new-{number}")[0] for number in range(len(free))]
    assert sorted(given) == free
    with pytest.raises(ExhaustedError):
        cidrs.allocate("one too many")
    for node in list(cidrs.nodes):
        cidrs.release(node)
    assert cidrs.use() == {Family.IPV4: (0, 8)}


def test_a_prefix_larger_than_everything_costs_nothing() -> None:
    config = NetworkConfig(pod_cidrs=["10.0.0.0/8", "fd00::/20"], node_cidr_mask_sizes=[24, 80])
    cidrs = NodeCidrs(config)
    cidrs.adopt("wide", ["::/1", "0.0.0.0/0", "fd00::/21"])  # more parts than anybody could walk
    assert str(cidrs._pools[Family.IPV6].part(cidrs._pools[Family.IPV6].free())) == "fd00:800::/80"
    with pytest.raises(ExhaustedError):
        cidrs.allocate("a")


texts = st.sampled_from(
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.1.0/24", "10.2.0.0/16", "fd00::/16"]
)
claims = st.lists(st.tuples(st.booleans(), texts, st.sampled_from("abc")), max_size=20)


@given(claims, texts)
def test_what_overlaps_is_found(story: list[tuple[bool, str, str]], asked: str) -> None:
    index, naive = PrefixIndex(), set()
    for comes, text, owner in story:
        each = ip_network(text)
        if comes:
            index.add(each, owner)
            naive.add((each, owner))
        else:
            index.remove(each, owner)
            naive.discard((each, owner))
    wanted = ip_network(asked)
    found = list(index.overlapping(wanted))
    assert len(found) == len(set(found))
    assert set(found) == {(p, o) for p, o in naive if p.version == wanted.version and p.overlaps(wanted)}


def test_a_prefix_of_another_size_blocks_all_it_covers() -> None:
    cidrs = NodeCidrs(NetworkConfig(ip_families=[Family.IPV4], **SMALL))
    cidrs.adopt("wide", ["10.0.0.0/28"])
    assert str(cidrs.allocate("next")[0]) == "10.0.0.16/29"
