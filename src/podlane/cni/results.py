"""Results of the CNI specification in every version, 0.1.0 to 1.1.0: read (prevResult, IPAM) and written.

    0.1.0, 0.2.0           ip4 and ip6: one address a family, with that family's routes
    0.3.0, 0.3.1, 0.4.0    interfaces, ips (each with its IP version), routes, dns
    1.0.0                  ips without the IP version
    1.1.0                  mtu, socketPath, pciID of interfaces; mtu, advmss, priority, table, scope of routes

Pure. What a version cannot say is left out.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from podlane.errors import CniError
from podlane.kernel.rtnl import links
from podlane.model.addresses import Address, Prefix

UNDECODABLE: Final = 6
IpInterface: TypeAlias = IPv4Interface | IPv6Interface


class Interface(Struct, frozen=True):
    """sandbox: the namespace's path; "" for a link of the node."""

    name: str
    mac: str = ""
    mtu_bytes: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


class Ip(Struct, frozen=True):
    """address: with its prefix. interface: index into Result.interfaces."""

    address: IpInterface
    gateway: Address | None = None
    interface: int | None = None


class RouteEntry(Struct, frozen=True):
    """priority, table, scope: None for the kernel's default."""

    destination: Prefix
    gateway: Address | None = None
    mtu_bytes: int = 0
    advmss_bytes: int = 0
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class Dns(Struct, frozen=True):
    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(Struct, frozen=True):
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[RouteEntry, ...] = ()
    dns: Dns = Dns()


# --- written --------------------------------------------------------------------------------------


def encode_result(result: Result, version: str) -> bytes:
    return json.dumps(document(result, version)).encode()


def document(result: Result, version: str) -> dict[str, Any]:
    """The result in the form of `version`. Up to 0.2.0 there is one address a family and no interface."""
    body: dict[str, Any] = {"cniVersion": version}
    if _by_family(version):
        for ip in result.ips:
            routes = [
                _route(r, version) for r in result.routes if r.destination.version == ip.address.version
            ]
            entry = {"ip": str(ip.address), **_present(gateway=_text(ip.gateway), routes=routes)}
            body.setdefault(f"ip{ip.address.version}", entry)
    else:
        body |= _present(
            interfaces=[_interface(i, version) for i in result.interfaces],
            ips=[_ip(ip, version) for ip in result.ips],
            routes=[_route(route, version) for route in result.routes],
        )
    dns = result.dns
    body["dns"] = _present(
        nameservers=list(dns.nameservers),
        domain=dns.domain,
        search=list(dns.search),
        options=list(dns.options),
    )
    return body


def _by_family(version: str) -> bool:
    return version in ("0.1.0", "0.2.0")


def _present(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in ("", None, [])}


def _text(address: Address | None) -> str:
    return "" if address is None else str(address)


def _interface(interface: Interface, version: str) -> dict[str, Any]:
    shown = {"name": interface.name, **_present(mac=interface.mac)}
    if version == "1.1.0":
        shown |= _present(
            mtu=interface.mtu_bytes or None, socketPath=interface.socket_path, pciID=interface.pci_id
        )
    return shown | _present(sandbox=interface.sandbox)


def _ip(ip: Ip, version: str) -> dict[str, Any]:
    shown: dict[str, Any] = {} if version in ("1.0.0", "1.1.0") else {"version": str(ip.address.version)}
    return shown | _present(interface=ip.interface, address=str(ip.address), gateway=_text(ip.gateway))


def _route(route: RouteEntry, version: str) -> dict[str, Any]:
    shown = {"dst": str(route.destination), **_present(gw=_text(route.gateway))}
    if version == "1.1.0":
        shown |= _present(
            mtu=route.mtu_bytes or None,
            advmss=route.advmss_bytes or None,
            priority=route.priority,
            table=route.table,
            scope=route.scope,
        )
    return shown


# --- read -----------------------------------------------------------------------------------------


class _Interface(Struct):
    name: str = ""
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socketPath: str = ""
    pciID: str = ""


class _Ip(Struct):
    address: str
    gateway: str | None = None
    interface: int | None = None


class _Route(Struct):
    dst: str
    gw: str | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class _Dns(Struct):
    nameservers: list[str] | None = None
    domain: str | None = None
    search: list[str] | None = None
    options: list[str] | None = None


class _FamilyIp(Struct):
    ip: str
    gateway: str | None = None
    routes: list[_Route] | None = None


class _Document(Struct):
    interfaces: list[_Interface] | None = None
    ips: list[_Ip] | None = None
    routes: list[_Route] | None = None
    dns: _Dns | None = None
    ip4: _FamilyIp | None = None
    ip6: _FamilyIp | None = None


def decode(found: Mapping[str, Any], what: str = "prevResult") -> Result:
    """A result of any version, by its form. Raises CniError."""
    try:
        read = msgspec.convert(dict(found), _Document)
        ips = [Ip(_cidr(ip.address), _address(ip.gateway), ip.interface) for ip in read.ips or ()]
        routes = _routes(read.routes or ())
        for family in filter(None, (read.ip4, read.ip6)):
            ips.append(Ip(_cidr(family.ip), _address(family.gateway)))
            routes += _routes(family.routes or ())
        interfaces = tuple(
            Interface(i.name, i.mac, i.mtu, i.sandbox, i.socketPath, i.pciID) for i in read.interfaces or ()
        )
        for name in (i.name for i in interfaces if i.name):
            links.check_name(name)
        for ip in ips:
            if ip.interface is not None and not 0 <= ip.interface < len(interfaces):
                raise ValueError(f"{ip.address} is of interface {ip.interface}, and there is none")
    except (ValueError, TypeError) as error:
        raise CniError(UNDECODABLE, f"{what}: {error}") from None
    dns = read.dns or _Dns()
    return Result(
        interfaces,
        tuple(ips),
        tuple(routes),
        Dns(
            tuple(dns.nameservers or ()), dns.domain or "", tuple(dns.search or ()), tuple(dns.options or ())
        ),
    )


def _routes(entries: Iterable[_Route]) -> list[RouteEntry]:
    return [
        RouteEntry(
            ipaddress.ip_network(entry.dst, strict=False),
            _address(entry.gw),
            entry.mtu or 0,
            entry.advmss or 0,
            entry.priority,
            entry.table,
            entry.scope,
        )
        for entry in entries
    ]


def _cidr(text: str) -> IpInterface:
    if "/" not in text:
        raise ValueError(f"address {text!r} has no prefix length")
    return ipaddress.ip_interface(text)


def _address(text: str | None) -> Address | None:
    return ipaddress.ip_address(text) if text else None


def merge(previous: Result | None, own: Result) -> Result:
    """What a later plugin of a chain answers: everything before it, and its own."""
    if previous is None:
        return own
    shift = len(previous.interfaces)
    ips = tuple(
        ip if ip.interface is None else msgspec.structs.replace(ip, interface=ip.interface + shift)
        for ip in own.ips
    )
    return Result(
        previous.interfaces + own.interfaces,
        previous.ips + ips,
        previous.routes + own.routes,
        own.dns if own.dns != Dns() else previous.dns,
    )
