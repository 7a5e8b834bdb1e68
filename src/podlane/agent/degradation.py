"""The Node's condition podlane.dev/Degraded: this node's kernel or engines refuse something.

What could not be compiled is told at the object it is of, once for all nodes (agent/events.py); what another
node is the cause of, by that node: when one dies, not all the others write to the API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from podlane.agent.node_conditions import LOOK_S, MOST_MESSAGE, Condition, NodeConditions
from podlane.compile import peers
from podlane.compile.engine import Compiler
from podlane.kernel.driver import Failure
from podlane.model.agents import DEGRADED

MOST_TOLD: Final = 5


def degraded(compiler: Compiler, failures: Iterable[Failure]) -> Condition:
    refused = []
    for failure in failures:
        owner = compiler.owner(failure.table, failure.key)
        if owner is None or owner.capability != peers.NAME or owner == peers.OWN:
            refused.append(f"{failure.table}: {failure.error}")
    if not refused:
        return Condition(DEGRADED, "False", "AllProgrammed", "kernel and engines hold what the API says")
    told = sorted(set(refused))
    more = [f"and {len(told) - MOST_TOLD} more"] if told[MOST_TOLD:] else []
    message = "; ".join([*told[:MOST_TOLD], *more])
    return Condition(DEGRADED, "True", "RowsRefused", message[:MOST_MESSAGE])


class Degradation:
    """look: what is so now. That it is so is told when it was so at two looks that follow each other."""

    def __init__(self, conditions: NodeConditions, look: Callable[[], Condition]) -> None:
        self._conditions, self._look = conditions, look
        self._bad = False

    def settled(self) -> None:
        """The agent has become ready: what an earlier life said may be over."""
        found = self._look()
        self._bad = found.status == "True"
        if not self._bad:
            self._conditions.say(found)

    async def run(self) -> None:
        """Without end."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        found = self._look()
        if self._bad:
            self._conditions.say(found)
        self._bad = found.status == "True"
