"""Every case of Services with real packets: both families, both link modes, every service mode there is.

In mode socket a client of this node sees to its endpoint itself: where the socket answers, its own address is
what the endpoint sees. Everything else must come out the same.

All cases of one configuration stand side by side in one node's kernel; a further step is one generation more.
Flows that hear nothing are sent together, so that the silence is waited for once.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import groupby, product
from typing import Any

import pytest

from podlane.compile import socket_lb
from podlane.compile.services_sim import resolve
from podlane.compile.tables import Table
from podlane.delta import delta
from podlane.kernel.bpf import installation
from podlane.kernel.bpf.installation import Site
from podlane.kernel.bpf.sockets import SocketDriver
from podlane.kernel.conntrack.codec import Filter
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.nft.services import ServicesDriver
from podlane.model.addresses import Family, Protocol
from podlane.model.config import LinkMode, ServiceMode
from tests.netns.service_lab import Answer, Refused, ServiceLab, Silence, service_lab
from tests.netns.socket_site import scratch
from tests.service_cases import Ask, Case, Outcome, World, cases, titles, worlds

FEWEST_FLOWS, MOST_FLOWS = 4, 60
SILENCE_S = 0.2

Found = dict[tuple[str, int, str], tuple[Outcome, Outcome]]
"""(case, step, flow) -> what was asked for, what came."""


@pytest.fixture(scope="module", params=list(LinkMode))
def lab(request: pytest.FixtureRequest) -> Iterator[ServiceLab]:
    with service_lab(request.param) as found:
        yield found


@pytest.fixture(scope="module", params=list(product(ServiceMode, Family)), ids=lambda each: "-".join(each))
def found(lab: ServiceLab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Everything that was asked, once."""
    mode, family = request.param
    answers: Found = {}
    if mode is ServiceMode.NFTABLES:
        for world in worlds(family):
            answers |= run(lab, world, Node(lab, world))
        return answers
    with scratch(tmp_path_factory.mktemp("pins") / "bpf", lab) as site:
        lab.cgroup = site.cgroup
        try:
            for world in worlds(family):
                if world.config.services.masquerade_all:
                    continue  # the two exclude each other (model/config.py)
                answers |= run(lab, world, Node(lab, world, site))
        finally:
            lab.cgroup = None
            installation.remove(site.directory)
    return answers


class Node:
    """The drivers of services of one node. site: where programs are at its sockets, in mode socket."""

    def __init__(self, lab: ServiceLab, world: World, site: Site | None = None) -> None:
        self.nft = ServicesDriver(world.config, lab.fds["node"])
        self.sockets = SocketDriver(world.config, site, lab.fds["node"]) if site else None
        self.drivers = [driver for driver in (self.sockets, self.nft) if driver is not None]
        self._last: Mapping[Table, Mapping[Any, Any]] | None = None

    def put(self, tables: Mapping[Table, Mapping[Any, Any]]) -> None:
        """One generation more."""
        for driver in self.drivers:
            if self._last is None:
                report = driver.resync(tables)
            else:
                changes = {table: delta(tables[table], self._last[table]) for table in driver.tables}
                report = driver.apply({table: change for table, change in changes.items() if change})
            assert report.failures == ()
        self._last = tables

    def asks(self, world: World, case: Case, step: int) -> Iterator[Ask]:
        """With what shall come of them in this mode of services."""
        for ask in world.asks(case, step):
            if ask.protocol is Protocol.SCTP:
                continue  # no sockets of it here
            if self.sockets is not None and ask.source not in ("outside", "peer") and self._bound(world, ask):
                seen = dict.fromkeys(ask.outcome.endpoints, ask.source == "node")
                yield ask._replace(outcome=ask.outcome._replace(endpoints=seen))
            else:
                yield ask

    def _bound(self, world: World, ask: Ask) -> bool:
        """The socket chooses the endpoint."""
        assert self._last is not None
        flow = world.flow(ask)
        return socket_lb.resolve(self._last, flow, resolve(self._last, flow)).at_socket

    def agrees(self) -> bool:
        assert self._last is not None
        return all(driver.resync(self._last).operations == 0 for driver in self.drivers)

    def close(self) -> None:
        if self.sockets is not None:
            self.sockets.close()
        self.nft.remove()
        self.nft.close()


def run(lab: ServiceLab, world: World, node: Node) -> Found:
    flows = Flows(lab.fds["node"])
    found: Found = {}
    try:
        for step in range(world.steps):
            node.put(world.tables(step))
            # UDP flows of earlier steps would be gone on with where a client's port repeats.
            flows.delete(flows.list(Filter(world.family, Protocol.UDP.number)))
            here = [case for case in world.cases if step < len(case.steps)]
            asks = [(case, ask) for case in here for ask in node.asks(world, case, step)]
            found |= observe(
                lab, world, step, [each for each in asks if each[1].protocol is not Protocol.SCTP]
            )
        assert node.agrees(), "the kernel holds the tables"
    finally:
        flows.close()
        node.close()
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
