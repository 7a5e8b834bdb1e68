"""Conditions of this node's own Node (status.conditions), among them whether its network is there.

    data plane programmed, plugin installed    NetworkUnavailable False, PodlaneIsUp
    not so for a while                         NetworkUnavailable True, PodlaneIsNotReady, and what is missing

Others write conditions too (the kubelet, a cloud's route controller), so ours are compared with what the
API has and patched by their type, and only where they differ: an agent that begins anew, or a quiet
cluster, writes nothing. In a cluster the node lifecycle controller turns NetworkUnavailable True into the
taint node.kubernetes.io/network-unavailable, and takes it away again; nobody here writes taints.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from podlane.agent.announcer import STRATEGIC_MERGE_PATCH
from podlane.agent.reconciler import EVERY_ROW
from podlane.compile import peers
from podlane.compile.engine import Compiler
from podlane.compile.tables import Table
from podlane.errors import ApiError, NotFoundError
from podlane.kernel.driver import Failure
from podlane.model.agents import NETWORK_UNAVAILABLE, NOT_READY, UP
from podlane.model.backends import BackendType
from podlane.model.objects import Node
from podlane.watch.backoff import Backoff
from podlane.watch.http import ApiHttp

log = logging.getLogger(__name__)

AGAIN_S: Final = 300.0
"""How often it is looked whether somebody else has written; the pause is jittered."""
LOOK_S: Final = 5.0
START_S: Final = 15.0
"""How long an agent that has just begun says nothing: what an earlier life left goes on working."""
MOST_MESSAGE: Final = 1024


class Condition(NamedTuple):
    """status: "True", "False" or "Unknown"; reason: one CamelCase word; message: for people."""

    type: str
    status: str
    reason: str
    message: str


class _Known(Struct, frozen=True, rename="camel"):
    type: str
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class _Status(Struct, frozen=True):
    conditions: list[_Known] = []


class _Meta(Struct, frozen=True):
    uid: str = ""


class _Node(Struct, frozen=True):
    metadata: _Meta = _Meta()
    status: _Status = _Status()


class NodeConditions:
    """node: this node's Node as last seen. `say` what shall be there; `look` again when the Node changed.

    error: why the last of it could not be written, "" if it was.
    """

    def __init__(self, api: ApiHttp, node: Callable[[], Node | None]) -> None:
        self._api, self._node = api, node
        self._wanted: dict[str, Condition] = {}
        self._changed = asyncio.Event()
        self._uid: str | None = None
        self.error = ""

    def say(self, *conditions: Condition) -> None:
        """In place of what was said of the same types; the same thing again costs nothing."""
        fresh = {c.type: c for c in conditions if self._wanted.get(c.type) != c}
        if fresh:
            self._wanted.update(fresh)
            self._changed.set()

    def look(self) -> None:
        """The Node is another one by now: registered anew, it has no conditions of ours."""
        node = self._node()
        if node is not None and node.metadata.uid != self._uid:
            self._changed.set()

    @property
    def said(self) -> tuple[Condition, ...]:
        return tuple(self._wanted.values())

    async def run(self) -> None:
        """Without end."""
        chance, backoff = random.Random(), Backoff(random.Random())
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), AGAIN_S * chance.uniform(0.5, 1.5))
            # What is only looked at again an API server may answer from its memory.
            query = {} if self._changed.is_set() else {"resourceVersion": "0"}
            self._changed.clear()
            node = self._node()
            if node is None or not self._wanted:
                continue
            try:
                await self._bring(node.name, query)
            except NotFoundError:
                pass  # deleted; `look` comes with the next one
            except ApiError as error:
                self.error = f"the conditions of Node {node.name} cannot be written: {error}"
                log.info("%s", self.error)
                await asyncio.sleep(backoff.next_s())
                self._changed.set()
            else:
                self._uid, self.error = node.metadata.uid, ""
                backoff.succeeded()

    async def _bring(self, name: str, query: Mapping[str, str]) -> None:
        path, wanted = f"/api/v1/nodes/{name}", list(self._wanted.values())
        known = msgspec.json.decode(await self._api.get(path, query), type=_Node)
        conditions = differing(wanted, known.status.conditions, _now())
        if conditions:
            # The uid: never of a Node that was registered anew meanwhile.
            body = {"metadata": {"uid": known.metadata.uid}, "status": {"conditions": conditions}}
            await self._api.patch(f"{path}/status", msgspec.json.encode(body), STRATEGIC_MERGE_PATCH)


def differing(wanted: Iterable[Condition], known: Iterable[_Known], now: str) -> list[dict[str, Any]]:
    """Those that the API has otherwise, as it takes them. Their transition time is their status's."""
    there = {each.type: each for each in known}
    found = []
    for each in wanted:
        old = there.get(each.type)
        if old is None or (old.status, old.reason, old.message) != each[1:]:
            stays = old is not None and old.status == each.status and old.last_transition_time
            since = old.last_transition_time if old is not None and stays else now
            found.append({**each._asdict(), "lastHeartbeatTime": now, "lastTransitionTime": since})
    return found


def network(missing: Iterable[str]) -> Condition:
    """missing: what the data plane of this node lacks, as sentences; nothing if it is there."""
    sentences = "; ".join(missing)
    if sentences:
        return Condition(NETWORK_UNAVAILABLE, "True", NOT_READY, sentences[:MOST_MESSAGE])
    return Condition(NETWORK_UNAVAILABLE, "False", UP, "the network of this node is programmed")


def lacking(compiler: Compiler, failures: Iterable[Failure]) -> list[str]:
    """What keeps this node's pods from all others: what cannot be compiled of the node itself,
    what the kernel refuses of that, drivers that can do nothing. One other node's trouble is none of it."""
    found = list(compiler.refused.get(peers.OWN, ()))
    # A router without a session is the network's trouble, and may be one of several; a speaker beside another
    # backend tells routers of services, and pods do without it.
    aside = {Table.BGP_PEERS}
    if compiler.view.config.backend.type is not BackendType.BGP:
        aside.add(Table.SPEAKER)
    for failure in failures:
        whole = failure.key == EVERY_ROW
        own = failure.table not in aside and compiler.owner(failure.table, failure.key) == peers.OWN
        if whole or own:
            found.append(f"{failure.table}: {failure.error}")
    return found


class Availability:
    """Tells NetworkUnavailable. ready, missing: asked of the agent.

    Up is told at once. That something is missing is told when it was so at two looks that follow each
    other, and of an agent that has just begun not before START_S: its links, routes and rules of an earlier
    life are in the kernel and work.
    """

    def __init__(
        self, conditions: NodeConditions, ready: Callable[[], bool], missing: Callable[[], list[str]]
    ) -> None:
        self._conditions, self._ready, self._missing = conditions, ready, missing
        self._missed = False

    def settled(self) -> None:
        """The agent has become ready."""
        if not self._missing():
            self._conditions.say(network(()))

    async def run(self) -> None:
        """Without end."""
        begun_s = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            if self._ready() or time.monotonic() - begun_s >= START_S:
                self.look()

    def look(self) -> None:
        missing = self._missing()
        if not missing or self._missed:
            self._conditions.say(network(missing))
        self._missed = bool(missing)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
