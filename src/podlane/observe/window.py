"""A daemon's window: GET over a unix socket, and the public part of it on the metrics address.

Health checks of load balancers are answered by the same few lines (agent/health_checks.py).

A few lines of HTTP/1.1 rather than a server library: this process is one of many on a small machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

from podlane.errors import ConfigError, PodlaneError

REQUEST_TIMEOUT_S = 10.0
MOST_HEAD_BYTES = 16384


class Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


Page = Callable[[], Answer | Awaitable[Answer]]
Pages = Mapping[str, Page]
Query = Mapping[str, str]
AskedPage = Callable[[Query], Answer | Awaitable[Answer]]
"""A page that is told what stands behind the question mark; of a name given twice the last value."""

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


def text(body: str, status: int = 200) -> Answer:
    return Answer(status, (body if body.endswith("\n") else body + "\n").encode())


def as_json(value: object) -> Answer:
    return Answer(200, json.dumps(value).encode() + b"\n", "application/json")


class Server:
    """pages, asked: path -> answer. every: the answer to whatever is asked, of any path and method. Listens
    until closed."""

    def __init__(
        self, pages: Pages, every: Page | None = None, asked: Mapping[str, AskedPage] | None = None
    ) -> None:
        self._pages, self._every, self._asked = pages, every, asked or {}
        self._server: asyncio.Server | None = None
        self._path: Path | None = None

    async def listen_unix(self, path: Path) -> None:
        """On a unix socket only its owner may use. Raises ConfigError if someone answers there already."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _free(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(str(path))
            path.chmod(0o600)
        except OSError as error:
            listener.close()
            raise ConfigError(f"agent socket {path}: {error.strerror or error}") from None
        self._path = path
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MOST_HEAD_BYTES)

    async def listen(self, where: str) -> None:
        """On IP:PORT or [IP]:PORT. Raises ConfigError."""
        host, port = split_address(where)
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=MOST_HEAD_BYTES)
        except OSError as error:
            raise ConfigError(f"metrics address {where}: {error.strerror or error}") from None

    async def listen_on(self, listener: socket.socket) -> None:
        """On a socket that is bound and listens; it is closed with the server."""
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=MOST_HEAD_BYTES)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                method, answer = await self._answer(head)
                writer.write(encode(answer, method))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # whoever asked is gone, too slow, or speaks no HTTP
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, head: bytes) -> tuple[str, Answer]:
        line, _, _ = head.partition(b"\r\n")
        words = line.decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            return "GET", text("not an HTTP request", 400)
        method, target, _ = words
        path, _, query = target.partition("?")
        page = self._every or self._pages.get(path)
        if page is None and (asked := self._asked.get(path)):
            page = partial(asked, dict(parse_qsl(query, keep_blank_values=True)))
        if page is None:
            return method, text(f"there is {' '.join(sorted((*self._pages, *self._asked)))}", 404)
        if method not in ("GET", "HEAD") and not self._every:
            return method, text("GET only", 405)
        answer = page()
        return method, answer if isinstance(answer, Answer) else await answer


def encode(answer: Answer, method: str) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
        + "Connection: close\r\n\r\n"
    ).encode()
    return head if method == "HEAD" else head + answer.body


def split_address(where: str) -> tuple[str, int]:
    """IP:PORT or [IP]:PORT; an empty IP means every address. Raises ConfigError."""
    host, colon, port = where.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536 or (":" in host and host[:1] != "["):
        raise ConfigError(f"address {where!r}: write IP:PORT, for IPv6 [IP]:PORT")
    return host.strip("[]"), int(port)


def _free(path: Path) -> None:
    """Remove the socket file of an agent that is no more."""
    if not os.path.lexists(path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise PodlaneError(f"another agent answers on {path}; stop it, or choose another path")
