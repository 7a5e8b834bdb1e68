"""Laws of the node CIDR allocator."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.controller.node_cidrs import ExhaustedError, NodeCidrs
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


def test_a_prefix_of_another_size_blocks_all_it_covers() -> None:
    cidrs = NodeCidrs(NetworkConfig(ip_families=[Family.IPV4], **SMALL))
    cidrs.adopt("wide", ["10.0.0.0/28"])
    assert str(cidrs.allocate("next")[0]) == "10.0.0.16/29"
