#!/usr/bin/env -S python3 -IS
"""podlane-cni in Python, for machines where native/cni_shim.c was not compiled; the same behaviour.

It hands its CNI_ environment, its standard input and the opened CNI_NETNS to the agent's unix socket,
prints the answer and ends with the answer's status (the form of both: wire.py). Without an agent
VERSION is answered here, DEL goes to the spool and succeeds, STATUS fails with code 50, all else with 11.

It stands alone: the runtime starts it outside of any virtual environment, where podlane is unknown.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import sys
import time

# An agent with paths of its own installs a copy that has them here (agent/install.py).
SOCKET = "/run/podlane/cni.sock"
SPOOL = "/var/lib/podlane/cni-spool"

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
IO_FAILURE, TRY_AGAIN_LATER, NOT_AVAILABLE = 5, 11, 50


def main() -> int:
    command = os.environ.get("CNI_COMMAND", "")
    stdin = b"" if command == "VERSION" else _read_all(0)
    environment = b"".join(
        key + b"=" + value + b"\0" for key, value in os.environb.items() if key.startswith(b"CNI_")
    )
    environment += b"PODLANE_CNI_NAME=" + _name() + b"\0"
    request = struct.pack("!II", len(environment), len(stdin)) + environment + stdin
    netns = _open(os.environ.get("CNI_NETNS", ""))
    why, answer = _ask(request, netns)
    if answer:
        return _print(answer)
    if command == "VERSION":
        _write(json.dumps({"cniVersion": VERSIONS[-1], "supportedVersions": VERSIONS}).encode())
        return 0
    if command != "DEL":
        code = NOT_AVAILABLE if command == "STATUS" else TRY_AGAIN_LATER
        return _fail(stdin, code, f"the podlane agent does not answer ({why})")
    try:
        path = _spool(request)
    except OSError as error:
        text = f"the podlane agent does not answer ({why}), and the spool: {error.strerror}"
        return _fail(stdin, IO_FAILURE, text)
    # An agent that came up meanwhile may have read the spool already.
    why, answer = _ask(request, netns)
    if not answer:
        return 0
    os.unlink(path)
    return _print(answer)


def _read_all(fd: int) -> bytes:
    parts = []
    try:
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    except OSError:
        pass  # closed: as good as empty
    return b"".join(parts)


def _name() -> bytes:
    """By which name the runtime found us: IPAM types are executed for configurations of other types."""
    return os.environb.get(b"PODLANE_CNI_NAME") or os.path.basename(os.fsencode(sys.argv[0]))


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) if path else None
    except OSError:
        return None  # the agent says so where the verb needs it


def _ask(request: bytes, netns: int | None) -> tuple[str, bytes]:
    """("", the whole answer), or (why there is none, b"")."""
    path = os.environ.get("PODLANE_CNI_SOCKET") or SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        if len(os.fsencode(path)) > 107:  # sockaddr_un.sun_path
            return f"{path}: path too long for a socket", b""
        try:
            agent.connect(os.fsencode(path))
        except OSError as error:
            return f"{path}: {error.strerror or error}", b""
        answer = b""
        try:
            # The descriptor goes with the start of what the socket takes at once.
            sent = socket.send_fds(agent, [request], [] if netns is None else [netns])
            agent.sendall(request[sent:])
        except OSError:
            pass  # the agent may have answered before it closed
        try:
            while part := agent.recv(65536):
                answer += part
        except OSError:
            pass  # judged by what came
    return ("", answer) if len(answer) >= 4 else (f"{path}: it ended before it answered", b"")


def _spool(request: bytes) -> str:
    directory = os.environ.get("PODLANE_CNI_SPOOL") or SPOOL
    with contextlib.suppress(OSError):  # opening the file says what is wrong
        os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, f"{time.time_ns():019d}-{os.getpid()}.request")
    fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(request)
            file.flush()
            os.fsync(fd)
        os.rename(path + ".tmp", path)
    except OSError:
        os.unlink(path + ".tmp")
        raise
    return path


def _print(answer: bytes) -> int:
    _write(answer[4:])
    return int(struct.unpack("!I", answer[:4])[0])


def _fail(stdin: bytes, code: int, message: str) -> int:
    # The first one counts, whatever it is.
    found = re.search(rb'"cniVersion"(?:[ \t\r\n:]*"([0-9.]{1,15})")?', stdin)
    version = found[1].decode() if found and found[1] else VERSIONS[-1]
    text = "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in os.fsencode(message))
    _write(json.dumps({"cniVersion": version, "code": code, "msg": text}).encode())
    return 1


def _write(data: bytes) -> None:
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError:
        pass  # nobody listens any more


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.exit(main())
