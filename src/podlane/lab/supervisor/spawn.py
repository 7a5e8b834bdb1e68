"""Forking a child of the supervisor, and the first steps every child takes.

A child never returns to the supervisor's loop: whatever happens in it ends in os._exit. It says how its
setting up went on a pipe that closes when it is done (or by exec), so the supervisor never waits for it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from podlane.errors import PodlaneError
from podlane.lab.runtime import syscalls
from podlane.lab.runtime.pause import pause
from podlane.lab.supervisor import protocol

NEW_PID_NAMESPACE = -1
FAILED = 70  # sysexits.h EX_SOFTWARE


class Report:
    """The child's end of the pipe. `failed` may be followed by nothing but the child's end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def done(self, ran: str = "") -> None:
        if ran:
            os.write(self.fd, msgspec.json.encode(protocol.ChildReport(ran=ran)))
        os.close(self.fd)

    def failed(self, error: BaseException, reason: str = "") -> None:
        if isinstance(error, OSError) and error.strerror and error.filename is None:
            text = error.strerror  # without the number that str() puts before it
        else:
            text = str(error) if isinstance(error, PodlaneError | OSError) else repr(error)
        os.write(self.fd, msgspec.json.encode(protocol.ChildReport(error=text, reason=reason)))


Child = Callable[[Report], None]


def fork(
    child: Child, *, stdio: tuple[int, int, int], keep: Sequence[int] = (), pid_namespace: int = 0
) -> tuple[int, int]:
    """Returns (pid, the report's reading end, non-blocking).

    stdio: descriptors for 0, 1 and 2. keep: others that stay open. pid_namespace: NEW_PID_NAMESPACE, or a
    process whose PID namespace the child joins; 0: the supervisor's own.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(writer, True)
    home = _enter_pid_namespace(pid_namespace)
    before = syscalls.block_signals()
    try:
        pid = os.fork()
        if pid == 0:
            _run(child, Report(writer), stdio, keep)
    except BaseException:
        os.close(reader)
        raise
    finally:
        syscalls.restore_signals(before)
        if home >= 0:
            syscalls.setns(home, syscalls.CLONE_NEWPID)
            os.close(home)
        os.close(writer)
    return pid, reader


def _enter_pid_namespace(which: int) -> int:
    """Children forked from now on are in that namespace. Returns the way back, -1 when nothing changed."""
    if not which:
        return -1
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if which == NEW_PID_NAMESPACE:
            syscalls.unshare(syscalls.CLONE_NEWPID)
        else:
            syscalls.join_namespaces(which, "pid")
    except BaseException:
        os.close(home)
        raise
    return home


def _run(child: Child, report: Report, stdio: tuple[int, int, int], keep: Sequence[int]) -> NoReturn:
    status = FAILED
    try:
        _settle(report, stdio, keep)
        try:
            child(report)
            status = 0
        except SystemExit as ending:
            status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        except BaseException as error:
            if _open(report.fd):
                report.failed(error, "NotFound" if isinstance(error, FileNotFoundError) else "")
            else:
                traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _settle(report: Report, stdio: tuple[int, int, int], keep: Sequence[int]) -> None:
    """Of the supervisor nothing stays but what was given: no handler, no descriptor, no process group."""
    signal.set_wakeup_fd(-1)
    syscalls.default_signals()
    os.setsid()
    # Above the range of 0..2 first: one of the three may be another's source.
    raised = [os.dup(fd) if fd < 3 else fd for fd in stdio]
    for target, fd in enumerate(raised):
        os.dup2(fd, target, inheritable=True)
    start = 3
    for fd in sorted({report.fd, *keep}):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
    syscalls.restore_signals()


def _open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def join_cgroup(directory: str) -> None:
    """The calling process moves into a cgroup v2 directory; "" leaves it where it is."""
    if directory:
        with open(f"{directory}/cgroup.procs", "w") as procs:
            procs.write("0")


def anchor(request: protocol.StartAnchor, pause_fd: int) -> Child:
    def run(report: Report) -> None:
        syscalls.set_process_name(f"pl-{request.name}")
        join_cgroup(request.cgroup)
        kinds = syscalls.CLONE_NEWNET | syscalls.CLONE_NEWUTS
        syscalls.unshare(kinds | (syscalls.CLONE_NEWNS if request.new_mount else 0))
        if request.hostname:
            syscalls.set_hostname(request.hostname)
        if request.new_mount:
            syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
            for source, target in request.binds:
                syscalls.mount(source, target, flags=syscalls.MS_BIND)
        report.done()
        pause(pause_fd, f"podlane: {request.name}")

    return run


def service(request: protocol.StartService, descriptors: Sequence[int]) -> Child:
    def run(report: Report) -> None:
        syscalls.set_process_name(f"pl-{request.name}")
        # A lab without its supervisor is over; containers end with the cgroup.
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        join_cgroup(request.cgroup)
        if request.join:
            syscalls.join_namespaces(request.join, "uts", "net", "mnt")
        os.chdir("/")
        report.done()
        module, _, function = request.entry.partition(":")
        getattr(importlib.import_module(module), function)(
            request.options | ({"descriptors": list(descriptors)} if descriptors else {})
        )

    return run
