"""How the rows of many units become one table."""

from __future__ import annotations

from typing import Any

from podlane.compile.store import Compiled, Store, UnitKey
from podlane.compile.tables import Table
from podlane.delta import Change, Delta

A, B, C = UnitKey("x", "unit", "a"), UnitKey("x", "unit", "b"), UnitKey("x", "unit", "c")


def routes(**rows: Any) -> dict[Table, dict[Any, Any]]:
    return {Table.ROUTES: rows}


def taken(store: Store) -> Delta[Any, Any]:
    return store.take().get(Table.ROUTES, Delta({}, {}, {}))


def test_rows_come_change_and_go_with_their_unit() -> None:
    store = Store()
    store.put(A, Compiled(routes(k=1, l=1)))
    assert taken(store) == Delta({"k": 1, "l": 1}, {}, {})
    store.put(A, Compiled(routes(k=2)))
    assert taken(store) == Delta({}, {"k": Change(1, 2)}, {"l": 1})
    store.put(A, Compiled({}))
    assert taken(store) == Delta({}, {}, {"k": 2})


def test_what_was_undone_before_it_was_taken_is_no_change() -> None:
    store = Store()
    store.put(A, Compiled(routes(k=1)))
    store.take()
    store.put(A, Compiled(routes(k=2)))
    store.put(A, Compiled(routes(k=1)))
    store.put(B, Compiled(routes(z=1)))
    store.put(B, Compiled({}))
    assert store.take() == {}


def test_equal_rows_stay_until_the_last_unit_goes() -> None:
    store = Store()
    store.put(A, Compiled(routes(k=1)))
    store.put(B, Compiled(routes(k=1)))
    assert store.contradictions == []
    assert taken(store) == Delta({"k": 1}, {}, {})
    store.put(A, Compiled({}))
    assert not taken(store)
    store.put(B, Compiled({}))
    assert taken(store) == Delta({}, {}, {"k": 1})


def test_of_rows_that_contradict_the_older_object_has_it() -> None:
    store = Store()
    store.put(A, Compiled(routes(k="young"), since="2026-02-01T00:00:00Z"))
    store.put(B, Compiled(routes(k="old"), since="2026-01-01T00:00:00Z"))
    assert store.tables[Table.ROUTES] == {"k": "old"}
    assert [str(each) for each in store.contradictions] == [
        "routes k: x unit b is older and has it; x unit a must do without"
    ]


def test_the_loser_comes_back_when_the_winner_goes() -> None:
    store = Store()
    store.put(A, Compiled(routes(k="young"), since="2"))
    store.put(B, Compiled(routes(k="old"), since="1"))
    store.take()
    store.put(B, Compiled({}))
    assert taken(store) == Delta({}, {"k": Change("old", "young")}, {})
    assert store.contradictions == []


def test_equally_old_the_smaller_key_has_it_whoever_came_first() -> None:
    for first, second in ((A, B), (B, A)):
        store = Store()
        store.put(first, Compiled(routes(k=str(first))))
        store.put(second, Compiled(routes(k=str(second))))
        assert store.tables[Table.ROUTES] == {"k": "x unit a"}


def test_an_object_made_anew_under_its_name_loses_its_age() -> None:
    store = Store()
    store.put(A, Compiled(routes(k="a"), since="1"))
    store.put(B, Compiled(routes(k="b"), since="2"))
    store.put(A, Compiled(routes(k="a"), since="3"))
    assert store.tables[Table.ROUTES] == {"k": "b"}


def test_three_may_contradict_and_equal_ones_do_not_lose() -> None:
    store = Store()
    store.put(A, Compiled(routes(k="same"), since="1"))
    store.put(B, Compiled(routes(k="same"), since="2"))
    store.put(C, Compiled(routes(k="other"), since="3"))
    assert [each.losers for each in store.contradictions] == [(C,)]
    store.put(A, Compiled({}))
    assert store.tables[Table.ROUTES] == {"k": "same"}
    store.put(B, Compiled({}))
    assert store.tables[Table.ROUTES] == {"k": "other"}
    assert store.contradictions == []


def test_what_is_refused_is_kept_by_unit_until_it_is_not() -> None:
    store = Store()
    store.put(A, Compiled({}, refused=("node a: no address",)))
    assert store.refused == {A: ("node a: no address",)}
    store.put(A, Compiled(routes(k=1)))
    assert store.refused == {}
