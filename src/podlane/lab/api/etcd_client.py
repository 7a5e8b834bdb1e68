"""etcd v3 over its JSON gateway (POST /v3/...): one connection to one member, another member when that fails.

Keys and values are base64 and 64-bit numbers are strings there (etcd 3.4, api-grpc-gateway; rpc.proto).
Synchronous: a client belongs to one thread. `Grpc-Metadata-hasleader` makes a member that has lost the others
say so instead of waiting.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from podlane.errors import ConfigError, PodlaneError
from podlane.model.stores import StoreAddress

T = TypeVar("T")
Connect = Callable[[str, int, float], socket.socket]
"""(host, port, timeout_s) -> a connected socket."""

_HEADERS = {"Content-Type": "application/json", "Grpc-Metadata-hasleader": "true"}
_PAUSE_S = 0.05
# google.golang.org/grpc/codes
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, OUT_OF_RANGE = 3, 8, 11
_FINAL = (INVALID_ARGUMENT, RESOURCE_EXHAUSTED, OUT_OF_RANGE)


class EtcdError(PodlaneError):
    """etcd refused. code: of gRPC."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class EtcdAwayError(PodlaneError):
    """No member answered, or none has a leader. What was asked may have been done all the same."""


class KeyValue(Struct):
    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0


class Header(Struct, frozen=True):
    revision: int = 0


class RangeAnswer(Struct):
    header: Header = Header()
    kvs: list[KeyValue] = []
    more: bool = False
    count: int = 0


class OneAnswer(Struct):
    """Of one operation of a transaction."""

    response_range: RangeAnswer | None = None


class TxnAnswer(Struct):
    header: Header = Header()
    succeeded: bool = False
    responses: list[OneAnswer] = []


class PutAnswer(Struct):
    header: Header = Header()


class _Refusal(Struct):
    error: str = ""
    code: int = 2


def decoded(data: bytes, kind: type[T]) -> T:
    """Numbers may be strings. Raises EtcdAwayError for what is no answer of etcd's."""
    try:
        return msgspec.convert(msgspec.json.decode(data), kind, strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise EtcdAwayError(f"not an answer of etcd's: {error}") from None


def after(prefix: bytes) -> bytes:
    """range_end of all keys that begin with prefix."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def connect(host: str, port: int, timeout_s: float) -> socket.socket:
    return socket.create_connection((host, port), timeout_s)


class EtcdClient:
    """Raises ConfigError when a file of the TLS options cannot be read."""

    def __init__(self, address: StoreAddress, connect: Connect = connect) -> None:
        self.address = address
        self._connect, self._tls = connect, _context(address) if address.tls else None
        self._at = 0
        self._connection: http.client.HTTPConnection | None = None

    def call(
        self, path: str, body: dict[str, Any], kind: type[T], *, timeout_s: float, attempt_s: float = 2.0
    ) -> T:
        """For what may be asked twice. Raises EtcdError, EtcdAwayError after timeout_s."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                return self.attempt(path, body, kind, min(attempt_s, max(left_s, 0.1)))
            except EtcdAwayError:
                if time.monotonic() + _PAUSE_S > deadline_s:
                    raise
                time.sleep(_PAUSE_S)

    def attempt(self, path: str, body: dict[str, Any], kind: type[T], timeout_s: float) -> T:
        """Once, of one member; the next call asks another when it fails. Raises EtcdError, EtcdAwayError."""
        response = self.open(path, body, timeout_s)
        try:
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from None
        return decoded(data, kind)

    def open(self, path: str, body: dict[str, Any], timeout_s: float) -> http.client.HTTPResponse:
        """The answer's head has been read, and it is no refusal."""
        data = msgspec.json.encode(body)
        try:
            connection = self._connected(timeout_s)
            connection.request("POST", f"/v3/{path}", data, _HEADERS)
            response = connection.getresponse()
            if response.status == 200:
                return response
            refused = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from None
        refusal = decoded(refused, _Refusal)
        if refusal.code in _FINAL:
            raise EtcdError(refusal.error, refusal.code)
        raise self._lost(refusal.error)

    def _connected(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._connection is None or self._connection.sock is None:
            host, port = self.address.endpoints[self._at]
            made = http.client.HTTPConnection(host, port)
            sock = self._connect(host, port, timeout_s)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=host)
            made.sock = sock
            self._connection = made
        self._connection.sock.settimeout(timeout_s)
        return self._connection

    def set_timeout(self, timeout_s: float) -> None:
        """Of what is being read."""
        if self._connection is not None and self._connection.sock is not None:
            self._connection.sock.settimeout(timeout_s)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def leave(self) -> None:
        """The next call asks another member."""
        self.close()
        self._at = (self._at + 1) % len(self.address.endpoints)

    def _lost(self, why: object) -> EtcdAwayError:
        host, port = self.address.endpoints[self._at]
        self.leave()
        return EtcdAwayError(f"etcd at {host}:{port}: {why}")

    def interrupt(self) -> None:
        """From any thread: what is being read ends."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- what the store asks ---------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, *, timeout_s: float) -> int:
        """The revision. To be used for what may be put twice."""
        return self.call(
            "kv/put", {"key": key, "value": value}, PutAnswer, timeout_s=timeout_s
        ).header.revision

    def under(
        self, prefix: bytes, start: bytes, *, limit: int, revision: int = 0, timeout_s: float
    ) -> RangeAnswer:
        """Keys that begin with prefix, from start on, in order; as they were at revision (0: now)."""
        body = {"key": start, "range_end": after(prefix), "limit": str(limit), "revision": str(revision)}
        return self.call("kv/range", body, RangeAnswer, timeout_s=timeout_s)

    def delete_under(self, prefix: bytes, *, timeout_s: float) -> None:
        body = {"key": prefix, "range_end": after(prefix)}
        self.call("kv/deleterange", body, PutAnswer, timeout_s=timeout_s)

    def compact(self, revision: int, *, timeout_s: float) -> None:
        """History before revision goes. That it is gone already is no error."""
        try:
            self.call("kv/compaction", {"revision": str(revision)}, PutAnswer, timeout_s=timeout_s)
        except EtcdError as error:
            if error.code != OUT_OF_RANGE:
                raise


def _context(address: StoreAddress) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=address.ca or None)
        if address.cert:
            context.load_cert_chain(address.cert, address.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"store: {address.ca} {address.cert} {address.key}: {error}") from None
    return context
