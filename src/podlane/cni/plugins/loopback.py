"""`loopback`: the pod's lo is up. It is there from the beginning and goes with the namespace."""

from __future__ import annotations

import ipaddress
from typing import Final

from podlane.cni.inside import check_namespace
from podlane.cni.plugins.base import Call, PluginType
from podlane.cni.protocol import NOT_AS_MADE
from podlane.cni.results import Interface, Ip, Result
from podlane.errors import CniError
from podlane.kernel.rtnl import Rtnl

_LO: Final = "lo"


class Loopback(PluginType):
    name = "loopback"

    async def add(self, call: Call) -> Result:
        check_namespace(call.namespace, call.host.netns_fd)
        namespace = call.namespace

        def raise_it() -> tuple[Ip, ...]:
            with Rtnl(namespace) as pod:
                pod.set_up(_LO)
                held = [entry.address for entry in pod.addresses(_LO)]
            # The kernel's own come with the link; one of each family is told.
            firsts = {address.version: address for address in reversed(held)}
            return tuple(Ip(ipaddress.ip_interface(firsts[v]), None, 0) for v in sorted(firsts))

        ips = await call.host.run(raise_it)
        if call.previous is not None:
            return call.previous
        lo = Interface(_LO, "00:00:00:00:00:00", sandbox=call.request.netns)
        return Result(interfaces=(lo,), ips=ips)

    async def check(self, call: Call) -> None:
        namespace = call.namespace

        def is_up() -> bool:
            with Rtnl(namespace) as pod:
                return pod.link(_LO).up

        if not await call.host.run(is_up):
            raise CniError(NOT_AS_MADE, "lo is down")


TYPE = Loopback()
