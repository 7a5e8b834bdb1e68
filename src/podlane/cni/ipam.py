"""What IPAM types read alike: routes, addresses asked for by name, name servers."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from podlane.cni.fields import Fields
from podlane.cni.protocol import IO_FAILURE, Request
from podlane.cni.results import Dns, IpInterface, RouteEntry
from podlane.errors import CniError


def read_routes(fields: Fields) -> Iterator[RouteEntry]:
    for entry in fields.objects("routes"):
        destination, gateway = entry.prefix("dst"), entry.address("gw")
        if "dst" not in entry:
            entry.fault("dst", "is missing")
        elif destination is not None and gateway is not None and gateway.version != destination.version:
            entry.fault("gw", f"{gateway} is of another family than {destination}")
        largest = 2**32 - 1
        route = RouteEntry(
            destination or ipaddress.ip_network("0.0.0.0/0"),
            gateway,
            entry.integer("mtu", 0, 2**31 - 1),
            entry.integer("advmss", 0, 65535),
            entry.integer("priority", 0, largest) if "priority" in entry else None,
            entry.integer("table", 1, largest) if "table" in entry else None,
            entry.integer("scope", 0, 255) if "scope" in entry else None,
        )
        if destination is not None:
            yield route


def requested(request: Request, faults: list[str]) -> list[IpInterface]:
    """Addresses asked for: IP of CNI_ARGS, args.cni.ips and the capability `ips`, in this order.

    With or without a prefix length; without one it is the address alone.
    """
    found: list[IpInterface] = []
    texts: list[tuple[str, Any]] = [("CNI_ARGS IP", t) for t in request.args.get("IP", "").split(",") if t]
    for where, values in (
        ("args.cni.ips", request.cni_args("ips")),
        ("runtimeConfig.ips", request.runtime("ips")),
    ):
        if values is not None and not isinstance(values, list):
            faults.append(f"{where} is {values!r}, expected a list of addresses")
        else:
            texts += [(where, value) for value in values or ()]
    for where, text in texts:
        try:
            found.append(ipaddress.ip_interface(text if isinstance(text, str) else ""))
        except ValueError:
            faults.append(f"{where} has {text!r}, which is not an IP address")
    return found


def read_dns(fields: Fields) -> Dns:
    return Dns(
        tuple(fields.strings("nameservers")),
        fields.text("domain"),
        tuple(fields.strings("search")),
        tuple(fields.strings("options")),
    )


def dns_of_file(path: str) -> Dns | None:
    """Of a resolv.conf(5); None where no path is given. Raises CniError."""
    if not path:
        return None
    try:
        text = Path(path).read_text(errors="replace")
    except OSError as error:
        raise CniError(IO_FAILURE, f"ipam.resolvConf {path}: {error.strerror}") from None
    servers: list[str] = []
    domain, search, options = "", [], list[str]()
    for line in text.splitlines():
        words = line.split()
        if not words or line[0] in "#;":
            continue
        match words[0]:
            case "nameserver" if len(words) > 1:
                servers.append(words[1])
            case "domain" if len(words) > 1:
                domain = words[1]
            case "search":
                search = words[1:]
            case "options":
                options += words[1:]
    return Dns(tuple(servers), domain, tuple(search), tuple(options))
