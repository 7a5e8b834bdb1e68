"""Services, Endpoints, EndpointSlices: pkg/apis/core/validation, pkg/apis/discovery/validation. Pure."""

from __future__ import annotations

from typing import Any

from podlane.lab.api import allocation_fields as service
from podlane.lab.api import validation_field as field
from podlane.lab.api import validation_names as names
from podlane.lab.api.validation_rules import (
    Errors,
    Rule,
    between,
    both,
    each,
    immutable,
    join,
    labels,
    one_of,
    port,
    port_or_name,
    text,
    unique,
)
from podlane.lab.client import Obj
from podlane.model.addresses import family_of

CORE = "io.k8s.api.core.v1."
DISCOVERY = "io.k8s.api.discovery.v1."
TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_FAMILIES = ("IPv4", "IPv6")
_MAX_ENDPOINTS, _MAX_PORTS, _MAX_ADDRESSES = 1000, 20000, 100


def _only(spec: dict[str, Any], path: str, key: str, allowed: bool, why: str) -> Errors:
    if spec.get(key) and not allowed:
        yield field.forbidden(join(path, key), why)


def service_spec(spec: dict[str, Any], path: str) -> Errors:
    kind = spec.get("type")
    external = kind == "ExternalName"
    yield from _cluster_ips(spec, path)
    ports = spec.get("ports", [])
    if not ports and not external and not service.headless(spec):
        yield field.required(join(path, "ports"))
    yield from _ports(spec, ports, join(path, "ports"))
    if external:
        name = spec.get("externalName", "")
        if not name:
            yield field.required(join(path, "externalName"))
        for why in names.dns_subdomain(name.removesuffix(".")) if name else ():
            yield field.invalid(join(path, "externalName"), name, why)
    if service.headless(spec) and kind in ("LoadBalancer", "NodePort"):
        why = f"may not be set to 'None' for {kind} services"
        yield field.invalid(join(path, "clusterIPs[0]"), "None", why)
    balancer = kind == "LoadBalancer"
    only = "may only be used when `type` is 'LoadBalancer'"
    for key in ("loadBalancerSourceRanges", "allocateLoadBalancerNodePorts", "loadBalancerClass"):
        if spec.get(key) is not None and not balancer:
            yield field.forbidden(join(path, key), only)
    policy = spec.get("externalTrafficPolicy")
    if policy and not service.externally_accessible(spec):
        why = "may only be set for externally-accessible services"
        yield field.invalid(join(path, "externalTrafficPolicy"), policy, why)
    check = spec.get("healthCheckNodePort")
    if check and not service.needs_health_check(spec):
        why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        yield field.invalid(join(path, "healthCheckNodePort"), check, why)
    affinity, config = spec.get("sessionAffinity"), spec.get("sessionAffinityConfig")
    if affinity == "None" and config:
        why = "must not be set when session affinity is None"
        yield field.forbidden(join(path, "sessionAffinityConfig"), why)


def _ports(spec: dict[str, Any], ports: list[dict[str, Any]], path: str) -> Errors:
    seen: set[tuple[Any, Any]] = set()
    node_ports: set[tuple[Any, Any]] = set()
    for i, item in enumerate(ports):
        here, protocol = f"{path}[{i}]", item.get("protocol")
        if len(ports) > 1 and not item.get("name"):
            yield field.required(f"{here}.name")
        if (protocol, item.get("port")) in seen:
            yield field.duplicate(here, {"protocol": protocol, "port": item.get("port")})
        seen.add((protocol, item.get("port")))
        node_port = item.get("nodePort")
        if not node_port:
            continue
        if not service.may_have_node_port(spec):
            kind = spec.get("type")
            yield field.forbidden(f"{here}.nodePort", f"may not be used when `type` is '{kind}'")
        elif (protocol, node_port) in node_ports:
            yield field.duplicate(f"{here}.nodePort", node_port)
        node_ports.add((protocol, node_port))


def _cluster_ips(spec: dict[str, Any], path: str) -> Errors:
    """ValidateServiceClusterIPsRelatedFields."""
    ip, ips = spec.get("clusterIP", ""), spec.get("clusterIPs", [])
    families, policy = spec.get("ipFamilies", []), spec.get("ipFamilyPolicy")
    here = join(path, "clusterIPs")
    if spec.get("type") == "ExternalName":
        for key in ("clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            yield from _only(spec, path, key, False, "may not be set for ExternalName services")
        return
    if ips and not ip:
        yield field.invalid(here, ips, "must be empty when `clusterIP` is not specified")
    elif ips and ip != ips[0]:
        yield field.invalid(here, ips, "first value must match `clusterIP`")
    if len(ips) > 2:
        yield field.invalid(here, ips, "may only hold up to 2 values")
    if len(families) > 2:
        yield field.invalid(join(path, "ipFamilies"), families, "may only hold up to 2 values")
    versions: list[str] = []
    for i, text_ in enumerate(ips):
        if text_ == service.HEADLESS:
            if len(ips) > 1:
                why = "'None' must be the first and only value"
                yield field.invalid(f"{here}[{i}]", text_, why)
            continue
        wrong = list(names.ip(text_))
        yield from (field.invalid(f"{here}[{i}]", text_, why) for why in wrong)
        found = names.parsed(text_)
        if wrong or found is None:
            continue
        version = family_of(found).value
        versions.append(version)
        if i < len(families) and families[i] in _FAMILIES and families[i] != version:
            why = f"expected an {families[i]} value as indicated by `ipFamilies[{i}]`"
            yield field.invalid(f"{here}[{i}]", text_, why)
    if len(set(versions)) < len(versions):
        yield field.invalid(here, ips, "may specify no more than one IP for each IP family")
    if policy in (None, "SingleStack"):
        why = "must be 'RequireDualStack' or 'PreferDualStack' when multiple {} are specified"
        if len(ips) > 1:
            yield field.invalid(join(path, "ipFamilyPolicy"), policy or "null", why.format("cluster IPs"))
        if len(families) > 1 and not _of_elsewhere(spec):
            yield field.invalid(join(path, "ipFamilyPolicy"), policy or "null", why.format("IP families"))


def _of_elsewhere(spec: dict[str, Any]) -> bool:
    """Headless without a selector: two families need no policy, the endpoints are somebody else's."""
    unsaid = spec.get("ipFamilyPolicy") is None
    return unsaid and service.headless(spec) and not spec.get("selector")


def service_update(new: Obj, old: Obj) -> Errors:
    after, before = new.get("spec", {}), old.get("spec", {})
    if service.needs_cluster_ip(after) and service.needs_cluster_ip(before):
        ips, known = after.get("clusterIPs", []), before.get("clusterIPs", [])
        families, known_families = after.get("ipFamilies", []), before.get("ipFamilies", [])
        if known and (not ips or ips[0] != known[0]):
            yield field.invalid("spec.clusterIPs[0]", ips, "may not change once set")
        if len(known) > 1 and len(ips) > 1 and ips[1] != known[1]:
            yield field.invalid("spec.clusterIPs[1]", ips, "may not change once set")
        if known_families and families and families[0] != known_families[0]:
            yield field.invalid("spec.ipFamilies[0]", families, "may not change once set")
        if len(known) > 1 and len(ips) == 1 and after.get("ipFamilyPolicy") != "SingleStack":
            why = "must be 'SingleStack' to release the secondary cluster IP"
            yield field.invalid("spec.ipFamilyPolicy", after.get("ipFamilyPolicy", ""), why)
    if service.needs_health_check(after) and service.needs_health_check(before):
        number, known_number = after.get("healthCheckNodePort"), before.get("healthCheckNodePort")
        if number != known_number:
            yield field.invalid("spec.healthCheckNodePort", number, "field is immutable")
    if after.get("type") == before.get("type") == "LoadBalancer":
        name, known_name = after.get("loadBalancerClass"), before.get("loadBalancerClass")
        if name != known_name:
            yield field.invalid("spec.loadBalancerClass", name, "may not change once set")


# --- EndpointSlice --------------------------------------------------------------------------------

_BY_TYPE = {"IPv4": 4, "IPv6": 6}


def endpoint_slice(value: Obj, path: str) -> Errors:
    kind = value.get("addressType")
    endpoints, ports = value.get("endpoints", []), value.get("ports", [])
    if len(endpoints) > _MAX_ENDPOINTS:
        yield field.too_many("endpoints", len(endpoints), _MAX_ENDPOINTS)
    if len(ports) > _MAX_PORTS:
        yield field.too_many("ports", len(ports), _MAX_PORTS)
    for i, endpoint in enumerate(endpoints):
        here = f"endpoints[{i}].addresses"
        addresses = endpoint.get("addresses", [])
        if not addresses:
            yield field.required(here, "must contain at least 1 address")
        if len(addresses) > _MAX_ADDRESSES:
            yield field.too_many(here, len(addresses), _MAX_ADDRESSES)
        for j, address in enumerate(addresses):
            yield from _address(kind, address, f"{here}[{j}]")
    seen: set[str] = set()
    for i, item in enumerate(ports):
        name = item.get("name", "")
        if name in seen:
            yield field.duplicate(f"ports[{i}].name", name)
        seen.add(name)
        for why in names.dns_label(name) if name else ():
            yield field.invalid(f"ports[{i}].name", name, why)


def _address(kind: Any, address: str, path: str) -> Errors:
    if kind in _BY_TYPE:
        found = names.parsed(address)
        if found is None or found.version != _BY_TYPE[kind]:
            yield field.invalid(path, address, f"must be an {kind} address")
            return
        for why in (*names.ip(address), *names.usable_ip(address)):
            yield field.invalid(path, address, why)
    elif kind == "FQDN":
        for why in names.dns_subdomain(address):
            yield field.invalid(path, address, why)


def endpoint_slice_update(new: Obj, old: Obj) -> Errors:
    yield from immutable(new.get("addressType"), old.get("addressType"), "addressType")


# --- Endpoints ------------------------------------------------------------------------------------


def endpoint_subset(value: dict[str, Any], path: str) -> Errors:
    ready, not_ready = value.get("addresses", []), value.get("notReadyAddresses", [])
    if not ready and not not_ready:
        yield field.required(path, "must specify `addresses` or `notReadyAddresses`")
    ports = value.get("ports", [])
    for i, item in enumerate(ports):
        if len(ports) > 1 and not item.get("name"):
            yield field.required(f"{path}.ports[{i}].name")


# --- tables ---------------------------------------------------------------------------------------

RULES: dict[str, dict[str, Rule]] = {
    CORE + "ServiceSpec": {
        "type": one_of(*TYPES),
        "sessionAffinity": one_of("ClientIP", "None"),
        "externalTrafficPolicy": one_of("Cluster", "Local"),
        "internalTrafficPolicy": one_of("Cluster", "Local"),
        "ipFamilyPolicy": one_of("PreferDualStack", "RequireDualStack", "SingleStack"),
        "ipFamilies": both(each(one_of(*_FAMILIES)), unique()),
        "selector": labels,
        "ports": unique("name"),
        "externalIPs": each(both(text(names.ip), text(names.usable_ip))),
        "loadBalancerSourceRanges": each(lambda v, p: text(names.cidr)(v.strip(), p)),
        "loadBalancerClass": text(names.qualified_name),
        "healthCheckNodePort": port,
        "trafficDistribution": one_of("PreferClose", "PreferSameNode", "PreferSameZone"),
    },
    CORE + "ServicePort": {
        "name": text(names.dns_label),
        "port": port,
        "protocol": one_of("SCTP", "TCP", "UDP"),
        "targetPort": port_or_name,
        "nodePort": between(0, 65535, "must be between 1 and 65535, inclusive"),
        "appProtocol": text(names.qualified_name),
    },
    CORE + "ClientIPConfig": {
        "timeoutSeconds": between(1, 86400, "must be greater than 0 and less than 86400")
    },
    CORE + "LoadBalancerIngress": {
        "ip": text(names.ip),
        "hostname": text(names.dns_subdomain),
        "ipMode": one_of("Proxy", "VIP"),
    },
    CORE + "EndpointAddress": {
        "ip": both(text(names.ip), text(names.usable_ip)),
        "hostname": text(names.dns_label),
        "nodeName": text(names.dns_subdomain),
    },
    CORE + "EndpointPort": {
        "name": text(names.dns_label),
        "port": port,
        "protocol": one_of("SCTP", "TCP", "UDP"),
    },
    DISCOVERY + "EndpointSlice": {"addressType": one_of("FQDN", "IPv4", "IPv6")},
    DISCOVERY + "Endpoint": {
        "hostname": text(names.dns_label),
        "nodeName": text(names.dns_subdomain),
        "zone": text(names.label_value),
        "deprecatedTopology": labels,
    },
    DISCOVERY + "EndpointPort": {
        "port": port,
        "protocol": one_of("SCTP", "TCP", "UDP"),
        "appProtocol": text(names.qualified_name),
    },
}

REQUIRED: dict[str, dict[str, str]] = {
    CORE + "ServiceSpec": {"type": "", "sessionAffinity": ""},
    CORE + "ServicePort": {"protocol": ""},
    CORE + "EndpointAddress": {"ip": ""},
    DISCOVERY + "EndpointSlice": {"addressType": ""},
    DISCOVERY + "ForZone": {"name": ""},
    DISCOVERY + "ForNode": {"name": ""},
}

CHECKS = {
    CORE + "ServiceSpec": service_spec,
    CORE + "EndpointSubset": endpoint_subset,
    DISCOVERY + "EndpointSlice": endpoint_slice,
}
