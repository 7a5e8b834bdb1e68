"""HTTP/1.1 (RFC 9112) as a client of one server needs it: one request a connection, bodies as they come.

A general client library costs more memory than the rest of an agent; what it has beyond this (cookies,
redirects, proxies, compression, pools) is not used to speak to an API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlencode, urlsplit

BUFFER_BYTES = 256 * 1024
MOST_HEADERS = 200

# A peer that vanished without a word is found after 15 s of silence and three unanswered probes of 5 s; what
# was sent and is not acknowledged for so long ends the connection, too (tcp(7)).
KEEPALIVE = {
    socket.TCP_KEEPIDLE: 15,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 30_000,
}
HAPPY_EYEBALLS_S = 0.25  # RFC 8305: the other family's address is tried after this


Silence = Callable[[], float | None]
"""How long the next silence may be, in seconds; None for any length."""


class HttpError(Exception):
    """The connection failed, broke off, or what came is no HTTP."""


class SilenceError(HttpError):
    """The connection stands, as far as one can tell, and nothing comes."""


class NoConnectionError(HttpError):
    """Nothing was sent: another server may be asked the same."""


class Response:
    """status, and the body as it comes: `chunks` (once), or all of it: `read`."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader) -> None:
        self.status = status
        self.headers = headers
        self._reader = reader

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self, silence_s: Silence = lambda: None) -> AsyncGenerator[bytes, None]:
        """Raises HttpError when the body ends early, SilenceError after silence_s() of nothing."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while True:
                size, part = await self._chunk(silence_s)
                if part:
                    yield part
                    continue
                if not size:
                    break
                async for part in self._exactly(size, silence_s):
                    yield part
                await self._line(silence_s)
        elif "content-length" in self.headers:
            async for part in self._exactly(_number(self.headers["content-length"], 10), silence_s):
                yield part
        else:
            while part := await self._part(BUFFER_BYTES, silence_s):
                yield part

    async def _exactly(self, size: int, silence_s: Silence) -> AsyncIterator[bytes]:
        while size:
            part = await self._part(min(size, BUFFER_BYTES), silence_s)
            if not part:
                raise HttpError("the connection was closed in the middle of an answer")
            size -= len(part)
            yield part

    async def _chunk(self, silence_s: Silence) -> tuple[int, bytes]:
        """The next one's size, and all of it if it is small: an event of a watch is a chunk."""
        timeout_s = silence_s()
        try:
            async with asyncio.timeout(timeout_s):
                size = _number((await _line(self._reader)).partition(";")[0], 16)
                if not 0 < size <= BUFFER_BYTES:
                    return size, b""
                return size, (await self._reader.readexactly(size + 2))[:-2]
        except asyncio.IncompleteReadError:
            raise HttpError("the connection was closed in the middle of an answer") from None
        except TimeoutError as error:
            raise _silence(error, timeout_s) from error

    async def _part(self, most: int, silence_s: Silence) -> bytes:
        timeout_s = silence_s()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._reader.read(most)
        except TimeoutError as error:
            raise _silence(error, timeout_s) from error

    async def _line(self, silence_s: Silence) -> str:
        timeout_s = silence_s()
        try:
            async with asyncio.timeout(timeout_s):
                return await _line(self._reader)
        except TimeoutError as error:
            raise _silence(error, timeout_s) from error


@asynccontextmanager
async def request(
    method: str,
    url: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    body: bytes = b"",
    *,
    tls: ssl.SSLContext | None = None,
    server_name: str = "",
    connect_timeout_s: float,
    answer_timeout_s: float,
) -> AsyncIterator[Response]:
    """url: http or https, without a query. server_name: expected in the certificate, if not the host.

    Raises NoConnectionError, and HttpError also for what fails inside of the body of the `async with`.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    reader, writer = await _connect(
        parts.hostname or "", port, tls if parts.scheme == "https" else None, server_name, connect_timeout_s
    )
    try:
        target = (parts.path or "/") + (f"?{urlencode(query)}" if query else "")
        lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}"] if body else []
        writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)
        async with asyncio.timeout(answer_timeout_s):
            response = await _head(reader)
        yield response
    except TimeoutError as error:
        raise HttpError(str(error) or "no answer in time") from error
    except (OSError, EOFError, ValueError) as error:
        raise HttpError(str(error) or type(error).__name__) from error
    finally:
        # Nothing more is wanted of the other side, not even its goodbye.
        writer.transport.abort()
        await asyncio.sleep(0)


async def _connect(
    host: str, port: int, tls: ssl.SSLContext | None, server_name: str, timeout_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                host,
                port,
                ssl=tls,
                server_hostname=(server_name or host) if tls is not None else None,
                limit=BUFFER_BYTES,
                happy_eyeballs_delay=HAPPY_EYEBALLS_S,
            )
    except TimeoutError as error:
        raise NoConnectionError(f"no connection within {timeout_s:g} s") from error
    except (OSError, ValueError) as error:
        raise NoConnectionError(str(error) or type(error).__name__) from error
    connection: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # without them it is found later
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return reader, writer


def _silence(error: TimeoutError, timeout_s: float | None) -> HttpError:
    """A timeout of ours, or ETIMEDOUT: what keepalive found."""
    if error.errno is not None or timeout_s is None:
        return HttpError(str(error) or "no answer in time")
    return SilenceError(f"nothing came for {timeout_s:g} s")


async def _head(reader: asyncio.StreamReader) -> Response:
    words = (await _line(reader)).split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1."):
        raise HttpError("what answers there speaks no HTTP/1.1")
    headers: dict[str, str] = {}
    for _ in range(MOST_HEADERS):
        line = await _line(reader)
        if not line:
            return Response(_number(words[1], 10), headers, reader)
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    raise HttpError(f"an answer with more than {MOST_HEADERS} headers")


async def _line(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\n")).rstrip(b"\r\n").decode("latin-1")
    except asyncio.IncompleteReadError:
        raise HttpError("the connection was closed in the middle of an answer") from None
    except asyncio.LimitOverrunError:
        raise HttpError("a header line without end") from None


def _number(text: str, base: int) -> int:
    try:
        number = int(text.strip(), base)
    except ValueError:
        number = -1
    if number < 0:
        raise HttpError(f"{text[:20]!r} is no length")
    return number
