"""What all kubelets of a lab read of the API, kept once: pods, services, ConfigMaps, Secrets; and events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from podlane.controller.events import Recorder
from podlane.errors import NotFoundError
from podlane.lab.client import ApiClient, Obj
from podlane.lab.informer import Informers, key_of

PodHandler = Callable[[Obj | None, Obj | None], None]
Changed = Callable[[], None]
CONFIG = ("configmaps", "secrets")
COMPONENT = "kubelet"
STARTS_AT_ONCE = 24  # pods being started at the same time in the whole lab


class World:
    """Shared by the kubelets of one API client; see `shared`."""

    def __init__(self, client: ApiClient) -> None:
        self.client = client
        self.informers = Informers(client)
        self.recorder = Recorder(client, time.time)
        self.starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self._nodes: dict[str, PodHandler] = {}
        self._interested: dict[tuple[str, str, str], set[Changed]] = {}
        self._services_changed: dict[str, Callable[[Obj], None]] = {}
        self._users = 0
        self._task: asyncio.Task[None] | None = None
        self.pods = self.informers["pods"]
        self.services = self.informers["services"]
        self.pods.subscribe(self._pod_changed)
        self.services.subscribe(self._service_changed)
        for resource in CONFIG:
            self.informers[resource].subscribe(self._config_changed(resource))

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self.informers.start(group)
            group.create_task(self.recorder.run(), name="kubelet events")

    # --- pods of a node ---

    def subscribe(self, node: str, pods: PodHandler, services: Callable[[Obj], None]) -> None:
        """pods(old, new): pods bound to node, those there are and every change.

        services(pod): the services that select this pod of the node may have changed.
        """
        self._nodes[node], self._services_changed[node] = pods, services
        for pod in self.pods.on_node(node):
            pods(None, pod)

    def unsubscribe(self, node: str) -> None:
        self._nodes.pop(node, None)
        self._services_changed.pop(node, None)

    def _pod_changed(self, old: Obj | None, new: Obj | None) -> None:
        pod = new or old
        if pod is None:
            return
        handler = self._nodes.get((pod.get("spec") or {}).get("nodeName") or "")
        if handler is not None:
            handler(old, new)

    # --- services ---

    def services_of(self, pod: Obj) -> list[Obj]:
        """Those whose selector chooses the pod."""
        return [s for s in self.services.list(pod["metadata"]["namespace"]) if _selects(s, pod)]

    async def services_seen_by(self, pod: Obj) -> list[Obj]:
        """Those its environment may name: of its namespace, and default/kubernetes.

        The API is asked: an environment is written once, and the cache of services may be a moment behind
        that of pods, so that a service older than the pod would be missing for good.
        """
        found, _ = await self.client.list("services", pod["metadata"]["namespace"])
        api = self.services.get("kubernetes", "default")
        return (
            found
            if api is None or api["metadata"]["namespace"] == pod["metadata"]["namespace"]
            else [*found, api]
        )

    def _service_changed(self, old: Obj | None, new: Obj | None) -> None:
        service = new or old
        if service is None:
            return
        for pod in self.pods.list(service["metadata"]["namespace"]):
            if any(s is not None and _selects(s, pod) for s in (old, new)):
                handler = self._services_changed.get(pod["spec"].get("nodeName") or "")
                if handler is not None:
                    handler(pod)

    # --- ConfigMaps and Secrets ---

    async def objects(
        self, namespace: str, wanted: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], Obj | None]:
        """(resource, name) -> the object, None when it is not there."""
        found: dict[tuple[str, str], Obj | None] = {}
        for resource, name in wanted:
            obj = self.informers[resource].get(name, namespace) if name else None
            if obj is None and name:
                # The cache may be a moment behind a manifest that was just applied.
                try:
                    obj = await self.client.get(resource, name, namespace)
                except NotFoundError:
                    obj = None
            found[resource, name] = obj
        return found

    def when_changed(self, namespace: str, wanted: Iterable[tuple[str, str]], call: Changed) -> None:
        """call() whenever one of these objects appears, changes or goes; `forget` ends it."""
        for resource, name in wanted:
            self._interested.setdefault((resource, namespace, name), set()).add(call)

    def forget(self, call: Changed) -> None:
        for key in [k for k, calls in self._interested.items() if call in calls]:
            self._interested[key].discard(call)
            if not self._interested[key]:
                del self._interested[key]

    def _config_changed(self, resource: str) -> PodHandler:
        def changed(old: Obj | None, new: Obj | None) -> None:
            obj = new or old
            if obj is not None:
                for call in tuple(self._interested.get((resource, *key_of(obj)), ())):
                    call()

        return changed

    # --- events ---

    def event(self, pod: Obj, reason: str, message: str, *, warning: bool = False) -> None:
        say = self.recorder.warning if warning else self.recorder.normal
        say("Pod", pod, reason, message, COMPONENT)

    # --- sharing ---

    async def _acquire(self) -> asyncio.Task[None]:
        self._users += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="kubelets' informers")
        synced = asyncio.ensure_future(self.informers.synced())
        await asyncio.wait({synced, self._task}, return_when=asyncio.FIRST_COMPLETED)
        synced.cancel()
        return self._task

    async def _release(self) -> None:
        self._users -= 1
        if not self._users and self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None


_worlds: WeakKeyDictionary[ApiClient, World] = WeakKeyDictionary()


@asynccontextmanager
async def shared(client: ApiClient) -> AsyncIterator[tuple[World, asyncio.Task[None]]]:
    """(the client's World, listed; the task that keeps it, which never ends by itself but in failure)"""
    world = _worlds.get(client)
    if world is None:
        world = _worlds[client] = World(client)
    task = await world._acquire()
    try:
        yield world, task
    finally:
        await world._release()


def _selects(service: Obj, pod: Obj) -> bool:
    selector: dict[str, str] = (service.get("spec") or {}).get("selector") or {}
    labels = pod["metadata"].get("labels") or {}
    return bool(selector) and all(labels.get(k) == v for k, v in selector.items())
