"""The real API in memory, the real controllers, and kubelets that only pretend to run pods."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from podlane.errors import ApiError, ConflictError, NotFoundError
from podlane.lab.api.server import ApiServer
from podlane.lab.client import Obj
from podlane.lab.controllers.facts import ZONE, timestamp
from podlane.lab.controllers.manager import ControllerManager
from podlane.model.config import DEFAULT, NetworkConfig

TIMEOUT_S = 30.0


class Clock:
    """Wall clock that tests may move forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class Cluster:
    """ready: which of the pods bound to a node the pretended kubelets report as ready (all of them)."""

    def __init__(self, config: NetworkConfig = DEFAULT) -> None:
        self.config = config
        self.clock = Clock()
        self.server = ApiServer(":memory:", config)
        self.client = self.server.client
        self.manager = self.new_manager()
        self.ready: Callable[[Obj], bool] = lambda pod: True
        self.exit: Callable[[Obj], str] = lambda pod: ""
        """Phase a started pod ends in, "" to go on running."""
        self.keep_terminating = False
        self._tasks: list[asyncio.Task[Any]] = []
        self._addresses = 1

    def new_manager(self) -> ControllerManager:
        return ControllerManager(self.client, self.config, ca_pem="CA\n", now=self.clock)

    # --- life ---

    def start_manager(self) -> None:
        self.manager = self.new_manager()
        self._tasks.append(asyncio.create_task(self.manager.run()))

    def start_kubelets(self) -> None:
        self._tasks.append(asyncio.create_task(self._kubelets()))

    async def close(self) -> None:
        await self.manager.stop()
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.stop()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def until(self, what: Callable[[], Any]) -> Any:
        """Waits until what() is true, and returns it. Fails with what() spelt out."""
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        while not (answer := what()):
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"never came true: {what}, pods {[name(p) for p in self.all('pods')]}")
            await asyncio.sleep(0.002)
        return answer

    async def settled(self) -> None:
        """Until the controllers have nothing to do, for a while."""
        calm = 0
        while calm < 10:
            await asyncio.sleep(0.003)
            calm = calm + 1 if self.manager.idle else 0

    # --- objects ---

    def all(self, resource: str, namespace: str = "", **labels: str) -> list[Obj]:
        found = [r.obj for r in self.server.store.records(resource, namespace)]
        return [o for o in found if labels.items() <= (o["metadata"].get("labels") or {}).items()]

    def one(self, resource: str, name_: str, namespace: str = "default") -> Obj:
        record = self.server.store.get(resource, namespace, name_)
        assert record is not None, f"{resource} {namespace}/{name_} is not there"
        return record.obj

    def pods(self, namespace: str = "default", **labels: str) -> list[Obj]:
        """Those that are not terminating or finished."""
        return [
            p
            for p in self.all("pods", namespace, **labels)
            if not p["metadata"].get("deletionTimestamp")
            and p["status"].get("phase") not in ("Succeeded", "Failed")
        ]

    async def node(self, name_: str, zone: str = "", **more: Any) -> Obj:
        labels = {"kubernetes.io/hostname": name_}
        if zone:
            labels[ZONE] = zone
        labels |= more.pop("labels", {})
        node = await self.client.create(
            "nodes",
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name_, "labels": labels},
                "spec": more.pop("spec", {}),
            },
        )
        status = {
            "allocatable": {"pods": str(more.pop("capacity", 110))},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}],
        }
        return await self.client.update("nodes", {**node, "status": status}, subresource="status")

    async def create(self, resource: str, obj: Obj, namespace: str = "default") -> Obj:
        return await self.client.create(resource, obj, namespace)

    async def edit(self, resource: str, name_: str, patch: Obj, namespace: str = "default") -> Obj:
        return await self.client.patch(resource, name_, namespace, patch)

    # --- kubelets ---

    async def _kubelets(self) -> None:
        while True:
            pods, version = await self.client.list("pods")
            for pod in pods:
                await self._kubelet(pod)
            try:
                async for event in self.client.watch("pods", since=version):
                    if event.type != "DELETED":
                        await self._kubelet(event.object)
            except ApiError as error:
                if error.code != 410:
                    raise

    async def _kubelet(self, pod: Obj) -> None:
        meta, status = pod["metadata"], pod.get("status") or {}
        if not pod["spec"].get("nodeName"):
            return
        try:
            if meta.get("deletionTimestamp"):
                if not self.keep_terminating:
                    await self.client.delete(
                        "pods", meta["name"], meta["namespace"], grace_period_s=0, uid=meta["uid"]
                    )
                return
            wanted = self._status(pod)
            if wanted != status:
                await self.client.update("pods", {**pod, "status": wanted}, subresource="status")
        except (NotFoundError, ConflictError):
            return

    def _status(self, pod: Obj) -> Obj:
        status = dict(pod.get("status") or {})
        if status.get("phase") in ("Succeeded", "Failed"):
            return status
        if end := self.exit(pod):
            return {**status, "phase": end}
        ready = "True" if self.ready(pod) else "False"
        old = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), None)
        if old is not None and old["status"] == ready:
            return status
        others = [c for c in status.get("conditions") or () if c["type"] != "Ready"]
        condition = {"type": "Ready", "status": ready, "lastTransitionTime": timestamp(self.clock())}
        if not status.get("podIPs"):
            self._addresses += 1
            high, low = divmod(self._addresses, 250)
            status["podIP"] = f"10.244.{high}.{low + 1}"
            status["podIPs"] = [{"ip": status["podIP"]}, {"ip": f"fd00:10:244::{self._addresses:x}"}]
        return {**status, "phase": "Running", "conditions": [*others, condition]}

    async def report(self) -> None:
        """The kubelets look at all their pods again (after `ready` or `exit` changed)."""
        for pod in self.all("pods"):
            await self._kubelet(pod)


@asynccontextmanager
async def cluster(nodes: int | Iterable[tuple[str, str]] = 3, **options: Any) -> AsyncIterator[Cluster]:
    """nodes: how many in zone rack-1, or (name, zone) pairs."""
    lab = Cluster(**options)
    try:
        places = [(f"node-{i + 1}", "rack-1") for i in range(nodes)] if isinstance(nodes, int) else nodes
        for node, zone in places:
            await lab.node(node, zone)
        lab.start_kubelets()
        lab.start_manager()
        await lab.settled()
        yield lab
    finally:
        await lab.close()


def name(obj: Obj) -> str:
    return str(obj["metadata"]["name"])


def template(labels: dict[str, str], **spec: Any) -> Obj:
    return {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "c", "image": "example.com/c:1"}], **spec},
    }


def workload(api: str, kind: str, name_: str, replicas: int | None = None, **spec: Any) -> Obj:
    """A Deployment, ReplicaSet, StatefulSet ... of pods labelled app=name_."""
    labels = {"app": name_}
    body: Obj = {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": name_},
        "spec": {"selector": {"matchLabels": labels}, "template": template(labels), **spec},
    }
    if replicas is not None:
        body["spec"]["replicas"] = replicas
    return body


def deployment(name_: str, replicas: int, **spec: Any) -> Obj:
    return workload("apps/v1", "Deployment", name_, replicas, **spec)


def pod(name_: str, labels: dict[str, str] | None = None, **spec: Any) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name_, "labels": labels or {}},
        "spec": template({}, **spec)["spec"],
    }


def service(name_: str, selector: dict[str, str] | None, ports: list[Obj] | None = None, **spec: Any) -> Obj:
    body: Obj = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name_},
        "spec": {"ports": ports if ports is not None else [{"port": 80}], **spec},
    }
    if selector is not None:
        body["spec"]["selector"] = selector
    return body
