"""The kernel's image of policy, kept row by row, is what a fresh one is, and what changed is what is told."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from podlane.compile.tables import Table
from podlane.compile.view import Change
from podlane.delta import delta
from podlane.kernel.nft.policy_state import TABLES, PolicyState
from podlane.kernel.nft.ruleset import Image, difference
from podlane.model.addresses import Family
from tests.property.policy_strategies import World, typed, updates, worlds
from tests.property.test_policy_oracle import attach, compile_world


def told(image: Image) -> Any:
    chains = {place: chain.comments for place, chain in image.chains.items()}
    return image.sets, chains, {place: each for place, each in image.elements.items() if each}


def copied(image: Image) -> Image:
    found = Image()
    found.sets, found.chains = dict(image.sets), dict(image.chains)
    found.elements = {place: dict(each) for place, each in image.elements.items()}
    return found


@settings(deadline=None, max_examples=60)
@given(
    world=worlds(),
    history=st.lists(updates(), min_size=1, max_size=8),
    fuse_from=st.sampled_from([0, 3, 16]),
    bridge=st.sampled_from(["", "cni0"]),
)
def test_row_by_row_is_as_afresh(world: World, history: list[Any], fuse_from: int, bridge: str) -> None:
    compiler = compile_world(world)["n1"]
    state = PolicyState(Family, bridge, fuse_from=fuse_from)
    rows: dict[Table, dict[Any, Any]] = {table: {} for table in TABLES}
    for kind, value, there in [(None, None, None), *history]:
        if kind is not None:
            new, known = typed(kind, value), compiler.view.objects(kind)
            if there:
                compiler.apply([Change(kind, None, new)])
            elif new.key in known:
                compiler.apply([Change(kind, known[new.key], None)])
            attach(compiler)
        now = {table: dict(compiler.tables[table]) for table in TABLES}
        before = copied(state.image)
        state.put({table: delta(now[table], rows[table]) for table in TABLES})
        rows = now
        changes = state.take()
        expected = difference(state.image, before)
        assert changes.sets.keys() == expected.sets.keys()
        assert changes.elements.keys() == expected.elements.keys()
        fresh = PolicyState(Family, bridge, fuse_from=fuse_from)
        fresh.put({table: delta(now[table], {}) for table in TABLES})
        assert told(state.image) == told(fresh.image)
    state.put({table: delta({}, rows[table]) for table in TABLES})
    assert told(state.image) == told(PolicyState(Family, bridge).image)
