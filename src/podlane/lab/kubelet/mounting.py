"""A pod's volumes, made before its containers begin and kept as their objects are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from podlane.lab.client import Obj
from podlane.lab.kubelet.health import Say
from podlane.lab.kubelet.volumes import PodVolumes
from podlane.lab.runtime.volumes import VolumeMissing

AGAIN_S = 2.0


class Mounting:
    """To be told when objects that volumes are made of, labels or annotations `changed`.

    waits: called when something is missing that was not before.
    """

    def __init__(
        self, volumes: PodVolumes, pod: Callable[[], Obj], say: Say, waits: Callable[[], None]
    ) -> None:
        self._volumes, self._pod, self._say, self._waits = volumes, pod, say, waits
        self._changed = asyncio.Event()

    def changed(self) -> None:
        self._changed.set()

    async def mount(self) -> None:
        """Returns when every volume is there."""
        told = ""
        while True:
            self._changed.clear()
            try:
                await self._volumes.prepare(self._pod())
                break
            except VolumeMissing as error:
                if str(error) != told:
                    told = str(error)
                    self._say("FailedMount", told, True)
                    self._waits()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), AGAIN_S)
        for note in self._volumes.notes:
            self._say("VolumeStandIn", note, False)

    async def refresh(self) -> None:
        """Without end: files of ConfigMaps and Secrets, labels and annotations follow their objects."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._volumes.prepare(self._pod())
            except VolumeMissing as error:  # what is mounted stays as it was
                self._say("FailedMount", str(error), True)
