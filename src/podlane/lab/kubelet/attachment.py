"""Pods' addresses: CNI ADD and DEL through the node agent's socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from podlane.cni import capabilities
from podlane.cni import client as cni
from podlane.cni.protocol import TRY_AGAIN_LATER
from podlane.errors import CniError, ConfigError
from podlane.kernel import netns
from podlane.lab.client import Obj

CONFIG: dict[str, Any] = {"cniVersion": "1.1.0", "name": "podlane", "type": "podlane"}
ASK_AGAIN_S = 0.05
PATIENCE_S = 1.0  # an agent that is just starting is no news


class Attachments:
    """One node's. An agent that is away is waited for: one asks, all others wait for its answer."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._waiting: asyncio.Task[None] | None = None

    async def add(self, pod: Obj, sandbox_pid: int, trouble: Callable[[str], None]) -> list[str]:
        """The pod's addresses, primary family first. Goes on until there are some; says what is wrong.

        Asking again for an attached pod answers what it has.
        """
        delay_s = ASK_AGAIN_S
        while True:
            try:
                config = CONFIG | {"runtimeConfig": capabilities.runtime_config(pod)}
                return _addresses(await self._call("ADD", pod, sandbox_pid, config))
            except ConfigError as error:
                trouble(str(error))
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, 5.0)
            except CniError as error:
                if error.code == TRY_AGAIN_LATER:
                    await self._agent(lambda text=error.message: trouble(text))  # type: ignore[misc]
                else:
                    trouble(error.message)
                    await asyncio.sleep(delay_s)
                    delay_s = min(2 * delay_s, 5.0)

    async def delete(self, pod: Obj, trouble: Callable[[str], None]) -> None:
        """Gives the addresses back; what is not attached is no error."""
        delay_s = ASK_AGAIN_S
        while True:
            try:
                # What ADD was asked for stands in the lease: a bad annotation keeps no pod from going.
                await self._call("DEL", pod, 0, CONFIG)
                return
            except CniError as error:
                if error.code == TRY_AGAIN_LATER:
                    await self._agent(lambda text=error.message: trouble(text))  # type: ignore[misc]
                else:
                    trouble(error.message)
                    await asyncio.sleep(delay_s)
                    delay_s = min(2 * delay_s, 5.0)

    async def _call(self, command: str, pod: Obj, sandbox_pid: int, config: dict[str, Any]) -> dict[str, Any]:
        meta = pod["metadata"]
        fd = netns.open_pid(sandbox_pid) if sandbox_pid else None
        try:
            return await cni.call(
                self._path,
                command,
                netns_fd=fd,
                # The API's only lasting name of a pod; a compile from the API alone relies on it.
                container_id=meta["uid"],
                args={
                    "IgnoreUnknown": "1",
                    "K8S_POD_NAMESPACE": meta["namespace"],
                    "K8S_POD_NAME": meta["name"],
                    "K8S_POD_UID": meta["uid"],
                    "K8S_POD_INFRA_CONTAINER_ID": meta["uid"],
                },
                config=config,
                netns=f"/proc/{sandbox_pid}/ns/net" if sandbox_pid else "",
            )
        finally:
            if fd is not None:
                os.close(fd)

    async def _agent(self, trouble: Callable[[], None]) -> None:
        """Until the agent answers that it can attach pods."""
        if self._waiting is None or self._waiting.done():
            self._waiting = asyncio.create_task(self._until_ready(), name="wait for the agent")
        try:
            await asyncio.wait_for(asyncio.shield(self._waiting), PATIENCE_S)
        except TimeoutError:
            trouble()
            await asyncio.shield(self._waiting)

    async def _until_ready(self) -> None:
        while True:
            await asyncio.sleep(ASK_AGAIN_S)
            try:
                await cni.call(self._path, "STATUS", config=CONFIG)
            except CniError:
                continue
            return

    async def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait({self._waiting})


def _addresses(result: dict[str, Any]) -> list[str]:
    return [entry["address"].partition("/")[0] for entry in result.get("ips") or ()]
