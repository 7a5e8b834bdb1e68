"""Numbers of endpoint lists: in a circle, and none that a flow may still carry."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.compile.tables import (
    Backend,
    BackendList,
    Frontend,
    FrontendClass,
    FrontendKey,
    ListKey,
    Table,
)
from podlane.delta import Delta
from podlane.kernel.nft.list_ids import ListIds
from podlane.kernel.nft.lists import TooLong
from podlane.kernel.nft.service_state import ServiceState
from podlane.model import marks
from podlane.model.addresses import Family, Protocol, address

V4 = Family.IPV4


def test_a_freed_number_rests_until_somebody_looked() -> None:
    ids = ListIds(largest=4)
    assert [ids.take() for _ in range(3)] == [1, 2, 3]
    ids.free(2)
    assert ids.take() == 4
    with pytest.raises(TooLong, match="flows carry 1 number"):
        ids.take()
    assert ids.tight
    ids.rested({2})
    with pytest.raises(TooLong):
        ids.take()
    ids.rested(set())
    assert ids.take() == 2
    with pytest.raises(TooLong, match=r"4 is the most endpoint lists of a family$"):
        ids.take()


def test_the_numbers_go_round() -> None:
    ids = ListIds(largest=marks.LIST.largest)
    assert ids.adopt(marks.LIST.largest - 1)
    assert [ids.take() for _ in range(3)] == [marks.LIST.largest, 1, 2]


@pytest.mark.parametrize("number", [0, -1, marks.LIST.largest + 1])
def test_what_is_no_number_is_not_adopted(number: int) -> None:
    assert not ListIds().adopt(number)


def test_a_number_is_adopted_once() -> None:
    ids = ListIds()
    assert ids.adopt(7)
    assert not ids.adopt(7)
    assert ids.take() == 8


def test_numbers_that_are_carried_can_be_adopted_by_their_own_list() -> None:
    ids = ListIds({1, 2})
    assert ids.adopt(2)
    assert ids.take() == 3


def test_looking_again_waits_until_it_is_worth_it() -> None:
    ids = ListIds(largest=1600)
    taken = [ids.take() for _ in range(100)]
    for number in taken[:99]:
        ids.free(number)
    assert not ids.tight
    ids.free(taken[99])
    assert ids.tight
    ids.rested(set(taken))  # flows carry all of them
    assert not ids.tight


@given(st.data())
def test_no_number_is_given_twice_while_a_list_or_a_flow_has_it(data: st.DataObject) -> None:
    """Lists come and go, some of their flows stay; now and then the driver looks, or begins anew."""
    ids, largest = ListIds(largest=12), 12
    lists: set[int] = set()
    flows: set[int] = set()
    for _ in range(data.draw(st.integers(0, 60))):
        what = data.draw(st.sampled_from(["list", "list", "list", "drop", "drop", "end", "again", "restart"]))
        if what == "list":
            if ids.tight:
                ids.rested(flows)
            try:
                number = ids.take()
            except TooLong:
                assert len(lists | flows) + 1 >= largest or not ids.tight
                continue
            assert number not in lists
            assert number not in flows
            lists.add(number)
            if data.draw(st.booleans()):
                flows.add(number)
        elif what == "drop" and lists:
            number = data.draw(st.sampled_from(sorted(lists)))
            lists.remove(number)
            ids.free(number)
        elif what == "end" and flows:
            flows.remove(data.draw(st.sampled_from(sorted(flows))))
        elif what in ("again", "restart"):
            ids = ListIds(ids.known if what == "again" else flows, largest=12)
            for number in sorted(lists):
                assert ids.adopt(number)


# --- the state that gives them out ----------------------------------------------------------------


def web(number: int) -> ListKey:
    return ListKey("default", f"web-{number}", "http", Protocol.TCP, V4, "cluster")


def rows(*numbers: int) -> dict[Table, dict[object, object]]:
    """Services by number: a list and the frontend that leads to it."""
    return {
        Table.BACKENDS: {web(n): BackendList((Backend(address(f"10.9.0.{n}"), 80),)) for n in numbers},
        Table.FRONTENDS: {
            FrontendKey(address(f"10.96.0.{n}"), Protocol.TCP, 80): Frontend(FrontendClass.INTERNAL, web(n))
            for n in numbers
        },
    }


def added(*numbers: int) -> dict[Table, Delta[object, object]]:
    return {table: Delta(held, {}, {}) for table, held in rows(*numbers).items()}


def removed(*numbers: int) -> dict[Table, Delta[object, object]]:
    return {table: Delta({}, {}, held) for table, held in rows(*numbers).items()}


def test_one_list_too_many_is_reported_and_the_others_stand() -> None:
    state = ServiceState([V4], {V4: ListIds(largest=3)})
    plan = state.put(added(1, 2, 3, 4))
    (failure,) = plan.failures
    assert (failure.table, failure.key) == (Table.BACKENDS, web(4))
    assert "3 is the most endpoint lists" in str(failure.error)
    assert sorted(each.set for each in plan.operations) == ["endpoints"] * 3 + ["frontends"] * 3


def test_what_found_no_number_gets_one_when_there_is_one() -> None:
    state = ServiceState([V4], {V4: ListIds(largest=3)})
    state.put(added(1, 2, 3, 4))
    state.put(removed(2))
    assert state.ids[V4].tight
    state.ids[V4].rested(set())
    plan = state.put({Table.BACKENDS: Delta(rows(4)[Table.BACKENDS], {}, {})})
    assert plan.failures == []
    assert sorted(each.set for each in plan.operations) == ["endpoints", "frontends"]


def test_services_come_and_go_round_the_end_of_the_numbers() -> None:
    """Always two at a time, among five numbers, and the flows of the last three live on."""
    state = ServiceState([V4], {V4: ListIds(largest=5)})
    numbers: list[int] = []
    state.put(added(0))
    for turn in range(1, 50):
        carried = set(numbers[-3:])
        if state.ids[V4].tight:
            state.ids[V4].rested(carried)
        assert state.put(added(turn)).failures == []
        new = _number(state, turn)
        assert new not in carried
        numbers.append(new)
        state.put(removed(turn - 1))
    assert set(numbers) == {1, 2, 3, 4, 5}


def _number(state: ServiceState, service: int) -> int:
    """What the frontend of a service says."""
    key = address(f"10.96.0.{service}").packed
    (mark,) = (
        each.element.data
        for each in state.operations()
        if each.set == "frontends" and each.element.key.startswith(key)
    )
    assert mark is not None
    return marks.LIST.of(int.from_bytes(mark, sys.byteorder))
