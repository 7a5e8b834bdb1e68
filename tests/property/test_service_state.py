"""From changes of the service tables to elements: any history ends in elements that say the tables."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podlane.compile.tables import BackendList, Frontend, FrontendClass, FrontendKey, Table
from podlane.delta import delta
from podlane.kernel.nft.codec import Element
from podlane.kernel.nft.kernel_lists import KernelLists
from podlane.kernel.nft.service_plan import Place, Plan
from podlane.kernel.nft.service_state import ServiceState
from podlane.model.addresses import Family, Protocol, address
from tests.property.service_tables import (
    Kernel,
    Tables,
    backend,
    list_key,
    tables,
    wanted_frontends,
    wanted_sets,
)

EMPTY: Tables = {Table.SETS: {}, Table.BACKENDS: {}, Table.FRONTENDS: {}, Table.NODE_PORTS: {}}


class FakeKernel:
    """Sets of elements as strict as the kernel's: what is there cannot be added, what is not not deleted."""

    def __init__(self) -> None:
        self.places: dict[Place, dict[tuple[bytes, int], Element]] = {}

    def run(self, plan: Plan) -> None:
        for each in plan.operations:
            there = self.places.setdefault((each.family, each.set), {})
            key = each.element.key, each.element.flags
            if each.add:
                assert key not in there, each
                there[key] = each.element
            else:
                assert there.pop(key, None) is not None, each

    @property
    def dump(self) -> dict[Place, list[Element]]:
        return {place: list(found.values()) for place, found in self.places.items() if found}


def changes(old: Tables, new: Tables) -> dict[Table, Any]:
    return {table: found for table in EMPTY if (found := delta(new[table], old[table]))}


def says(dump: dict[Place, list[Element]], desired: Tables) -> None:
    kernel = Kernel(dump)
    assert kernel.frontends() == wanted_frontends(desired)
    assert kernel.sets() == wanted_sets(desired)


@settings(deadline=None, max_examples=150)
@given(st.lists(tables(), min_size=1, max_size=6))
def test_any_history_of_tables_ends_in_elements_that_say_the_last(history: list[Tables]) -> None:
    state, kernel, last = ServiceState(Family), FakeKernel(), EMPTY
    for desired in history:
        plan = state.put(changes(last, desired))
        assert plan.failures == []
        kernel.run(plan)
        says(kernel.dump, desired)
        wanted = {
            place: {k: o.element for k, o in found.items()} for place, found in state.elements().items()
        }
        assert wanted == {place: found for place, found in kernel.places.items() if found}
        assert {t: rows for t, rows in state.desired.items() if rows} == {
            t: r for t, r in desired.items() if r
        }
        last = desired
    kernel.run(state.put(changes(last, EMPTY)))
    assert kernel.dump == {}


@settings(deadline=None, max_examples=150)
@given(st.lists(tables(), min_size=1, max_size=4))
def test_a_restarted_state_finds_the_numbers_that_are_in_use(history: list[Tables]) -> None:
    state, kernel, last = ServiceState(Family), FakeKernel(), EMPTY
    for desired in history:
        kernel.run(state.put(changes(last, desired)))
        last = desired
    again = ServiceState(Family)
    again.adopt(KernelLists(kernel.dump), last)
    again.put(changes(EMPTY, last))
    assert again.elements() == state.elements()
    says({p: [o.element for o in f.values()] for p, f in again.elements().items()}, last)


# --- one change costs what the change costs -------------------------------------------------------


def services(number: int, endpoints: int) -> Tables:
    found: Tables = {**EMPTY, Table.BACKENDS: {}, Table.FRONTENDS: {}}
    for n in range(number):
        key = list_key(f"web-{n}", Protocol.TCP, Family.IPV4, "cluster")
        found[Table.BACKENDS][key] = BackendList(tuple(backend(Family.IPV4, e) for e in range(endpoints)))
        front = FrontendKey(address(f"10.96.{n >> 8}.{n & 255}"), Protocol.TCP, 80)
        found[Table.FRONTENDS][front] = Frontend(FrontendClass.INTERNAL, key)
    return found


def one_more(old: Tables, number: int) -> Tables:
    """Another endpoint for one service."""
    key = list(old[Table.BACKENDS])[number]
    longer = BackendList((*old[Table.BACKENDS][key].backends, backend(Family.IPV4, 200)))
    return {**old, Table.BACKENDS: {**old[Table.BACKENDS], key: longer}}


@pytest.mark.parametrize(("number", "endpoints"), [(5, 4), (50, 4), (5, 40), (50, 40)])
def test_an_endpoint_more_or_less_is_a_handful_of_elements(number: int, endpoints: int) -> None:
    """The endpoint itself, and the frontend, which says how many there are. Gone from the middle of the
    list, another takes its place."""
    state, few = ServiceState(Family), services(number, endpoints)
    state.put(changes(EMPTY, few))
    many = one_more(few, 2)
    more = state.put(changes(few, many))
    assert [(each.set, each.add) for each in more] == [
        ("frontends", False),
        ("endpoints", True),
        ("frontends", True),
    ]
    key = list(many[Table.BACKENDS])[2]
    without = BackendList(many[Table.BACKENDS][key].backends[1:])
    less = state.put(changes(many, {**many, Table.BACKENDS: {**many[Table.BACKENDS], key: without}}))
    assert sorted((each.set, each.add) for each in less) == [
        ("endpoints", False),
        ("endpoints", False),
        ("endpoints", True),
        ("frontends", False),
        ("frontends", True),
    ]
