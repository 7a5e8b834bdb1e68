"""A node's kubelet: it registers the node and gives every pod bound to it a worker.

It holds nothing that it could not find again: pods are in the API, processes with the supervisor,
addresses with the agent. Killed at any moment, the next one goes on without restarting a container.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from podlane.errors import AlreadyExistsError, ApiError, ConflictError, LabError, NotFoundError
from podlane.kernel import netns
from podlane.lab.api.streams import ExecSession, LogOptions
from podlane.lab.client import ApiClient, Obj
from podlane.lab.kubelet import logs as log_files
from podlane.lab.kubelet import node as node_objects
from podlane.lab.kubelet import world as worlds
from podlane.lab.kubelet.attachment import Attachments
from podlane.lab.kubelet.container import ContainerRunner
from podlane.lab.kubelet.container_spec import LABEL_NAMESPACE, LABEL_NODE, LABEL_POD, LABEL_UID
from podlane.lab.kubelet.context import NodeContext, NodeFacts, PodFiles
from podlane.lab.kubelet.execs import Session
from podlane.lab.kubelet.pod import PodWorker
from podlane.lab.supervisor.client import AsyncSupervisor, ProcessInfo, SupervisorRefusal

__all__ = ["Kubelet", "NodeFacts"]

log = logging.getLogger(__name__)

HEARTBEAT_S = 300.0
AGAIN_S = 1.0


class Kubelet:
    def __init__(self, facts: NodeFacts, client: ApiClient, supervisor: AsyncSupervisor) -> None:
        self.facts = facts
        self._client, self._supervisor = client, supervisor
        self._workers: dict[str, PodWorker] = {}
        self._group: asyncio.TaskGroup | None = None
        self._context: NodeContext | None = None
        self._left: dict[str, list[ProcessInfo]] = {}

    @property
    def name(self) -> str:
        return self.facts.name

    async def run(self) -> None:
        """Until cancelled. Raises what ends it: the supervisor is gone, or a fault of its own."""
        namespace = netns.open_pid(self.facts.pid)
        attachments = Attachments(self.facts.paths.cni_socket(self.name))
        pki = self.facts.paths.pki
        try:
            async with worlds.shared(self._client) as (world, keeper):
                self._context = NodeContext(
                    facts=self.facts,
                    client=self._client,
                    supervisor=self._supervisor,
                    world=world,
                    attachments=attachments,
                    netns=namespace,
                    token=_text(pki / "token"),
                    ca_pem=_text(pki / "ca.crt"),
                )
                self._left = await self._found()
                async with asyncio.TaskGroup() as group:
                    self._group = group
                    group.create_task(self._keep(keeper), name="informers")
                    group.create_task(self._register(), name=f"node {self.name}")
                    world.subscribe(self.name, self._pod_changed, self._services_changed)
                    try:
                        self._end_orphans()
                        await asyncio.Event().wait()
                    finally:
                        world.unsubscribe(self.name)
        finally:
            self._group = None
            await attachments.close()
            os.close(namespace)

    async def _keep(self, keeper: asyncio.Task[None]) -> None:
        await asyncio.shield(keeper)

    # --- the node ---

    async def _register(self) -> None:
        """Creates or updates the Node, then a heartbeat now and then."""
        system = os.uname()
        boot_id = _text(Path("/proc/sys/kernel/random/boot_id"))
        wanted = node_objects.node_object(self.facts, system)
        while True:
            try:
                await self._write_node(wanted, system, boot_id)
                delay_s = HEARTBEAT_S
            except ConflictError:
                delay_s = 0.0
            except ApiError as error:
                log.warning("node %s: %s", self.name, error)
                delay_s = AGAIN_S
            await asyncio.sleep(delay_s)

    async def _write_node(self, wanted: Obj, system: os.uname_result, boot_id: str) -> None:
        try:
            node = await self._client.get("nodes", self.name)
        except NotFoundError:
            try:
                node = await self._client.create("nodes", wanted)
            except AlreadyExistsError:
                node = await self._client.get("nodes", self.name)
        labels = node["metadata"].get("labels") or {}
        ours = wanted["metadata"]["labels"]
        if any(labels.get(k) != v for k, v in ours.items()):
            meta = {**node["metadata"], "labels": {**labels, **ours}}
            node = await self._client.update("nodes", {**node, "metadata": meta})
        status = node_objects.node_status(self.facts, node.get("status") or {}, system, boot_id, time.time())
        await self._client.update("nodes", {**node, "status": status}, subresource="status")

    # --- pods ---

    async def _found(self) -> dict[str, list[ProcessInfo]]:
        """Processes of this node's pods that an earlier kubelet started, by pod uid."""
        found: dict[str, list[ProcessInfo]] = {}
        for process in await self._supervisor.list():
            if process.kind in ("sandbox", "container") and process.labels.get(LABEL_NODE) == self.name:
                found.setdefault(process.labels[LABEL_UID], []).append(process)
        return found

    def _pod_changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None:
            if old is not None and (worker := self._workers.get(old["metadata"]["uid"])) is not None:
                worker.gone()
            return
        uid = new["metadata"]["uid"]
        if (worker := self._workers.get(uid)) is not None:
            worker.updated(new)
        else:
            self._begin(new)

    def _begin(self, pod: Obj) -> None:
        assert self._context is not None
        assert self._group is not None
        uid = pod["metadata"]["uid"]
        worker = PodWorker(self._context, pod, self._left.pop(uid, ()))
        self._workers[uid] = worker
        name = f"pod {pod['metadata'].get('namespace')}/{pod['metadata']['name']}"
        self._group.create_task(self._run_pod(uid, worker), name=name)

    async def _run_pod(self, uid: str, worker: PodWorker) -> None:
        """A fault of one pod's worker is told and tried again; it does not end the others."""
        assert self._context is not None
        try:
            while True:
                try:
                    await worker.run()
                    return
                except* LabError:
                    if not self._supervisor.connected:
                        raise
                    log.exception("pod %s; beginning again", uid)
                except* Exception:
                    log.exception("pod %s; beginning again", uid)
                await asyncio.sleep(AGAIN_S)
                was_gone = worker.is_gone
                worker = PodWorker(self._context, worker.pod, (await self._found()).get(uid, ()))
                self._workers[uid] = worker
                if was_gone:
                    worker.gone()
        finally:
            self._workers.pop(uid, None)

    def _services_changed(self, pod: Obj) -> None:
        if (worker := self._workers.get(pod["metadata"]["uid"])) is not None:
            worker.services_changed()

    def _end_orphans(self) -> None:
        """Processes and files of pods that were deleted while no kubelet ran."""
        for uid, processes in list(self._left.items()):
            labels = processes[0].labels
            meta = {"name": labels[LABEL_POD], "namespace": labels[LABEL_NAMESPACE], "uid": uid}
            self._begin({"metadata": meta, "spec": {"containers": []}})
            self._workers[uid].gone()
        self._left.clear()
        directory = self.facts.paths.node_state(self.name) / "pods"
        for entry in directory.iterdir() if directory.is_dir() else ():
            if entry.name not in self._workers:
                shutil.rmtree(entry, ignore_errors=True)

    # --- logs and exec (lab/api/streams.py) ---

    def _runner(self, namespace: str, pod: str, container: str) -> tuple[PodWorker, ContainerRunner]:
        for worker in self._workers.values():
            meta = worker.pod["metadata"]
            if (meta.get("namespace"), meta["name"]) == (namespace, pod) and container in worker.runners:
                return worker, worker.runners[container]
        raise NotFoundError(f'pod "{pod}" is not on node {self.name}, or has no container "{container}"')

    async def logs(
        self, namespace: str, pod: str, container: str, options: LogOptions
    ) -> AsyncIterator[bytes]:
        worker, runner = self._runner(namespace, pod, container)
        files = PodFiles.of(self.facts, worker.pod)
        restart = runner.state.restarts - options.previous
        path = files.log(container, restart)
        if not path.exists():
            if options.previous:
                text = f'previous terminated container "{container}" in pod "{pod}" not found'
            else:
                reason = runner.state.waiting[0] or "ContainerCreating"
                text = f'container "{container}" in pod "{pod}" is waiting to start: {reason}'
            raise ApiError(text, code=400, reason="BadRequest")

        def ended() -> bool:
            return not runner.pid or runner.state.restarts != restart

        async for chunk in log_files.read(path, options, ended):
            yield chunk

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
        _, runner = self._runner(namespace, pod, container)
        if not runner.pid:
            raise ApiError(f'container not found ("{container}")', code=500, reason="InternalError")
        try:
            return await Session.start(
                self._supervisor, runner.pid, command, stdin=stdin, stdout=stdout, stderr=stderr, tty=tty
            )
        except SupervisorRefusal as refusal:
            text = f"failed to exec in container: exec: {refusal}"
            raise ApiError(text, code=500, reason="InternalError") from None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
