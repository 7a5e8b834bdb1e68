"""The HTTP/1.1 client against bytes as servers may send them, over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from podlane.errors import ApiError, GoneError, NotFoundError
from podlane.watch.http import ApiHttp, Unreachable
from podlane.watch.kubeconfig import Access

T = Callable[[ApiHttp], Awaitable[object]]


def talk(pieces: list[bytes], work: T, heard: list[bytes] | None = None) -> object:
    """What `work` returns when the server answers any request with these pieces and then closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if heard is not None:
            heard.append(head)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def main() -> object:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with ApiHttp(Access(f"http://127.0.0.1:{port}", token="secret")) as api:
                return await work(api)
        finally:
            server.close()
            await server.wait_closed()

    return asyncio.run(main())


async def get(api: ApiHttp) -> bytes:
    return await api.get("/path", {})


async def lines(api: ApiHttp) -> list[bytes]:
    return [line async for line in api.lines("/path", {}) if line]


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [OK + b"Content-Length: 5\r\n\r\nhello"],
        [OK, b"content-length:5\r\n", b"\r\nhe", b"llo"],
        [OK + b"\r\nhello"],
        [CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"],
        [CHUNKED, b"2;name=value\r\nhe\r", b"\n3\r\nllo\r\n0\r\n\r\n"],
        [b"HTTP/1.0 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", b"005\r\nhello\r\n0\r\n\r\n"],
    ],
)
def test_a_body_is_whole_however_it_comes(pieces: list[bytes]) -> None:
    assert talk(pieces, get) == b"hello"


def test_what_is_asked() -> None:
    heard: list[bytes] = []

    async def ask(api: ApiHttp) -> bytes:
        return await api.get("/api/v1/pods", {"fieldSelector": "spec.nodeName=a b", "limit": "5"})

    talk([OK + b"Content-Length: 0\r\n\r\n"], ask, heard)
    request, *headers = heard[0].decode().split("\r\n")
    assert request == "GET /api/v1/pods?fieldSelector=spec.nodeName%3Da+b&limit=5 HTTP/1.1"
    assert "Authorization: Bearer secret" in headers
    assert "Accept: application/json" in headers
    assert any(h.startswith("Host: 127.0.0.1:") for h in headers)


def test_lines_do_not_end_where_chunks_do() -> None:
    pieces = [CHUNKED, b"4\r\n{1}\n\r\n", b"3\r\n{2}\r\n", b"5\r\n\n{3}\n\r\n", b"0\r\n\r\n"]
    assert talk(pieces, lines) == [b"{1}", b"{2}", b"{3}"]


def test_a_line_may_be_as_long_as_an_object() -> None:
    long = b"x" * 3_000_000
    assert talk([CHUNKED, b"%x\r\n" % (len(long) + 1), long + b"\n", b"\r\n0\r\n\r\n"], lines) == [long]


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([], "closed in the middle"),
        ([b"SSH-2.0-x\r\n"], "speaks no HTTP"),
        ([OK + b"Content-Length: 9\r\n\r\nhello"], "closed in the middle"),
        ([CHUNKED + b"9\r\nhello"], "closed in the middle"),
        ([CHUNKED + b"5\r\nhello\r\n"], "closed in the middle"),
        ([CHUNKED + b"five\r\n"], "'five' is no length"),
        ([OK + b"Content-Length: -1\r\n\r\n"], "'-1' is no length"),
        ([OK + b"A: b\r\n" * 300 + b"\r\n"], "more than 200 headers"),
        ([OK + b"A: " + b"b" * 600_000], "without end"),
    ],
)
def test_what_breaks_off_or_is_no_http_is_an_api_that_cannot_be_reached(
    pieces: list[bytes], why: str
) -> None:
    with pytest.raises(Unreachable, match=why):
        talk(pieces, get)


def test_what_came_before_a_break_is_kept() -> None:
    came: list[bytes] = []

    async def work(api: ApiHttp) -> None:
        async for line in api.lines("/path", {}):
            came.append(line)

    with pytest.raises(Unreachable, match="closed in the middle"):
        talk([CHUNKED + b"8\r\n{1}\n{2}\n\r\n5\r\n{3"], work)
    assert came == [b"", b"{1}", b"{2}"]


def answer(status: bytes, body: bytes) -> list[bytes]:
    return [b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body]


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (
            b"404 Not Found",
            b'{"kind":"Status","reason":"NotFound","message":"no pods"}',
            NotFoundError,
            "no pods",
        ),
        (b"410 Gone", b'{"reason":"Expired","message":"too old"}', GoneError, "too old"),
        (b"403 Forbidden", b'{"reason":"Forbidden","message":"may not"}', ApiError, "may not"),
        (b"502 Bad Gateway", b"<html>nginx", ApiError, "<html>nginx"),
        (b"500 X", b"", ApiError, "HTTP status 500"),
    ],
)
def test_a_refusal_is_the_error_it_stands_for(
    status: bytes, body: bytes, kind: type[ApiError], says: str
) -> None:
    for work in (get, lines):
        with pytest.raises(kind, match=says) as caught:
            talk(answer(status, body), work)
        assert caught.value.code == int(status[:3])


def test_nobody_there() -> None:
    async def main() -> None:
        async with ApiHttp(Access("http://127.0.0.1:1")) as api:
            await api.get("/", {})

    with pytest.raises(Unreachable, match=r"the API at http://127.0.0.1:1 cannot be reached"):
        asyncio.run(main())


def test_who_stops_reading_leaves_nothing_open() -> None:
    async def first(api: ApiHttp) -> bytes:
        stream = api.lines("/path", {})
        async for line in stream:
            if line:
                await stream.aclose()
                return line
        raise AssertionError

    assert talk([CHUNKED, *[b"2\r\nx\n\r\n"] * 1000], first) == b"x"
