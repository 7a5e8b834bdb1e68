"""A pod's sandbox: the pause process that holds its namespaces, and its address in the network."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

from podlane.errors import LabError
from podlane.lab import cgroups
from podlane.lab.client import Obj
from podlane.lab.kubelet import container_spec
from podlane.lab.kubelet.context import NodeContext
from podlane.lab.runtime import names
from podlane.lab.supervisor.client import ProcessInfo
from podlane.lab.supervisor.protocol import StartSandbox

AGAIN_S, AGAIN_LAST_S = 1.0, 30.0


class SandboxLost(Exception):
    """The pause process ended: the pod's network is gone."""


class Sandbox:
    """`start` and `attach` make it, or find what there is; `release` takes it away. All may be repeated.

    say(reason, message): an event that warns.
    """

    def __init__(self, node: NodeContext, pod: Callable[[], Obj], say: Callable[[str, str], None]) -> None:
        self._node, self._pod, self._say = node, pod, say
        self._pid = 0
        self._starting: asyncio.Task[int] | None = None
        self._exit: asyncio.Task[ProcessInfo] | None = None

    @property
    def host_network(self) -> bool:
        return bool(self._pod()["spec"].get("hostNetwork"))

    @property
    def there(self) -> bool:
        return self._pid != 0

    def adopt(self, pid: int) -> None:
        self._pid = pid

    async def start(self, tmpfs: list[tuple[str, int]]) -> int:
        """The pause process. tmpfs: memory volumes it mounts. Cancelled, the start still completes."""
        delay_s = AGAIN_S
        while not self._pid:
            request = self._request(tmpfs)
            self._starting = asyncio.create_task(self._node.supervisor.start_sandbox(request))
            await asyncio.wait({self._starting})
            try:
                self._started()
            except LabError as error:
                self._say("FailedCreatePodSandBox", f"Failed to create pod sandbox: {error}")
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, AGAIN_LAST_S)
        if self._exit is None:
            self._exit = asyncio.create_task(self._node.supervisor.wait(self._pid))
        return self._pid

    def _started(self) -> None:
        assert self._starting is not None
        starting, self._starting = self._starting, None
        self._pid = starting.result()

    def _request(self, tmpfs: list[tuple[str, int]]) -> StartSandbox:
        pod, spec = self._pod(), self._pod()["spec"]
        meta = pod["metadata"]
        cgroup = cgroups.make(self._node.cgroup(meta["uid"]))
        domain = self._node.facts.config.cluster_domain
        sysctls = (spec.get("securityContext") or {}).get("sysctls") or ()
        return StartSandbox(
            name=f"{meta['namespace']}/{meta['name']}",
            labels=container_spec.labels(pod, self._node.name),
            hostname=self._node.name if self.host_network else names.kernel_hostname(pod, domain),
            netns_pid=self._node.facts.pid if self.host_network else 0,
            cgroup=str(cgroup),
            tmpfs=tmpfs,
            share_pid=bool(spec.get("shareProcessNamespace")),
            sysctls={s["name"]: s["value"] for s in sysctls},
        )

    async def attach(self) -> list[str]:
        """The pod's addresses, primary family first."""
        if self.host_network:
            return list(self._node.facts.addresses)
        return await self._node.attachments.add(self._pod(), self._pid, self._add_trouble)

    def _add_trouble(self, text: str) -> None:
        message = f'Failed to create pod sandbox: plugin type="podlane" failed (add): {text}'
        self._say("FailedCreatePodSandBox", message)

    async def watch(self) -> None:
        """Raises SandboxLost when the pause process ends."""
        assert self._exit is not None
        await asyncio.shield(self._exit)
        raise SandboxLost

    async def settle(self) -> None:
        """A start that was under way when its caller was cancelled is known afterwards."""
        if self._starting is not None:
            await asyncio.wait({self._starting})
            with contextlib.suppress(LabError):
                self._started()

    async def release(self) -> None:
        """The address goes back, then the namespaces go."""
        if not self.host_network:
            await self._node.attachments.delete(self._pod(), self._delete_trouble)
        if self._pid:
            pid, self._pid = self._pid, 0
            ended, self._exit = self._exit, None
            if ended is None:
                ended = asyncio.create_task(self._node.supervisor.wait(pid))
            if not ended.done():
                with contextlib.suppress(LabError):
                    await self._node.supervisor.signal(pid, signal.SIGKILL)
                await asyncio.wait({ended})
            with contextlib.suppress(LabError):
                await self._node.supervisor.forget(pid)

    def _delete_trouble(self, text: str) -> None:
        self._say("FailedKillPod", f'Failed to stop sandbox: plugin type="podlane" failed (delete): {text}')

    def let_go(self) -> None:
        """This kubelet goes; the sandbox stays."""
        for task in (self._exit, self._starting):
            if task is not None:
                task.cancel()
