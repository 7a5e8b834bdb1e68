"""What the built-in responder says on one TCP connection, without the socket: bytes in, bytes out.

    GET /hostname           the pod's name, text/plain
    any other request       JSON: pod, namespace, node, client, method, host, path, headers
    what is no HTTP         the same bytes back

HTTP/1.1 (RFC 9112) with keep-alive, pipelining, bodies of either framing (read and dropped) and
Expect: 100-continue. Which of the two a connection speaks is decided by its first bytes.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable

import msgspec
from msgspec import Struct

METHODS = (
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"TRACE",
    b"CONNECT",
    b"PROPFIND",
    b"REPORT",
)
MAX_HEAD_BYTES = 64 << 10
_REQUEST_LINE = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.([01])")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Identity(Struct, frozen=True):
    """Who answers."""

    pod: str
    namespace: str
    node: str


def answer(
    identity: Identity, client: str, method: str = "", host: str = "", path: str = "", headers: object = None
) -> bytes:
    """The JSON of the contract, the same for HTTP and for datagrams."""
    return (
        msgspec.json.encode(
            {
                "pod": identity.pod,
                "namespace": identity.namespace,
                "node": identity.node,
                "client": client,
                "method": method,
                "host": host,
                "path": path,
                "headers": headers or {},
            }
        )
        + b"\n"
    )


class _Mode(enum.Enum):
    UNDECIDED = enum.auto()
    ECHO = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    CHUNK_SIZE = enum.auto()
    CHUNK = enum.auto()
    TRAILER = enum.auto()


class Conversation:
    """client: the peer's address, as text. ending: the server is about to end; no request is asked for then.

    `receive` and `eof` return what is to be sent; after that, `finished` says whether to close.
    """

    def __init__(self, identity: Identity, client: str, ending: Callable[[], bool] = lambda: False) -> None:
        self._identity, self._client, self._ending = identity, client, ending
        self._mode = _Mode.UNDECIDED
        self._buffer = b""
        self._left_bytes = 0
        self._reply = b""
        self._close_after = False
        self.finished = False

    @property
    def undecided(self) -> bool:
        """It has sent something that may yet become HTTP, or not."""
        return self._mode is _Mode.UNDECIDED and bool(self._buffer)

    def receive(self, data: bytes) -> bytes:
        if self._mode is _Mode.ECHO:
            return data
        self._buffer += data
        if self._mode is _Mode.UNDECIDED:
            if not _may_be_http(self._buffer):
                return self.echo()
            if b"\n" not in self._buffer:
                return b""
            self._mode = _Mode.HEAD
        out = []
        while not self.finished and (part := self._step()) is not None:
            out.append(part)
        return b"".join(out)

    def echo(self) -> bytes:
        """It is no HTTP: everything goes back, from now on."""
        self._mode = _Mode.ECHO
        data, self._buffer = self._buffer, b""
        return data

    def eof(self) -> bytes:
        """The peer sends nothing more."""
        self.finished = True
        return self.echo() if self._mode is _Mode.UNDECIDED else b""

    def _step(self) -> bytes | None:
        """Takes the next thing off the buffer. None: it is not complete."""
        match self._mode:
            case _Mode.HEAD:
                return self._head()
            case _Mode.BODY | _Mode.CHUNK:
                taken = min(self._left_bytes, len(self._buffer))
                self._buffer = self._buffer[taken:]
                self._left_bytes -= taken
                if self._left_bytes:
                    return None
                if self._mode is _Mode.BODY:
                    return self._finish()
                self._mode = _Mode.CHUNK_SIZE
                return b""
            case _Mode.CHUNK_SIZE:
                return self._chunk_size()
            case _Mode.TRAILER:
                line = self._line()
                if line is None:
                    return None
                return b"" if line else self._finish()
            case _:
                return None

    def _head(self) -> bytes | None:
        self._buffer = self._buffer.lstrip(b"\r\n")
        end = _HEAD_END.search(self._buffer)
        if end is None:
            if len(self._buffer) > MAX_HEAD_BYTES:
                return self._refuse("431 Request Header Fields Too Large")
            return None
        head, self._buffer = self._buffer[: end.start()], self._buffer[end.end() :]
        first, *lines = head.decode("latin-1").splitlines()
        request = _REQUEST_LINE.fullmatch(first.encode("latin-1"))
        if request is None:
            return self._refuse("400 Bad Request")
        method, path, minor = request[1].decode(), request[2].decode("latin-1"), request[3]
        headers: dict[str, str] = {}
        lowered: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                return self._refuse("400 Bad Request")
            value = value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
            lowered[name.lower()] = value
        connection = lowered.get("connection", "").lower()
        self._close_after = (
            "close" in connection or (minor == b"0" and "keep-alive" not in connection) or self._ending()
        )
        if path.partition("?")[0] == "/hostname" and method in ("GET", "HEAD"):
            kind, body = "text/plain; charset=utf-8", self._identity.pod.encode()
        else:
            kind = "application/json"
            body = answer(self._identity, self._client, method, lowered.get("host", ""), path, headers)
        self._reply = self._response("200 OK", kind, body, head_only=method == "HEAD")
        return self._body(lowered)

    def _body(self, headers: dict[str, str]) -> bytes:
        go_on = _CONTINUE if headers.get("expect", "").lower() == "100-continue" else b""
        if "chunked" in headers.get("transfer-encoding", "").lower():
            self._mode = _Mode.CHUNK_SIZE
            return go_on
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return self._refuse("400 Bad Request")
        self._left_bytes = int(length)
        self._mode = _Mode.BODY
        return go_on if self._left_bytes else b""

    def _chunk_size(self) -> bytes | None:
        line = self._line()
        if line is None:
            return None
        try:
            size_bytes = int(line.partition(b";")[0], 16)
        except ValueError:
            return self._refuse("400 Bad Request")
        # The chunk's own line end counts with it.
        self._mode = _Mode.CHUNK if size_bytes else _Mode.TRAILER
        self._left_bytes = size_bytes + 2
        return b""

    def _line(self) -> bytes | None:
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        return line.rstrip(b"\r")

    def _finish(self) -> bytes:
        self._mode = _Mode.HEAD
        self.finished = self._close_after
        return self._reply

    def _refuse(self, status: str) -> bytes:
        self.finished = self._close_after = True
        return self._response(status, "text/plain", status.encode() + b"\n", head_only=False)

    def _response(self, status: str, kind: str, body: bytes, *, head_only: bool) -> bytes:
        connection = "close" if self._close_after else "keep-alive"
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {connection}\r\n\r\n"
        )
        return head.encode() + (b"" if head_only else body)


def _may_be_http(start: bytes) -> bool:
    """Whether the first bytes of a connection are, or may become, a request line."""
    line, newline, _ = start.partition(b"\n")
    if newline:
        return _REQUEST_LINE.fullmatch(line.rstrip(b"\r")) is not None
    if len(line) > MAX_HEAD_BYTES:
        return False
    return _begins_as(line, METHODS)


def _begins_as(line: bytes, methods: Iterable[bytes]) -> bool:
    for method in methods:
        word = method + b" "
        if line[: len(word)] == word[: len(line)]:
            return True
    return False
