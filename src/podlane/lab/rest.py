"""A small synchronous client of the Kubernetes API for the command line: one connection, kept alive.

It needs no discovery for built-in kinds (the catalog knows their paths) and asks once for a group of custom
ones. Import-cheap: http.client and ssl, no asyncio.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from podlane import __version__
from podlane.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    GoneError,
    InvalidError,
    LabError,
    NotFoundError,
)
from podlane.lab.api.resources import Catalog, Resource, resource
from podlane.lab.apply import Applied, apply_objects, delete_objects
from podlane.lab.client import Obj
from podlane.watch import kubeconfig
from podlane.watch.credentials import Credentials
from podlane.watch.kubeconfig import Access

__all__ = ["Applied", "Client", "apply_objects", "delete_objects"]

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
_TIMEOUT_S = 30.0
_BY_REASON: dict[str, type[ApiError]] = {
    "NotFound": NotFoundError,
    "AlreadyExists": AlreadyExistsError,
    "Conflict": ConflictError,
    "Invalid": InvalidError,
    "Expired": GoneError,
    "Gone": GoneError,
}


class Client:
    """Raises the ApiError tree for what the API refuses, LabError when it cannot be reached."""

    def __init__(self, access: Access) -> None:
        self._access = access
        url = urlsplit(access.server)
        self._host, self._prefix = url.hostname or "", url.path.rstrip("/")
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._credentials = Credentials(access)
        self._connection: http.client.HTTPConnection | None = None
        self._catalog = Catalog()
        self._asked: set[str] = set()

    @classmethod
    def from_kubeconfig(cls, path: str | Path | None = None, context: str = "") -> Client:
        """Raises ConfigError naming the file and what is wrong in it."""
        return cls(kubeconfig.load(path, context))

    @property
    def server(self) -> str:
        return self._access.server

    @property
    def namespace(self) -> str:
        """Of the kubeconfig's context."""
        return self._access.namespace

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- objects ---------------------------------------------------------------------------------
    # what: an id as "pods", "deployments.apps", or what resource_of answers.

    def get(self, what: str | Resource, name: str, namespace: str = "") -> Obj:
        return self.request("GET", self.path(what, namespace, name))

    def list(
        self, what: str | Resource, namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> list[Obj]:
        """All of a namespace, or of the cluster when it is ""."""
        query = {"labelSelector": label_selector, "fieldSelector": field_selector}
        items = self.request("GET", self.path(what, namespace), query=query).get("items")
        return items or []

    def create(self, what: str | Resource, obj: Obj, namespace: str = "") -> Obj:
        return self.request("POST", self.path(what, namespace), obj, query=_WRITE)

    def replace(self, what: str | Resource, obj: Obj) -> Obj:
        """PUT. A stale metadata.resourceVersion is a ConflictError."""
        meta = obj["metadata"]
        return self.request(
            "PUT", self.path(what, meta.get("namespace", ""), meta["name"]), obj, query=_WRITE
        )

    def patch(
        self,
        what: str | Resource,
        name: str,
        namespace: str,
        patch: Any,
        *,
        content_type: str = MERGE_PATCH,
        subresource: str = "",
    ) -> Obj:
        path = self.path(what, namespace, name, subresource)
        return self.request("PATCH", path, patch, query=_WRITE, content_type=content_type)

    def delete(
        self,
        what: str | Resource,
        name: str,
        namespace: str = "",
        *,
        propagation: str = "Background",
        grace_period_s: int | None = None,
    ) -> Obj:
        options: Obj = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        return self.request("DELETE", self.path(what, namespace, name), options)

    # --- paths -----------------------------------------------------------------------------------

    def path(self, what: str | Resource, namespace: str = "", name: str = "", subresource: str = "") -> str:
        row = self._catalog.named(what) if isinstance(what, str) else what
        parts = ["apis", row.group, row.version] if row.group else ["api", row.version]
        if row.namespaced and (namespace or name):
            parts += ["namespaces", namespace or self.namespace]
        parts += [row.plural, *([name] if name else []), *([subresource] if subresource else [])]
        return "/" + "/".join(quote(p, safe="") for p in parts)

    def resource_of(self, obj: Obj) -> Resource:
        """Where objects of obj's kind are. Raises NotFoundError in kubectl's words."""
        api_version, kind = obj["apiVersion"], obj["kind"]
        row = self._catalog.of_kind(api_version, kind)
        if row is None and "/" in api_version:
            self._discover(api_version)
            row = self._catalog.of_kind(api_version, kind)
        if row is None:
            known = ", ".join(sorted(r.api_version for r in self._catalog if r.kind == kind))
            hint = f"; {kind} is served as {known}" if known else ""
            raise NotFoundError(f'no matches for kind "{kind}" in version "{api_version}"{hint}')
        return row

    def _discover(self, api_version: str) -> None:
        try:
            found = self.request("GET", f"/apis/{api_version}")
        except NotFoundError:
            return
        for item in found.get("resources", []):
            if "/" not in item["name"]:
                self._catalog.add(
                    resource(
                        api_version,
                        item["kind"],
                        item["name"],
                        cluster=not item["namespaced"],
                        singular=item.get("singularName", ""),
                        custom=True,
                    )
                )

    # --- HTTP ------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Obj:
        """One request, answered with JSON."""
        answer = self._request(method, path, body, query, content_type)
        try:
            decoded: Obj = msgspec.json.decode(answer) if answer else {}
        except msgspec.DecodeError as error:
            raise ApiError(f"{self._access.server}{path}: the answer is not JSON: {error}") from None
        return decoded

    def text(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """GET of what is no JSON, as a log."""
        return self._request("GET", path, None, query, "").decode("utf-8", "replace")

    def _request(
        self, method: str, path: str, body: Any, query: Mapping[str, str] | None, content_type: str
    ) -> bytes:
        """Again on a fresh connection when a kept one turned out to be closed."""
        target = self._prefix + path
        if wanted := {k: v for k, v in (query or {}).items() if v}:
            target += "?" + urlencode(wanted)
        headers = self._headers()
        data = None
        if body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(body), content_type
        kept = self._connection is not None
        try:
            status, answer = self._exchange(method, target, data, headers)
        except (http.client.HTTPException, OSError) as error:
            self.close()
            # A server that closed an idle connection has not seen the request.
            if not kept or not isinstance(error, http.client.RemoteDisconnected | ConnectionError):
                raise self._unreachable(error) from error
            try:
                status, answer = self._exchange(method, target, data, headers)
            except (http.client.HTTPException, OSError) as again:
                self.close()
                raise self._unreachable(again) from again
        if status >= 400:
            raise refusal(status, answer)
        return answer

    def _exchange(
        self, method: str, target: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request(method, target, data, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def _connect(self) -> http.client.HTTPConnection:
        tls = self._credentials.tls()
        if tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        name = self._access.server_name or self._host
        return _Named(self._host, self._port, timeout=_TIMEOUT_S, context=tls, name=name)

    def _headers(self) -> dict[str, str]:
        self._credentials.refresh()
        headers = {"Accept": "application/json", "User-Agent": f"podlane/{__version__}"}
        return headers | self._credentials.headers()

    def _unreachable(self, error: Exception) -> LabError:
        why = str(error) or type(error).__name__
        return LabError(f"the API at {self._access.server} cannot be reached: {why}")


_WRITE = {"fieldManager": "podlane", "fieldValidation": "Strict"}


def refusal(code: int, body: bytes) -> ApiError:
    """The error a Status of the API stands for, with its details."""
    try:
        status = msgspec.json.decode(body)
    except msgspec.DecodeError:
        status = None
    if not isinstance(status, dict):
        status = {"message": body[:200].decode("utf-8", "replace").strip()}
    reason = status.get("reason") or ("NotFound" if code == 404 else None)
    kind = _BY_REASON.get(reason or "", ApiError)
    return kind(
        status.get("message") or f"HTTP status {code}",
        code=code,
        reason=reason,
        details=status.get("details"),
    )


class _Named(http.client.HTTPSConnection):
    """The server's certificate is checked against `name`, whatever the host is (tls-server-name)."""

    def __init__(self, host: str, port: int, *, timeout: float, context: ssl.SSLContext, name: str) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._tls, self._name = context, name

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)
