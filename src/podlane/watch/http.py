"""HTTP to the API server: one GET at a time, or a watch as a stream of lines."""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec

from podlane import __version__
from podlane.errors import (
    AlreadyExistsError,
    ApiError,
    ConfigError,
    ConflictError,
    GoneError,
    InvalidError,
    NotFoundError,
)
from podlane.watch import http1
from podlane.watch.http1 import HttpError, Response
from podlane.watch.kubeconfig import Access

TOKEN_AGE_S = 60.0  # client-go reads a token file again after a minute
CONNECT_TIMEOUT_S = 5.0
LIST_TIMEOUT_S = 60.0
# A watch is told to end after 5 to 10 minutes, and bookmarks come every minute: more silence than the
# whole watch may last means that the other side is gone without a word.
SILENCE_TIMEOUT_S = 660.0

UNANSWERED = "none"

_BY_CODE: dict[int, type[ApiError]] = {
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
}


class _Status(msgspec.Struct, rename="camel"):
    """metav1.Status"""

    message: str = ""
    reason: str = ""
    code: int = 0


class Unreachable(ApiError):
    """The API did not answer: nothing is known about what it holds."""

    code, reason = 503, "Unreachable"


class ApiHttp:
    """A door to the API. Use as an async context manager. Raises the ApiError tree."""

    def __init__(self, access: Access, user_agent: str = "podlane-agent") -> None:
        self._access = access
        self._agent = f"{user_agent}/{__version__}"
        self._token, self._token_read_s = access.token, -TOKEN_AGE_S
        self._tls = tls_context(access)
        self.requests: Counter[tuple[str, ...]] = Counter()
        """How many were answered, by (verb, resource, HTTP status or UNANSWERED)."""

    async def __aenter__(self) -> ApiHttp:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass  # every request has a connection of its own

    async def get(self, path: str, query: Mapping[str, str]) -> bytes:
        """The body of one answer."""
        return await self._whole("GET", path, query, b"", "")

    async def patch(self, path: str, body: bytes, content_type: str) -> bytes:
        return await self._whole("PATCH", path, {}, body, content_type)

    async def post(self, path: str, body: bytes) -> bytes:
        """Makes an object. Raises AlreadyExistsError, among others."""
        return await self._whole("POST", path, {}, body, "application/json")

    async def put(self, path: str, body: bytes) -> bytes:
        return await self._whole("PUT", path, {}, body, "application/json")

    async def delete(self, path: str, body: bytes) -> bytes:
        """body: DeleteOptions."""
        return await self._whole("DELETE", path, {}, body, "application/json")

    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """The lines of an answer that goes on, without their ends and of any length.

        An empty one comes first: the server has accepted.
        """
        async with self._ask("GET", path, query) as response:
            yield b""
            rest = b""
            async with aclosing(response.chunks(SILENCE_TIMEOUT_S)) as chunks:
                async for chunk in chunks:
                    *whole, rest = (rest + chunk if rest else chunk).split(b"\n")
                    for line in whole:
                        if line:
                            yield line

    async def _whole(
        self, method: str, path: str, query: Mapping[str, str], body: bytes, content_type: str
    ) -> bytes:
        try:
            async with (
                asyncio.timeout(LIST_TIMEOUT_S),
                self._ask(method, path, query, body, content_type) as response,
            ):
                return await response.read()
        except TimeoutError:
            raise self._unreachable(f"no whole answer in {LIST_TIMEOUT_S:g} s") from None

    @asynccontextmanager
    async def _ask(
        self, method: str, path: str, query: Mapping[str, str], body: bytes = b"", content_type: str = ""
    ) -> AsyncIterator[Response]:
        headers = self._headers()
        if content_type:
            headers["Content-Type"] = content_type
        verb, resource = asked_for(method, path, query)
        code = UNANSWERED
        try:
            async with http1.request(
                method,
                self._access.server + path,
                query,
                headers,
                body,
                tls=self._tls,
                server_name=self._access.server_name,
                connect_timeout_s=CONNECT_TIMEOUT_S,
                answer_timeout_s=LIST_TIMEOUT_S,
            ) as response:
                code = str(response.status)
                self.requests[verb, resource, code] += 1
                if response.status >= 400:
                    raise refusal(response.status, await response.read())
                yield response
        except HttpError as error:
            if code is UNANSWERED:
                self.requests[verb, resource, code] += 1
            raise self._unreachable(str(error)) from error

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": self._agent}
        access = self._access
        if access.token_file and time.monotonic() - self._token_read_s >= TOKEN_AGE_S:
            try:
                self._token = Path(access.token_file).read_text().strip()
            except OSError as error:
                raise ApiError(
                    f"token file {access.token_file}: {error.strerror}", code=401, reason="Unauthorized"
                ) from None
            self._token_read_s = time.monotonic()
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        elif access.username:
            pair = base64.b64encode(f"{access.username}:{access.password}".encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
        return headers

    def _unreachable(self, why: str) -> Unreachable:
        return Unreachable(f"the API at {self._access.server} cannot be reached: {why}")


def asked_for(method: str, path: str, query: Mapping[str, str]) -> tuple[str, str]:
    """(verb, resource) of a request, in the words of RBAC: ("patch", "nodes"), ("watch", "pods")."""
    parts = path.strip("/").split("/")[2 if path.startswith("/api/") else 3 :]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    resource = "/".join([*parts[:1], *parts[2:3]])
    if method == "GET":
        return ("get" if len(parts) > 1 else "watch" if query.get("watch") else "list"), resource
    return {"POST": "create", "PUT": "update"}.get(method, method.lower()), resource


def refusal(code: int, body: bytes) -> ApiError:
    """The error that an answer with status code >= 400 stands for."""
    try:
        status = msgspec.json.decode(body, type=_Status)
    except msgspec.DecodeError:
        status = _Status(message=body[:200].decode("utf-8", "replace").strip())
    kind = _BY_CODE.get(code, ApiError)
    if status.reason == "AlreadyExists":
        kind = AlreadyExistsError
    return kind(status.message or f"HTTP status {code}", code=code, reason=status.reason or None)


def tls_context(access: Access) -> ssl.SSLContext | None:
    """None for a server without TLS. Raises ConfigError for certificates that cannot be used."""
    if access.server.startswith("http://"):
        return None
    context = ssl.create_default_context()
    try:
        if access.ca_pem is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=access.ca_pem.decode("ascii"))
        if access.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if access.client_cert_pem and access.client_key_pem:
            _load_pair(context, access.client_cert_pem, access.client_key_pem)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"certificates for {access.server}: {error}") from None
    return context


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """load_cert_chain reads files only: a memory file keeps the key off the disk."""
    fd = os.memfd_create("podlane-client", os.MFD_CLOEXEC)
    try:
        os.write(fd, certificate + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
