"""A node as far as CNI goes: its namespace, the socket, and the rows that follow from attachments."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from podlane.cni import client, plugins
from podlane.cni.attacher import Attacher
from podlane.cni.host import AgentHost
from podlane.cni.leases import Leases
from podlane.cni.plugin import Plugin
from podlane.cni.plugins.podlane import Podlane
from podlane.cni.server import CniServer
from podlane.compile.tables import Neighbour, Route, Table
from podlane.delta import delta
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.rtnl.driver import RtnlDriver
from podlane.model.addresses import Prefix, host_prefix
from podlane.model.local import Attachment

CONFIG = {"cniVersion": "1.1.0", "name": "podlane", "type": "podlane"}
POOLS = (ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64"))
NODE_ADDRESSES = (ip_interface("172.30.1.11/24"), ip_interface("fd00:172:30::1:b/112"))


def rows_of(attachments: Sequence[Attachment]) -> dict[Table, dict[Any, Any]]:
    """The desired rows of pods, as compile/pods.py has them."""
    routes, neighbours = {}, {}
    for attachment in attachments:
        for address in attachment.addresses:
            prefix = host_prefix(address)
            routes[prefix] = Route(prefix, None, attachment.device)
            neighbours[attachment.device, address] = Neighbour(attachment.device, address, attachment.mac)
    return {Table.LINKS: {}, Table.NEIGHBOURS: neighbours, Table.FDB: {}, Table.ROUTES: routes}


def make_node(namespace: int) -> None:
    """Forwarding on, and an uplink that leads nowhere but carries the node's addresses."""
    netns.write_sysctl(namespace, "net/ipv4/ip_forward", 1)
    netns.write_sysctl(namespace, "net/ipv6/conf/all/forwarding", 1)
    with Rtnl(namespace) as rt:
        rt.set_up("lo")
        rt.create_bridge("uplink", up=True, link_local=False)
        for address in NODE_ADDRESSES:
            rt.add_address("uplink", address)


class CniNode:
    """`async with` it for one life of the agent; `async with node.again()` for the next."""

    def __init__(self, namespace: int, where: Path, pools: Sequence[Prefix] = POOLS, mtu_bytes: int = 1450):
        self.namespace, self.where, self.pools, self.mtu_bytes = namespace, where, list(pools), mtu_bytes
        self.socket = where / "cni.sock"
        self.boot = "this boot"
        self.spool = where / "spool"
        self.attachments: dict[tuple[str, str], Attachment] = {}
        self.refuse: BaseException | None = None
        self.generation = asyncio.Lock()
        make_node(namespace)

    def again(self) -> CniNode:
        return self

    async def __aenter__(self) -> CniNode:
        self.driver = RtnlDriver(self.namespace)
        self.leases = Leases(self.where / "leases.sqlite", self.boot)
        self.attacher = Attacher(
            self.leases,
            lambda: self.pools,
            self.on_change,
            mtu_bytes=lambda: self.mtu_bytes,
            netns_fd=self.namespace,
        )
        self.attachments = {a.key: a for a in await self.attacher.start()}
        report = self.driver.resync(rows_of(list(self.attachments.values())))
        assert not report.failures
        types = plugins.load() | {"podlane": Podlane(self.attacher)}
        self.host = AgentHost(self.where, self.boot, types, netns_fd=self.namespace)
        self.plugin = Plugin(self.host)
        await self.host.start()
        assert await self.plugin.collect() == []
        self.server = CniServer(self.socket, self.plugin)
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()
        await self.attacher.close()
        await self.host.close()
        self.leases.close()
        self.driver.close()

    async def on_change(self, old: Attachment | None, new: Attachment | None) -> None:
        if self.refuse is not None and new is not None:
            raise self.refuse
        async with self.generation:
            await self.apply(old, new)

    async def apply(self, old: Attachment | None, new: Attachment | None) -> None:
        before = rows_of(list(self.attachments.values()))
        if old is not None:
            self.attachments.pop(old.key, None)
        if new is not None:
            self.attachments[new.key] = new
        after = rows_of(list(self.attachments.values()))
        report = await asyncio.to_thread(
            self.driver.apply, {table: delta(after[table], before[table]) for table in after}
        )
        assert not report.failures, report.failures[:2]

    async def call(self, command: str, container: str = "", pod: int | None = None, **config: Any) -> Any:
        ifname = config.pop("ifname", "eth0")
        args = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": container}
        return await client.call(
            self.socket,
            command,
            netns_fd=pod,
            container_id=container,
            ifname=ifname,
            args=args,
            config=CONFIG | config,
            netns="/run/netns/pod" if pod is not None else "",
        )

    def links(self) -> list[str]:
        """Links of the node that podlane made."""
        with Rtnl(self.namespace) as rt:
            return [link.name for link in rt.links() if link.name.startswith("pl")]

    def left(self) -> list[Any]:
        """Everything of any attachment that is still there."""
        held = [row for table in self.driver.actual().values() for row in table.values()]
        return [*self.links(), *self.leases.all(), *self.attachments, *held]
