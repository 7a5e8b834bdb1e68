"""What the supervisor does when asked: starts, waits, signals, lists, forgets; and the reaping."""

from __future__ import annotations

import contextlib
import logging
import os
import pty
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from podlane.lab.runtime import pause
from podlane.lab.supervisor import protocol, spawn
from podlane.lab.supervisor.connection import Connection
from podlane.lab.supervisor.logpipe import LogPipe
from podlane.lab.supervisor.loop import Loop
from podlane.lab.supervisor.processes import Process, Service, exit_status

log = logging.getLogger(__name__)

END_TIMEOUT_S = 5.0


class Refusal(Exception):
    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class _Start:
    """A child that is setting itself up; answer is called with its report."""

    def __init__(self, process: Process, reader: int, answer: Callable[[protocol.ChildReport], None]) -> None:
        self.process, self.reader, self.answer = process, reader, answer
        self.report = b""

    def read(self) -> bool:
        """Whether it has said all."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reader, 1 << 16):
                self.report += data
            return True
        return False


class Operations:
    """rootfs: a directory where each container mounts its root, in its own mount namespace."""

    def __init__(self, loop: Loop, rootfs: Path) -> None:
        self._loop = loop
        self._rootfs = rootfs
        self._processes: dict[int, Process] = {}
        self._starting: dict[int, _Start] = {}
        self._services: dict[str, Service] = {}
        self._ending = False
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._pause = pause.prepare()
        self._keep_pause = (self._pause,) if self._pause >= 0 else ()

    def handle(self, connection: Connection, call: protocol.Call, descriptors: list[int]) -> None:
        """Raises Refusal, PodlaneError or OSError; the caller closes the descriptors."""
        request = call.request

        def started(process: Process, report: protocol.ChildReport) -> None:
            if report.error:
                connection.refuse(call.id, report.error, report.reason)
            else:
                connection.answer(call.id, protocol.Started(process.pid, report.ran))

        match request:
            case protocol.StartAnchor():
                child = spawn.anchor(request, self._pause)
                self._start(request.name, "anchor", child, started, keep=self._keep_pause)
            case protocol.StartService():
                self._first_start(request, descriptors, started)
            case protocol.StartSandbox():
                self._start_sandbox(request, started)
            case protocol.StartContainer():
                self._start_container(request.spec, started)
            case protocol.Exec():
                self._exec(request, descriptors, connection, started)
            case protocol.Wait():
                self._wait(request.pid, connection, call.id)
            case protocol.Signal():
                process = self._process(request.pid)
                if process.running:
                    os.kill(process.pid, request.signal)
                connection.answer(call.id)
            case protocol.List():
                connection.answer(call.id, [p.info for p in self._processes.values()])
            case protocol.Forget():
                process = self._process(request.pid)
                if process.running:
                    raise Refusal(f"{process.name} (pid {process.pid}) still runs")
                del self._processes[process.pid]
                connection.answer(call.id)
            case protocol.Stop():
                self._stop(request.name)
                connection.answer(call.id)

    def _process(self, pid: int) -> Process:
        process = self._processes.get(pid)
        if process is None:
            raise Refusal(f"no process {pid} in this lab", "NotFound")
        return process

    # --- starting ---

    def _start(
        self,
        name: str,
        kind: str,
        child: spawn.Child,
        started: Callable[[Process, protocol.ChildReport], None],
        *,
        stdio: tuple[int, int, int] | None = None,
        keep: tuple[int, ...] = (),
        pid_namespace: int = 0,
    ) -> Process:
        if self._ending:
            raise Refusal("the lab is ending")
        null = self._null
        pid, reader = spawn.fork(
            child, stdio=stdio or (null, null, 2), keep=keep, pid_namespace=pid_namespace
        )
        process = Process(pid, name, kind, time.time(), time.monotonic())
        self._processes[pid] = process
        self._starting[pid] = start = _Start(process, reader, lambda report: started(process, report))
        self._loop.add_reader(reader, lambda: self._reported(start))
        return process

    def _reported(self, start: _Start) -> None:
        if not start.read():
            return
        self._loop.remove(start.reader)
        os.close(start.reader)
        process = start.process
        del self._starting[process.pid]
        report = protocol.ChildReport()
        if start.report:
            report = msgspec.json.decode(start.report, type=protocol.ChildReport)
        process.ran = report.ran
        if process.service is not None:
            if not report.error:
                process.service.begun = True
            elif not process.service.begun:
                self._services.pop(process.name, None)
                process.service.stopped = True
                process.service.release()
        elif report.error:
            # It never ran: nobody but the asker knows its pid.
            process.kind = "failed"
            if not process.running:
                self._processes.pop(process.pid, None)
        start.answer(report)

    def _first_start(
        self,
        request: protocol.StartService,
        descriptors: list[int],
        started: Callable[[Process, protocol.ChildReport], None],
    ) -> None:
        service = Service(request, tuple(os.dup(fd) for fd in descriptors))
        try:
            self._start_service(service, started)
        except BaseException:
            service.release()
            raise

    def _start_service(
        self, service: Service, started: Callable[[Process, protocol.ChildReport], None]
    ) -> None:
        request = service.request
        if self._services.get(request.name, service) is not service:
            raise Refusal(f"service {request.name} is running already")
        log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            process = self._start(
                request.name,
                "service",
                spawn.service(request, service.descriptors),
                started,
                stdio=(self._null, log, log),
                keep=service.descriptors,
            )
        finally:
            os.close(log)
        process.service = self._services[request.name] = service

    def _stop(self, name: str) -> None:
        service = self._services.pop(name, None)
        if service is None:
            raise Refusal(f"no service {name!r} in this lab", "NotFound")
        service.stopped = True
        service.release()
        for process in self._processes.values():
            if process.service is service and process.running:
                os.kill(process.pid, signal.SIGTERM)

    def _start_sandbox(
        self,
        request: protocol.StartSandbox,
        started: Callable[[Process, protocol.ChildReport], None],
    ) -> None:
        from podlane.lab.runtime import container

        process = self._start(
            request.name,
            "sandbox",
            container.sandbox(request, self._pause),
            started,
            keep=self._keep_pause,
            pid_namespace=spawn.NEW_PID_NAMESPACE if request.share_pid else 0,
        )
        process.labels = request.labels

    def _start_container(
        self,
        spec: protocol.ContainerSpec,
        started: Callable[[Process, protocol.ChildReport], None],
    ) -> None:
        from podlane.lab.runtime import container

        self._rootfs.mkdir(mode=0o700, exist_ok=True)
        opened: list[int] = []
        held: list[int] = []
        reader = -1
        try:
            config = -1
            if spec.responder:
                config = os.open(spec.responder, os.O_RDONLY | os.O_CLOEXEC)
                opened.append(config)
            if spec.tty:
                reader, slave = pty.openpty()
                opened.append(slave)
                stdio = (slave, slave, slave)
            else:
                reader, writer = os.pipe2(os.O_CLOEXEC)
                opened.append(writer)
                stdin = self._null
                if spec.stdin:
                    stdin, keeper = os.pipe2(os.O_CLOEXEC)
                    opened.append(stdin)
                    held.append(keeper)
                stdio = (stdin, writer, writer)
            log = LogPipe(reader, spec.log)
            process = self._start(
                spec.name,
                "container",
                container.container(spec, str(self._rootfs), config),
                started,
                stdio=stdio,
                keep=(config,) if config >= 0 else (),
                pid_namespace=spec.sandbox_pid if spec.share_pid else spawn.NEW_PID_NAMESPACE,
            )
        except BaseException:
            held += [reader] if reader >= 0 else []
            for fd in held:
                os.close(fd)
            raise
        finally:
            for fd in opened:
                os.close(fd)
        process.labels, process.container, process.log, process.held = spec.labels, spec, log, held
        self._loop.add_reader(log.fd, lambda: self._log_readable(process))

    def _log_readable(self, process: Process) -> None:
        pipe = process.log
        if pipe is None:
            return
        if not pipe.read():
            self._end_log(process)
        elif (rest_s := pipe.rest_s(time.monotonic())) > 0:
            self._loop.remove(pipe.fd)
            process.log_rests = True
            self._loop.after(rest_s, lambda: self._log_again(process))

    def _log_again(self, process: Process) -> None:
        process.log_rests = False
        if process.log is not None:
            self._loop.add_reader(process.log.fd, lambda: self._log_readable(process))

    def _end_log(self, process: Process) -> None:
        if process.log is not None:
            if not process.log_rests:
                self._loop.remove(process.log.fd)
            process.log.close()
            process.log = None

    def _exec(
        self,
        request: protocol.Exec,
        descriptors: list[int],
        connection: Connection,
        started: Callable[[Process, protocol.ChildReport], None],
    ) -> None:
        from podlane.lab.runtime import container

        target = self._process(request.pid)
        if target.container is None or not target.running:
            raise Refusal(f"process {request.pid} is no running container", "NotFound")
        if len(descriptors) != 3 or not request.argv:
            raise Refusal("exec wants a command and three descriptors")
        stdin, stdout, stderr = descriptors
        process = self._start(
            target.name,
            "exec",
            container.command(target.container, target.pid, request),
            started,
            stdio=(stdin, stdout, stderr),
            pid_namespace=target.pid,
        )
        process.labels, process.owner = target.labels, connection

    # --- ending ---

    def _wait(self, pid: int, connection: Connection, number: int) -> None:
        def ended(process: Process) -> None:
            connection.answer(number, process.info)
            if process.kind == "exec":
                self._processes.pop(process.pid, None)

        process = self._process(pid)
        if process.running:
            process.waiters.append(ended)
        else:
            ended(process)

    def reap(self) -> None:
        """Every child that has ended. Orphans come here too (subreaper); nobody asks for them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (process := self._processes.get(pid)) is not None:
                self._ended(process, exit_status(status))

    def _ended(self, process: Process, status: int) -> None:
        process.exit_status, process.ended = status, time.time()
        process.release()
        if process.log is not None:
            process.log.drain()
            self._end_log(process)
        if (start := self._starting.get(process.pid)) is not None:
            self._reported(start)
        for waiter in process.waiters:
            waiter(process)
        process.waiters.clear()
        if process.service is not None:
            self._service_ended(process, process.service)
        elif process.kind == "failed" or (process.kind == "exec" and process.owner is None):
            self._processes.pop(process.pid, None)

    def _service_ended(self, process: Process, service: Service) -> None:
        self._processes.pop(process.pid, None)
        if self._ending or service.stopped:
            return
        if not service.request.restart:
            service.release()
            self._services.pop(process.name, None)
            return
        self._start_later(service, time.monotonic() - process.started_clock_s)

    def _start_later(self, service: Service, ran_s: float) -> None:
        def again() -> None:
            if self._ending or service.stopped:
                return
            try:
                self._start_service(service, lambda _process, _report: None)
            except OSError as error:
                log.warning("service %s: %s", service.request.name, error)
                self._start_later(service, 0.0)

        self._loop.after(service.next_delay_s(ran_s), again)

    def abandoned_by(self, connection: Connection) -> None:
        """Commands end with the connection that asked for them."""
        for process in list(self._processes.values()):
            if process.owner is connection:
                process.owner = None
                if process.running:
                    os.kill(process.pid, signal.SIGKILL)
                else:
                    self._processes.pop(process.pid, None)

    def end_all(self) -> None:
        """Kills every process and waits until they are gone."""
        self._ending = True
        for process in self._processes.values():
            if process.running:
                os.kill(process.pid, signal.SIGKILL)
        deadline_s = time.monotonic() + END_TIMEOUT_S
        while any(p.running for p in self._processes.values()) and time.monotonic() < deadline_s:
            self.reap()
            time.sleep(0.002)
