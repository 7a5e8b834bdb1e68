"""Laws of label selectors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from podlane.errors import ConfigError
from podlane.model import selectors
from podlane.model.selectors import Operator, Requirement, Selector

keys = st.sampled_from(["a", "b", "in", "notin", "x.y/z", "A-1"])
values = st.sampled_from(["", "a", "in", "1", "-5"[1:], "12", "v_1.x"])
labels = st.dictionaries(keys, values, max_size=5)


@st.composite
def requirements(draw: st.DrawFn) -> Requirement:
    operator = draw(st.sampled_from(Operator))
    match operator:
        case Operator.IN | Operator.NOT_IN:
            found = draw(st.sets(values, min_size=1, max_size=3))
        case Operator.GT | Operator.LT:
            found = {str(draw(st.integers(0, 20)))}
        case _:
            found = set()
    return Requirement(draw(keys), operator, tuple(sorted(found)))


selector_strategy = st.lists(requirements(), max_size=4).map(lambda rs: Selector(tuple(rs)))


@given(selector_strategy, labels)
def test_what_is_written_reads_back_with_the_same_meaning(selector: Selector, found: dict[str, str]) -> None:
    again = selectors.parse(str(selector))
    assert set(again.requirements) == set(selector.requirements)
    assert again.matches(found) is selector.matches(found)
    assert selectors.parse(str(again)) == again


@given(selector_strategy, selector_strategy, labels)
def test_a_conjunction_matches_what_both_match(a: Selector, b: Selector, found: dict[str, str]) -> None:
    both = Selector(a.requirements + b.requirements)
    assert both.matches(found) is (a.matches(found) and b.matches(found))


@given(keys, st.sets(values, min_size=1), labels)
def test_notin_is_the_opposite_of_in(key: str, chosen: set[str], found: dict[str, str]) -> None:
    among = tuple(sorted(chosen))
    inside, outside = Requirement(key, Operator.IN, among), Requirement(key, Operator.NOT_IN, among)
    assert inside.matches(found) is not outside.matches(found)


@given(st.dictionaries(keys, values, max_size=4), labels)
def test_from_labels_is_inclusion(wanted: dict[str, str], found: dict[str, str]) -> None:
    assert selectors.from_labels(wanted).matches(found) is (wanted.items() <= found.items())


@given(st.text(alphabet="abin()=!<>, /.-_\n\x00é", max_size=20))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        selector = selectors.parse(text)
    except ConfigError:
        return
    assert selectors.parse(str(selector)) == selector
