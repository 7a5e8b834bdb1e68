"""The words about a choice agree with the choice."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from podlane.compile.endpoints import Known, Place, select
from podlane.compile.services import CLUSTER
from podlane.compile.tables import Backend
from podlane.model.addresses import address
from podlane.observe.services import reason

NAMES = ("a", "b")


@st.composite
def ends(draw: st.DrawFn) -> list[Known]:
    hints = st.frozensets(st.sampled_from(NAMES), max_size=2)
    return [
        Known(
            Backend(address(f"10.0.0.{n}"), 80),
            draw(st.sampled_from(NAMES)),
            draw(st.booleans()),
            draw(st.booleans()),
            draw(st.booleans()),
            draw(hints),
            draw(hints),
        )
        for n in range(1, draw(st.integers(1, 5)))
    ]


@given(known=ends(), zone=st.sampled_from(["", *NAMES]), node=st.sampled_from(NAMES))
def test_the_numbers_are_those_of_the_list(known: list[Known], zone: str, node: str) -> None:
    here = Place(node, zone)
    chosen = select({e.backend: e for e in known}, here, uses_cluster=True, uses_local=False).cluster or ()
    why = reason(known, frozenset(e.backend for e in chosen), here, CLUSTER)
    ready = [e for e in known if e.ready]
    if found := re.search(r"hints give \w+ \w+ (\d+) of them", why):
        assert len(chosen) == int(found[1])
    elif ready:
        assert len(chosen) == len(ready)
        assert why.startswith(f"{len(ready)} ready")
    elif chosen:
        assert f"{len(chosen)} terminating used" in why
    else:
        assert "ready" not in why.replace("none ready", "").replace("not ready", "")
