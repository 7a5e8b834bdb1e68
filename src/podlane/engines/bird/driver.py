"""Keeps this node's BGP speaker as the tables say, and tells which routes have not come of it yet."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from podlane.compile.bgp import SPEAKER
from podlane.compile.tables import Learnt, Table
from podlane.delta import Delta, merge
from podlane.engines.bird.config import PeerKey, render, session_name
from podlane.engines.bird.process import BirdProcess, require
from podlane.engines.ending import EndWatch
from podlane.errors import KernelError
from podlane.kernel.driver import Failure, Report
from podlane.kernel.rtnl import Rtnl, routes
from podlane.kernel.rtnl.routes import MAIN_TABLE
from podlane.model.addresses import Family

log = logging.getLogger(__name__)

TABLES: Final = (Table.SPEAKER, Table.BGP_PEERS, Table.ORIGINATED, Table.LEARNT)
RTPROT_BIRD: Final = 12  # linux/rtnetlink.h


class BirdDriver:
    """The Driver of kernel/driver.py for TABLES. died(): called on a thread of its own when BIRD ends.

    A row of LEARNT that the kernel has no route for, or a router without a session, is a failure, not of the
    speaker but of the network: the reconciler looks again, and says so as long as it lasts. Raises
    UnsupportedError where there is no BIRD.
    """

    def __init__(self, directory: Path, died: Callable[[], None] = lambda: None) -> None:
        require()
        self.died = died
        self._bird = BirdProcess(directory)
        self._desired: dict[Table, dict[Any, Any]] = {table: {} for table in TABLES}
        self._end = EndWatch("bird", self._ended)
        self._rt = Rtnl()

    @property
    def tables(self) -> tuple[Table, ...]:
        return TABLES

    def close(self) -> None:
        self._rt.close()

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        self._desired = {table: dict(desired.get(table, {})) for table in TABLES}
        return self._bring()

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        for table, change in changes.items():
            merge(self._desired[table], change)
        return self._bring()

    def _bring(self) -> Report:
        speaker = self._desired[Table.SPEAKER].get(SPEAKER)
        if speaker is None:
            operations = self._bird.stop()
            return Report(operations + self._sweep())
        learnt: dict[Any, Learnt] = self._desired[Table.LEARNT]
        try:
            text = render(
                speaker,
                self._desired[Table.BGP_PEERS],
                self._desired[Table.ORIGINATED].values(),
                learnt.values(),
                str(self._bird.log),
            )
            operations = self._bird.configure(text)
        except ValueError as error:
            refusal = KernelError.of(errno.EINVAL, "configure BIRD", str(error))
            return Report(0, (Failure(Table.SPEAKER, SPEAKER, refusal),))
        self._end.watch(self._bird.pid)
        return Report(operations, (*self._missing(learnt), *self._silent()))

    def _missing(self, learnt: Mapping[Any, Learnt]) -> Iterator[Failure]:
        there = {r.destination for r in self._rt.routes(protocol=RTPROT_BIRD, table=MAIN_TABLE)}
        for key, row in learnt.items():
            if key not in there:
                why = f"no BGP session has brought it yet; it is to come from {row.via}"
                yield Failure(Table.LEARNT, key, KernelError.of(errno.ENETUNREACH, f"learn {key}", why))

    def _silent(self) -> Iterator[Failure]:
        """Routers without a session. A node without one shows by what it has not brought."""
        routers = {key: row for key, row in self._desired[Table.BGP_PEERS].items() if not row.node}
        if not routers:
            return
        states = session_states(self._bird.ask("show protocols"))
        for key, row in routers.items():
            state = state_of(states, key)
            if state != "Established":
                whom = row.address or f"anyone on {row.interface}"
                why = f"no BGP session with {whom} (AS {row.as_number}): {state}"
                yield Failure(Table.BGP_PEERS, key, KernelError.of(errno.ENOTCONN, f"peer {key[0]}", why))

    def sessions(self) -> dict[tuple[str, Family], tuple[bool, bool]]:
        """By peer: (it is a node of the cluster, the session is established). Raises KernelError."""
        peers = dict(self._desired[Table.BGP_PEERS])
        states = session_states(self._bird.ask("show protocols")) if peers else {}
        return {key: (row.node, state_of(states, key) == "Established") for key, row in peers.items()}

    def _sweep(self) -> int:
        """Routes that a speaker which is no longer wanted left behind."""
        stale = self._rt.routes(protocol=RTPROT_BIRD, table=MAIN_TABLE) if self._end.watched else []
        for route in stale:
            self._rt.delete_route(route.destination, protocol=RTPROT_BIRD)
        self._end.forget()
        return len(stale)

    def _ended(self) -> None:
        if self._desired[Table.SPEAKER]:
            log.warning("BIRD has ended; it is started anew")
            self.died()


def stop(directory: Path) -> None:
    """Of a node whose backend is another one now: the speaker ends, and what it brought goes."""
    if not BirdProcess(directory).stop():
        return
    with Rtnl() as rt:
        for route in rt.routes(protocol=RTPROT_BIRD, table=MAIN_TABLE):
            rt.do(routes.delete(route))
    log.info("the backend is no longer bgp: its speaker has ended and its routes are gone")


def state_of(states: Mapping[str, str], key: PeerKey) -> str:
    """As session_states has it. Of a peer without an address: the best session of those there are."""
    name = session_name(*key)
    found = [state for each, state in states.items() if each.startswith(f"{name}_")]
    if "Established" in found:
        return "Established"
    return found[0] if found else states.get(name, "not configured")


def session_states(answer: str) -> dict[str, str]:
    """BIRD's answer to `show protocols`: what it says of each BGP session, Established or what it lacks."""
    found = {}
    for line in answer.splitlines():
        words = line.removeprefix("1002-").split()
        if len(words) > 1 and words[1] == "BGP":
            found[words[0]] = " ".join(words[5:]) or " ".join(words[3:4])
    return found
