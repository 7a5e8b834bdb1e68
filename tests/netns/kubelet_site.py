"""A node with everything a kubelet meets: API, supervisor, the agent's CNI socket. All real, one node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from podlane.kernel import netns
from podlane.lab import cgroups
from podlane.lab.api.server import ApiServer
from podlane.lab.api.streams import LogOptions
from podlane.lab.client import Obj
from podlane.lab.kubelet.kubelet import Kubelet, NodeFacts
from podlane.lab.paths import LabPaths
from podlane.lab.supervisor.client import AsyncSupervisor, Supervisor
from podlane.model.config import NetworkConfig
from podlane.model.local import Attachment
from tests.netns.cni_node import NODE_ADDRESSES, CniNode

NODE = "node-1"
CONFIG = NetworkConfig()


async def eventually(check: Callable[[], Awaitable[Any]], timeout_s: float = 20.0) -> None:
    """Asks until the answer is true."""
    async with asyncio.timeout(timeout_s):
        while not await check():  # noqa: ASYNC110 - the answers come from other processes
            await asyncio.sleep(0.01)


class KubeletSite:
    """`start` and `stop` a kubelet as often as wanted; pods are made through `client`."""

    def __init__(self, paths: LabPaths, api: ApiServer, node_pid: int) -> None:
        self.paths, self.api, self.client = paths, api, api.client
        self.facts = NodeFacts(
            name=NODE,
            pid=node_pid,
            addresses=[str(a.ip) for a in NODE_ADDRESSES],
            zone="rack-1",
            paths=paths,
            config=CONFIG,
        )
        self.supervisor = AsyncSupervisor(paths.supervisor_socket)
        self.kubelet = Kubelet(self.facts, self.client, self.supervisor)
        self.attachments: Callable[[], list[Attachment]] = list
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.supervisor = AsyncSupervisor(self.paths.supervisor_socket)
        await self.supervisor.connect()
        self.kubelet = Kubelet(self.facts, self.client, self.supervisor)
        self._running = asyncio.create_task(self.kubelet.run())

    async def stop(self) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.wait({self._running})
        if not self._running.cancelled():
            self._running.result()
        self.supervisor.close()

    async def pod(self, name: str, *containers: Obj, **spec: Any) -> None:
        """Makes a pod bound to the node; containers without a name or image are given one."""
        filled = [{"name": f"c{i}", "image": "x", **c} for i, c in enumerate(containers)]
        labels = {"app": name}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": {"nodeName": NODE, "containers": filled, **spec},
        }
        await self.client.create("pods", pod, "default")

    async def get(self, name: str) -> Obj:
        return await self.client.get("pods", name, "default")

    async def until(self, name: str, condition: Callable[[Obj], Any], timeout_s: float = 20.0) -> Obj:
        """The pod once condition(pod) holds."""
        pod: Obj = {}
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    pod = await self.get(name)
                    if condition(pod):
                        return pod
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"it did not come; the pod is {pod}") from None

    async def until_gone(self, name: str, timeout_s: float = 20.0) -> None:
        async def gone() -> bool:
            return name not in {p["metadata"]["name"] for p in (await self.client.list("pods"))[0]}

        await eventually(gone, timeout_s)

    async def events(self, pod: str) -> set[tuple[str, str]]:
        """(reason, message)"""
        found, _ = await self.client.list("events", "default")
        return {(e["reason"], e["message"]) for e in found if e["involvedObject"]["name"] == pod}

    async def until_event(self, pod: str, reason: str, text: str = "") -> None:
        async def said() -> bool:
            return any(r == reason and text in m for r, m in await self.events(pod))

        await eventually(said)

    async def run(self, pod: str, *argv: str, container: str = "c0") -> tuple[int, str]:
        """(exit status, output) of a command in a container, through the kubelet's exec."""
        session = await self.kubelet.exec(
            "default", pod, container, list(argv), stdin=False, stdout=True, stderr=True, tty=False
        )
        output = b""
        while (chunk := await session.read()) is not None:
            output += chunk[1]
        status = await session.wait()
        await session.kill()
        return status, output.decode()

    async def log(self, pod: str, container: str = "c0", **options: Any) -> str:
        chunks = [c async for c in self.kubelet.logs("default", pod, container, LogOptions(**options))]
        return b"".join(chunks).decode()


def ready(pod: Obj) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def phase(name: str) -> Callable[[Obj], bool]:
    return lambda pod: bool(pod["status"]["phase"] == name)


def container(pod: Obj, name: str = "c0") -> Obj:
    """Its status."""
    rows = [*pod["status"].get("containerStatuses", []), *pod["status"].get("initContainerStatuses", [])]
    found: Obj = next((r for r in rows if r["name"] == name), {"state": {}})
    return found


@asynccontextmanager
async def kubelet_site(root: Path) -> AsyncIterator[KubeletSite]:
    """root: PODLANE_RUN_DIR and PODLANE_STATE_DIR lead below it."""
    paths = LabPaths(f"k{os.getpid()}")
    for directory in (paths.run, paths.pki, paths.node_run(NODE), paths.node_state(NODE)):
        directory.mkdir(parents=True)
    (paths.pki / "token").write_text("the-token")
    (paths.pki / "ca.crt").write_text("the-authority")
    cgroup = cgroups.make(cgroups.lab_cgroup(paths.name))
    process = subprocess.Popen(  # noqa: ASYNC220
        [
            *(sys.executable, "-m", "podlane.lab.supervisor", "--socket", str(paths.supervisor_socket)),
            *("--cgroup", str(cgroup), "--log", str(root / "supervisor.log")),
        ]
    )
    async with AsyncExitStack() as stack:
        stack.callback(cgroups.kill, cgroup)
        stack.callback(process.wait)
        stack.callback(process.terminate)

        async def answers() -> bool:
            return paths.supervisor_socket.exists()

        await eventually(answers)
        with Supervisor(paths.supervisor_socket) as supervisor:
            pid = supervisor.start_anchor(NODE, hostname=NODE, new_mount=True, cgroup=cgroup)
        namespace = netns.open_pid(pid)
        stack.callback(os.close, namespace)
        node = await stack.enter_async_context(CniNode(namespace, paths.node_run(NODE)))
        api = ApiServer(":memory:", CONFIG)
        stack.push_async_callback(api.stop)
        site = KubeletSite(paths, api, pid)
        site.attachments = node.attacher.attachments
        await site.start()
        try:
            yield site
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await site.stop()
