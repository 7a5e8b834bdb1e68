"""What a pod leaves behind on its node: processes of no more use, its files, its cgroup."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

from podlane.errors import LabError
from podlane.lab.supervisor.client import AsyncSupervisor


class Remains:
    """Processes to be forgotten by the supervisor; killed if they run."""

    def __init__(self, supervisor: AsyncSupervisor) -> None:
        self._supervisor = supervisor
        self._pids: list[int] = []

    def add(self, pids: Iterable[int]) -> None:
        """0 is none."""
        self._pids += filter(None, pids)

    async def clear(self) -> None:
        while self._pids:
            await self._forget(self._pids[-1])
            self._pids.pop()  # only now: the wait may have been cancelled

    async def _forget(self, pid: int) -> None:
        with contextlib.suppress(LabError):
            await self._supervisor.signal(pid, signal.SIGKILL)
            await self._supervisor.wait(pid)
            await self._supervisor.forget(pid)


async def remove(files: Path, cgroup: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, files, ignore_errors=True)
    for _ in range(50):  # it is busy until the kernel has let the last process go
        try:
            os.rmdir(cgroup)
            return
        except FileNotFoundError:
            return
        except OSError:
            await asyncio.sleep(0.02)
