"""What the API server asks of kubelets: logs and exec, and the bytes of the WebSocket that carries them.

A kubelet's side is `Kubelets` and `ExecSession`; the runtime of the lab implements both. The client's side
is Kubernetes' remote command protocol (v4 and v5 of channel.k8s.io): every WebSocket message begins with
one byte, the channel. KEP-4006 describes v5, which adds the close message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, Protocol

from msgspec import Struct

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
ERROR: Final = 3
RESIZE: Final = 4
CLOSE: Final = 255


class LogOptions(Struct, frozen=True, kw_only=True):
    """core/v1 PodLogOptions. since_s: only lines of the last so many seconds."""

    follow: bool = False
    previous: bool = False
    tail_lines: int | None = None
    since_s: float | None = None
    limit_bytes: int | None = None
    timestamps: bool = False


class ExecSession(Protocol):
    """One command running in a container. Ended by the client or by the command itself."""

    async def read(self) -> tuple[int, bytes] | None:
        """(STDOUT or STDERR, bytes); None when both have ended. With a terminal everything is STDOUT."""
        ...

    async def write(self, data: bytes) -> None:
        """Bytes for stdin; waits while the command does not read. Ignored once stdin is closed."""
        ...

    async def close_stdin(self) -> None: ...

    async def resize(self, columns: int, rows: int) -> None:
        """Size of the terminal; nothing happens without one."""
        ...

    async def wait(self) -> int:
        """Exit status: 0..255, 128 + signal number when a signal ended it."""
        ...

    async def kill(self) -> None:
        """The client is gone: end the command and let go of its descriptors. May be called twice."""
        ...


class Kubelets(Protocol):
    """All kubelets of the lab as one: the implementation finds the node of the pod.

    The API server has checked that the pod exists and that `container` names one of its containers (init
    and ephemeral ones too). What is not so for the runtime is an ApiError: NotFoundError or a code 400 with
    reason BadRequest, with the words a kubelet uses ('container "c" in pod "p" is waiting to start: ...').
    """

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str,
        options: LogOptions,
    ) -> AsyncIterator[bytes]:
        """An async generator (`async def` with yield). Errors are raised before the first chunk.

        Ends by itself unless `follow`, then when the container is gone for good. The caller closes it
        (`aclose`) when the client leaves.
        """
        ...

    async def exec(
        self,
        namespace: str,
        pod: str,
        container: str,
        command: list[str],
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        tty: bool,
    ) -> ExecSession:
        """Start a command. A program that is not there: ApiError(code=500), the runtime's words."""
        ...
