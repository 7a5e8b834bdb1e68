"""One pod's life on its node: sandbox, address, containers, status, and the end of it.

    live        volumes -> sandbox -> CNI ADD -> init containers -> containers, until they are done for good
    terminate   preStop, SIGTERM, grace, SIGKILL -> CNI DEL -> sandbox -> files -> deletion in the API

Every step finds what an earlier kubelet left (sandbox, address, containers) and goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from podlane.errors import ConflictError, KernelError, NotFoundError
from podlane.lab.client import Obj
from podlane.lab.controllers.facts import is_deleting, seconds
from podlane.lab.kubelet import container_spec, remains
from podlane.lab.kubelet.container import ContainerRunner
from podlane.lab.kubelet.context import NodeContext, PodFiles
from podlane.lab.kubelet.mounting import Mounting
from podlane.lab.kubelet.remains import Remains
from podlane.lab.kubelet.sandbox import Sandbox, SandboxLost
from podlane.lab.kubelet.status import ContainerState, PodState
from podlane.lab.kubelet.status_writer import StatusWriter
from podlane.lab.kubelet.volumes import PodVolumes, write_names
from podlane.lab.runtime import env, volumes
from podlane.lab.supervisor.client import ProcessInfo

AGAIN_S = 1.0


class PodWorker:
    """`run` returns when nothing of the pod is left. processes: those of an earlier kubelet."""

    def __init__(self, node: NodeContext, pod: Obj, processes: Sequence[ProcessInfo] = ()) -> None:
        self.pod = pod
        self._node = node
        self._files = PodFiles.of(node.facts, pod)
        self._volumes = PodVolumes(node, self._files)
        self._mounting = Mounting(
            self._volumes,
            lambda: self.pod,
            lambda reason, text, warning: self._event(reason, text, warning=warning),
            lambda: self._changed(False),
        )
        self._state = PodState(node_addresses=list(node.facts.addresses), started_s=time.time())
        self._sandbox = Sandbox(node, lambda: self.pod, lambda r, m: self._event(r, m, warning=True))
        self._status = StatusWriter(node, lambda: self.pod, self._state)
        self._remains = Remains(node.supervisor)
        self.runners: dict[str, ContainerRunner] = {}
        self._deleted = asyncio.Event()
        self._gone = asyncio.Event()
        self._hurry = asyncio.Event()
        self._moved = asyncio.Event()
        self._torn_down = False
        self._lived = False
        self._make_runners()
        self._adopt(processes)

    @property
    def uid(self) -> str:
        uid: str = self.pod["metadata"]["uid"]
        return uid

    @property
    def _ended_earlier(self) -> bool:
        """It ended under an earlier kubelet, and keeps the status it has."""
        return (self.pod.get("status") or {}).get("phase") in ("Succeeded", "Failed") and not self._lived

    # --- what the API says ---

    def updated(self, pod: Obj) -> None:
        """A newer version of the same pod."""
        old, self.pod = self.pod, pod
        if is_deleting(pod):
            if is_deleting(old) and _grace_s(pod) < _grace_s(old):
                self._hurry.set()
            self._deleted.set()
        if old["metadata"].get("labels") != pod["metadata"].get("labels") or old["metadata"].get(
            "annotations"
        ) != pod["metadata"].get("annotations"):
            self._mounting.changed()
        if old["spec"] is not pod["spec"] and old["spec"] != pod["spec"]:
            self._make_runners()
        self._changed(False)

    def gone(self) -> None:
        """It is no more in the API: end it at once."""
        self._gone.set()
        self._deleted.set()
        self._hurry.set()

    @property
    def is_gone(self) -> bool:
        return self._gone.is_set()

    def services_changed(self) -> None:
        for runner in self.runners.values():
            if runner.pid:
                task = asyncio.create_task(runner.services_changed())
                task.add_done_callback(lambda t: None if t.cancelled() else t.exception())

    def _objects_changed(self) -> None:
        self._mounting.changed()
        for runner in self.runners.values():
            runner.config_changed.set()

    # --- what there is ---

    def _make_runners(self) -> None:
        spec = self.pod["spec"]
        for container in _containers(spec):
            name = container["name"]
            if name in self.runners:
                self.runners[name].redefined(container)
                continue
            kind = container_spec.kind_of(self.pod, container)
            waits = (
                "PodInitializing" if kind == "main" and spec.get("initContainers") else "ContainerCreating"
            )
            state = ContainerState(name, kind, container.get("image") or "", (waits, ""))
            self._state.containers.append(state)
            self.runners[name] = ContainerRunner(
                self._node, self._files, self._volumes, lambda: self.pod, container, state, self._changed
            )

    def _adopt(self, processes: Sequence[ProcessInfo]) -> None:
        if self._ended_earlier:
            self._remains.add(p.pid for p in processes)
            return
        newest: dict[str, ProcessInfo] = {}
        for process in sorted(processes, key=lambda p: p.started):
            if process.kind == "sandbox":
                if process.exit_status is None:
                    self._sandbox.adopt(process.pid)
                    # Until the agent has confirmed them: a status without addresses takes the pod out of
                    # its services.
                    pod_ips = (self.pod.get("status") or {}).get("podIPs") or ()
                    self._state.addresses = [each["ip"] for each in pod_ips]
                    self._state.sandbox = bool(pod_ips)
                else:
                    self._remains.add([process.pid])
            elif process.kind == "container":
                name = process.labels.get(container_spec.LABEL_CONTAINER, "")
                if name in newest:
                    self._remains.add([newest[name].pid])
                newest[name] = process
        for name, process in newest.items():
            if name in self.runners and self._sandbox.there:
                self.runners[name].adopt(process)
            else:
                self._remains.add([process.pid])

    # --- its life ---

    async def run(self) -> None:
        writer = asyncio.create_task(self._keep_status(), name=f"status of {self.pod['metadata']['name']}")
        deleted = asyncio.create_task(self._deleted.wait())
        living = asyncio.create_task(self._live_on())
        try:
            if is_deleting(self.pod):
                self._deleted.set()
            while not deleted.done():
                pending = {task for task in (living, deleted, writer) if not task.done()}
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in (living, writer):
                    if task.done():
                        task.result()  # a fault: the kubelet begins anew with this pod
            living.cancel()
            await asyncio.wait({living})
            await self._terminate()
            writer.cancel()
            await asyncio.wait({writer})
            await self._finally_delete()
        finally:
            for own in (writer, deleted, living):
                own.cancel()
            await asyncio.wait({writer, deleted, living})
            self._node.world.forget(self._objects_changed)
            for runner in self.runners.values():
                runner.release()
            self._sandbox.let_go()

    async def _live_on(self) -> None:
        """Until the containers are done for good; then the pod's network is given back."""
        if self._ended_earlier:
            await self._remains.clear()
            await self._tear_down()
            return
        self._lived = True
        self._changed(False)
        while True:
            try:
                await self._live()
                break
            except* SandboxLost:
                self._event("SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
                await self._stop_all(0.0)
                await self._release_network()
                self._begin_again()
            except* (KernelError, OSError) as failures:
                text = "; ".join(str(e) for e in failures.exceptions)
                self._event("FailedSync", f"error syncing pod: {text}", warning=True)
                await asyncio.sleep(AGAIN_S)
        await self._tear_down()
        self._changed(True)

    async def _live(self) -> None:
        await self._remains.clear()
        await self._mount_volumes()
        async with self._node.world.starts:
            sandbox_pid = await self._sandbox.start(self._volumes.tmpfs)
        addresses = await self._attach()
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(self._sandbox.watch()),
                group.create_task(self._watch_deadline()),
                group.create_task(self._mounting.refresh()),
            ]
            await self._run_containers(group, sandbox_pid, addresses)
            for helper in helpers:
                helper.cancel()

    async def _run_containers(self, group: asyncio.TaskGroup, sandbox_pid: int, addresses: list[str]) -> None:
        sidecars: list[ContainerRunner] = []
        for runner in [r for r in self.runners.values() if r.state.kind in ("init", "sidecar")]:
            if self._state.verdict is not None:
                return
            running = group.create_task(runner.run(sandbox_pid, addresses), name=runner.name)
            if runner.state.kind == "init":
                await asyncio.wait({running})
                ended = runner.state.terminated
                if ended is None or ended.exit_code:
                    await self._stop_sidecars(sidecars)
                    return
            else:
                sidecars.append(runner)
                while not (runner.state.started or runner.state.finished or running.done()):
                    await self._a_change()
        for runner in self.runners.values():
            if runner.state.kind == "main" and runner.state.waiting[0] == "PodInitializing":
                runner.state.waiting = ("ContainerCreating", "")
        mains = [
            group.create_task(runner.run(sandbox_pid, addresses), name=runner.name)
            for runner in self.runners.values()
            if runner.state.kind == "main"
        ]
        known = set(self.runners)
        while not all(task.done() for task in mains):
            for name in self.runners.keys() - known:  # ephemeral containers come later
                group.create_task(self.runners[name].run(sandbox_pid, addresses), name=name)
                known.add(name)
            await self._a_change()
        for task in mains:
            await task
        await self._stop_sidecars(sidecars)

    async def _stop_sidecars(self, sidecars: Sequence[ContainerRunner]) -> None:
        for runner in reversed(sidecars):
            await runner.stop(float(_spec_grace_s(self.pod)), "", for_good=True)

    # --- steps ---

    async def _mount_volumes(self) -> None:
        wanted = volumes.references(self.pod) | env.references(self.pod)
        self._node.world.when_changed(self.pod["metadata"]["namespace"], wanted, self._objects_changed)
        await self._mounting.mount()

    async def _attach(self) -> list[str]:
        addresses = await self._sandbox.attach()
        self._state.addresses, self._state.sandbox = addresses, True
        write_names(self._node, self._files, self.pod, addresses)
        self._changed(False)
        return addresses

    async def _watch_deadline(self) -> None:
        limit = self.pod["spec"].get("activeDeadlineSeconds")
        if limit is None:
            return
        begun_s = seconds((self.pod.get("status") or {}).get("startTime")) or self._state.started_s
        await asyncio.sleep(max(0.0, begun_s + float(limit) - time.time()))
        message = "Pod was active on the node longer than the specified deadline"
        self._state.verdict = ("Failed", "DeadlineExceeded", message)
        self._event("DeadlineExceeded", message)
        self._changed(True)
        await self._stop_all(float(_spec_grace_s(self.pod)))

    # --- the end ---

    async def _terminate(self) -> None:
        """Ends what runs, within the grace that is left; a shorter one may come meanwhile."""
        await self._sandbox.settle()
        grace_s = 0.0 if self._gone.is_set() else float(_grace_s(self.pod))
        while True:
            self._hurry.clear()
            stopping = asyncio.create_task(self._stop_all(grace_s))
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait({stopping, hurry}, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if stopping.done():
                stopping.result()
                break
            stopping.cancel()
            await asyncio.wait({stopping})
            grace_s = 0.0 if self._gone.is_set() else float(_grace_s(self.pod))
        for runner in self.runners.values():
            runner.settle()
        await self._remains.clear()
        await self._tear_down()

    async def _stop_all(self, grace_s: float) -> None:
        """Containers together, then sidecars in reverse, all within the same grace."""
        begun_s = time.monotonic()
        others = [r for r in self.runners.values() if r.state.kind != "sidecar"]
        await asyncio.gather(*(r.stop(grace_s, "", for_good=True) for r in others))
        for runner in reversed([r for r in self.runners.values() if r.state.kind == "sidecar"]):
            left_s = grace_s - (time.monotonic() - begun_s)
            await runner.stop(max(left_s, min(grace_s, 2.0)), "", for_good=True)

    async def _tear_down(self) -> None:
        """Address and sandbox go; files and logs stay until the pod does. May be called again."""
        if self._torn_down:
            return
        await self._release_network()
        self._torn_down = True

    async def _release_network(self) -> None:
        await self._sandbox.release()
        self._state.sandbox = False

    def _begin_again(self) -> None:
        """After the sandbox was lost: every container is started anew."""
        for name, runner in list(self.runners.items()):
            runner.settle()
            runner.release()
            self._remains.add([runner.last_pid])
            old = runner.state
            state = ContainerState(name, old.kind, old.image, last=old.terminated, restarts=old.restarts + 1)
            self._state.containers[self._state.containers.index(old)] = state
            self.runners[name] = ContainerRunner(
                self._node,
                self._files,
                self._volumes,
                lambda: self.pod,
                runner.container,
                state,
                self._changed,
            )

    async def _finally_delete(self) -> None:
        meta = self.pod["metadata"]
        self._remains.add(runner.last_pid for runner in self.runners.values())
        await self._remains.clear()
        await remains.remove(self._files.root, self._node.cgroup(self.uid))
        if self._gone.is_set():
            return
        try:
            if meta.get("finalizers") and self._lived:  # it will be seen for a while
                await self._status.write()
            await self._node.client.delete(
                "pods", meta["name"], meta["namespace"], grace_period_s=0, uid=self.uid
            )
        except (NotFoundError, ConflictError):
            return  # gone already, or another pod of the same name

    # --- status ---

    def _changed(self, urgent: bool) -> None:
        self._moved.set()
        self._status.changed(urgent=urgent)

    async def _a_change(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def _keep_status(self) -> None:
        if self._ended_earlier:
            return
        await self._status.run()

    def _event(self, reason: str, message: str, *, warning: bool = False) -> None:
        self._node.world.event(self.pod, reason, message, warning=warning)


def _containers(spec: Obj) -> list[Obj]:
    return [c for key in ("initContainers", "containers", "ephemeralContainers") for c in spec.get(key) or ()]


def _spec_grace_s(pod: Obj) -> int:
    grace = pod["spec"].get("terminationGracePeriodSeconds")
    return 30 if grace is None else int(grace)


def _grace_s(pod: Obj) -> int:
    """What its deletion allows."""
    grace = pod["metadata"].get("deletionGracePeriodSeconds")
    return _spec_grace_s(pod) if grace is None else int(grace)
