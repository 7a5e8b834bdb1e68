"""`ptp`: a veth between the pod and the node; the gateway's address is on the node's end."""

from __future__ import annotations

import ipaddress

import msgspec

from podlane.cni import inside
from podlane.cni.plugins.base import Call
from podlane.cni.plugins.bridge import forward
from podlane.cni.plugins.linked import LinkedType, mac_of, read_common
from podlane.cni.protocol import INVALID_CONFIG, Request
from podlane.cni.results import Interface, Ip, Result
from podlane.errors import CniError
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import host_prefix


class PointToPoint(LinkedType):
    name = "ptp"

    def faults(self, request: Request) -> list[str]:
        common, fields = read_common(request)
        if not common.ipam:
            fields.fault("ipam", "is missing: ptp needs addresses")
        return fields.faults

    def make(self, call: Call, leased: Result, device: str) -> Result:
        common, _ = read_common(call.request)
        ifname, node_fd = call.request.ifname, call.host.netns_fd
        own = msgspec.structs.replace(leased, ips=tuple(Ip(ip.address, ip.gateway, 1) for ip in leased.ips))
        bare = [str(ip.address) for ip in own.ips if ip.gateway is None]
        if bare:
            raise CniError(
                INVALID_CONFIG, f"ptp: IPAM {common.ipam} gave {', '.join(bare)} without a gateway"
            )
        node, mac = call.host.rtnl, common.mac or mac_of(call.owner, own)
        with Rtnl(call.namespace) as pod:
            inside.prepare(call.namespace, pod, ifname, own, dad=False)
            try:
                end = inside.create(node, call.namespace, device, ifname, mac, common.mtu_bytes)
                inside.ignore_routers(node_fd, device)
                forward(node_fd, own)
                for gateway in dict.fromkeys(ip.gateway for ip in own.ips if ip.gateway is not None):
                    node.add_address(end.index, ipaddress.ip_interface(gateway))
                inside.configure(pod, ifname, own, index=end.peer, point_to_point=True)
                for ip in own.ips:
                    node.add_route(host_prefix(ip.address.ip), device=end.index, replace=True)
                node.settle(ip.gateway for ip in own.ips if ip.gateway is not None)
            except BaseException:
                node.delete_links([device])
                raise
        return msgspec.structs.replace(
            own,
            interfaces=(
                Interface(end.name, end.mac, end.mtu_bytes, ""),
                Interface(ifname, mac, end.mtu_bytes, call.request.netns),
            ),
        )


TYPE = PointToPoint()
