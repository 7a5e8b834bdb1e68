"""Laws of EndpointSlices: nothing is lost, nothing is there twice, and little moves."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from podlane.lab.client import Obj
from podlane.lab.controllers import slicing

LABELS = {"kubernetes.io/service-name": "web"}
FAMILIES = ("IPv4", "IPv6")


def make_pod(number: int, state: tuple[bool, bool, int, str]) -> Obj:
    ready, terminating, port, families = state
    ips = {"4": f"10.0.{number // 250}.{number % 250 + 1}", "6": f"fd00::{number + 1:x}"}
    meta: Obj = {"name": f"p{number}", "namespace": "default", "uid": f"u{number}", "labels": {"app": "web"}}
    if terminating:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {
        "metadata": meta,
        "spec": {
            "nodeName": f"node-{number % 3}",
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "podIPs": [{"ip": ips[f]} for f in families],
        },
    }


states = st.tuples(
    st.booleans(), st.booleans(), st.sampled_from([80, 81]), st.sampled_from(["46", "4", "6", "64", ""])
)
worlds = st.dictionaries(st.integers(0, 400), states, max_size=60)
big_worlds = st.builds(
    lambda count, few: {**dict.fromkeys(range(count), (True, False, 80, "46")), **few},
    st.integers(0, 350),
    worlds,
)
services = st.sampled_from([["IPv4"], ["IPv6"], ["IPv4", "IPv6"], ["IPv6", "IPv4"]]).map(
    lambda families: {
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"ports": [{"port": 80, "targetPort": "http"}], "ipFamilies": families},
    }
)


def desired(service: Obj, world: dict[int, Any]) -> slicing.Desired:
    return slicing.desired_of(service, [make_pod(n, s) for n, s in world.items()], lambda node: "")


class Store:
    """What the API would hold after each plan."""

    def __init__(self) -> None:
        self.slices: dict[str, Obj] = {}
        self._names = 0

    def apply(self, plan: slicing.Plan) -> None:
        for each in plan.create:
            self._names += 1
            name = f"web-{self._names:04}"
            self.slices[name] = {**each, "metadata": {**each["metadata"], "name": name}}
        for each in plan.update:
            assert each["metadata"]["name"] in self.slices
            self.slices[each["metadata"]["name"]] = each
        for each in plan.delete:
            del self.slices[each["metadata"]["name"]]

    def meaning(self) -> dict[slicing.Group, set[str]]:
        found: dict[slicing.Group, set[str]] = {}
        for each in self.slices.values():
            group = slicing.group_of(each["addressType"], each["ports"])
            found.setdefault(group, set()).update(repr(e) for e in each["endpoints"])
        return found


def check(store: Store, service: Obj, world: dict[int, Any]) -> None:
    for family in service["spec"]["ipFamilies"]:
        mine = [s for s in store.slices.values() if s["addressType"] == family]
        assert mine, "every family has at least one slice"
        assert all(len(s["endpoints"]) <= slicing.MAX_ENDPOINTS for s in mine)
        names = [e["targetRef"]["name"] for s in mine for e in s["endpoints"] if e["conditions"]["ready"]]
        digit = family[-1]
        wanted = [f"p{n}" for n, (ok, gone, _, has) in world.items() if ok and not gone and digit in has]
        assert sorted(names) == sorted(wanted)
        if any(s["endpoints"] for s in mine):
            assert all(s["endpoints"] for s in mine), "no empty slice beside a full one"
        else:
            assert len(mine) == 1
    assert {s["addressType"] for s in store.slices.values()} == set(service["spec"]["ipFamilies"])


@given(services, st.lists(big_worlds, min_size=1, max_size=4))
def test_incremental_equals_fresh_and_every_ready_pod_is_there_once(
    service: Obj, story: list[dict[int, Any]]
) -> None:
    store = Store()
    for world in story:
        wanted = desired(service, world)
        store.apply(slicing.plan(store.slices.values(), wanted, LABELS))
        check(store, service, world)
        fresh = Store()
        fresh.apply(slicing.plan([], wanted, LABELS))
        assert store.meaning() == fresh.meaning()
        assert not slicing.plan(store.slices.values(), wanted, LABELS), "a second look changes nothing"


@given(services, big_worlds, st.integers(0, 400), states)
def test_one_pod_costs_few_slices(
    service: Obj, world: dict[int, Any], number: int, state: tuple[bool, bool, int, str]
) -> None:
    store = Store()
    store.apply(slicing.plan([], desired(service, world), LABELS))
    plan = slicing.plan(store.slices.values(), desired(service, {**world, number: state}), LABELS)
    # leaving one slice and entering another, in each family
    assert len(plan.create) + len(plan.update) + len(plan.delete) <= 2 * len(service["spec"]["ipFamilies"])


@given(services, big_worlds)
def test_an_interrupted_write_leaves_nothing_twice(service: Obj, world: dict[int, Any]) -> None:
    """Killed between creating slices and updating the others: the next look puts it right."""
    store = Store()
    wanted = desired(service, world)
    store.apply(slicing.plan([], wanted, LABELS))
    store.apply(slicing.Plan(slicing.plan([], wanted, LABELS).create, [], []))
    store.apply(slicing.plan(store.slices.values(), wanted, LABELS))
    check(store, service, world)
