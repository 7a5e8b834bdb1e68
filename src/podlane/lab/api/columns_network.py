"""Cells of services and what belongs to them: endpoints, slices, ingresses, addresses."""

from __future__ import annotations

from podlane.lab.api.cells import NONE, at, host_port, joined
from podlane.lab.client import Obj


def external_ip(obj: Obj, _: float) -> str:
    spec = obj.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName") or NONE)
    given = list(spec.get("externalIPs") or ())
    if spec.get("type") == "LoadBalancer":
        entries = at(obj, "status.loadBalancer.ingress", ())
        addresses = [e.get("ip") or e.get("hostname") for e in entries]
        return ",".join([*addresses, *given]) or "<pending>"
    return ",".join(given) or NONE


def service_ports(obj: Obj, _: float) -> str:
    found = []
    for port in at(obj, "spec.ports", ()):
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        found.append(f"{port['port']}{node}/{port.get('protocol', 'TCP')}")
    return ",".join(found) or NONE


def endpoints(obj: Obj, _: float) -> str:
    found = []
    for subset in obj.get("subsets") or ():
        addresses = [a["ip"] for a in subset.get("addresses") or ()]
        ports = subset.get("ports") or ()
        if not ports:
            found += addresses
        for port in ports:
            found += [host_port(a, port["port"]) for a in addresses]
    return joined(found)


def slice_ports(obj: Obj, _: float) -> str:
    ports = obj.get("ports") or ()
    return joined("*" if p.get("port") is None else p["port"] for p in ports) if ports else "<unset>"


def slice_endpoints(obj: Obj, _: float) -> str:
    endpoints = obj.get("endpoints") or ()
    return joined(a for e in endpoints for a in e.get("addresses") or ()) if endpoints else "<unset>"


def ingress_hosts(obj: Obj, _: float) -> str:
    return joined(r["host"] for r in at(obj, "spec.rules", ()) if r.get("host")).replace(NONE, "*")


def ingress_address(obj: Obj, _: float) -> str:
    return ",".join(e.get("ip") or e.get("hostname", "") for e in at(obj, "status.loadBalancer.ingress", ()))


def ingress_ports(obj: Obj, _: float) -> str:
    return "80, 443" if at(obj, "spec.tls") else "80"


def parameters(obj: Obj, _: float) -> str:
    found = at(obj, "spec.parameters")
    if not found:
        return NONE
    group = f".{found['apiGroup']}" if found.get("apiGroup") else ""
    return f"{found['kind']}{group}/{found['name']}"


def parent(obj: Obj, _: float) -> str:
    found = at(obj, "spec.parentRef", {})
    return "/".join(str(found[k]) for k in ("resource", "namespace", "name") if found.get(k))
