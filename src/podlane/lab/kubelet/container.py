"""One container of a pod, through all its restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence

import msgspec

from podlane.errors import LabError
from podlane.lab.client import Obj
from podlane.lab.kubelet import container_spec, probes, probing, restarts
from podlane.lab.kubelet import logs as log_files
from podlane.lab.kubelet.context import NodeContext, PodFiles
from podlane.lab.kubelet.health import Health
from podlane.lab.kubelet.status import ContainerState, Terminated
from podlane.lab.kubelet.volumes import PodVolumes
from podlane.lab.runtime import env, names
from podlane.lab.runtime.env import ConfigMissing
from podlane.lab.supervisor.client import ProcessInfo, Started
from podlane.lab.supervisor.protocol import Mount

CONFIG_AGAIN_S = 2.0
FROM_LOG = "FallbackToLogsOnError"
LEAST_GRACE_S = 2.0  # after a preStop hook that took all the grace there was (kuberuntime_container.go)


class ContainerRunner:
    """`run` starts it, again as its policy says, and returns when it will not be started any more.

    `stop` ends the process that runs. Both go through `state`, which the pod's status is made from;
    changed(urgent) is called whenever it has changed.
    """

    def __init__(
        self,
        node: NodeContext,
        files: PodFiles,
        volumes: PodVolumes,
        pod: Callable[[], Obj],
        container: Obj,
        state: ContainerState,
        changed: Callable[[bool], None],
    ) -> None:
        self._node, self._files, self._volumes = node, files, volumes
        self._pod, self.container, self.state, self._changed = pod, container, state, changed
        self._starting: asyncio.Task[Started] | None = None
        self._exit: asyncio.Task[ProcessInfo] | None = None
        self._pid = 0
        self._old_pid = 0
        self._backoff = restarts.Backoff()
        self._stopping = asyncio.Event()
        self._adopted = False
        self._stop_task: asyncio.Task[None] | None = None
        self.config_changed = asyncio.Event()

    @property
    def name(self) -> str:
        return self.state.name

    @property
    def pid(self) -> int:
        """Of the process that runs; 0 when none does."""
        return self._pid if self._exit is not None and not self._exit.done() else 0

    @property
    def last_pid(self) -> int:
        """Of the newest process, running or not."""
        return self._pid

    def adopt(self, process: ProcessInfo) -> None:
        """A process of an earlier kubelet; it may have ended."""
        state = self.state
        state.restarts = int(process.labels.get(container_spec.LABEL_RESTART, 0))
        self._began(Started(process.pid, process.ran), process.started)
        self._adopted = True
        # What its probes said is in the status that was written.
        pod_status = self._pod().get("status") or {}
        for key in ("containerStatuses", "initContainerStatuses"):
            for old in pod_status.get(key) or ():
                if old.get("name") == self.name and old.get("restartCount") == state.restarts:
                    state.started = state.started or bool(old.get("started"))
                    state.ready = state.started and (state.ready or bool(old.get("ready")))

    async def run(self, sandbox_pid: int, addresses: list[str]) -> None:
        """Raises LabError when the supervisor is gone."""
        while True:
            if self._exit is None:
                if self._stopping.is_set():
                    self.state.finished = True
                    self._changed(True)
                    return
                try:
                    await self._start(sandbox_pid, addresses)
                except ConfigMissing as error:
                    await self._wait_for_config(error)
                    continue
            if self._exit is not None:
                await self._attend(addresses[0] if addresses else "")
            if self._ends_here():
                self.state.finished = True
                self._changed(True)
                return
            await self._back_off()

    # --- starting ---

    async def _start(self, sandbox_pid: int, addresses: list[str]) -> None:
        """A process, or a state that says why there is none. Cancelled, the start still completes."""
        pod, state = self._pod(), self.state
        if state.terminated is not None:
            state.last, state.terminated = state.terminated, None
            state.restarts += 1
            state.waiting = ("ContainerCreating", "")
        with_addresses = _with_addresses(pod, addresses, self._node.facts.addresses)
        objects = await self._node.world.objects(pod["metadata"]["namespace"], env.references(pod))
        domain = self._node.facts.config.cluster_domain
        host_network = bool(pod["spec"].get("hostNetwork"))
        hostname = self._node.name if host_network else names.kernel_hostname(pod, domain)
        variables = env.environment(
            self.container,
            with_addresses,
            objects,
            await self._node.world.services_seen_by(pod),
            hostname,
        )
        directory = self._files.container(self.name)
        directory.mkdir(parents=True, exist_ok=True)
        self._write_responder(pod)
        for old in directory.glob("*.log*"):
            if int(old.name.partition(".")[0]) < state.restarts - 1:
                old.unlink()
        termination = self._files.termination(self.name, state.restarts)
        termination.touch()
        message_path = self.container.get("terminationMessagePath") or "/dev/termination-log"
        spec = container_spec.container_spec(
            pod,
            self.container,
            node=self._node.name,
            restart=state.restarts,
            sandbox_pid=sandbox_pid,
            cgroup=str(self._node.cgroup(pod["metadata"]["uid"])),
            log=str(self._files.log(self.name, state.restarts)),
            responder=str(self._files.responder(self.name)),
            variables=variables,
            hostname=hostname,
            mounts=[
                *self._volumes.mounts(pod, self.container, variables),
                Mount(source=str(termination), target=message_path),
            ],
            hidden=self._node.hidden,
        )
        image = self.container.get("image") or ""
        if not state.restarts:
            self._event("Pulled", f'Container image "{image}" already present on machine')
        async with self._node.world.starts:
            self._starting = asyncio.create_task(self._node.supervisor.start_container(spec))
            await asyncio.wait({self._starting})
        try:
            started = self._starting.result()
        except LabError as error:
            self._starting = None
            self._failed_to_start(str(error))
            return
        self._starting = None
        self._adopted = False
        self._event("Created", f"Container created: {self.name}")
        self._began(started, time.time())
        self._event("Started", f"Container started: {self.name}")
        self._tell_what_ran(started.ran, spec.argv)

    def _began(self, started: Started, at_s: float) -> None:
        state = self.state
        self._old_pid, self._pid = self._pid, started.pid
        self._exit = asyncio.create_task(self._node.supervisor.wait(started.pid), name=f"exit of {self.name}")
        self._exit.add_done_callback(_retrieved)
        state.ran = started.ran
        state.waiting = ("", "")
        state.running_since_s = at_s
        state.container_id = f"podlane://{self._pod()['metadata']['uid']}-{self.name}-{state.restarts}"
        state.started = probes.parse(self.container, probes.Kind.STARTUP) is None
        state.ready = state.started and probes.parse(self.container, probes.Kind.READINESS) is None
        self._changed(state.ready)

    def _failed_to_start(self, why: str) -> None:
        self._event("Failed", f"Error: {why}", warning=True)
        now_s = time.time()
        self.state.container_id = (
            f"podlane://{self._pod()['metadata']['uid']}-{self.name}-{self.state.restarts}"
        )
        self.state.terminated = Terminated(
            128, "StartError", now_s, now_s, f"failed to start container: {why}", self.state.container_id
        )
        self.state.waiting = ("RunContainerError", why)
        self._changed(False)

    def _tell_what_ran(self, ran: str, argv: list[str]) -> None:
        for reason, text, warning in container_spec.remarks(self.container, ran, argv):
            self._event(reason, text, warning=warning)

    async def _wait_for_config(self, error: ConfigMissing) -> None:
        if self.state.waiting != (error.reason, str(error)):
            self.state.waiting = (error.reason, str(error))
            self._event("Failed", f"Error: {error}", warning=True)
            self._changed(False)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.config_changed.wait(), CONFIG_AGAIN_S)
        self.config_changed.clear()  # set by `stop` too

    # --- running ---

    async def _attend(self, address: str) -> None:
        """Hooks and probes while it runs; then how it ended."""
        assert self._exit is not None
        if self._old_pid:
            with contextlib.suppress(LabError):  # forgotten already
                await self._node.supervisor.forget(self._old_pid)
            self._old_pid = 0
        await self.services_changed()  # since its configuration was written
        health = Health(
            self.container,
            self.state,
            self._target(address),
            self._node.supervisor,
            changed=lambda: self._changed(True),
            say=lambda reason, text, warning: self._event(reason, text, warning=warning),
            kill=self._kill,
        )
        work = asyncio.create_task(health.watch(began_now=not self._adopted), name=f"probes of {self.name}")
        try:
            await asyncio.wait({self._exit})
        finally:
            work.cancel()
            await asyncio.wait({work})
        self._ended(self._exit.result())
        if not work.cancelled() and (failure := work.exception()) is not None:
            raise failure

    def _target(self, address: str) -> probing.Target:
        responder = self.state.ran == "responder"
        return probing.Target(self.container, self._pid, address, self._node.netns, responder)

    def _kill(self, why: str, grace_s: float | None) -> None:
        """Soon: who asks is ended together with the process."""
        if grace_s is None:
            grace = self._pod()["spec"].get("terminationGracePeriodSeconds")
            grace_s = 30.0 if grace is None else float(grace)
        self._stop_task = asyncio.create_task(self.stop(grace_s, why))
        self._stop_task.add_done_callback(_retrieved)

    def redefined(self, container: Obj) -> None:
        """A newer version of its definition: another image means another process."""
        changed = container.get("image") != self.container.get("image")
        self.container = container
        self.state.image = container.get("image") or ""
        if changed and self.pid:
            self._kill(f"Container {self.name} definition changed, will be restarted", None)

    def _ended(self, process: ProcessInfo) -> None:
        state = self.state
        status = process.exit_status or 0
        state.terminated = Terminated(
            status,
            "Completed" if status == 0 else "Error",
            state.running_since_s or process.started,
            process.ended,
            log_files.last_words(
                self._files.termination(self.name, state.restarts),
                self._files.log(self.name, state.restarts),
                from_log=bool(status) and self.container.get("terminationMessagePolicy") == FROM_LOG,
            ),
            state.container_id,
        )
        self._backoff.ran(process.ended - process.started)
        state.running_since_s = None
        state.ready = state.started = False
        self._exit = None
        self._changed(True)

    # --- again? ---

    def _ends_here(self) -> bool:
        """Whether what has ended (or could not start) is not to be started again."""
        if self._stopping.is_set():
            return True
        if self.state.terminated is None:
            return False
        policy = self._pod()["spec"].get("restartPolicy") or "Always"
        return not restarts.again(policy, self.state.kind, self.state.terminated.exit_code)

    async def _back_off(self) -> None:
        delay_s = self._backoff.next_s()
        if not delay_s:
            return
        pod = self._pod()["metadata"]
        where = f"{self.name} pod={pod['name']}_{pod['namespace']}({pod['uid']})"
        text = f"back-off {delay_s:g}s restarting failed container={where}"
        self.state.waiting = ("CrashLoopBackOff", text)
        self._event("BackOff", text.replace("back-off", "Back-off", 1), warning=True)
        self._changed(False)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), delay_s)

    # --- ending ---

    async def stop(self, grace_s: float, why: str, *, for_good: bool = False) -> None:
        """preStop, SIGTERM, and SIGKILL when the grace is over. Returns when the process is gone.

        for_good: it is not to be started again.
        """
        if for_good:
            self._stopping.set()
            self.config_changed.set()
        if self._starting is not None:
            await asyncio.wait({self._starting})
            if self._starting is not None and self._starting.exception() is None:
                self._began(self._starting.result(), time.time())
                self._starting = None
        if self._exit is None or self._exit.done():
            return
        self._event("Killing", why or f"Stopping container {self.name}")
        supervisor, pid, ended = self._node.supervisor, self._pid, self._exit
        begun_s = time.monotonic()
        hook = (self.container.get("lifecycle") or {}).get("preStop")
        if hook and grace_s > 0:
            await self._pre_stop(hook, grace_s, ended)
        left_s = grace_s - (time.monotonic() - begun_s)
        if grace_s > 0:
            with contextlib.suppress(LabError):
                await supervisor.signal(pid, self._stop_signal())
            await asyncio.wait({ended}, timeout=max(left_s, min(LEAST_GRACE_S, grace_s)))
        while not ended.done():
            with contextlib.suppress(LabError):
                await supervisor.signal(pid, signal.SIGKILL)
            await asyncio.wait({ended}, timeout=1.0)

    async def _pre_stop(self, hook: Obj, grace_s: float, ended: asyncio.Task[ProcessInfo]) -> None:
        addresses = [e["ip"] for e in (self._pod().get("status") or {}).get("podIPs") or ()]
        target = self._target(addresses[0] if addresses else "")
        acting = asyncio.create_task(probing.act(hook, target, self._node.supervisor, grace_s))
        try:
            await asyncio.wait({acting, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            acting.cancel()
        await asyncio.wait({acting})
        if acting.cancelled():
            return
        outcome = acting.result()
        if not outcome.ok and not outcome.absent:
            self._event("FailedPreStopHook", f"PreStopHook failed: {outcome.text}", warning=True)

    def _stop_signal(self) -> int:
        name = (self.container.get("lifecycle") or {}).get("stopSignal") or "SIGTERM"
        return int(getattr(signal, name, signal.SIGTERM))

    def settle(self) -> None:
        """After `stop`, outside of `run`: take note of how it ended."""
        if self._exit is not None and self._exit.done() and not self._exit.cancelled():
            self._ended(self._exit.result())
        self.state.finished = True

    def release(self) -> None:
        """This kubelet goes; the process stays."""
        for task in (self._exit, self._starting):
            if task is not None:
                task.cancel()

    # --- the responder's ports ---

    def _write_responder(self, pod: Obj) -> bool:
        services = self._node.world.services_of(pod)
        config = container_spec.responder_config(pod, self.container, self._node.name, services)
        data = msgspec.json.encode(config)
        path = self._files.responder(self.name)
        if path.exists() and path.read_bytes() == data:
            return False
        # In place: the running responder holds the file open.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.truncate()
        return True

    async def services_changed(self) -> None:
        """The services that select the pod may be others now."""
        if self.pid and self.state.ran == "responder" and self._write_responder(self._pod()):
            with contextlib.suppress(LabError):  # it has just ended
                await self._node.supervisor.signal(self._pid, signal.SIGHUP)

    def _event(self, reason: str, message: str, *, warning: bool = False) -> None:
        self._node.world.event(self._pod(), reason, message, warning=warning)


def _with_addresses(pod: Obj, addresses: Sequence[str], hosts: Sequence[str]) -> Obj:
    """The pod as its environment sees it: its addresses may not be in the API yet."""
    status = {**(pod.get("status") or {}), "podIPs": [{"ip": a} for a in addresses]}
    status["podIP"] = addresses[0] if addresses else ""
    status["hostIP"] = hosts[0] if hosts else ""
    status["hostIPs"] = [{"ip": a} for a in hosts]
    return {**pod, "status": status}


def _retrieved(task: asyncio.Task[object]) -> None:
    """Whoever awaits the task hears of its failure; if nobody does any more, it is no news."""
    if not task.cancelled():
        task.exception()
