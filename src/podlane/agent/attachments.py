"""The agent's side of CNI: leases, pods' links, and the socket the plugin asks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from podlane.agent import takeover
from podlane.agent.memory import Known, Memory
from podlane.agent.options import AgentOptions
from podlane.agent.reconciler import EVERY_ROW
from podlane.cni import plugins
from podlane.cni.adoption import Adoption, Left
from podlane.cni.attacher import Attacher, Ports
from podlane.cni.foreign import ForeignLeases
from podlane.cni.leases import Leases, given_out
from podlane.cni.plugin import Observed
from podlane.cni.plugins.podlane import Podlane
from podlane.cni.service import CniService
from podlane.compile import facts
from podlane.compile.engine import Compiler
from podlane.compile.peers import link_mtu_bytes
from podlane.compile.tables import Table
from podlane.compile.view import View
from podlane.errors import CniError, ConfigError
from podlane.kernel.driver import Failure
from podlane.model.addresses import Prefix
from podlane.model.config import Hairpin, Link, LinkMode
from podlane.model.local import Attachment

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)

OnChange = Callable[[Attachment | None, Attachment | None], Awaitable[None]]


class Attachments:
    """start() makes the attachments of an earlier life known again, serve() opens the door to new ones.

    node_listed(): the API has said whether there is a Node of this name.
    """

    def __init__(
        self,
        options: AgentOptions,
        compiler: Compiler,
        on_change: OnChange,
        node_listed: Callable[[], bool],
        observed: Observed,
    ) -> None:
        state = Path(options.state_dir)
        state.mkdir(parents=True, exist_ok=True)
        self._compiler = compiler
        boot_id = BOOT_ID.read_text().strip()
        self._node_listed = node_listed
        self._memory = Memory(state, boot_id, options.node_name)
        foreign = ForeignLeases(options.host_local_dir)
        self._leases = Leases(state / "leases.sqlite", boot_id, foreign.has)
        config = compiler.view.config
        ports = _ports(config.link)
        self._attacher = Attacher(
            self._leases,
            self._pools,
            on_change,
            mtu_bytes=self._mtu_bytes,
            ports=ports,
            released=lambda lease: foreign.forget(lease.addresses, lease.container_id),
        )
        self._adoption = Adoption(
            self._leases,
            config.pods.values(),
            bridge=ports.bridge if ports else "",
            cache_dir=options.cni_cache_dir,
        )
        types = plugins.load() | {"podlane": Podlane(self._attacher)}
        self._service = CniService(state, Path(options.cni_socket), boot_id, types, observed=observed)

    async def start(self) -> list[Attachment]:
        if self._compiler.view.config.others.take_over:
            number = await asyncio.to_thread(self._adoption.adopt)
            if number:
                log.info("%d pods of another plugin went over", number)
        return await self._attacher.start()

    async def finish_takeover(self) -> None:
        """To be called after the first generation: the node's routes lead to each pod's own link."""
        released = await asyncio.to_thread(self._adoption.release)
        if released:
            log.info("%d links left the bridge they came on", len(released))
        if not self._compiler.view.config.others.take_over:
            return
        over = await asyncio.to_thread(self._adoption.taken_over)
        await takeover.finish(over, self._service.host.host_ports)

    @property
    def left(self) -> list[Left]:
        """Links of pods that could not be taken over."""
        return self._adoption.left

    async def serve(self) -> None:
        await self._service.serve()

    async def stop_serving(self) -> None:
        """Requests that have come in are answered first: the reconciler must still run."""
        await self._service.stop_serving()

    async def close(self) -> None:
        await self._attacher.close()
        await self._service.close()
        self._leases.close()

    def remember(self) -> None:
        """What pods need of the node is known: it is kept for a start without the API."""
        pools, mtu_bytes = self._own_pools(), link_mtu_bytes(self._compiler.view)
        if pools and mtu_bytes:
            self._memory.keep(Known(pools, mtu_bytes))

    def use(self) -> dict[Prefix, tuple[int, int]]:
        """Of each range pods get their addresses from: how many are given out, and how many can be."""
        found = {}
        for pool in self._pools():
            with contextlib.suppress(CniError):  # too small to give any
                first, last = given_out(pool)
                found[pool] = self._leases.used(pool), last - first + 1
        return found

    def _pools(self) -> list[Prefix]:
        """This node's pod prefixes of the enabled families, primary first; the remembered ones until the
        API has been heard.

        None before the tunnel's MTU is known: a link made now would be too wide.
        """
        if not self._mtu_bytes():
            return []
        return list(self._own_pools() or (self._remembered.pools if self._remembered else ()))

    def _mtu_bytes(self) -> int:
        return link_mtu_bytes(self._compiler.view) or (self._remembered.mtu_bytes if self._remembered else 0)

    def _own_pools(self) -> tuple[Prefix, ...]:
        return self._compiler.view.of_me(_own_pools)

    @property
    def _remembered(self) -> Known | None:
        return None if self._node_listed() else self._memory.known


def _own_pools(view: View) -> tuple[Prefix, ...]:
    node = view.me.node
    try:
        return tuple(facts.pod_prefixes(node).values()) if node else ()
    except ConfigError:
        return ()  # the node's own unit says what is wrong with them


def _ports(link: Link) -> Ports | None:
    if link.mode is not LinkMode.BRIDGE:
        return None
    return Ports(link.bridge, hairpin=link.hairpin is Hairpin.VETH)


def concerns(failure: Failure, attachment: Attachment) -> bool:
    """The row that was refused is one of the way to this pod."""
    if failure.key == EVERY_ROW:
        return failure.table in (Table.LINKS, Table.POLICY_SETS)  # of the driver with the routes; of policy's
    if failure.table is Table.PORTS:
        return bool(failure.key == attachment.device)
    if failure.table is Table.NEIGHBOURS:
        device, address = failure.key
        return device == (attachment.bridge or attachment.device) and address in attachment.addresses
    return failure.table is Table.ROUTES and failure.key.network_address in attachment.addresses
