"""Every case of Services in the simulation, in both families."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from podlane.compile.services_sim import Action, Verdict, resolve
from podlane.compile.tables import Table
from podlane.model.addresses import Family
from tests.service_cases import Case, Outcome, World, cases, titles, worlds

WORDS = {Action.REFUSED: "refused", Action.DROP: "silence", Action.PASS: "passes"}


@cache
def built(family: Family) -> list[tuple[World, list[dict[Table, dict[Any, Any]]]]]:
    return [(world, [world.tables(step) for step in range(world.steps)]) for world in worlds(family)]


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("case", cases(), ids=titles())
def test_what_the_tables_say(case: Case, family: Family) -> None:
    if case.only not in ("", str(family)):
        return
    world, tables = next(each for each in built(family) if case in each[0].cases)
    for step in range(len(case.steps)):
        for ask in world.asks(case, step):
            found = shown(world, resolve(tables[step], world.flow(ask)))
            assert found == ask.outcome, f"step {step}: {ask.line}"


def shown(world: World, verdict: Verdict) -> Outcome:
    if verdict.action is not Action.TRANSLATE:
        return Outcome(WORDS[verdict.action], {})
    seen = {world.name_of(each.address): verdict.masquerades(each) for each in verdict.backends}
    return Outcome("", seen, bool(verdict.affinity_timeout_s and len(seen) > 1))


def test_cases_have_no_address_in_common() -> None:
    for family in Family:
        for world in worlds(family):
            rows = world.tables(0)[Table.FRONTENDS]
            assert len(rows) > len(world.cases) / 2
