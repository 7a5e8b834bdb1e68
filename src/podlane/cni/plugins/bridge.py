"""`bridge`: pods are ports of a bridge of the node, as the reference plugin makes them.

cni0        10.22.0.1/16 with isGateway: where pods send to
vethXXXX    a port of it, the node's end
in the pod  eth0 10.22.0.5/16, routes of the IPAM type
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from podlane.cni import inside, spoofing, vlans
from podlane.cni.plugins.base import Call, read_once
from podlane.cni.plugins.linked import Common, LinkedType, mac_of, read_common
from podlane.cni.protocol import INVALID_CONFIG, Request
from podlane.cni.results import Interface, Ip, Result, RouteEntry
from podlane.cni.vlans import Vlans
from podlane.errors import CniError, KernelExistsError, UnsupportedError
from podlane.kernel import netns, sysctl
from podlane.kernel.rtnl import Rtnl, addresses, links, ports
from podlane.kernel.rtnl.links import Link
from podlane.model.addresses import Address

DEFAULT_BRIDGE = "cni0"
_FORWARDING = {4: "net/ipv4/conf/all/forwarding", 6: "net/ipv6/conf/all/forwarding"}


class Settings(msgspec.Struct, frozen=True):
    common: Common
    bridge: str
    gateway: bool
    default_gateway: bool
    force_address: bool
    hairpin: bool
    promiscuous: bool
    isolated: bool
    spoof_check: bool
    dad: bool
    up: bool
    vlans: Vlans


@read_once
def read(request: Request) -> tuple[Settings, list[str]]:
    common, fields = read_common(request)
    name = fields.text("bridge") or DEFAULT_BRIDGE
    try:
        links.check_name(name)
    except ValueError as error:
        fields.fault("bridge", f"is {error}")
        name = DEFAULT_BRIDGE
    default_gateway = fields.boolean("isDefaultGateway")
    settings = Settings(
        common,
        name,
        fields.boolean("isGateway") or default_gateway,
        default_gateway,
        fields.boolean("forceAddress"),
        fields.boolean("hairpinMode"),
        fields.boolean("promiscMode"),
        fields.boolean("portIsolation"),
        fields.boolean("macspoofchk"),
        fields.boolean("enabledad"),
        not fields.boolean("disableContainerInterface"),
        vlans.read(fields),
    )
    if settings.hairpin and settings.promiscuous:
        faults = "cannot be set together: one of them lets a pod reach itself"
        fields.fault("hairpinMode and promiscMode", faults)
    if settings.vlans.own and settings.gateway and len(f"{name}.{settings.vlans.own}") > 15:
        fields.fault("bridge", f"is {name!r}, too long for the gateway's link {name}.{settings.vlans.own}")
    if not settings.up and common.ipam:
        fields.fault("disableContainerInterface", "makes no sense with ipam: leave one of them out")
    return settings, fields.faults


class Bridge(LinkedType):
    name = "bridge"

    def __init__(self) -> None:
        self._bridges = threading.Lock()  # two first ADDs at once make one bridge

    def faults(self, request: Request) -> list[str]:
        return read(request)[1]

    def make(self, call: Call, leased: Result, device: str) -> Result:
        settings, _ = read(call.request)
        common, ifname, node_fd = settings.common, call.request.ifname, call.host.netns_fd
        own = _with_gateways(leased, settings)
        mac = common.mac or mac_of(call.owner, own)
        node = call.host.rtnl
        with Rtnl(call.namespace) as pod:
            inside.prepare(call.namespace, pod, ifname, own, dad=settings.dad)
            bridge = self._ensure(node, settings, node_fd)
            try:
                port = inside.create(
                    node, call.namespace, device, ifname, mac, common.mtu_bytes, master=bridge.index
                )
                if settings.vlans:
                    vlans.join(node, port.index, settings.vlans, device)
                if settings.hairpin:
                    node.do(links.set_hairpin(port.index, True, what=device))
                if settings.isolated:
                    node.do(ports.set_isolated(port.index, True, what=device))
                if settings.spoof_check:
                    spoofing.guard(device, mac, node_fd)
                if settings.gateway:
                    with self._bridges:
                        vlan = settings.vlans
                        gateway = vlans.ensure_gateway(node, bridge, vlan) if vlan.own else bridge
                        _ensure_gateways(node, gateway, own, settings)
                    forward(node_fd, own)
                if settings.up:
                    inside.configure(pod, ifname, own, index=port.peer, dad=settings.dad)
                    node.settle_port(device)
                # A port may have changed what the bridge says of itself.
                bridge = node.link(settings.bridge)
            except BaseException:
                node.delete_links([device])
                raise
        return msgspec.structs.replace(
            own,
            interfaces=(
                Interface(bridge.name, bridge.mac, bridge.mtu_bytes, ""),
                Interface(port.name, port.mac, port.mtu_bytes, ""),
                Interface(ifname, mac, port.mtu_bytes, call.request.netns),
            ),
        )

    def node_faults(self, call: Call, node: Rtnl, device: str) -> list[str]:
        settings, _ = read(call.request)
        bridge, port = node.find_link(settings.bridge), node.find_link(device)
        if bridge is None or bridge.kind != "bridge":
            return [f"the node has no bridge {settings.bridge}"]
        found = [] if bridge.up else [f"{bridge.name} is down"]
        if port is not None and port.master != bridge.index:
            found.append(f"{device} is no port of {bridge.name}")
        if port is not None and settings.hairpin and not port.hairpin:
            found.append(f"{device} is not in hairpin mode")
        if settings.promiscuous and not bridge.promiscuous:
            found.append(f"{bridge.name} is not promiscuous")
        interfaces = call.chained.interfaces
        if settings.spoof_check and len(interfaces) >= 3:
            found += spoofing.faults(device, interfaces[2].mac, call.host.netns_fd)
        return found

    def undo(self, call: Call, note: Mapping[str, Any]) -> None:
        settings, _ = read(call.request)
        interfaces = note.get("result", {}).get("interfaces", ())
        if settings.spoof_check and len(interfaces) == 3:
            spoofing.release(note["device"], interfaces[2]["mac"], call.host.netns_fd)

    def _ensure(self, node: Rtnl, settings: Settings, node_fd: int | None) -> Link:
        name = settings.bridge
        with self._bridges:
            found = node.find_link(name)
            made = found is None
            if found is None:
                # With an address of its own it does not change with its ports.
                mac = (b"\x02" + os.urandom(5)).hex(":")
                with contextlib.suppress(KernelExistsError):  # another plugin was first
                    node.create_bridge(name, mac=mac, mtu_bytes=settings.common.mtu_bytes)
                inside.ignore_routers(node_fd, name)
                found = node.link(name)
            if found.kind != "bridge":
                what = f"the link {name} is {found.kind or 'a device'}, and no bridge: choose another name"
                raise CniError(INVALID_CONFIG, what)
            if settings.vlans:
                try:
                    vlans.ensure_filtering(node, found)
                except UnsupportedError:
                    node.delete_links([name] if made else [])
                    raise
            promiscuous = True if settings.promiscuous and not found.promiscuous else None
            if not found.up or promiscuous:
                node.do(links.change(found.index, up=True, promiscuous=promiscuous, what=name))
            return found


def _with_gateways(leased: Result, settings: Settings) -> Result:
    """Of the pod's interface (the third); gateways that isGateway makes, isDefaultGateway's routes."""
    ips = tuple(
        Ip(ip.address, ip.gateway or (_first(ip) if settings.gateway else None), 2) for ip in leased.ips
    )
    routes = list(leased.routes)
    if settings.default_gateway:
        for version in dict.fromkeys(ip.address.version for ip in ips):
            anywhere = ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0")
            if not any(route.destination == anywhere for route in routes):
                gateway = next(ip.gateway for ip in ips if ip.address.version == version)
                routes.append(RouteEntry(anywhere, gateway))
    return msgspec.structs.replace(
        leased,
        ips=ips,
        routes=tuple(routes),
    )


def _first(ip: Ip) -> Address:
    """Of the address's network: the gateway of who names none."""
    network = ip.address.network
    if network.num_addresses == 1:
        what = f"{ip.address} is a network of its own, with no address for the gateway: give ipam a gateway"
        raise CniError(INVALID_CONFIG, what)
    return network[1]


def _ensure_gateways(node: Rtnl, bridge: Link, own: Result, settings: Settings) -> None:
    held = [
        entry.address for entry in node.addresses(bridge.index) if entry.scope == addresses.SCOPE_UNIVERSE
    ]
    for ip in own.ips:
        wanted = (
            ipaddress.ip_interface((ip.gateway.packed, ip.address.network.prefixlen)) if ip.gateway else None
        )
        if wanted is None or wanted in held:
            continue
        others = [a for a in held if a.version == wanted.version]
        if wanted.version == 6:
            others = [a for a in others if a.ip in wanted.network or wanted.ip in a.network]
        if others and not settings.force_address:
            what = f"{bridge.name} already has the address {others[0]}, not {wanted}"
            raise CniError(INVALID_CONFIG, what, "remove it, or set forceAddress")
        for other in others:
            node.delete_address(bridge.index, other)
            held.remove(other)
        with contextlib.suppress(KernelExistsError):
            node.add_address(bridge.index, wanted)
        held.append(wanted)
        node.settle([wanted.ip])


def forward(node_fd: int | None, own: Result) -> None:
    with netns.entered(node_fd) if node_fd is not None else contextlib.nullcontext():
        for version in {ip.address.version for ip in own.ips}:
            sysctl.write_node(_FORWARDING[version], "1")


TYPE = Bridge()
