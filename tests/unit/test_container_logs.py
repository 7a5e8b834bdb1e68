"""From what a container writes to what `kubectl logs` shows."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from podlane.lab.api.streams import LogOptions
from podlane.lab.kubelet import logs
from podlane.lab.supervisor import logpipe
from podlane.lab.supervisor.logpipe import LogPipe

Pipe = tuple[LogPipe, int]


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    reader, writer = os.pipe()
    return LogPipe(reader, str(tmp_path / "0.log")), writer


def texts(path: Path) -> list[bytes]:
    return [logs.shown(line, False) for line in path.read_bytes().splitlines()]


def test_lines_have_their_time(pipe: Pipe, tmp_path: Path) -> None:
    log, writer = pipe
    os.write(writer, b"one\ntw")
    assert log.read()
    os.write(writer, b"o\nrest")
    assert log.read()
    assert texts(tmp_path / "0.log") == [b"one", b"two"]
    os.close(writer)
    assert not log.read()
    log.close()
    lines = (tmp_path / "0.log").read_bytes().splitlines()
    assert texts(tmp_path / "0.log") == [b"one", b"two", b"rest"]
    assert all(line[logs.STAMP_BYTES : logs.STAMP_BYTES + 1] == b" " for line in lines)
    assert [line[: logs.STAMP_BYTES] for line in lines] == sorted(line[: logs.STAMP_BYTES] for line in lines)


def test_endless_lines_are_cut(pipe: Pipe, tmp_path: Path) -> None:
    log, writer = pipe
    os.write(writer, b"x" * 40_000 + b"\n")
    os.close(writer)
    while log.read():
        pass
    log.close()
    found = texts(tmp_path / "0.log")
    assert b"".join(found) == b"x" * 40_000
    assert max(map(len, found)) <= logpipe.LONGEST_LINE_BYTES


def test_files_are_bounded(pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logpipe, "LIMIT_BYTES", 1000)
    log, writer = pipe
    for number in range(200):
        os.write(writer, b"line %d\n" % number)
        log.read()
    os.close(writer)
    log.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.log", "0.log.1"]
    assert all(p.stat().st_size < 1100 for p in tmp_path.iterdir())
    assert texts(tmp_path / "0.log")[-1] == b"line 199"


def test_who_writes_too_much_has_to_rest(pipe: Pipe) -> None:
    log, writer = pipe
    assert log.rest_s(100.0) == 0.0
    for _ in range(logpipe.BURST_BYTES // 50_000 + 1):
        os.write(writer, b"x" * 49_999 + b"\n")
        log.read()
    assert log.rest_s(100.04) == pytest.approx(0.06)
    assert log.rest_s(100.2) == 0.0
    os.close(writer)
    log.close()


def write(path: Path, *lines: tuple[float, bytes]) -> None:
    with open(path, "ab") as file:
        for at_s, text in lines:
            file.write(logs.stamp(at_s) + b" " + text + b"\n")


async def read(path: Path, **options: Any) -> bytes:
    chunks = logs.read(path, LogOptions(**options), lambda: True)
    return b"".join([chunk async for chunk in chunks])


def test_what_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    now_s = 1_700_000_000.0
    lines = [logs.stamp(now_s - age_s) + b" x" for age_s in (30, 20, 10)]
    assert len(logs.select(lines, LogOptions(since_s=25), now_s)) == 2
    assert len(logs.select(lines, LogOptions(tail_lines=1, since_s=25), now_s)) == 1
    assert logs.select(lines, LogOptions(tail_lines=0), now_s) == []
    write(tmp_path / "0.log.1", (1.0, b"old"))
    write(path, (2.0, b"new"))
    assert asyncio.run(read(path)) == b"old\nnew\n"
    assert asyncio.run(read(path, timestamps=True)).splitlines()[0] == b"1970-01-01T00:00:01.000000Z old"
    assert asyncio.run(read(path, limit_bytes=6)) == b"old\nne"


def test_following_goes_on_in_the_next_file(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    write(path, (1.0, b"one"))

    async def run() -> None:
        over = asyncio.Event()
        chunks = logs.read(path, LogOptions(follow=True), over.is_set)
        got = [await anext(chunks)]
        write(path, (2.0, b"two"))
        got.append(await anext(chunks))
        path.rename(tmp_path / "0.log.1")
        write(path, (3.0, b"three"))
        got.append(await anext(chunks))
        over.set()
        assert [chunk async for chunk in chunks] == []
        assert got == [b"one\n", b"two\n", b"three\n"]

    asyncio.run(run())


def test_last_words(tmp_path: Path) -> None:
    log, said = tmp_path / "0.log", tmp_path / "0.termination"
    assert logs.last_words(said, log, from_log=True) == ""
    said.write_bytes(b"")
    write(log, (1.0, b"a"), (2.0, b"b"))
    assert logs.last_words(said, log, from_log=False) == ""
    assert logs.last_words(said, log, from_log=True) == "a\nb"
    said.write_bytes(b"x" * 5000)
    assert logs.last_words(said, log, from_log=True) == "x" * 4096
