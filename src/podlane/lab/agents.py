"""Asking a node's agent what it holds, over its unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from podlane.errors import LabError


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def fetch(path: Path, url: str, timeout_s: float = 5.0) -> bytes:
    """GET url from the agent that listens on unix socket `path`. Raises LabError."""
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.request("GET", url)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise LabError(
                f"the agent at {path} answers {response.status}: {body[:200].decode(errors='replace')}"
            )
        return body
    except (OSError, http.client.HTTPException) as error:
        raise LabError(f"the agent at {path} does not answer: {error}") from None
    finally:
        connection.close()


def status(path: Path) -> dict[str, Any]:
    """GET /status: node, ready, generation, applied, pending, failures, tables, operations."""
    answer: dict[str, Any] = json.loads(fetch(path, "/status"))
    return answer
