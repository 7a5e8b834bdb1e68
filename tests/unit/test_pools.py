"""LoadBalancerPools: what they hold, who gets which address, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from podlane.controller import definitions
from podlane.controller.allocation import Addresses, Claim, Given, RefusedError
from podlane.errors import ConfigError
from podlane.model import pools
from podlane.model.addresses import Family, address, prefix
from podlane.model.pools import Pool

FOUR, SIX = Family.IPV4, Family.IPV6


def document(name: str, *addresses: str, since: str = "", **spec: Any) -> dict[str, Any]:
    meta = {"name": name, "creationTimestamp": since}
    return {"metadata": meta, "spec": {"addresses": list(addresses), **spec}}


def pool(name: str, *addresses: str, since: str = "", **spec: Any) -> Pool:
    return pools.parse(document(name, *addresses, since=since, **spec))


def claim(name: str, *families: Family, namespace: str = "default", **more: Any) -> Claim:
    return Claim((namespace, name), families or (FOUR,), **more)


def offering(*given: Pool) -> Addresses:
    found = Addresses()
    found.set_pools(given, {})
    return found


def texts(answer: Given) -> list[str]:
    return [str(each) for each in answer.addresses]


def get(addresses: Addresses, wanted: Claim) -> list[str]:
    return texts(addresses.settle(wanted))


def refusal(addresses: Addresses, wanted: Claim) -> str:
    with pytest.raises(RefusedError) as caught:
        addresses.settle(wanted)
    assert addresses.given(wanted.key) == ()
    return str(caught.value)


# --- what a pool says -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("192.0.2.0/30", "192.0.2.0", "192.0.2.3"),
        ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
        ("192.0.2.5-192.0.2.9", "192.0.2.5", "192.0.2.9"),
        ("192.0.2.5 - 192.0.2.5", "192.0.2.5", "192.0.2.5"),
        ("2001:db8::/126", "2001:db8::", "2001:db8::3"),
        ("2001:db8::5-2001:db8::1:0", "2001:db8::5", "2001:db8::1:0"),
    ],
)
def test_ranges(text: str, first: str, last: str) -> None:
    found = pools.parse_range(text)
    assert (found.address(found.first), found.address(found.last)) == (address(first), address(last))
    assert pools.parse_range(str(found)) == found
    assert address(first) in found
    assert address(last) in found
    assert address(last) + 1 not in found


@pytest.mark.parametrize(
    ("addresses", "words"),
    [
        ((), "name at least one"),
        (("192.0.2.0/33",), r"spec.addresses\[0\]: '192.0.2.0/33'"),
        (("192.0.2.1/24",), "host bits"),
        (("192.0.2.9-192.0.2.1",), "comes after the last"),
        (("192.0.2.9-2001:db8::1",), "of one family"),
        (("192.0.2.0/24", "192.0.2.7-192.0.2.8"), r"spec.addresses\[1\]: .* overlaps 192.0.2.0/24"),
        (("127.0.0.0/8",), "is loopback"),
        (("169.254.1.0/24",), "is link-local"),
        (("ff02::/16",), "is multicast"),
        (("0.0.0.0/0",), "is loopback"),
    ],
)
def test_what_a_pool_cannot_be(addresses: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pool("p", *addresses)


def test_a_bad_selector_is_named() -> None:
    with pytest.raises(ConfigError, match=r"spec\.nodeSelector"):
        pool("p", "192.0.2.0/24", nodeSelector={"matchLabels": {"a b": "c"}})


@given(first=st.integers(0, 2**32 - 1), length=st.integers(1, 3000), avoid=st.booleans())
def test_the_size_counts_what_can_be_given(first: int, length: int, avoid: bool) -> None:
    last = min(first + length - 1, 2**32 - 1)
    made = Pool("p", (pools.Range(4, first, last),), avoid_buggy=avoid)
    usable = sum(not (avoid and n % 256 in (0, 255)) for n in range(first, last + 1))
    assert made.size(FOUR) == usable


def test_pools_that_overlap_are_refused_but_for_the_oldest() -> None:
    old, new = pool("z", "192.0.2.0/24", since="2026-01-01"), pool("a", "192.0.2.128/25", since="2026-01-02")
    addresses = Addresses()
    addresses.set_pools(
        [new, old, pool("pods", "10.244.7.0/24")], {"the pods' prefix": prefix("10.244.0.0/16")}
    )
    assert list(addresses.pools) == ["z"]
    assert addresses.refused == {
        "a": "192.0.2.128/25 overlaps 192.0.2.0/24 of pool z, which is older",
        "pods": "10.244.7.0/24 overlaps the pods' prefix 10.244.0.0/16",
    }


# --- who gets what --------------------------------------------------------------------------------


def test_addresses_are_given_in_order_and_come_back() -> None:
    addresses = offering(pool("p", "192.0.2.1-192.0.2.3"))
    assert [get(addresses, claim(n)) for n in "abc"] == [["192.0.2.1"], ["192.0.2.2"], ["192.0.2.3"]]
    assert refusal(addresses, claim("d")) == "pool p: all its IPv4 addresses are taken"
    assert addresses.use(addresses.pools["p"], FOUR) == (3, 0)
    assert addresses.release(("default", "b")) == (address("192.0.2.2"),)
    assert get(addresses, claim("d")) == ["192.0.2.2"]
    assert get(addresses, claim("a")) == ["192.0.2.1"]


def test_both_families_come_from_one_pool() -> None:
    addresses = offering(pool("a", "192.0.2.0/24"), pool("b", "198.51.100.0/24", "2001:db8::/64"))
    assert get(addresses, claim("both", SIX, FOUR)) == ["2001:db8::", "198.51.100.0"]
    assert get(addresses, claim("one", FOUR)) == ["192.0.2.0"]
    only = offering(pool("a", "192.0.2.0/24"))
    assert "it has no IPv6 addresses" in refusal(only, claim("both", FOUR, SIX))
    assert get(only, claim("prefers", FOUR, SIX, require_all=False)) == ["192.0.2.0"]


def test_a_second_family_leaves_the_first_address_where_it_is() -> None:
    addresses = offering(pool("p", "192.0.2.0/24", "2001:db8::/64"))
    get(addresses, claim("x"))
    assert get(addresses, claim("s")) == ["192.0.2.1"]
    assert get(addresses, claim("s", SIX, FOUR)) == ["2001:db8::", "192.0.2.1"]
    assert get(addresses, claim("s", SIX)) == ["2001:db8::"]
    assert addresses.use(addresses.pools["p"], FOUR).assigned == 1


def test_buggy_addresses_and_nodes_own_are_passed_over() -> None:
    addresses = offering(pool("p", "192.0.2.254-192.0.3.2", avoidBuggyIPs=True))
    addresses.reserve("node-1", [address("192.0.3.1")])
    assert [get(addresses, claim(n)) for n in "ab"] == [["192.0.2.254"], ["192.0.3.2"]]
    assert "taken" in refusal(addresses, claim("c"))
    assert "a node's own address" in refusal(addresses, claim("d", wanted=(address("192.0.3.1"),)))
    assert "is in no pool" in refusal(addresses, claim("d", wanted=(address("192.0.2.255"),)))
    assert addresses.use(addresses.pools["p"], FOUR) == (2, 0)
    addresses.reserve("node-1", [])
    assert get(addresses, claim("c")) == ["192.0.3.1"]


def test_an_address_that_is_asked_for() -> None:
    addresses = offering(pool("p", "192.0.2.0/24", "2001:db8::/64"), pool("q", "198.51.100.0/24"))
    seven = (address("192.0.2.7"),)
    assert get(addresses, claim("s", FOUR, SIX, wanted=seven)) == ["192.0.2.7", "2001:db8::"]
    assert "192.0.2.7 belongs to default/s" in refusal(addresses, claim("t", wanted=seven))
    message = refusal(addresses, claim("u", wanted=(address("203.0.113.1"),)))
    assert message == "203.0.113.1 is in no pool; p has 192.0.2.0/24, 2001:db8::/64; q has 198.51.100.0/24"
    # Another wish moves it.
    assert get(addresses, claim("s", wanted=(address("192.0.2.9"),))) == ["192.0.2.9"]


def test_pools_that_are_asked_for_and_that_are_not_for_everyone() -> None:
    vip = pool("vip", "198.51.100.0/24", autoAssign=False)
    team = pool("team", "203.0.113.0/24", namespaceSelector={"matchLabels": {"team": "a"}})
    web = pool("web", "192.0.2.128/25", serviceSelector={"matchLabels": {"tier": "web"}})
    addresses = offering(vip, team, web)
    assert "autoAssign is off" in refusal(addresses, claim("s"))
    assert get(addresses, claim("s", pool="vip")) == ["198.51.100.0"]
    assert get(addresses, claim("t", wanted=(address("198.51.100.9"),))) == ["198.51.100.9"]
    assert get(addresses, claim("u", namespace_labels={"team": "a"})) == ["203.0.113.0"]
    assert get(addresses, claim("v", labels={"tier": "web"})) == ["192.0.2.128"]
    assert "selectors do not match" in refusal(addresses, claim("w", pool="team"))
    assert "asks for pool nowhere, which is not there" in refusal(addresses, claim("w", pool="nowhere"))
    # One that has its address keeps it when the pool is closed.
    addresses.set_pools([pool("web", "192.0.2.128/25", autoAssign=False)], {})
    assert get(addresses, claim("v", labels={"tier": "web"})) == ["192.0.2.128"]


def test_a_namespace_has_its_quota() -> None:
    addresses = offering(pool("p", "192.0.2.0/24", "2001:db8::/64", namespaceQuota=2))
    get(addresses, claim("a", namespace="one"))
    message = refusal(addresses, claim("b", FOUR, SIX, namespace="one"))
    assert message == "pool p: namespace one has 1 of its 2 addresses (namespaceQuota)"
    assert get(addresses, claim("b", namespace="one")) == ["192.0.2.1"]
    assert get(addresses, claim("b", FOUR, SIX, namespace="two")) == ["192.0.2.2", "2001:db8::"]


def test_an_address_is_shared_by_those_who_say_so() -> None:
    addresses = offering(pool("p", "192.0.2.0/24"))
    web = {"ports": frozenset({("TCP", 80)}), "sharing": "k", "spread": "Cluster"}
    dns = {"ports": frozenset({("UDP", 53)}), "sharing": "k", "spread": "Cluster"}
    assert get(addresses, claim("web", **web)) == ["192.0.2.0"]
    assert get(addresses, claim("dns", **dns)) == ["192.0.2.0"]
    assert addresses.holders(address("192.0.2.0")) == {("default", "web"), ("default", "dns")}
    assert get(addresses, claim("web2", **web)) == ["192.0.2.1"], "its port is taken on the first"
    first = (address("192.0.2.0"),)
    assert "port 80/TCP too" in refusal(addresses, claim("web3", wanted=first, **web))
    local = {**dns, "ports": frozenset({("TCP", 443)}), "spread": "Local {}"}
    assert "externalTrafficPolicy" in refusal(addresses, claim("x", wanted=first, **local))
    assert "one podlane.dev/sharing-key" in refusal(addresses, claim("y", wanted=first))
    addresses.release(("default", "web"))
    assert addresses.use(addresses.pools["p"], FOUR).assigned == 2


def test_what_services_have_is_kept_and_the_older_wins() -> None:
    addresses = offering(pool("p", "192.0.2.0/24"))
    old, new = claim("z", since="2026-01-01"), claim("a", since="2026-01-02")
    for each in (new, old):
        addresses.adopt(each, [address("192.0.2.9")])
    assert get(addresses, new) == ["192.0.2.0"]
    assert get(addresses, old) == ["192.0.2.9"]
    # A pool that no longer has it takes it away.
    addresses.set_pools([pool("p", "192.0.2.0/29")], {})
    assert get(addresses, old) == ["192.0.2.1"]
    addresses.set_pools([], {})
    assert refusal(addresses, old) == "there is no pool"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.booleans()), max_size=30))
def test_no_address_is_given_twice(history: list[tuple[str, bool, bool]]) -> None:
    addresses = offering(pool("p", "192.0.2.0/30", "2001:db8::/126"))
    for name, wants, both in history:
        if not wants:
            addresses.release(("default", name))
            continue
        try:
            addresses.settle(claim(name, *((FOUR, SIX) if both else (FOUR,))))
        except RefusedError:
            assert addresses.use(addresses.pools["p"], FOUR).available == 0 or both
    held = [where for name in "abcdef" for where in addresses.given(("default", name))]
    assert len(held) == len(set(held))
    for family in Family:
        use = addresses.use(addresses.pools["p"], family)
        assert use.assigned == sum(where.version == (4 if family is FOUR else 6) for where in held)
        assert use.assigned + use.available == 4


def test_the_definition_in_deploy_is_the_labs() -> None:
    path = Path(__file__).parents[2] / "deploy/crds/loadbalancerpools.yaml"
    assert yaml.safe_load(path.read_text()) == definitions.LOAD_BALANCER_POOL
