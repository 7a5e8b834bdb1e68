"""`podlane`: the pod's own link, routed (link.py), with an address of the node's pod CIDRs.

Not among the types of NAMES: it lives with the agent, whose tables follow from its attachments.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from podlane.cni.attacher import Attacher
from podlane.cni.fields import Fields
from podlane.cni.ipam import requested
from podlane.cni.leases import Lease
from podlane.cni.link import ANYWHERE, host_mac, ways
from podlane.cni.plugins.bandwidth import bandwidth_of
from podlane.cni.plugins.base import Call, Host, PluginType
from podlane.cni.plugins.linked import wanted_mac
from podlane.cni.plugins.portmap import mappings_of
from podlane.cni.protocol import NEWEST, NOT_AS_MADE, NOT_AVAILABLE, Request, Verb
from podlane.cni.results import Interface, Ip, Result, RouteEntry, merge
from podlane.errors import CniError
from podlane.model.addresses import Prefix, family_of


class Podlane(PluginType):
    name = "podlane"

    def __init__(self, attacher: Attacher) -> None:
        self._attacher = attacher

    def leaked(self, host: Host, links: Collection[str]) -> list[Call]:
        return [Call(_removal_of(lease), host, {}) for lease in self._attacher.leaked(links)]

    def faults(self, request: Request) -> list[str]:
        fields = Fields(request.config)
        mappings_of(request.config, fields)
        bandwidth_of(request.config, fields)
        requested(request, fields.faults)
        wanted_mac(request, fields.faults)
        return fields.faults

    async def add(self, call: Call) -> Result:
        request = call.request
        lease = await self._attacher.attach(
            request.container_id,
            request.ifname,
            call.namespace,
            network=request.network,
            pod_namespace=request.args.get("K8S_POD_NAMESPACE", ""),
            pod_name=request.args.get("K8S_POD_NAME", ""),
            addresses=[each.ip for each in requested(request, [])],
            mac=wanted_mac(request, []),
        )
        try:
            await call.host.shaping.set(call.owner, lease.device, bandwidth_of(request.config))
            await call.host.host_ports.add(call.owner, mappings_of(request.config), lease.addresses)
        except BaseException:
            await call.host.shaping.remove(call.owner)
            await self._attacher.detach(*lease.key)
            raise
        pools, mtu_bytes = self._attacher.pod_cidrs, self._attacher.mtu_bytes
        return merge(call.previous, result_of(lease, request.netns, mtu_bytes, pools))

    async def delete(self, call: Call) -> None:
        # A pod that was taken over is another network's; the runtime asks by the one it has now.
        network = self._attacher.network_of(call.request.container_id, call.request.ifname)
        await call.host.host_ports.remove(call.owner)
        await call.host.host_ports.remove(call.owner._replace(network=network))
        await self._attacher.detach(call.request.container_id, call.request.ifname)
        await call.host.shaping.remove(call.owner)

    async def check(self, call: Call) -> None:
        request = call.request
        lease = await self._attacher.check(request.container_id, request.ifname, call.namespace)
        _compare(lease, call.previous)
        mappings = mappings_of(request.config)
        faults = await call.host.host_ports.faults(call.owner, mappings, lease.addresses)
        faults += await call.host.shaping.faults(lease.device, bandwidth_of(request.config))
        if faults:
            raise CniError(NOT_AS_MADE, "; ".join(faults))

    async def gc(self, call: Call) -> None:
        valid = set(call.request.valid_attachments or ())
        await call.host.host_ports.keep_only(call.request.network, valid)
        await call.host.shaping.keep_only(call.request.network, valid)
        await self._attacher.keep_only(call.request.network, valid)

    async def status(self, call: Call) -> None:
        if self._attacher.not_ready:
            raise CniError(NOT_AVAILABLE, self._attacher.not_ready)


def _removal_of(lease: Lease) -> Request:
    return Request(
        verb=Verb.DEL,
        version=NEWEST,
        container_id=lease.container_id,
        ifname=lease.ifname,
        network=lease.network,
    )


def result_of(lease: Lease, sandbox: str, mtu_bytes: int, pools: Sequence[Prefix] = ()) -> Result:
    """What ADD answers: the node's end, the pod's end, its addresses and default routes.

    pools: the node's pod CIDRs.
    """
    inner = ways(lease, pools)
    return Result(
        interfaces=(
            Interface(lease.device, host_mac(lease.device), mtu_bytes),
            Interface(lease.ifname, lease.mac, mtu_bytes, sandbox),
        ),
        ips=tuple(Ip(way.interface, way.gateway, 1) for way in inner),
        routes=tuple(
            RouteEntry(ANYWHERE[family_of(gateway)], gateway)
            for gateway in dict.fromkeys(way.gateway for way in inner)
        ),
    )


def _compare(lease: Lease, previous: Result | None) -> None:
    """CHECK: addresses of ours that prevResult does not list.

    Later plugins of a chain may have added others; what they may not do is take ours away.
    """
    listed = {ip.address.ip for ip in previous.ips} if previous else set()
    missing = [str(address) for address in lease.addresses if address not in listed]
    if listed and missing:
        raise CniError(NOT_AS_MADE, f"prevResult does not list {', '.join(missing)} of this attachment")
