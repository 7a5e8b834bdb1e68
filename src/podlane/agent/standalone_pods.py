"""The type `podlane` without an API: --pod-cidr says what the Node object would.

Pods get routed links, the rows that follow from them, and what they send beyond the CIDRs is masqueraded.
There are no other nodes, no services and no bridge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from podlane.agent import sysctls
from podlane.agent.attachments import concerns
from podlane.agent.options import AgentOptions
from podlane.agent.reconciler import Reconciler
from podlane.cni.attacher import Attacher
from podlane.cni.foreign import ForeignLeases
from podlane.cni.leases import Leases
from podlane.cni.plugins.podlane import Podlane
from podlane.compile.engine import Compiler, capabilities
from podlane.compile.view import ATTACHMENT, Change
from podlane.errors import ConfigError
from podlane.kernel.nft.services import ServicesDriver
from podlane.kernel.rtnl.driver import RtnlDriver
from podlane.model import config as configs
from podlane.model.addresses import Prefix, family_of, prefix
from podlane.model.local import Attachment
from podlane.model.objects import Node, NodeSpec, ObjectMeta

_CAPABILITIES = ("node", "pods")


def pools_of(texts: Sequence[str]) -> list[Prefix]:
    """Raises ConfigError for what is no prefix, and for two of one family."""
    found = [prefix(text) for text in texts]
    if len({family_of(pool) for pool in found}) < len(found):
        raise ConfigError(f"--pod-cidr {', '.join(texts)}: one a family, at most")
    return found


class StandalonePods:
    """`kind` is for the agent's types. start() before it is asked anything, close() after."""

    def __init__(self, options: AgentOptions, boot_id: str) -> None:
        pools = pools_of(options.pod_cidrs)
        self._families = [family_of(pool) for pool in pools]
        config = msgspec.structs.replace(
            configs.DEFAULT, ip_families=self._families, pod_cidrs=list(options.pod_cidrs)
        )
        only = [each for each in capabilities() if each.name in _CAPABILITIES]
        self._compiler = Compiler(options.node_name, config, only)
        self._reconciler = Reconciler(self._compiler, [RtnlDriver(), ServicesDriver(config, serve=False)])
        self._node = Node(ObjectMeta(options.node_name), NodeSpec(pod_cidrs=list(options.pod_cidrs)))
        foreign = ForeignLeases(options.host_local_dir)
        self._leases = Leases(Path(options.state_dir) / "leases.sqlite", boot_id, foreign.has)
        self._attacher = Attacher(self._leases, lambda: pools, self._changed)
        self.kind = Podlane(self._attacher)
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when the kernel holds what an earlier life's attachments need. Raises KernelError."""
        for error in sysctls.apply(sysctls.wanted(self._families, "", sysctls.read)):
            raise error
        held = await self._attacher.start()
        self._compiler.apply(Change(ATTACHMENT, None, each) for each in held)
        self._reconciler.allow_sync()
        self._running = asyncio.create_task(self._reconciler.run(), name="reconciler")
        await self._reconciler.commit([Change("Node", None, self._node)])
        for failure in self._reconciler.failures:
            raise failure.error

    async def close(self) -> None:
        await self._attacher.close()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        self._leases.close()

    async def _changed(self, old: Attachment | None, new: Attachment | None) -> None:
        await self._reconciler.commit([Change(ATTACHMENT, old, new)])
        for failure in self._reconciler.failures:
            if new is not None and concerns(failure, new):
                raise failure.error
