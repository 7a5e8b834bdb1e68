"""The node's side of every plugin type (plugins/base.py: Host), and the way from one type to another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from podlane.cni import execution
from podlane.cni.host_ports import HostPorts
from podlane.cni.masquerade import NftMasquerade
from podlane.cni.plugins.base import Call, Masquerade, PluginType, Records
from podlane.cni.protocol import INVALID_CONFIG, Verb
from podlane.cni.records import NoteBook
from podlane.cni.removal import LinkRemover
from podlane.cni.results import Result, decode
from podlane.cni.shaping import Shaping
from podlane.errors import CniError
from podlane.kernel.rtnl import Rtnl

T = TypeVar("T")

_THREADS = 4


class AgentHost:
    """state_dir: has the notes. netns_fd: the node's namespace; None for the process's own."""

    def __init__(
        self,
        state_dir: Path,
        boot_id: str,
        types: Mapping[str, PluginType],
        *,
        netns_fd: int | None = None,
    ) -> None:
        self.state_dir, self.netns_fd, self.types = state_dir, netns_fd, types
        self.rtnl = Rtnl(netns_fd)
        self._notes = NoteBook(state_dir / "plugins.sqlite", boot_id)
        self.records: Records = self._notes
        self._masquerade = NftMasquerade(self.records, netns_fd)
        self.masquerade: Masquerade = self._masquerade
        self.host_ports = HostPorts(self.records, netns_fd)
        self._threads = ThreadPoolExecutor(_THREADS, "cni")
        self._remover = LinkRemover(netns_fd)
        self.shaping = Shaping(self.records, self.remove_links, netns_fd)

    async def start(self) -> None:
        """What a reboot ended is given back: the notes of earlier boots say what."""
        for name, kind in self.types.items():
            lost = self._notes.lost(name)
            await kind.start(self, lost)
            for owner, _ in lost:
                self._notes.remove(name, owner)

    async def close(self) -> None:
        """Waits for what has begun."""
        self.shaping.close()
        await self._remover.close()
        self._masquerade.close()
        self.host_ports.close()
        self._threads.shutdown()
        self.rtnl.close()
        self._notes.close()

    async def run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def remove_links(self, names: Sequence[str]) -> None:
        await self._remover.remove_all(names)

    async def delegate(
        self, kind: str, call: Call, verb: Verb, config: Mapping[str, Any] | None = None
    ) -> Result:
        ours = self.types.get(kind)
        if ours is None:
            return await self._execute(
                kind, call, verb, dict(call.request.config if config is None else config)
            )
        request = msgspec.structs.replace(call.request, verb=verb, executable=kind)
        inner = call._replace(request=request)
        if config is not None:
            request = msgspec.structs.replace(request, config=dict(config), readings={})
            previous = config.get("prevResult")
            inner = call._replace(request=request, previous=decode(previous) if previous else None)
        faults = [] if verb is Verb.DEL else ours.faults(request)
        if faults:
            raise CniError(INVALID_CONFIG, "; ".join(faults))
        return await perform(ours, inner)

    async def _execute(self, kind: str, call: Call, verb: Verb, config: dict[str, Any]) -> Result:
        environment = {**call.environment, "CNI_COMMAND": verb.value}
        program = execution.find(kind, environment.get("CNI_PATH", ""))
        config.setdefault("cniVersion", call.request.version)

        def execute() -> Result:
            return execution.execute(
                program, environment, config, node_netns=self.netns_fd, pod_netns=call.netns_fd
            )

        return await self.run(execute)


async def perform(kind: PluginType, call: Call) -> Result:
    """The verb of the call's request; the result of verbs without one is empty."""
    match call.request.verb:
        case Verb.ADD:
            return await kind.add(call)
        case Verb.DEL:
            await kind.delete(call)
        case Verb.CHECK:
            await kind.check(call)
        case Verb.GC:
            await kind.gc(call)
        case Verb.STATUS:
            await kind.status(call)
        case Verb.VERSION:
            pass
    return Result()
