"""Objects that are kept packed come out as they went in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from podlane.model.objects import EndpointSlice, Pod, Service
from podlane.model.packed import LabelledShelf, Pile, Shelf
from tests.property.cluster_strategies import pods, services, slices


@given(st.lists(services("default", "web") | services("other", "web"), max_size=4))
def test_a_shelf_is_a_mapping(found: list[Service]) -> None:
    shelf, plain = Shelf(Service), {}
    for each in found:
        shelf[each.key] = plain[each.key] = each
    assert shelf == plain
    assert list(shelf) == list(plain)
    for key in list(plain):
        assert key in shelf
        del shelf[key], plain[key]
        assert shelf == plain
        assert key not in shelf
        assert shelf.get(key) is None


@given(st.lists(st.tuples(st.booleans(), pods("default", "a") | pods("other", "b")), max_size=8))
def test_labels_that_many_have_are_theirs_all_the_same(history: list[tuple[bool, Pod]]) -> None:
    shelf, plain = LabelledShelf(Pod), dict[tuple[str, str], Pod]()
    for stays, each in history:
        if stays:
            shelf[each.key] = plain[each.key] = each
        elif each.key in plain:
            del shelf[each.key], plain[each.key]
        assert shelf == plain
        assert all(shelf.holds(key, value) for key, value in plain.items())
        assert shelf.holds(each.key, each) == (plain.get(each.key) == each)
    shelf.clear()
    assert not shelf._labels, "labels that nobody has are kept"


@given(st.lists(slices("default", "web-1"), max_size=4))
def test_a_pile_is_a_sequence(found: list[EndpointSlice]) -> None:
    pile = Pile(EndpointSlice, found[:2])
    for each in found[2:]:
        pile.append(each)
    assert pile == found
    assert found == pile
    assert list(pile) == list(pile) == found
    assert pile[:1] == found[:1]
    assert [pile[place] for place in range(len(pile))] == found
    assert pile != [*found, EndpointSlice()]
