"""The processes of a lab: what runs, what has ended and is not forgotten, who waits for which."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from podlane.lab.supervisor import protocol
from podlane.lab.supervisor.logpipe import LogPipe

BACKOFF_FIRST_S, BACKOFF_LAST_S = 0.1, 5.0
BACKOFF_FORGIVEN_S = 10.0  # a service that ran this long begins again with the first delay

Waiter = Callable[["Process"], None]


@dataclass(eq=False)
class Service:
    """A process that is started again when it ends. delay_s: before the next start.

    begun: it has been set up once; what fails before that is not tried again. descriptors: open in each of
    its processes, until it is stopped.
    """

    request: protocol.StartService
    descriptors: tuple[int, ...] = ()
    delay_s: float = BACKOFF_FIRST_S
    begun: bool = False
    stopped: bool = False

    def next_delay_s(self, ran_s: float) -> float:
        if ran_s >= BACKOFF_FORGIVEN_S:
            self.delay_s = BACKOFF_FIRST_S
        delay_s = self.delay_s
        self.delay_s = min(2 * delay_s, BACKOFF_LAST_S)
        return delay_s

    def release(self) -> None:
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = ()


@dataclass(eq=False)
class Process:
    """started, ended: Unix seconds. started_clock_s: monotonic. held: descriptors open while it lives."""

    pid: int
    name: str
    kind: str
    started: float
    started_clock_s: float
    labels: dict[str, str] = field(default_factory=dict)
    container: protocol.ContainerSpec | None = None
    service: Service | None = None
    owner: object = None
    exit_status: int | None = None
    ended: float = 0.0
    ran: str = ""
    log: LogPipe | None = None
    log_rests: bool = False
    held: list[int] = field(default_factory=list)
    waiters: list[Waiter] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return self.exit_status is None

    @property
    def info(self) -> protocol.ProcessInfo:
        return protocol.ProcessInfo(
            self.name,
            self.kind,
            self.pid,
            self.started,
            self.exit_status,
            self.labels,
            self.ended,
            self.ran,
        )

    def release(self) -> None:
        for fd in self.held:
            os.close(fd)
        self.held.clear()


def exit_status(status: int) -> int:
    """Of a wait status (waitpid(2)): 0..255, 128 + signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
