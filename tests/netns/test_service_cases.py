"""Every case of Services with real packets: both families, both link modes, every service mode there is.

All cases of one configuration stand side by side in one node's kernel; a further step is one generation more.
Flows that hear nothing are sent together, so that the silence is waited for once.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby

import pytest

from podlane.delta import delta
from podlane.kernel.conntrack.codec import Filter
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.nft.services import ServicesDriver
from podlane.model.addresses import Family, Protocol
from podlane.model.config import LinkMode
from tests.netns.service_lab import Answer, Refused, ServiceLab, Silence, service_lab
from tests.service_cases import Ask, Case, Outcome, World, cases, titles, worlds

FEWEST_FLOWS, MOST_FLOWS = 6, 60
SILENCE_S = 0.2

Found = dict[tuple[str, int, str], tuple[Outcome, Outcome]]
"""(case, step, flow) -> what was asked for, what came."""


@pytest.fixture(scope="module", params=list(LinkMode))
def lab(request: pytest.FixtureRequest) -> Iterator[ServiceLab]:
    with service_lab(request.param) as found:
        yield found


@pytest.fixture(scope="module", params=list(Family))
def found(lab: ServiceLab, request: pytest.FixtureRequest) -> Found:
    """Everything that was asked, once."""
    answers: Found = {}
    for world in worlds(request.param):
        answers |= run(lab, world)
    return answers


def run(lab: ServiceLab, world: World) -> Found:
    driver = ServicesDriver(world.config, lab.fds["node"])
    flows = Flows(lab.fds["node"])
    found: Found = {}
    try:
        last = world.tables(0)
        assert driver.resync(last).failures == ()
        for step in range(world.steps):
            tables = world.tables(step)
            changes = {table: delta(tables[table], last[table]) for table in driver.tables}
            assert driver.apply({t: d for t, d in changes.items() if d}).failures == ()
            assert driver.sweeper.wait()
            # UDP flows of earlier steps would be gone on with where a client's port repeats.
            flows.delete(flows.list(Filter(world.family, Protocol.UDP.number)))
            last = tables
            asks = [
                (case, a) for case in world.cases if step < len(case.steps) for a in world.asks(case, step)
            ]
            found |= observe(
                lab, world, step, [each for each in asks if each[1].protocol is not Protocol.SCTP]
            )
        assert driver.resync(last).operations == 0, "the kernel holds the tables"
    finally:
        flows.close()
        driver.remove()
        driver.close()
    return found


def observe(lab: ServiceLab, world: World, step: int, asks: list[tuple[Case, Ask]]) -> Found:
    found: Found = {}
    quiet = [(case, ask) for case, ask in asks if ask.outcome.word in ("silence", "passes")]
    for (case, ask), came in zip(quiet, all_at_once(lab, world, [ask for _, ask in quiet]), strict=True):
        found[case.title, step, ask.line] = ask.outcome, came
    for case, ask in asks:
        if (case, ask) not in quiet:
            found[case.title, step, ask.line] = ask.outcome, one_by_one(lab, world, ask)
    return found


def one_by_one(lab: ServiceLab, world: World, ask: Ask) -> Outcome:
    """New flows until every endpoint that should answer has, and some more."""
    seen: set[Answer] = set()
    try:
        for number in range(MOST_FLOWS):
            seen.add(lab.ask(client(ask), ask.where, ask.port, ask.protocol))
            enough = ask.outcome.one or {each.server for each in seen} >= set(ask.outcome.endpoints)
            if number >= FEWEST_FLOWS and enough:
                break
    except Refused:
        return Outcome("refused", {})
    except Silence:
        return Outcome("silence", {})
    return outcome(lab, world, ask, seen)


def outcome(lab: ServiceLab, world: World, ask: Ask, seen: set[Answer]) -> Outcome:
    own = lab.own_addresses(world.plan)
    came: dict[str, bool] = {}
    for server, answers in groupby(sorted(seen), key=lambda each: each.server):
        addresses = {each.client for each in answers}
        # What the node sends is of the node, translated or not.
        kept = ask.source != "node" and addresses == {world.source(ask.source)}
        assert kept or addresses <= own, f"{ask.line}: {server} saw {addresses}"
        came[server] = not kept
    if ask.outcome.one and len(came) == 1 and came.items() <= ask.outcome.endpoints.items():
        return ask.outcome
    return Outcome("", came)


def client(ask: Ask) -> str:
    return "client" if ask.source == "pod" else ask.source


def all_at_once(lab: ServiceLab, world: World, asks: list[Ask]) -> list[Outcome]:
    """What answers within SILENCE_S; a refusal of somebody else's is as good as silence for what passes."""
    if not asks:
        return []
    found = [Outcome("silence", {}) for _ in asks]
    open_: list[socket.socket] = []
    with selectors.DefaultSelector() as selector:
        for number, ask in enumerate(asks):
            kind = socket.SOCK_STREAM if ask.protocol is Protocol.TCP else socket.SOCK_DGRAM
            each = lab.socket(client(ask), ask.where, kind)
            open_.append(each)
            each.setblocking(False)
            with suppress(BlockingIOError, PermissionError):  # EPERM: dropped on the way out of this node
                each.connect((ask.where, ask.port))
            if kind == socket.SOCK_DGRAM:
                with suppress(PermissionError):
                    each.send(b"?")
            selector.register(each, selectors.EVENT_READ, number)
        end_s = time.monotonic() + SILENCE_S
        while (left_s := end_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                selector.unregister(key.fileobj)
                assert isinstance(key.fileobj, socket.socket)
                try:
                    data = key.fileobj.recv(4096)
                    answer = Answer(*json.loads(data))
                    found[key.data] = outcome(lab, world, asks[key.data], {answer})
                except OSError:
                    found[key.data] = Outcome("refused", {})
    for each in open_:
        each.close()
    return [
        ask.outcome if ask.outcome.word == "passes" and not came.endpoints else came
        for ask, came in zip(asks, found, strict=True)
    ]


@pytest.mark.parametrize("case", cases(), ids=titles())
def test_what_packets_meet(found: Found, case: Case) -> None:
    mine = {key[1:]: each for key, each in found.items() if key[0] == case.title}
    assert {key: came for key, (_, came) in mine.items()} == {key: asked for key, (asked, _) in mine.items()}
