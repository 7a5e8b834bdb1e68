"""Calling the agent's CNI socket as the shim does: for a kubelet that lives in this program."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from podlane.cni import wire
from podlane.cni.protocol import IO_FAILURE, TRY_AGAIN_LATER, Verb
from podlane.errors import CniError


async def call(
    socket_path: Path,
    command: str,
    *,
    netns_fd: int | None = None,
    container_id: str = "",
    ifname: str = "eth0",
    args: Mapping[str, str] | None = None,
    config: Mapping[str, Any],
    netns: str = "",
) -> dict[str, Any]:
    """The plugin's answer, {} when the verb has none.

    netns_fd: the pod's namespace, needed for ADD and CHECK. args: of CNI_ARGS. netns: what to call the
    namespace in the result. Raises CniError; code 11 when the agent is not there (yet).
    """
    environment = {
        "CNI_COMMAND": Verb(command).value,
        "CNI_CONTAINERID": container_id,
        "CNI_IFNAME": ifname,
        "CNI_PATH": "/opt/cni/bin",
    }
    if netns_fd is not None:
        environment["CNI_NETNS"] = netns or f"/proc/{os.getpid()}/fd/{netns_fd}"
    if args:
        environment["CNI_ARGS"] = ";".join(f"{key}={value}" for key, value in args.items())
    request = wire.pack_request(environment, json.dumps(config).encode())
    try:
        status, stdout = wire.unpack_answer(await _exchange(socket_path, request, netns_fd))
    except (OSError, ValueError) as error:
        raise CniError(TRY_AGAIN_LATER, f"the agent at {socket_path} does not answer: {error}") from None
    try:
        answer: dict[str, Any] = json.loads(stdout) if stdout else {}
    except ValueError:
        raise CniError(IO_FAILURE, f"the agent's answer is not JSON: {stdout[:200]!r}") from None
    if status:
        raise CniError(int(answer.get("code", 999)), answer.get("msg", ""), answer.get("details", ""))
    return answer


async def _exchange(path: Path, request: bytes, netns_fd: int | None) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        await loop.sock_connect(connection, str(path))
        # A fresh connection takes something at once.
        sent = socket.send_fds(connection, [request], [] if netns_fd is None else [netns_fd])
        if sent < len(request):  # else it may be answered and closed already
            await loop.sock_sendall(connection, request[sent:])
        parts: list[bytes] = []
        while part := await loop.sock_recv(connection, 1 << 16):
            parts.append(part)
        return b"".join(parts)
