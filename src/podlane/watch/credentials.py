"""Who we are to the API, kept current: tokens, certificates and keys rotate on disk, plugins' answers expire.

    token file            read again every minute, and when the API says 401
    client certificate,   read again when one of the files is another one (a symlink that was moved, too)
    key, CA files
    exec plugin           run again shortly before what it gave out expires, and when the API says 401

What cannot be read anew does not end what still holds: the old is used on, and the fault is told.
"""

from __future__ import annotations

import base64
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from podlane.errors import ApiError, ConfigError
from podlane.watch import exec_plugin, tls
from podlane.watch.kubeconfig import Access

log = logging.getLogger(__name__)

TOKEN_AGE_S: Final = 60.0  # client-go reads a token file again after a minute
AHEAD_S: Final = 10.0
"""A plugin is run again so long before what it gave out expires: the request has to arrive, too."""

_Stamp = tuple[tuple[int, int, int], ...]


class Credentials:
    """now_s: seconds that only run forward; wall_s: seconds since 1970. For any thread."""

    def __init__(
        self,
        access: Access,
        *,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._access, self._now_s, self._wall_s = access, now_s, wall_s
        self._token, self._token_read_s = access.token, -TOKEN_AGE_S
        self._given: exec_plugin.Credential | None = None
        self._lock = threading.Lock()
        self._stamp = _stamp(access)
        self._complained = ""
        self._plain = all(url.startswith("http://") for url in access.urls)
        self._tls = None if self._plain else tls.context(access)

    @property
    def access(self) -> Access:
        """With certificates as they were last read."""
        return self._access

    @property
    def stale(self) -> bool:
        """Whether `refresh` would run a program: call it in a thread that may wait."""
        plugin, given = self._access.exec, self._given
        if plugin is None:
            return False
        return given is None or bool(given.expires_s and self._wall_s() >= given.expires_s - AHEAD_S)

    def refresh(self) -> None:
        """Runs the plugin if need be. Raises ApiError(401)."""
        with self._lock:
            plugin = self._access.exec
            if plugin is None or not self.stale:
                return
            try:
                given = exec_plugin.run(plugin)
                access = msgspec.structs.replace(
                    self._access, client_cert_pem=given.client_cert_pem, client_key_pem=given.client_key_pem
                )
                context = None if self._plain else tls.context(access)
            except ConfigError as error:
                raise ApiError(str(error), code=401, reason="Unauthorized") from None
            self._given, self._access, self._tls = given, access, context

    def refused(self) -> bool:
        """The API said 401: what may be newer elsewhere is fetched anew. True if asking again makes sense."""
        if self._access.exec is not None:
            self._given = None
            return True
        if self._access.token_file:
            old, self._token_read_s = self._token, -TOKEN_AGE_S
            self._read_token()
            return self._token != old
        return self._reload()

    def headers(self) -> dict[str, str]:
        """Authorization. Raises ApiError(401) when there is no token where one should be."""
        self._read_token()
        token = self._given.token if self._given is not None else self._token
        if token:
            return {"Authorization": f"Bearer {token}"}
        if self._access.username:
            pair = f"{self._access.username}:{self._access.password}".encode()
            return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        return {}

    def tls(self) -> ssl.SSLContext | None:
        """To connect with; None if no server speaks TLS."""
        self._reload()
        return self._tls

    def _read_token(self) -> None:
        path = self._access.token_file
        if not path or self._now_s() - self._token_read_s < TOKEN_AGE_S:
            return
        try:
            self._token = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "no text"
            if not self._token:
                raise ApiError(f"token file {path}: {why}", code=401, reason="Unauthorized") from None
            self._complain(f"token file {path}: {why}; the token read before is used on")
        self._token_read_s = self._now_s()

    def _reload(self) -> bool:
        """Whether certificates on disk were others, and are used now."""
        if self._plain or (stamp := _stamp(self._access)) == self._stamp:
            return False
        self._stamp = stamp
        access = self._access
        try:
            fresh = msgspec.structs.replace(
                access,
                ca_pem=_content(access.ca_file, access.ca_pem),
                client_cert_pem=_content(access.client_cert_file, access.client_cert_pem),
                client_key_pem=_content(access.client_key_file, access.client_key_pem),
            )
            self._tls = tls.context(fresh)
        except (OSError, ConfigError) as error:
            # Certificate and key are two files: between the writing of one and the other they do not fit.
            self._complain(f"certificates changed but cannot be used yet, those before are used on: {error}")
            return False
        self._access = fresh
        log.info("certificates were read again")
        return True

    def _complain(self, sentence: str) -> None:
        """Once, not a line a request."""
        if sentence != self._complained:
            self._complained = sentence
            log.warning("%s", sentence)


def _stamp(access: Access) -> _Stamp:
    """What tells one version of the files from another; zeros for what is not there."""
    found = []
    for path in filter(None, (access.ca_file, access.client_cert_file, access.client_key_file)):
        try:
            status = os.stat(path)
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((status.st_mtime_ns, status.st_ino, status.st_size))
    return tuple(found)


def _content(path: str, known: bytes | None) -> bytes | None:
    return Path(path).read_bytes() if path else known
