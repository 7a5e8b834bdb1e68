"""Requests to the API: whole answers, or a watch as a stream of lines.

Of several servers the one that answered last is asked first; one that cannot be connected to is passed over
at once, one that fails otherwise is passed over the next time. A 401 is met once with fresh credentials.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from podlane import __version__
from podlane.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    GoneError,
    InvalidError,
    NotFoundError,
)
from podlane.watch import http1, tls
from podlane.watch.credentials import Credentials
from podlane.watch.http1 import HttpError, NoConnectionError, Response, Silence, SilenceError
from podlane.watch.kubeconfig import Access
from podlane.watch.servers import Servers

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


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: int = 0


class _Status(msgspec.Struct, rename="camel"):
    """metav1.Status"""

    message: str = ""
    reason: str = ""
    details: _Details | None = None


class Unreachable(ApiError):
    """The API did not answer: nothing is known about what it holds. connected: a server took the request."""

    code, reason = 503, "Unreachable"

    def __init__(self, message: str, *, connected: bool = False) -> None:
        super().__init__(message)
        self.connected = connected


class Silent(Unreachable):
    """A stream stands and nothing comes of it."""


class ApiHttp:
    """A door to the API. Use as an async context manager. Raises the ApiError tree."""

    def __init__(
        self,
        access: Access,
        user_agent: str = "podlane-agent",
        *,
        rng: random.Random | None = None,
    ) -> None:
        """Raises ConfigError for certificates that cannot be used."""
        self._access = access
        self._agent = f"{user_agent}/{__version__}"
        self._credentials = Credentials(access)
        self._servers = Servers(access.urls, rng or random.Random())
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

    async def lines(
        self, path: str, query: Mapping[str, str], silence_s: Silence = lambda: SILENCE_TIMEOUT_S
    ) -> AsyncGenerator[bytes, None]:
        """The lines of an answer that goes on, without their ends and of any length.

        An empty one comes first: the server has accepted. Raises Silent after silence_s() without one.
        """
        async with self._ask("GET", path, query) as response:
            yield b""
            rest = b""
            async with aclosing(response.chunks(silence_s)) as chunks:
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
            self._servers.failed(self._servers.current)
            raise self._unreachable(f"no whole answer in {LIST_TIMEOUT_S:g} s", connected=True) from None

    @asynccontextmanager
    async def _ask(
        self, method: str, path: str, query: Mapping[str, str], body: bytes = b"", content_type: str = ""
    ) -> AsyncIterator[Response]:
        question = _Question(method, path, query, body, content_type)
        url = self._servers.current
        try:
            async with AsyncExitStack() as stack:
                url, response = await self._first_answer(stack, question)
                if response.status >= 400:
                    if response.status >= 500:
                        self._servers.failed(url)
                    raise self._refusal(response.status, response.headers, await response.read())
                yield response
        except NoConnectionError as error:
            raise self._unreachable(str(error)) from error
        except SilenceError as error:
            self._servers.failed(url)
            raise Silent(f"the API at {url}: {error}", connected=True) from error
        except HttpError as error:
            self._servers.failed(url)
            raise self._unreachable(f"{error}{self._advice(error.__cause__)}", connected=True) from error

    async def _first_answer(self, stack: AsyncExitStack, question: _Question) -> tuple[str, Response]:
        """(server, its answer): of the first that can be connected to. It is open as long as stack."""
        missed: list[str] = []
        for url in self._servers.order():
            try:
                response = await self._answer(stack, url, question)
                if response.status == 401 and self._credentials.refused():
                    await stack.pop_all().aclose()
                    response = await self._answer(stack, url, question)
            except NoConnectionError as error:
                self._servers.failed(url)
                missed.append(f"{url}: {error}{self._advice(error.__cause__)}")
            else:
                self._servers.good(url)
                return url, response
        raise NoConnectionError("; ".join(missed))

    async def _answer(self, stack: AsyncExitStack, url: str, question: _Question) -> Response:
        headers = await self._headers(question.content_type)
        asked = asked_for(question.method, question.path, question.query)
        exchange = http1.request(
            question.method,
            url + question.path,
            question.query,
            headers,
            question.body,
            tls=self._credentials.tls(),
            server_name=self._access.server_name,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            answer_timeout_s=LIST_TIMEOUT_S,
        )
        try:
            response = await stack.enter_async_context(exchange)
        except HttpError:
            self.requests[*asked, UNANSWERED] += 1
            raise
        self.requests[*asked, str(response.status)] += 1
        return response

    async def _headers(self, content_type: str) -> dict[str, str]:
        if self._credentials.stale:
            await asyncio.to_thread(self._credentials.refresh)
        headers = {"Accept": "application/json", "User-Agent": self._agent}
        if content_type:
            headers["Content-Type"] = content_type
        return headers | self._credentials.headers()

    def _refusal(self, code: int, headers: Mapping[str, str], body: bytes) -> ApiError:
        found = refusal(code, body, headers.get("retry-after", ""))
        if code == 401 and (advice := self._advice(None)):
            return type(found)(f"{found}{advice}", code=code, reason=found.reason)
        return found

    def _advice(self, error: BaseException | None) -> str:
        found = tls.advice(self._credentials.access, error, datetime.now(UTC))
        return f" ({found})" if found else ""

    def _unreachable(self, why: str, *, connected: bool = False) -> Unreachable:
        return Unreachable(f"the API at {self._servers} cannot be reached: {why}", connected=connected)


class _Question(NamedTuple):
    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    content_type: str


def asked_for(method: str, path: str, query: Mapping[str, str]) -> tuple[str, str]:
    """(verb, resource) of a request, in the words of RBAC: ("patch", "nodes"), ("watch", "pods")."""
    parts = path.strip("/").split("/")[2 if path.startswith("/api/") else 3 :]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    resource = "/".join([*parts[:1], *parts[2:3]])
    if method == "GET":
        return ("get" if len(parts) > 1 else "watch" if query.get("watch") else "list"), resource
    return {"POST": "create", "PUT": "update"}.get(method, method.lower()), resource


def refusal(code: int, body: bytes, retry_after: str = "") -> ApiError:
    """The error that an answer with status code >= 400 stands for. retry_after: the header, in seconds."""
    try:
        status = msgspec.json.decode(body, type=_Status)
    except msgspec.DecodeError:
        status = _Status(message=body[:200].decode("utf-8", "replace").strip())
    kind = _BY_CODE.get(code, ApiError)
    if status.reason == "AlreadyExists":
        kind = AlreadyExistsError
    # Kubernetes sends seconds; the other form of RFC 9110, a date, is taken for no wish at all.
    after_s = int(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0
    if not after_s and status.details is not None:
        after_s = status.details.retry_after_seconds
    return kind(
        status.message or f"HTTP status {code}",
        code=code,
        reason=status.reason or None,
        retry_after_s=float(after_s),
    )
