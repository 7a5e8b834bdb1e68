"""The node's uplink: found by its InternalIP, or as `underlay` says; told to the compiler and to others.

What the node's namespace must allow depends on it, so it is set from here (agent/sysctls.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from podlane.agent import sysctls, underlay
from podlane.agent.announcer import Announcer
from podlane.agent.monitor import OURS
from podlane.agent.reconciler import Reconciler
from podlane.compile import facts
from podlane.compile.engine import Compiler
from podlane.compile.tables import Table
from podlane.compile.view import UNDERLAY, Change
from podlane.errors import KernelError
from podlane.kernel.rtnl import PROTOCOL, Rtnl
from podlane.model.addresses import Address

log = logging.getLogger(__name__)


class Uplink:
    """wanted: the settings of the node's namespace that differ, for the uplink of that name.

    complaint: why there is none, "" if there is; refused: settings that the kernel did not take.
    """

    def __init__(
        self,
        compiler: Compiler,
        reconciler: Reconciler,
        announcer: Announcer,
        wanted: Callable[[str], list[sysctls.Setting]],
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """told: called when `complaint` has become another."""
        self._told = told
        self._compiler, self._reconciler, self._announcer = compiler, reconciler, announcer
        self._wanted = wanted
        self._looked_at: Any = None  # the Node object it was last searched for
        self._task: asyncio.Task[None] | None = None
        self.complaint = ""
        self.refused: list[KernelError] = []

    def follow(self) -> None:
        """To be called after each generation: another Node object may name another address."""
        if self._compiler.view.me.node is not self._looked_at:
            self._announcer.look()
            self.look()

    def changed(self) -> None:
        """Links or addresses of the node are others now."""
        if self._compiler.tables[Table.TUNNELS]:
            self._reconciler.request_resync(Table.TUNNELS)  # programs on an uplink go with it
        if self._reconciler.failures:
            self._reconciler.request_resync()  # what was refused may be possible now
        self.look()

    def look(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="uplink")
            self._task.add_done_callback(_raise_to_log)

    async def _look(self) -> None:
        node = self._compiler.view.me.node
        self._looked_at = node
        if node is None:
            return
        wanted = facts.internal_addresses(node)
        config = self._compiler.view.config
        choice, families = config.underlay, config.ip_families
        links, held, leads = await asyncio.to_thread(_read_links, choice.targets)
        if choice.key:
            found = underlay.choose(choice, families, links, held, leads, self._is_ours)
        else:
            found = underlay.find(wanted, links, held, self._is_ours)
        if found is None:
            # A Node with an address of another machine may be that machine's: two of one name.
            self._announcer.entitled = False
            self._complain(underlay.complaint(wanted, links, held, choice, self._is_ours))
            return  # what is there stays: the address may be on its way back
        self._complain("")
        if not self._announcer.entitled:
            self._announcer.entitled = True
            self._announcer.look()
        if found != self._compiler.view.me.underlay:
            log.info("the uplink is %s, MTU %d", found.device, found.mtu_bytes)
            self._reconciler.submit([Change(UNDERLAY, None, found)])
            self._announcer.say({facts.UNDERLAY_ANNOTATION: facts.announcement(found)})
            self._apply_settings(found.device)

    def _complain(self, complaint: str) -> None:
        if complaint != self.complaint:
            self.complaint = complaint
            if complaint:
                log.warning("%s", complaint)
            self._told()

    def _is_ours(self, device: str) -> bool:
        return device.startswith(OURS) or device in self._compiler.tables[Table.BRIDGES]

    def apply_settings(self) -> None:
        """Once more, when the drivers have been at work: they may have brought conntrack along."""
        found = self._compiler.view.me.underlay
        if found is not None:
            self._apply_settings(found.device)

    def _apply_settings(self, device: str) -> None:
        self.refused = sysctls.apply(self._wanted(device))
        for error in self.refused:
            log.warning("%s", error)


def _read_links(targets: list[Address]) -> tuple[list[Any], list[Any], list[underlay.Lead]]:
    """Links, addresses, and where routes to the targets lead."""
    with Rtnl() as rt:
        leads = []
        for target in targets:
            with suppress(KernelError):  # no route leads there
                route = rt.look_up(target)
                leads.append(underlay.Lead(route.link, route.source))
        # What is lent to announce it (kernel/announce/) is none of the node's own.
        return rt.links(), [each for each in rt.addresses() if each.protocol != PROTOCOL], leads


def _raise_to_log(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("looking for the uplink: %s", error)
