"""Running a command in a container from this process, with this process's own stdin, stdout and stderr.

They are handed to the command as they are. On a terminal the command gets a new one instead, so that its
job control and size are its own; bytes go between the two until it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path

from podlane.errors import LabError
from podlane.lab.supervisor.client import ProcessInfo, Supervisor, SupervisorRefusal

NOT_FOUND = 127  # what a shell says
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def run(socket_path: Path, namespace: str, pod: str, container: str, argv: Sequence[str]) -> int:
    """The command's exit status. container "": the pod's first. Raises LabError."""
    with Supervisor(socket_path) as supervisor:
        target = _find(supervisor, namespace, pod, container)
        try:
            if sys.stdin.isatty() and sys.stdout.isatty():
                return _with_terminal(supervisor, target.pid, argv)
            return _with_own(supervisor, target.pid, argv)
        except SupervisorRefusal as refusal:
            if refusal.reason != "NotFound":
                raise
            print(f"podlane: {pod}: {refusal}", file=sys.stderr)
            return NOT_FOUND


def _find(supervisor: Supervisor, namespace: str, pod: str, container: str) -> ProcessInfo:
    running = [p for p in supervisor.list() if p.kind == "container" and p.exit_status is None]
    of_pod = [p for p in running if (p.labels["namespace"], p.labels["pod"]) == (namespace, pod)]
    if not of_pod:
        names = {f"{p.labels['namespace']}/{p.labels['pod']}".removeprefix(f"{namespace}/") for p in running}
        known = ", ".join(sorted(names)[:10]) or "none"
        raise LabError(f"no running pod {pod!r} in namespace {namespace!r}; running pods: {known}")
    mains = [p for p in of_pod if p.labels["kind"] == "main"] or of_pod
    if not container:
        return min(mains, key=lambda p: (int(p.labels["index"]), p.pid))
    for process in of_pod:
        if process.labels["container"] == container:
            return process
    known = ", ".join(p.labels["container"] for p in of_pod)
    raise LabError(f"pod {pod!r} runs no container {container!r}; it has {known}")


def _with_own(supervisor: Supervisor, target: int, argv: Sequence[str]) -> int:
    pid = supervisor.exec(target, argv)
    with _forwarding(supervisor, pid):
        return supervisor.wait(pid)


@contextlib.contextmanager
def _forwarding(supervisor: Supervisor, pid: int) -> Iterator[None]:
    """Signals this process gets go to the command; it decides what they mean."""
    path = supervisor.path

    def forward(number: int, _: object) -> None:
        # Another connection: the first one waits for the answer to `wait`.
        with contextlib.suppress(LabError), Supervisor(path) as another:
            another.signal(pid, number)

    old = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _with_terminal(supervisor: Supervisor, target: int, argv: Sequence[str]) -> int:
    master, slave = pty.openpty()
    try:
        _copy_size(0, master)
        try:
            env = {"TERM": os.environ.get("TERM", "xterm")}
            pid = supervisor.exec(target, argv, tty=True, env=env, fds=(slave, slave, slave))
        finally:
            os.close(slave)
        before = termios.tcgetattr(0)
        old = signal.signal(signal.SIGWINCH, lambda *_: _copy_size(0, master))
        try:
            tty.setraw(0, termios.TCSANOW)  # what was typed already is kept
            _copy(master)
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
            signal.signal(signal.SIGWINCH, old)
        return supervisor.wait(pid)
    finally:
        os.close(master)


def _copy(master: int) -> None:
    """Both ways, until nobody holds the command's terminal any more."""
    sources = [master, 0]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if master in ready:
            try:
                data = os.read(master, 1 << 16)
            except OSError:  # EIO
                return
            if not data:
                return
            os.write(1, data)
        if 0 in ready:
            data = os.read(0, 1 << 12)
            if data:
                os.write(master, data)
            else:
                sources.remove(0)


def _copy_size(source: int, target: int) -> None:
    with contextlib.suppress(OSError):
        size = fcntl.ioctl(source, termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(target, termios.TIOCSWINSZ, size)
