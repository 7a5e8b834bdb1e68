"""The controller's work for one change does not grow with the cluster: lines that are run, counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from types import FrameType
from typing import Any

import pytest

from podlane.controller.addresses_announced import Announced
from podlane.controller.allocation import Addresses, Claim
from podlane.controller.client import Obj
from podlane.controller.context import Context
from podlane.controller.node_claims import NodeClaims
from podlane.controller.node_prefixes import NodePrefixes
from podlane.model import pools
from podlane.model.addresses import Family, address
from podlane.model.config import parse

CONFIG = parse(
    {"podCIDRs": ["10.0.0.0/8", "fd00:10::/48"], "serviceCIDRs": ["172.20.0.0/16", "fd00:11::/112"]}
)
FEW, MANY = 200, 2000


def lines(work: Callable[[], Any]) -> int:
    """How many lines of Python work runs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def claim(number: int, **more: Any) -> Claim:
    return Claim(("default", f"s{number}"), (Family.IPV4, Family.IPV6), **more)


def addresses(size: int) -> Iterator[Callable[[], Any]]:
    """So many services have addresses, some share them, and so many nodes have their own."""
    found = Addresses()
    document = {"metadata": {"name": "p"}, "spec": {"addresses": ["192.168.0.0/16", "2001:db8::/64"]}}
    found.set_pools([pools.parse(document)], {})
    for number in range(size):
        found.reserve(f"n{number}", [ip_address("172.30.0.0") + number])
        key = f"k{number % (size // 10)}" if number % 2 else ""
        found.settle(claim(number, sharing=key, ports=frozenset({("TCP", number)})))
    found.settle(claim(-3))
    yield lambda: found.settle(claim(-1))
    yield lambda: found.settle(claim(-2, sharing="k1", ports=frozenset({("TCP", -1)})))
    yield lambda: found.settle(claim(7))
    yield lambda: found.use(found.pools["p"], Family.IPV4)
    yield lambda: found.release(("default", "s-1"))
    yield lambda: found.reserve("n1", [address("192.168.200.1"), address("172.31.0.1")])
    yield lambda: found.settle(claim(-1))


def node(number: int, **status: Any) -> Obj:
    high, low = divmod(number, 256)
    return {
        "metadata": {"name": f"n{number}", "uid": str(number), "resourceVersion": "1"},
        "spec": {"podCIDRs": [f"10.{high}.{low}.0/24", f"fd00:10:0:{number:x}::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": f"172.30.{high}.{low}"}], **status},
    }


def bare() -> Context:
    return Context(None, CONFIG)  # type: ignore[arg-type]  # nothing is asked of the API


def claims(size: int) -> Iterator[Callable[[], Any]]:
    found = NodeClaims(bare(), allocated=False)
    for number in range(size):
        found.changed(None, node(number))
    new = node(size)
    yield lambda: found.changed(None, new)
    yield lambda: list(found._conflicts(new))
    yield lambda: found.changed(new, {**new, "status": {**new["status"], "conditions": []}})  # a heartbeat
    yield lambda: found.changed(new, None)


def prefixes(size: int) -> Iterator[Callable[[], Any]]:
    found = NodePrefixes(bare())
    for number in range(size):
        found.changed(None, node(number))
    found.cidrs.allocate("first")  # what is taken is walked past once
    yield lambda: found.cidrs.allocate("another")
    yield lambda: found.changed(node(5), node(5, conditions=[]))
    yield lambda: found.changed(node(6), None)


def announced(size: int) -> Iterator[Callable[[], Any]]:
    found = Announced(bare())

    def service(number: int) -> Obj:
        said = {
            "type": "podlane.dev/AnnouncedIPv4",
            "status": "True",
            "message": f"n{number} answers for 192.0.2.1",
        }
        meta = {"name": f"s{number}", "namespace": "default", "resourceVersion": "1"}
        return {"metadata": meta, "spec": {}, "status": {"conditions": [said]}}

    for number in range(size):
        found.changed(None, service(number))
    yield lambda: found.changed(None, service(size))
    yield lambda: found._node_changed(node(3), None)


@pytest.mark.parametrize("stories", [addresses, claims, prefixes, announced])
def test_work_stays_what_it_is(stories: Callable[[int], Iterator[Callable[[], Any]]]) -> None:
    few, many = [[lines(each) for each in stories(size)] for size in (FEW, MANY)]
    assert len(few) == len(many)
    for at, (before, after) in enumerate(zip(few, many, strict=True)):
        assert after <= 1.3 * before + 20, (at, before, after)
