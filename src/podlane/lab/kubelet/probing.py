"""Asking a container: the actions of probes and lifecycle hooks.

Network actions are made from the node's namespace, as a kubelet makes them, with the node's address.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from podlane.errors import KernelError, LabError
from podlane.kernel import netns
from podlane.lab.kubelet.container_spec import port_number
from podlane.lab.supervisor.client import AsyncSupervisor, SupervisorRefusal
from podlane.model.addresses import address

Obj = dict[str, Any]
MAX_OUTPUT_BYTES = 10 << 10
_SHELLS = ("sh", "bash", "ash", "dash")


class Outcome(Struct, frozen=True):
    """absent: the program is not on this machine."""

    ok: bool
    text: str = ""
    absent: bool = False


class Target(Struct, frozen=True):
    """What is asked. node: descriptor of the node's network namespace. responder: whether that runs."""

    container: Obj
    pid: int
    address: str
    node: int
    responder: bool


async def act(action: Obj, target: Target, supervisor: AsyncSupervisor, timeout_s: float) -> Outcome:
    """action: an object with exec, httpGet, tcpSocket, grpc or sleep."""
    try:
        async with asyncio.timeout(timeout_s):
            if (one := action.get("exec")) is not None:
                return await _exec(one.get("command") or [], target, supervisor)
            if (one := action.get("httpGet")) is not None:
                return await _http(one, target)
            if (one := action.get("tcpSocket")) is not None:
                return await _tcp(one, target)
            if (one := action.get("grpc")) is not None:
                # The health protocol needs HTTP/2; that something listens is what can be said.
                return await _tcp(one, target)
            if (one := action.get("sleep")) is not None:
                await asyncio.sleep(float(one.get("seconds") or 0))
        return Outcome(True)
    except TimeoutError:
        return Outcome(False, f"timed out after {timeout_s:g} s")
    except OSError as error:
        return Outcome(False, error.strerror or str(error))
    except (KernelError, LabError) as error:
        return Outcome(False, str(error))


async def _exec(argv: Sequence[str], target: Target, supervisor: AsyncSupervisor) -> Outcome:
    if not argv:
        return Outcome(True)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(writer, True)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    output = bytearray()
    loop = asyncio.get_running_loop()

    def readable() -> None:
        try:
            data = os.read(reader, MAX_OUTPUT_BYTES)
        except BlockingIOError:
            return
        if not data:
            loop.remove_reader(reader)
        elif len(output) < MAX_OUTPUT_BYTES:
            output.extend(data)

    loop.add_reader(reader, readable)
    pid = 0
    try:
        pid = await supervisor.exec(target.pid, argv, fds=(null, writer, writer))
        status = (await supervisor.wait(pid)).exit_status
        pid = 0
        readable()
    except SupervisorRefusal as refusal:
        return Outcome(False, str(refusal), absent=refusal.reason == "NotFound")
    finally:
        loop.remove_reader(reader)
        for fd in (reader, writer, null):
            os.close(fd)
        if pid:
            await supervisor.signal(pid, signal.SIGKILL)
            await supervisor.wait(pid)
    text = bytes(output).decode(errors="replace").strip()
    # A shell says 127 for a program it does not find.
    absent = status == 127 and os.path.basename(argv[0]) in _SHELLS
    return Outcome(status == 0, text, absent)


def _where(action: Mapping[str, Any], target: Target) -> tuple[str, int]:
    port = port_number(action.get("port"), target.container)
    if port is None:
        raise OSError(0, f"couldn't find port: {action.get('port')} in container {target.container['name']}")
    return action.get("host") or target.address, port


async def _connect(host: str, port: int, target: Target) -> socket.socket:
    try:
        family = socket.AF_INET6 if address(host).version == 6 else socket.AF_INET
    except Exception:
        raise OSError(0, f"host {host!r} is no address, and there is no name server here") from None
    connection = netns.socket_in(target.node, family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (host, port))
    except BaseException:
        connection.close()
        raise
    return connection


async def _tcp(action: Obj, target: Target) -> Outcome:
    (await _connect(*_where(action, target), target)).close()
    return Outcome(True)


async def _http(action: Obj, target: Target) -> Outcome:
    """200..399 is success."""
    host, port = _where(action, target)
    path = action.get("path") or "/"
    secure = (action.get("scheme") or "HTTP").upper() == "HTTPS" and not target.responder
    headers = {"User-Agent": "kube-probe/1.36", "Accept": "*/*", "Connection": "close"}
    headers["Host"] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    for header in action.get("httpHeaders") or ():
        headers[header["name"]] = header.get("value") or ""
    lines = [f"GET {path if path.startswith('/') else '/' + path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = ("\r\n".join(lines) + "\r\n\r\n").encode()
    connection = await _connect(host, port, target)
    try:
        if secure:
            answer = await _exchange_tls(connection, host, request)
        else:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, request)
            answer = b""
            while b"\r\n" not in answer and len(answer) < MAX_OUTPUT_BYTES:
                part = await loop.sock_recv(connection, MAX_OUTPUT_BYTES)
                if not part:
                    break
                answer += part
    finally:
        connection.close()
    words = answer.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Outcome(False, "malformed HTTP response")
    status = int(words[1])
    return Outcome(200 <= status < 400, f"HTTP probe failed with statuscode: {status}")


async def _exchange_tls(connection: socket.socket, host: str, request: bytes) -> bytes:
    """As kubelets do, certificates are not verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=host)
    try:
        writer.write(request)
        return await reader.readline()
    finally:
        writer.transport.abort()
