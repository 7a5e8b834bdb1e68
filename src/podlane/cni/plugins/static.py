"""`static`: the addresses that the configuration names. It keeps nothing.

CNI_ARGS IP and GATEWAY add to them; args.cni.ips and the capability `ips` take their place.
"""

from __future__ import annotations

import ipaddress

from podlane.cni import protocol
from podlane.cni.fields import Fields
from podlane.cni.ipam import read_dns, read_routes, requested
from podlane.cni.plugins.base import Call, PluginType
from podlane.cni.protocol import Request
from podlane.cni.results import Ip, Result
from podlane.errors import CniError


def read(request: Request) -> tuple[Result, list[str]]:
    ipam = Fields(request.config).fields("ipam")
    faults = ipam.faults
    ips = []
    for entry in ipam.objects("addresses"):
        address, gateway = entry.interface("address"), entry.address("gateway")
        if "address" not in entry:
            entry.fault("address", "is missing")
        if address is not None and gateway is not None and gateway.version != address.version:
            entry.fault("gateway", f"{gateway} is of another family than {address}")
        if address is not None:
            ips.append(Ip(address, gateway))
    named = [Ip(address) for address in requested(request, faults)]
    if request.runtime("ips") or request.cni_args("ips"):
        ips = named
    else:
        ips += _with_gateways(named, request.args.get("GATEWAY", ""), faults)
    return Result(ips=tuple(ips), routes=tuple(read_routes(ipam)), dns=read_dns(ipam.fields("dns"))), faults


def _with_gateways(named: list[Ip], text: str, faults: list[str]) -> list[Ip]:
    """GATEWAY of CNI_ARGS: of the addresses whose network has it."""
    gateways = []
    for word in filter(None, text.split(",")):
        try:
            gateways.append(ipaddress.ip_address(word))
        except ValueError:
            faults.append(f"CNI_ARGS GATEWAY has {word!r}, which is not an IP address")
    return [
        Ip(ip.address, next((g for g in gateways if g in ip.address.network), ip.gateway)) for ip in named
    ]


class Static(PluginType):
    name = "static"

    def faults(self, request: Request) -> list[str]:
        return read(request)[1]

    async def add(self, call: Call) -> Result:
        return read(call.request)[0]

    async def check(self, call: Call) -> None:
        """Every address of the configuration is in prevResult."""
        own, _ = read(call.request)
        listed = {ip.address for ip in call.previous.ips} if call.previous else set()
        missing = [str(ip.address) for ip in own.ips if ip.address not in listed]
        if missing:
            raise CniError(protocol.NOT_AS_MADE, f"static: prevResult does not list {', '.join(missing)}")


TYPE = Static()
