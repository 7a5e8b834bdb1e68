"""What this node tells of its backends, and what it hears of the ways that the other side must answer.

The rule that others and this node go by is in compile/reception.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Final

from podlane.agent.announcer import Announcer
from podlane.agent.flannel_files import SubnetFile
from podlane.agent.reconciler import EVERY_ROW, Reconciler
from podlane.compile import reception, spoken
from podlane.compile.engine import Compiler
from podlane.compile.peers import WAYS, flannel_says
from podlane.compile.tables import DIRECT, Table
from podlane.compile.view import STANDING, Change
from podlane.errors import ConfigError
from podlane.kernel.driver import Failure
from podlane.model.backends import BackendType
from podlane.model.local import Standing

LINGER_S: Final = 1.0


class Backends:
    """run_dir: the agent's own. complaint: what could not be told, or written."""

    def __init__(
        self, compiler: Compiler, reconciler: Reconciler, announcer: Announcer, run_dir: Path
    ) -> None:
        self._subnet_file = SubnetFile(compiler.view.config.flannel.subnet_file, run_dir)
        self._unsaid = ""
        self._compiler, self._reconciler, self._announcer = compiler, reconciler, announcer
        self._judged: object = None
        self._last_sent_s: dict[str, float] = {}  # by backend
        self._again: asyncio.TimerHandle | None = None

    def follow(self) -> None:
        """To be called after each generation, once the kernel holds the tables."""
        view = self._compiler.view
        if view.me.node is None:
            return
        kinds, failures = reception.active(view), self._reconciler.failures
        here = {str(kind): spoken.data(kind, view.config) for kind in kinds if self._in_place(kind, failures)}
        sent = {str(kinds[0])} if len(kinds) == 1 else set(self._sent())
        said = spoken.announcement(kinds[0], here, self._lingering(sent, spoken.sends(view.me.node)))
        self._announcer.say({spoken.BACKEND_ANNOTATION: said})
        if view.config.backend.flannel_compat:
            self._speak_flannel()
        tables = self._compiler.tables
        now = failures, kinds, len(tables[Table.TUNNEL_PEERS]), len(tables[Table.LEARNT])
        if now == self._judged and len(kinds) == 1:
            return
        self._judged = now
        standing, known = self._standing(failures), set(view.standing.values())
        if standing != known:
            came = [Change(STANDING, None, each) for each in standing - known]
            self._reconciler.submit([*came, *(Change(STANDING, each, None) for each in known - standing)])

    @property
    def complaint(self) -> str:
        return self._unsaid or self._subnet_file.complaint

    def _speak_flannel(self) -> None:
        try:
            says = flannel_says(self._compiler.view)
        except ConfigError as error:
            self._unsaid = str(error)
            return
        self._unsaid = ""
        if says is not None:
            self._announcer.say(says[0])
            self._subnet_file.write(says[1])

    def _lingering(self, sent: Set[str], told: Set[str]) -> set[str]:
        """With what was sent by until a moment ago: packets are still on their way."""
        now_s = time.monotonic()
        for kind in told - self._last_sent_s.keys():
            self._last_sent_s[kind] = now_s
        self._last_sent_s |= dict.fromkeys(sent, now_s)
        recent = {kind for kind, at_s in self._last_sent_s.items() if now_s - at_s < LINGER_S}
        for kind in self._last_sent_s.keys() - recent:
            del self._last_sent_s[kind]
        if recent != sent and self._again is None:
            self._again = asyncio.get_running_loop().call_later(LINGER_S, self._follow_again)
        return recent

    def _follow_again(self) -> None:
        self._again = None
        self.follow()

    def _in_place(self, kind: BackendType, failures: list[Failure]) -> bool:
        """Whether what it needs on this node is there."""
        place = WAYS[kind].place
        if place is None:
            return True
        table, key = place
        refused = any(each.table is table and each.key in (key, EVERY_ROW) for each in failures)
        return key in self._compiler.tables[table] and not refused

    def _sent(self) -> Iterator[str]:
        for row in self._compiler.tables[Table.PEER_WAYS].values():
            yield from (way for _, way in row.ways if way != DIRECT)

    def _standing(self, failures: list[Failure]) -> set[Standing]:
        """Nodes that have answered: none of their rows is refused."""
        refused = {(each.table, each.key) for each in failures}
        silent = {
            table for table in (Table.TUNNELS, Table.SPEAKER) if any(each == table for each, _ in refused)
        }
        found: dict[Standing, bool] = {}
        tables, tunnel = self._compiler.tables, WAYS[BackendType.WIREGUARD].tunnel
        for key, row in tables[Table.TUNNEL_PEERS].items():
            if row.device == tunnel:
                stands = Table.TUNNELS not in silent and (Table.TUNNEL_PEERS, key) not in refused
                found[Standing(str(BackendType.WIREGUARD), row.node)] = stands
        for prefix in tables[Table.LEARNT]:
            owner = self._compiler.owner(Table.LEARNT, prefix)
            each = Standing(str(BackendType.BGP), owner.name if owner else "")
            stands = Table.SPEAKER not in silent and (Table.LEARNT, prefix) not in refused
            found[each] = found.get(each, True) and stands
        return {each for each, stands in found.items() if stands}
