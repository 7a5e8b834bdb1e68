"""The shim in C and the one in Python: one table of behaviour for both."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from podlane.cni import protocol, wire
from podlane.cni.plugin import Answer
from podlane.cni.server import CniServer
from tests.netns.cni_node import CONFIG, CniNode

ROOT = Path(__file__).parents[2]
STDIN = json.dumps(CONFIG | {"cniVersion": "0.4.0"}).encode()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Path:
    """The C shim as setup.sh builds it."""
    path = tmp_path_factory.mktemp("native") / "podlane-cni"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", path, ROOT / "native/cni_shim.c"]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(params=["C", "Python"])
def shim(request) -> list[str]:
    if request.param == "Python":
        return [sys.executable, "-IS", str(ROOT / "src/podlane/cni/shim.py")]
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    return [str(request.getfixturevalue("compiled"))]


class Runtime:
    """Runs the shim as a container runtime does."""

    def __init__(self, shim: list[str], where: Path) -> None:
        self.shim, self.socket, self.spool = shim, where / "cni.sock", where / "state" / "spool"

    async def run(self, command: str, stdin: bytes = STDIN, **environment: str) -> tuple[int, bytes]:
        process = await asyncio.create_subprocess_exec(
            *self.shim,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": "c1",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/opt/cni/bin",
                "PODLANE_CNI_SOCKET": str(self.socket),
                "PODLANE_CNI_SPOOL": str(self.spool),
                "SECRET": "not for the agent",
                **environment,
            },
        )
        stdout, _ = await process.communicate(stdin)
        assert process.returncode is not None
        return process.returncode, stdout

    def spooled(self) -> list[Path]:
        return sorted(self.spool.iterdir()) if self.spool.exists() else []


@pytest.fixture
def runtime(shim, tmp_path) -> Runtime:
    return Runtime(shim, tmp_path)


class Recorder:
    """An agent that notes what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[dict[str, str], bytes, int | None]] = []

    async def __call__(self, environment, stdin, netns_fd):
        inode = None if netns_fd is None else os.fstat(netns_fd).st_ino
        self.asked.append((dict(environment), stdin, inode))
        return self.answer


async def served(runtime: Runtime, answer: Answer, *args, **kwargs):
    """(what the agent was asked, exit status, stdout)"""
    agent = Recorder(answer)
    server = CniServer(runtime.socket, agent)
    await server.start()
    try:
        status, stdout = await runtime.run(*args, **kwargs)
    finally:
        await server.stop()
    (asked,) = agent.asked
    return asked, status, stdout


@pytest.mark.parametrize("status", [0, 1, 7])
def test_the_answer_is_printed_and_its_status_is_the_exit_status(runtime, status):
    _, got, stdout = asyncio.run(served(runtime, Answer(status, b'{"a": 1}'), "ADD"))
    assert (got, stdout) == (status, b'{"a": 1}')


def test_the_agent_sees_the_cni_variables_alone_stdin_and_the_opened_namespace(runtime, namespaces):
    namespace = namespaces()
    path = f"/proc/{os.getpid()}/fd/{namespace}"
    (environment, stdin, inode), _, _ = asyncio.run(
        served(runtime, Answer(0, b""), "ADD", CNI_NETNS=path, CNI_ARGS="A=b;C=d")
    )
    assert environment == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_NETNS": path,
        "CNI_ARGS": "A=b;C=d",
        "PODLANE_CNI_NAME": Path(runtime.shim[-1]).name,
    }
    assert (stdin, inode) == (STDIN, os.fstat(namespace).st_ino)


def test_the_agent_learns_by_which_name_it_was_executed(runtime, tmp_path):
    link = tmp_path / "host-local"
    link.symlink_to(runtime.shim[-1])
    runtime.shim[-1] = str(link)
    (environment, _, _), _, _ = asyncio.run(served(runtime, Answer(0, b""), "ADD"))
    assert environment["PODLANE_CNI_NAME"] == "host-local"


@pytest.mark.parametrize("netns", ["", "/nowhere/at/all"])
def test_a_namespace_that_cannot_be_opened_is_left_out(runtime, netns):
    (_, _, inode), _, _ = asyncio.run(served(runtime, Answer(0, b""), "DEL", CNI_NETNS=netns))
    assert inode is None


def test_large_configurations_and_answers_pass_whole(runtime):
    stdin, stdout = b'{"a": "' + b"x" * 3_000_000 + b'"}', b"y" * 3_000_000
    (_, seen, _), status, printed = asyncio.run(served(runtime, Answer(0, stdout), "ADD", stdin))
    assert (seen == stdin, printed == stdout, status) == (True, True, 0)


def test_version_is_asked_without_reading_stdin(runtime):
    (_, seen, _), _, _ = asyncio.run(served(runtime, Answer(0, b"{}"), "VERSION"))
    assert seen == b""


async def nobody(runtime: Runtime) -> None:
    """No socket at all."""


async def stale(runtime: Runtime) -> None:
    """What an agent that was killed leaves behind."""
    server = await asyncio.start_unix_server(lambda *_: None, runtime.socket)
    server.close()
    await server.wait_closed()


ABSENT = {"no socket": nobody, "a dead agent's socket": stale}


@pytest.mark.parametrize("absence", ABSENT)
@pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50), ("", 11)])
def test_without_an_agent_verbs_fail_with_their_code(runtime, absence, verb, code):
    async def run():
        await ABSENT[absence](runtime)
        return await runtime.run(verb)

    status, stdout = asyncio.run(run())
    answer = json.loads(stdout)
    assert (status, answer["code"], answer["cniVersion"]) == (1, code, "0.4.0")
    assert str(runtime.socket) in answer["msg"]
    assert runtime.spooled() == []


def test_without_an_agent_version_is_answered_as_the_agent_would(runtime):
    status, stdout = asyncio.run(runtime.run("VERSION"))
    assert (status, json.loads(stdout)) == (0, json.loads(protocol.encode_versions()))


@pytest.mark.parametrize("absence", ABSENT)
def test_without_an_agent_delete_succeeds_and_is_kept_for_later(runtime, absence):
    async def run():
        await ABSENT[absence](runtime)
        return await runtime.run("DEL", CNI_NETNS="/gone")

    assert asyncio.run(run()) == (0, b"")
    (path,) = runtime.spooled()
    assert path.suffix == ".request"
    assert path.stat().st_mode & 0o777 == 0o600
    environment, stdin = wire.unpack_request(path.read_bytes())
    assert (environment["CNI_COMMAND"], environment["CNI_NETNS"], stdin) == ("DEL", "/gone", STDIN)


@pytest.mark.parametrize(("verb", "status", "kept"), [("ADD", 1, 0), ("DEL", 0, 1)])
def test_an_agent_that_ends_before_it_answers_is_no_agent(runtime, verb, status, kept):
    async def run():
        async def hang_up(_, writer):
            writer.close()

        server = await asyncio.start_unix_server(hang_up, runtime.socket)
        async with server:
            return await runtime.run(verb)

    got, stdout = asyncio.run(run())
    assert (got, len(runtime.spooled())) == (status, kept)
    if verb == "ADD":
        assert json.loads(stdout)["code"] == 11


def test_a_spool_that_cannot_be_written_fails_the_delete(runtime):
    runtime.spool.parent.write_text("a file where the directory should be")
    status, stdout = asyncio.run(runtime.run("DEL"))
    assert (status, json.loads(stdout)["code"]) == (1, 5)


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion":"1.0.0"}', "1.0.0"),
        (b'{"name": "x", "cniVersion" : "0.3.1"}', "0.3.1"),
        (b"", "1.1.0"),
        (b"not json", "1.1.0"),
        (b'{"cniVersion": 3}', "1.1.0"),
        (b'{"cniVersion": "', "1.1.0"),
        (b'{"cniVersion"', "1.1.0"),
        (b'{"cniVersion": "1.0\\"', "1.1.0"),
    ],
)
def test_errors_name_the_version_of_the_configuration(runtime, stdin, version):
    _, stdout = asyncio.run(runtime.run("ADD", stdin))
    assert json.loads(stdout)["cniVersion"] == version


def test_a_path_with_quotes_still_gives_json(shim, tmp_path):
    odd = tmp_path / 'a"b\\c'
    odd.mkdir()
    _, stdout = asyncio.run(Runtime(shim, odd).run("ADD"))
    assert str(odd) in json.loads(stdout)["msg"]


def test_a_whole_life_through_the_shim_with_an_agent_away_at_the_end(runtime, namespaces, tmp_path):
    async def run() -> None:
        pod = namespaces()
        path = f"/proc/{os.getpid()}/fd/{pod}"
        async with CniNode(namespaces(), tmp_path) as node:
            status, stdout = await runtime.run("ADD", json.dumps(CONFIG).encode(), CNI_NETNS=path)
            result = json.loads(stdout)
            assert (status, len(result["ips"])) == (0, 2)
            check = json.dumps(CONFIG | {"prevResult": result}).encode()
            assert await runtime.run("CHECK", check, CNI_NETNS=path) == (0, b"")
        assert await runtime.run("DEL", json.dumps(CONFIG).encode(), CNI_NETNS=path) == (0, b"")
        async with node.again():
            assert list(node.attachments) == [("c1", "eth0")]
            (runtime.spool / "0-cut.request").write_bytes(b"\0\0")
            (failure,) = await node.plugin.replay(runtime.spool)
            assert "0-cut.request: cut short" in failure
            assert (runtime.spooled(), node.left()) == ([], [])

    asyncio.run(run())
