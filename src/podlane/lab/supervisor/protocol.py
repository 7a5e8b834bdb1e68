"""What clients and the supervisor say to each other: frames of JSON on a unix stream socket.

A frame is 4 bytes big-endian length, then JSON. Descriptors (a command's stdio) travel with the first
byte of the frame that names how many there are (SCM_RIGHTS, unix(7)). A client may send requests
before earlier ones are answered; answers carry the request's id and come in any order: a start is
answered when the process is set up, a wait when it has ended.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

LENGTH = struct.Struct("!I")
MAX_FRAME_BYTES = 16 << 20
MAX_DESCRIPTORS = 8


class Mount(Struct, frozen=True, kw_only=True):
    """A directory or file of the host inside a container.

    source: absolute path on the host; sub_path: below it, no link leads out; made when it is absent.
    target: path in the container, made when it is absent. of_host: a directory or file that is not the lab's:
    what the container writes there is its own, and gone with it.
    """

    source: str
    target: str
    sub_path: str = ""
    read_only: bool = False
    of_host: bool = False


class ContainerSpec(Struct, frozen=True, kw_only=True):
    """Everything a container's process is given. Names are those of the Kubernetes API where it has one.

    sandbox_pid: the pod's pause process, whose net and IPC namespaces it joins.
    argv: empty for the built-in responder. otherwise: what to do when the host cannot run argv: "responder",
    "nothing" (end at once, successfully) or "fail".
    responder: path of the responder's configuration (runtime/responder.py).
    capabilities: what is left of root's rights; all a pod may have with privileged.
    hidden: directories of the host that appear empty. stdin: keeps stdin open, else it is /dev/null.
    log: file that gets what it writes, a line each with its time.
    """

    name: str
    labels: dict[str, str]
    sandbox_pid: int
    cgroup: str
    log: str
    argv: list[str] = []
    otherwise: str = "responder"
    responder: str = ""
    env: dict[str, str] = {}
    cwd: str = ""
    hostname: str = ""
    uid: int = 0
    gid: int = 0
    groups: list[int] = []
    capabilities: list[str] = []
    privileged: bool = False
    no_new_privs: bool = False
    read_only_root: bool = False
    mounts: list[Mount] = []
    hidden: list[str] = []
    share_pid: bool = False
    stdin: bool = False
    tty: bool = False


class StartAnchor(Struct, frozen=True, tag="start_anchor", kw_only=True):
    """cgroup: directory to join. binds: (source, target) in its own mount namespace."""

    name: str
    hostname: str = ""
    new_mount: bool = False
    cgroup: str = ""
    binds: list[tuple[str, str]] = []


class StartService(Struct, frozen=True, tag="start_service", kw_only=True):
    """entry: "module:function", called with options. join: pid whose net, mnt and uts it enters; 0: none.

    Descriptors that come with it stay open for as long as the service is wanted; each process of it finds
    their numbers in options["descriptors"]. So a listening socket outlives the process that serves it, and
    who connects in between waits instead of being refused.
    """

    name: str
    entry: str
    options: dict[str, Any] = {}
    join: int = 0
    cgroup: str = ""
    log: str
    restart: bool = True


class StartSandbox(Struct, frozen=True, tag="start_sandbox", kw_only=True):
    """netns_pid: 0 for a network namespace of its own. tmpfs: (directory, size in bytes or 0) to mount.

    share_pid: it is process 1 of a PID namespace that the containers join.
    """

    name: str
    labels: dict[str, str] = {}
    hostname: str = ""
    netns_pid: int = 0
    cgroup: str = ""
    tmpfs: list[tuple[str, int]] = []
    share_pid: bool = False
    sysctls: dict[str, str] = {}


class StartContainer(Struct, frozen=True, tag="start_container"):
    spec: ContainerSpec


class Exec(Struct, frozen=True, tag="exec", kw_only=True):
    """A command in the namespaces of container pid, with its env, user and rights; three descriptors.

    It is ended when the connection that asked for it goes.
    """

    pid: int
    argv: list[str]
    env: dict[str, str] = {}
    tty: bool = False


class Wait(Struct, frozen=True, tag="wait"):
    pid: int


class Signal(Struct, frozen=True, tag="signal"):
    pid: int
    signal: int


class List(Struct, frozen=True, tag="list"):
    pass


class Forget(Struct, frozen=True, tag="forget"):
    pid: int


class Stop(Struct, frozen=True, tag="stop"):
    """End a service for good, by name."""

    name: str


class Shutdown(Struct, frozen=True, tag="shutdown"):
    pass


Request = (
    StartAnchor
    | StartService
    | StartSandbox
    | StartContainer
    | Exec
    | Wait
    | Signal
    | List
    | Forget
    | Stop
    | Shutdown
)


class Call(Struct, frozen=True):
    """descriptors: how many came with this frame."""

    id: int
    request: Request
    descriptors: int = 0


class ProcessInfo(Struct, frozen=True):
    """kind: anchor, service, sandbox, container or exec. started, ended: Unix seconds.

    exit_status: 0..255, 128 + signal when a signal ended it, None while it runs.
    ran: of a container: command, responder or nothing.
    """

    name: str
    kind: str
    pid: int
    started: float
    exit_status: int | None = None
    labels: dict[str, str] = {}
    ended: float = 0.0
    ran: str = ""


class Started(Struct, frozen=True):
    """ran: what a container runs: command, responder or nothing."""

    pid: int
    ran: str = ""


class Answer(Struct, frozen=True):
    """error: why it was refused; reason: NotFound for a pid, name or program that is not there."""

    id: int
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    reason: str = ""


class ChildReport(Struct, frozen=True):
    """What a forked process says of its own setting up, once. reason: NotFound: there is no such program."""

    error: str = ""
    reason: str = ""
    ran: str = ""


def frame(message: Struct) -> bytes:
    body = msgspec.json.encode(message)
    return LENGTH.pack(len(body)) + body


def frames(buffer: bytearray) -> Iterator[bytes]:
    """Whole frames at the front of buffer, taken out of it. Raises ValueError when one is too long."""
    while len(buffer) >= LENGTH.size:
        (size,) = LENGTH.unpack_from(buffer)
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} are allowed")
        end = LENGTH.size + size
        if len(buffer) < end:
            return
        body = bytes(buffer[LENGTH.size : end])
        del buffer[:end]
        yield body
