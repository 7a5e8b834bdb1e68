"""NetworkPolicies, Ingresses, ServiceCIDRs, IPAddresses: pkg/apis/networking/validation. Pure."""

from __future__ import annotations

from typing import Any

from podlane.lab.api import validation_field as field
from podlane.lab.api import validation_names as names
from podlane.lab.api.validation_rules import (
    Errors,
    Rule,
    immutable,
    join,
    one_of,
    port,
    port_or_name,
    text,
)
from podlane.lab.client import Obj

NETWORKING = "io.k8s.api.networking.v1."


# --- NetworkPolicy --------------------------------------------------------------------------------


def policy_port(value: dict[str, Any], path: str) -> Errors:
    number, end = value.get("port"), value.get("endPort")
    if end is None:
        return
    here = join(path, "endPort")
    if number is None:
        yield field.invalid(here, end, "may not be specified when `port` is not specified")
    elif isinstance(number, str):
        yield field.invalid(here, end, "may not be specified when `port` is non-numeric")
    elif end < number:
        yield field.invalid(here, end, "must be greater than or equal to `port`")


def policy_peer(value: dict[str, Any], path: str) -> Errors:
    selectors = [k for k in ("podSelector", "namespaceSelector") if value.get(k) is not None]
    if value.get("ipBlock") is not None:
        if selectors:
            why = "may not specify both ipBlock and another peer"
            yield field.forbidden(path, why)
    elif not selectors:
        yield field.required(path, "must specify a peer")


def ip_block(value: dict[str, Any], path: str) -> Errors:
    text_ = value.get("cidr", "")
    whole = names.network(text_)
    for i, part in enumerate(value.get("except", [])):
        here = f"{path}.except[{i}]"
        wrong = list(names.cidr(part))
        yield from (field.invalid(here, part, why) for why in wrong)
        inner = names.network(part)
        if wrong or whole is None or inner is None:
            continue
        same = whole.version == inner.version
        if not same or inner.prefixlen <= whole.prefixlen or inner.network_address not in whole:
            yield field.invalid(here, part, f"must be a strict subset of `cidr`: {text_}")


def policy_types(value: Any, path: str) -> Errors:
    if len(value) > 2:
        yield field.invalid(path, value, "may not specify more than two policyTypes")
        return
    for i, item in enumerate(value):
        yield from one_of("Egress", "Ingress")(item, f"{path}[{i}]")


# --- Ingress --------------------------------------------------------------------------------------


def ingress_spec(value: dict[str, Any], path: str) -> Errors:
    if not value.get("rules") and value.get("defaultBackend") is None:
        yield field.invalid(
            path, value.get("rules", []), "either `defaultBackend` or `rules` must be specified"
        )


def ingress_backend(value: dict[str, Any], path: str) -> Errors:
    service, other = value.get("service"), value.get("resource")
    if service is not None and other is not None:
        why = "cannot set both resource and service backends"
        yield field.invalid(path, "", why)
    elif service is None and other is None:
        yield field.invalid(path, "", "resource or service backend is required")
    elif service is not None:
        here = join(path, "service")
        numbered = service.get("port") or {}
        if not service.get("name"):
            yield field.required(f"{here}.name")
        for why in names.dns_label(service.get("name", "")) if service.get("name") else ():
            yield field.invalid(f"{here}.name", service["name"], why)
        if numbered.get("name") and numbered.get("number"):
            yield field.invalid(here, "", "cannot set both port name & port number")
        elif not numbered.get("name") and not numbered.get("number"):
            yield field.required(here, "port name or number is required")


_BAD_PARTS = ("//", "/./", "/../", "%2f", "%2F")
_BAD_ENDS = ("/..", "/.")


def ingress_path(value: dict[str, Any], path: str) -> Errors:
    kind, text_ = value.get("pathType"), value.get("path", "")
    here = join(path, "path")
    if kind is None:
        yield field.required(join(path, "pathType"), "pathType must be specified")
        return
    if kind in ("Exact", "Prefix"):
        if not text_.startswith("/"):
            yield field.invalid(here, text_, "must be an absolute path")
        elif text_:
            for part in _BAD_PARTS:
                if part in text_:
                    yield field.invalid(here, text_, f"must not contain '{part}'")
            for end in _BAD_ENDS:
                if text_.endswith(end):
                    yield field.invalid(here, text_, f"cannot end with '{end}'")
    elif kind == "ImplementationSpecific" and text_ and not text_.startswith("/"):
        yield field.invalid(here, text_, "must be an absolute path")


def host(value: Any, path: str) -> Errors:
    if names.parsed(value) is not None:
        yield field.invalid(path, value, "must be a DNS name, not an IP address")
        return
    check = names.wildcard_domain if "*" in value else names.dns_subdomain
    yield from text(check)(value, path)


# --- ServiceCIDR, IPAddress -----------------------------------------------------------------------


def service_cidrs(value: Any, path: str) -> Errors:
    if len(value) > 2:
        yield field.invalid(path, value, "may only hold up to 2 values")
        return
    versions = []
    for i, item in enumerate(value):
        wrong = list(names.cidr(item))
        yield from (field.invalid(f"{path}[{i}]", item, why) for why in wrong)
        found = names.network(item)
        if not wrong and found is not None:
            versions.append(found.version)
            if str(found) != item:
                yield field.invalid(f"{path}[{i}]", item, f'must be in canonical form ("{found}")')
            if found.version == 6 and found.prefixlen < 64:
                yield field.invalid(f"{path}[{i}]", item, "the prefix must be /64 or longer")
    if len(versions) == 2 and versions[0] == versions[1]:
        yield field.invalid(path, value, "may specify no more than one IP for each IP family")


def service_cidr_update(new: Obj, old: Obj) -> Errors:
    """One family may become two; what is there stays."""
    after, before = new.get("spec", {}).get("cidrs", []), old.get("spec", {}).get("cidrs", [])
    if after[: len(before)] != before:
        yield from immutable(after, before, "spec.cidrs")


def ip_address_update(new: Obj, old: Obj) -> Errors:
    after, before = new.get("spec", {}).get("parentRef"), old.get("spec", {}).get("parentRef")
    yield from immutable(after, before, "spec.parentRef")


RULES: dict[str, dict[str, Rule]] = {
    NETWORKING + "NetworkPolicySpec": {"policyTypes": policy_types},
    NETWORKING + "NetworkPolicyPort": {
        "protocol": one_of("SCTP", "TCP", "UDP"),
        "port": port_or_name,
        "endPort": port,
    },
    NETWORKING + "IPBlock": {"cidr": text(names.cidr)},
    NETWORKING + "IngressSpec": {"ingressClassName": text(names.dns_subdomain)},
    NETWORKING + "IngressRule": {"host": host},
    NETWORKING + "HTTPIngressPath": {"pathType": one_of("Exact", "ImplementationSpecific", "Prefix")},
    NETWORKING + "ServiceBackendPort": {"number": port, "name": text(names.port_name)},
    NETWORKING + "IngressClassParametersReference": {"scope": one_of("Cluster", "Namespace")},
    NETWORKING + "ServiceCIDRSpec": {"cidrs": service_cidrs},
}

REQUIRED: dict[str, dict[str, str]] = {
    NETWORKING + "IPBlock": {"cidr": ""},
    NETWORKING + "HTTPIngressRuleValue": {"paths": ""},
    NETWORKING + "ServiceCIDRSpec": {"cidrs": "at least one CIDR required"},
    NETWORKING + "IPAddressSpec": {"parentRef": ""},
    NETWORKING + "ParentReference": {"resource": "", "name": ""},
}

CHECKS = {
    NETWORKING + "NetworkPolicyPort": policy_port,
    NETWORKING + "NetworkPolicyPeer": policy_peer,
    NETWORKING + "IPBlock": ip_block,
    NETWORKING + "IngressSpec": ingress_spec,
    NETWORKING + "IngressBackend": ingress_backend,
    NETWORKING + "HTTPIngressPath": ingress_path,
}
