"""Requests of the corpus and of chance through both shims: one answer, and nothing left of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from podlane.cni import wire
from podlane.kernel.rtnl import Rtnl
from tests.cni_corpus import Entry, entries
from tests.netns.cni_node import CniNode
from tests.netns.test_cni_shim import compiled  # noqa: F401  (a fixture)
from tests.netns.test_cni_types import left

ROOT = Path(__file__).parents[2]


async def answer(shim: list[str], entry: Entry, environment: dict[str, str]) -> tuple[int, Any]:
    given = environment | entry.environment
    for name in entry.dropped:
        given.pop(name, None)
    process = await asyncio.create_subprocess_exec(
        *shim,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={key: value.replace("\0", "") for key, value in given.items()},
    )
    stdout, _ = await process.communicate(entry.stdin)
    assert process.returncode is not None
    return process.returncode, json.loads(stdout)


def test_every_request_is_answered_alike_by_both_and_leaves_nothing(namespaces, tmp_path, compiled):  # noqa: F811
    shims = [[str(compiled)], [sys.executable, "-IS", str(ROOT / "src/podlane/cni/shim.py")]]
    wrong: list[str] = []

    async def run() -> None:
        pod = namespaces()
        async with CniNode(namespaces(), tmp_path) as node:
            environment = {
                "CNI_NETNS": f"/proc/{os.getpid()}/fd/{pod}",
                "PODLANE_CNI_SOCKET": str(node.socket),
                "PODLANE_CNI_SPOOL": str(node.spool),
                "PODLANE_CNI_NAME": "podlane",
            }
            for entry in entries(tmp_path / "networks"):
                answers = [await answer(shim, entry, environment) for shim in shims]
                status, found = answers[0]
                if answers[0] != answers[1]:
                    wrong.append(f"{entry.name}: C says {answers[0]}, Python {answers[1]}")
                elif (status, found.get("code"), entry.says in found.get("msg", "")) != (1, entry.code, True):
                    wrong.append(f"{entry.name}: {found}")
                leases = [path.name for path in (tmp_path / "networks").glob("*/[0-9f]*")]
                if remains := left(node) + node.leases.all() + leases:
                    wrong.append(f"{entry.name}: leaves {remains}")
                    break
            if not wrong:
                with Rtnl(pod) as rt:
                    assert [link.name for link in rt.links()] == ["lo"]
        assert not node.spool.exists()

    asyncio.run(run())
    assert wrong == [], "\n".join(wrong)


class Listener:
    """An agent that notes what it is asked and answers anything; without `answer` it does not listen."""

    def __init__(self, path: Path, answer: bytes | None) -> None:
        self.path, self.answer = path, answer
        self.asked: list[tuple[bytes, int | None]] = []

    def __enter__(self) -> Listener:
        if self.answer is not None:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.bind(str(self.path))
            self.socket.listen()
            self.thread = threading.Thread(target=self._serve)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.answer is not None:
            self.socket.shutdown(socket.SHUT_RDWR)
            self.thread.join()
            self.socket.close()
            self.path.unlink()

    def _serve(self) -> None:
        assert self.answer is not None
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                head, fds, _, _ = socket.recv_fds(connection, 8, 4)
                inode = os.fstat(fds[0]).st_ino if fds else None
                for fd in fds:
                    os.close(fd)
                left_bytes, body = sum(wire.REQUEST.unpack(head)), b""
                while len(body) < left_bytes and (part := connection.recv(65536)):
                    body += part
                self.asked.append((head + body, inode))
                connection.sendall(self.answer)


def behaviour(
    shim: list[str], where: Path, stdin: bytes, environment: dict[bytes, bytes], answer: bytes | None
):
    """Everything of a run that anybody can see."""
    path, spool = where / "s", where / "spool"
    given = environment | {
        b"PODLANE_CNI_SOCKET": bytes(path),
        b"PODLANE_CNI_SPOOL": bytes(spool),
        b"PODLANE_CNI_NAME": b"bridge",
    }
    with Listener(path, answer) as agent:
        done = subprocess.run(shim, input=stdin, env=given, capture_output=True, check=False, timeout=20)
    kept = [file.read_bytes() for file in spool.iterdir()] if spool.exists() else []
    shutil.rmtree(spool, ignore_errors=True)
    try:
        said = json.loads(done.stdout)
    except ValueError:
        said = done.stdout
    return done.returncode, said, done.stderr, kept, agent.asked


TEXT = st.binary(max_size=30).filter(lambda text: b"\0" not in text)
COMMANDS = [b"ADD", b"DEL", b"CHECK", b"GC", b"STATUS", b"VERSION", b"", b"add"]
NETNS = [b"", b"/nowhere", b"/proc/self/ns/net", b"/dev/null", b"/"]
PIECES = [
    b'{"cniVersion"',
    b":",
    b" ",
    b'"1.0.0"',
    b'"0.4.0',
    b"1.1",
    b'"',
    b"}",
    b"\0",
    b"\v",
    b"3",
    b"\xff",
    b".",
]
ENVIRONMENTS = st.fixed_dictionaries(
    {b"CNI_COMMAND": st.sampled_from(COMMANDS) | TEXT},
    optional={
        b"CNI_NETNS": st.sampled_from(NETNS) | TEXT.map(lambda text: b"/tmp/nowhere/" + text),
        b"CNI_CONTAINERID": TEXT,
        b"CNI_IFNAME": TEXT,
        b"CNI_ARGS": TEXT,
        b"CNI_": TEXT,
        b"cni_x": TEXT,
        b"LC_ALL": st.sampled_from([b"C", b"C.UTF-8", b"nowhere"]),
    },
)
STDIN = st.binary(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join)
ANSWERS = st.none() | st.binary(max_size=8) | st.binary(max_size=40).map(lambda text: b"\0\0\0\1" + text)


@pytest.fixture(scope="module")
def alike(compiled, tmp_path_factory):  # noqa: F811
    where = tmp_path_factory.mktemp("shims")
    shims = [[str(compiled)], [sys.executable, "-IS", str(ROOT / "src/podlane/cni/shim.py")]]

    def judge(stdin: bytes, environment: dict[bytes, bytes], answer: bytes | None) -> None:
        in_c, in_python = (behaviour(shim, where, stdin, environment, answer) for shim in shims)
        assert in_c == in_python

    return judge


@settings(deadline=None, max_examples=60)
@given(STDIN, ENVIRONMENTS, ANSWERS)
@example(b'{"cniVersion"\0"1.0.0"}', {b"CNI_COMMAND": b"ADD"}, None)
@example(b'{"cniVersion": 3, "cniVersion": "1.0.0"}', {b"CNI_COMMAND": b"ADD"}, None)
@example(b'"cniVersion"', {b"CNI_COMMAND": b"ADD"}, None)
@example(b'{"cniVersion":\v"1.0.0"}', {b"CNI_COMMAND": b"STATUS"}, None)
@example(b"", {b"CNI_COMMAND": b"DEL"}, b"\0\0")
def test_both_shims_do_the_same_whatever_comes(alike, stdin, environment, answer):
    alike(stdin, environment, answer)
