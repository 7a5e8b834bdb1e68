"""Every case of Services in the simulation, in both families."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from podlane.compile.engine import Compiler, changes_of
from podlane.compile.services_sim import Action, Verdict, resolve
from podlane.compile.store import UnitKey
from podlane.compile.tables import Table
from podlane.model.addresses import Family
from tests.service_cases import ME, Case, Outcome, World, cases, titles, worlds

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


@pytest.mark.parametrize("family", list(Family))
def test_cases_have_no_address_and_no_port_in_common(family: Family) -> None:
    """So that they may stand side by side."""
    places: dict[tuple[tuple[str, ...], str, object], str] = {}
    for world in worlds(family):
        for case in world.cases:
            for number in range(case.number, case.number + 10):
                for place in (world.cluster_ip(number), world.vip(number), world.node_port(number)):
                    assert places.setdefault((*case.world, place), case.title) == case.title
        for step in range(world.steps):
            compiler = Compiler(ME, world.config)
            compiler.apply(changes_of(world.objects(step)))
            assert {each.losers for each in compiler.contradictions} <= {(loser_of(world),)}


def loser_of(world: World) -> UnitKey:
    """The one Service that is to lose: "two services and one external address"."""
    number = next((c.number for c in world.cases if "two services" in c.title), -1)
    return UnitKey("services", "service", f"young-{number + 1}", "default")
