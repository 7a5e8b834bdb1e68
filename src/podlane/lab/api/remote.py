"""pods/log and pods/exec: what pods say, and commands in their containers over WebSocket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from aiohttp import WSMsgType, web

from podlane.errors import ApiError
from podlane.lab.api import request as requests
from podlane.lab.api import status
from podlane.lab.api.cells import seconds
from podlane.lab.api.registry import Registry
from podlane.lab.api.request import Target
from podlane.lab.api.resources import Resource
from podlane.lab.api.store import decode, encode
from podlane.lab.api.streams import (
    CLOSE,
    ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    ExecSession,
    Kubelets,
    LogOptions,
)
from podlane.lab.client import Obj

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_FIRST_CHUNK_S = 0.25
_MESSAGE_BYTES = 32 * 1024 * 1024


class Remote:
    """kubelets None: there is no runtime behind this API server."""

    def __init__(self, registry: Registry, kubelets: Kubelets | None) -> None:
        self._registry, self._kubelets = registry, kubelets

    async def handle(
        self, request: web.BaseRequest, resource: Resource, target: Target
    ) -> web.StreamResponse:
        pod = self._registry.get(resource, target.namespace, target.name).obj
        match target.subresource:
            case "log":
                if request.method != "GET":
                    raise status.method_not_allowed()
                return await self._logs(request, pod, target)
            case "exec":
                return await self._exec(request, resource, pod, target)
        message = f"pods/{target.subresource} is not supported by this API server"
        raise ApiError(message, code=501, reason="NotImplemented")

    def _runtime(self) -> Kubelets:
        if self._kubelets is None:
            message = "no kubelet serves this API: there are no containers to speak to"
            raise ApiError(message, code=503, reason="ServiceUnavailable")
        return self._kubelets

    # --- logs ------------------------------------------------------------------------------------

    async def _logs(self, request: web.BaseRequest, pod: Obj, target: Target) -> web.StreamResponse:
        query = request.query
        container = container_of(pod, query.get("container", ""))
        _check_host(pod)
        since_s = requests.integer(query, "sinceSeconds")
        tail_lines, limit_bytes = requests.integer(query, "tailLines"), requests.integer(query, "limitBytes")
        for name, value, least in (
            ("sinceSeconds", since_s, 1),
            ("tailLines", tail_lines, 0),
            ("limitBytes", limit_bytes, 1),
        ):
            if value is not None and value < least:
                message = f'PodLogOptions "{target.name}" is invalid: {name}: Invalid value: {value}: '
                raise ApiError(
                    message + f"must be greater than or equal to {least}", code=422, reason="Invalid"
                )
        age_s = float(since_s) if since_s is not None else None
        if query.get("sinceTime"):
            then = seconds(query["sinceTime"])
            if then is None:
                raise status.bad_request(f"sinceTime: {query['sinceTime']!r} is not a time (RFC 3339)")
            age_s = max(time.time() - then, 0.0)
        options = LogOptions(
            follow=requests.boolean(query, "follow"),
            previous=requests.boolean(query, "previous"),
            tail_lines=tail_lines,
            since_s=age_s,
            limit_bytes=limit_bytes,
            timestamps=requests.boolean(query, "timestamps"),
        )
        chunks = self._runtime().logs(target.namespace, target.name, container, options)
        return await _send_lines(request, chunks)

    # --- exec ------------------------------------------------------------------------------------

    async def _exec(
        self, request: web.BaseRequest, resource: Resource, pod: Obj, target: Target
    ) -> web.StreamResponse:
        query = request.query
        container = container_of(pod, query.get("container", ""))
        _check_host(pod)
        phase = (pod.get("status") or {}).get("phase")
        if phase in ("Succeeded", "Failed"):
            raise status.bad_request(
                f"cannot exec into a container in a completed pod; current phase is {phase}"
            )
        command = query.getall("command", [])
        if not command:
            raise status.bad_request("you must specify at least 1 command for the container")
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise status.bad_request(
                "exec needs a WebSocket (v5.channel.k8s.io or v4.channel.k8s.io): use kubectl 1.31 or newer"
            )
        tty = requests.boolean(query, "tty")
        wants = {name: requests.boolean(query, name) for name in ("stdin", "stdout", "stderr")}
        if tty:
            wants["stderr"] = False
        if not any(wants.values()):
            raise status.bad_request("you must specify at least 1 of stdin, stdout, stderr")
        socket = web.WebSocketResponse(protocols=PROTOCOLS, max_msg_size=_MESSAGE_BYTES)
        await socket.prepare(request)
        first = STDOUT if wants["stdout"] else STDERR if wants["stderr"] else ERROR
        await socket.send_bytes(bytes([first]))  # tells the client that the connection stands
        try:
            session = await self._runtime().exec(
                target.namespace, target.name, container, command, tty=tty, **wants
            )
        except ApiError as error:
            await _finish(socket, _failed_to_start(error))
            return socket
        try:
            await _converse(socket, session, wants)
        finally:
            await session.kill()
        return socket


def container_of(pod: Obj, name: str) -> str:
    """The container that is meant. Raises ApiError(400) in kube-apiserver's words."""
    spec = pod["spec"]
    groups = {
        key: [c["name"] for c in spec.get(key) or ()]
        for key in ("containers", "initContainers", "ephemeralContainers")
    }
    pod_name = pod["metadata"]["name"]
    if not name:
        if len(groups["containers"]) == 1:
            only: str = groups["containers"][0]
            return only
        message = f"a container name must be specified for pod {pod_name}, choose one of: "
        message += f"[{' '.join(groups['containers'])}]"
        if groups["initContainers"]:
            message += f" or one of the init containers: [{' '.join(groups['initContainers'])}]"
        raise status.bad_request(message)
    if not any(name in names for names in groups.values()):
        raise status.bad_request(f"container {name} is not valid for pod {pod_name}")
    return name


def _check_host(pod: Obj) -> None:
    if not (pod.get("spec") or {}).get("nodeName"):
        raise status.bad_request(f"pod {pod['metadata']['name']} does not have a host assigned")


async def _send_lines(request: web.BaseRequest, chunks: AsyncIterator[bytes]) -> web.StreamResponse:
    """Chunks as they come. A refusal before the first one is still a Status."""
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    pending: asyncio.Task[bytes] | None = asyncio.ensure_future(_next(chunks))
    assert pending is not None
    try:
        # Followers of a silent container get their headers soon; errors come sooner still.
        await asyncio.wait((pending,), timeout=_FIRST_CHUNK_S)
        if pending.done() and not isinstance(pending.exception(), StopAsyncIteration):
            pending.result()
        await response.prepare(request)
        while True:
            try:
                chunk = await pending
            except (StopAsyncIteration, ApiError):
                break
            await response.write(chunk)
            pending = asyncio.ensure_future(_next(chunks))
        await response.write_eof()
    finally:
        pending.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration, ApiError):
            await pending
        close: Any = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
    return response


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    return await anext(chunks)


async def _converse(socket: web.WebSocketResponse, session: ExecSession, wants: dict[str, bool]) -> None:
    """Both ways until the command has ended or the client is gone."""
    incoming = asyncio.create_task(_receive(socket, session, wants["stdin"]))
    outgoing = asyncio.create_task(_send(socket, session, wants))
    try:
        await asyncio.wait((incoming, outgoing), return_when=asyncio.FIRST_COMPLETED)
        if outgoing.done():
            exit_status = outgoing.result()
            await _finish(socket, _exited(exit_status))
        else:
            incoming.result()
    finally:
        for task in (incoming, outgoing):
            task.cancel()
        await asyncio.gather(incoming, outgoing, return_exceptions=True)


async def _send(socket: web.WebSocketResponse, session: ExecSession, wants: dict[str, bool]) -> int:
    shown = {STDOUT: wants["stdout"], STDERR: wants["stderr"]}
    while (chunk := await session.read()) is not None:
        stream, data = chunk
        if shown.get(stream) and data:
            await socket.send_bytes(bytes([stream]) + data)
    return await session.wait()


async def _receive(socket: web.WebSocketResponse, session: ExecSession, stdin: bool) -> None:
    """Ends when the client closes the connection."""
    if not stdin:
        await session.close_stdin()
    async for message in socket:
        data = message.data.encode() if message.type is WSMsgType.TEXT else message.data
        if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT) or not data:
            continue
        channel, payload = data[0], data[1:]
        if channel == STDIN and stdin and payload:
            await session.write(payload)
        elif channel == CLOSE and payload[:1] == bytes([STDIN]):
            await session.close_stdin()
        elif channel == RESIZE:
            with suppress(ValueError, KeyError, TypeError):
                size = decode(payload)
                await session.resize(int(size["Width"]), int(size["Height"]))


async def _finish(socket: web.WebSocketResponse, final: Obj) -> None:
    with suppress(ConnectionError):
        await socket.send_bytes(bytes([ERROR]) + encode(final))
        await socket.close()


def _exited(exit_status: int) -> Obj:
    if exit_status == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {exit_status}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(exit_status)}]},
    }


def _failed_to_start(error: ApiError) -> Obj:
    found = status.of(error)
    if error.code == 500 and not found["message"].startswith("Internal error occurred: "):
        found["message"] = f"Internal error occurred: {found['message']}"
    return found


__all__ = ["PROTOCOLS", "Remote", "container_of"]
