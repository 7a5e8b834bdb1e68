"""Tries every way of communicating, with real packets: check_plan.py says which, this does them.

Each conversation is one socket, made inside the sender's namespace: no process is started there. A
responder answers with JSON that names itself and the address it was asked from, so that a right answer by
the wrong pod is found out, and so is NAT between pods (kind no-nat). Of other programs a TCP connection is
all that is asked. What a pod asks of a node is answered by a listener that the check itself puts there for
the time being.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct, field, structs

from podlane.errors import KernelNotFoundError
from podlane.kernel import cgroups, netns
from podlane.model.addresses import Address, Protocol, address, family_of
from podlane.observe.check_plan import Step
from podlane.observe.check_policy import EXPECTED, Expectation
from podlane.observe.explanation import API_VERSION, end
from podlane.observe.ground import Ground

TIMEOUT_S: Final = 2.0
DENIED_S: Final = 1.0  # where nothing may come
# Few at once, so that none waits for our own turn and `ms` means something; one that takes long (it may be
# waiting for an answer that never comes) makes room for the next.
AT_ONCE: Final = 6
PATIENCE_S: Final = 0.05
_MOST: Final = 256
_MAX_ANSWER_BYTES: Final = 64 << 10
_NODE: Final = "node/"


class Place(NamedTuple):
    """Where to send from: the path of a network namespace (/proc/PID/ns/net), and the cgroup that its sockets
    shall be of; None: ours."""

    namespace: str
    cgroup: Path | None = None


class Check(Struct, frozen=True):
    """One conversation that was tried. source and target in the words of `explain`; ms: how long it took."""

    kind: str
    source: str = field(name="from")
    target: str = field(name="to")
    ok: bool
    ms: float
    detail: str


class Report(Struct, frozen=True, rename="camel"):
    checks: list[Check]
    passed: int
    failed: int
    api_version: str = API_VERSION
    kind: str = "CheckReport"

    def json(self) -> bytes:
        return msgspec.json.encode(self)


class _Answer(Struct, frozen=True):
    """What a responder, or our own listener, says."""

    client: str = ""
    pod: str = ""
    namespace: str = ""
    node: str = ""


class CheckFailure(Exception):
    """Why a conversation did not come about, in words."""


def check(
    steps: Iterable[Step],
    ground: Ground,
    places: Mapping[str, Place],
    *,
    timeout_s: float = TIMEOUT_S,
    expected: Sequence[Expectation] = (),
) -> Report:
    """expected: for each step what policy says; without it nothing is denied."""
    return report(asyncio.run(_check(list(steps), ground, places, timeout_s, expected)))


def report(checks: list[Check]) -> Report:
    passed = sum(each.ok for each in checks)
    return Report(checks, passed, len(checks) - passed)


async def _check(
    steps: list[Step],
    ground: Ground,
    places: Mapping[str, Place],
    timeout_s: float,
    expected: Sequence[Expectation] = (),
) -> list[Check]:
    found: list[list[Check]] = [[] for _ in steps]
    most, room = asyncio.Semaphore(_MOST), asyncio.Semaphore(AT_ONCE)
    async with _listeners(steps, ground, places) as listeners:

        async def work(number: int, step: Step) -> None:
            try:
                async with _room(room):
                    wanted = expected[number] if expected else EXPECTED
                    most_s = min(timeout_s, DENIED_S) if wanted.denied and not wanted.either else timeout_s
                    found[number] = _as_expected(await _try(step, places, listeners, most_s), wanted)
            finally:
                most.release()

        async with asyncio.TaskGroup() as workers:
            for number, step in enumerate(steps):
                await most.acquire()
                await room.acquire()
                workers.create_task(work(number, step))
    checks = [each for several in found for each in several]
    # The derived ones last, as in the order of kinds; the sort is stable.
    return sorted(checks, key=lambda each: each.kind == "no-nat")


def _as_expected(checks: list[Check], wanted: Expectation) -> list[Check]:
    """What was tried, judged by what policy says: silence is right where it denies."""
    if not wanted.denied:
        return checks
    first = checks[0]
    if wanted.either:
        return (
            checks
            if first.ok
            else [structs.replace(first, ok=True, detail=f"{first.detail}: {wanted.denied}")]
        )
    if first.ok:
        return [structs.replace(first, ok=False, detail=f"{first.detail}, although {wanted.denied}")]
    return [structs.replace(first, ok=True, detail=f"{first.detail}, as it should be: {wanted.denied}")]


@contextlib.asynccontextmanager
async def _room(room: asyncio.Semaphore) -> AsyncIterator[None]:
    """Gives back what was acquired when the body is done, or runs out of patience, whichever is first."""
    late = asyncio.get_running_loop().call_later(PATIENCE_S, room.release)
    try:
        yield
    finally:
        if late.when() > asyncio.get_running_loop().time() and not late.cancelled():
            late.cancel()
            room.release()


async def _try(
    step: Step, places: Mapping[str, Place], listeners: Mapping[Address, int], timeout_s: float
) -> list[Check]:
    port = step.port or listeners.get(step.address, 0)
    where = f"{step.family} {end(step.address, port)}/{step.protocol}"
    started_s = time.monotonic()
    answer: _Answer | None = None
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _ask(step, port, places)
        wrong = _wrong(step, answer)
    except CheckFailure as failure:
        wrong = str(failure)
    except TimeoutError:
        wrong = f"no answer within {timeout_s:g} s"
    except OSError as error:
        wrong = os.strerror(error.errno) if error.errno else str(error)
    ms = round((time.monotonic() - started_s) * 1000, 3)
    told = f"{where}: {wrong}" if wrong else where + _who(answer)
    checks = [Check(step.kind, step.source, step.target, not wrong, ms, told)]
    if not wrong and step.own is not None and answer is not None and answer.client:
        checks.append(_no_nat(step, answer, where, ms))
    return checks


def _no_nat(step: Step, answer: _Answer, where: str, ms: float) -> Check:
    try:
        seen: Address | None = address(answer.client.partition("%")[0])
    except ValueError:
        seen = None
    same = seen == step.own
    detail = f"{where}: seen as {answer.client}" + ("" if same else f", sent from {step.own}")
    return Check("no-nat", step.source, step.target, same, ms, detail)


def _wrong(step: Step, answer: _Answer | None) -> str:
    """What is wrong with who answered; "" when nothing is."""
    if answer is None or not step.allowed or (answer.namespace, answer.pod) in step.allowed:
        return ""
    expected = ", ".join(f"{namespace}/pod/{name}" for namespace, name in sorted(step.allowed)[:4])
    who = f"{answer.namespace}/pod/{answer.pod}" if answer.pod else "something that is no pod's responder"
    return f"answered by {who}, not by {expected}"


def _who(answer: _Answer | None) -> str:
    if answer is None:
        return ", connected"
    by = f"{answer.namespace}/pod/{answer.pod}" if answer.pod else f"node/{answer.node}"
    return f", answered by {by}" + (f" to {answer.client}" if answer.client else "")


# --- sockets --------------------------------------------------------------------------------------


def socket_of(places: Mapping[str, Place], place: str, family: int, kind: int) -> socket.socket:
    """A non-blocking socket of that place's namespace."""
    if place not in places:
        raise CheckFailure(f"{place} has no network namespace here: is it still running?")
    try:
        namespace = netns.open_path(places[place].namespace)
    except KernelNotFoundError:
        raise CheckFailure(f"{place} went away meanwhile") from None
    try:
        with cgroups.joined(places[place].cgroup):
            made = netns.socket_in(namespace, family, kind)
    finally:
        os.close(namespace)
    made.setblocking(False)
    return made


async def _ask(step: Step, port: int, places: Mapping[str, Place]) -> _Answer | None:
    """None where no more than a connection was asked for."""
    loop = asyncio.get_running_loop()
    kind = socket.SOCK_DGRAM if step.protocol is Protocol.UDP else socket.SOCK_STREAM
    with socket_of(places, step.place, family_of(step.address).af, kind) as sender:
        await loop.sock_connect(sender, (str(step.address), port))
        if step.protocol is Protocol.UDP:
            await loop.sock_sendall(sender, b"podlane-check\n")
            return _decode(await loop.sock_recv(sender, _MAX_ANSWER_BYTES))
        if not step.json:
            return None
        host = end(step.address, port)
        await loop.sock_sendall(
            sender, f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        )
        received = b""
        while len(received) < _MAX_ANSWER_BYTES:
            part = await loop.sock_recv(sender, 4096)
            received += part
            if not part or _complete(received):
                return _decode(received.partition(b"\r\n\r\n")[2])
    raise CheckFailure("the answer has no end")


def _complete(received: bytes) -> bool:
    """Whether an HTTP answer is all there, by its Content-Length (RFC 9112, 6.2)."""
    head, blank, body = received.partition(b"\r\n\r\n")
    if not blank:
        return False
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return len(body) >= int(value)
    return False


def _decode(data: bytes) -> _Answer:
    try:
        return msgspec.json.decode(data, type=_Answer)
    except msgspec.DecodeError:
        return _Answer()


# --- our own listeners on nodes -------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _listeners(
    steps: Iterable[Step], ground: Ground, places: Mapping[str, Place]
) -> AsyncIterator[dict[Address, int]]:
    """A listener on each node address that a step with port 0 is for; address -> port, while it lasts."""
    wanted = {step.address for step in steps if step.port == 0}
    ports: dict[Address, int] = {}
    async with contextlib.AsyncExitStack() as stack:
        for node, addresses in ground.nodes.items():
            for where in wanted.intersection(addresses):
                with contextlib.suppress(CheckFailure):  # no such namespace: the steps will say so
                    listener = socket_of(places, f"{_NODE}{node}", family_of(where).af, socket.SOCK_STREAM)
                    stack.enter_context(listener)
                    listener.bind((str(where), 0))
                    listener.listen(_MOST)
                    ports[where] = listener.getsockname()[1]
                    task = asyncio.create_task(_serve(listener, node))
                    stack.push_async_callback(_end_task, task)
        yield ports


async def _serve(listener: socket.socket, node: str) -> None:
    """Tells each client its own address, as HTTP, and closes."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, peer = await loop.sock_accept(listener)
        except OSError as error:
            if error.errno in (errno.ECONNABORTED, errno.EMFILE):  # the client's loss, or ours for a moment
                await asyncio.sleep(0.01)
                continue
            raise
        with connection:
            body = msgspec.json.encode({"client": peer[0], "node": node})
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            with contextlib.suppress(OSError):  # the client gave up; it says so itself
                # The request is read so that closing does not reset the connection.
                async with asyncio.timeout(TIMEOUT_S):
                    await loop.sock_recv(connection, 4096)
                    await loop.sock_sendall(connection, head + body)


async def _end_task(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
