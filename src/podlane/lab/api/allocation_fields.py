"""What of a Service follows from its other fields before anything is allocated; pure.

pkg/registry/core/service/storage (normalizeClusterIPs, patchAllocatedValues, initIPFamilyFields) and
strategy.go (dropTypeDependentFields) of Kubernetes v1.36. Specs are changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from podlane.errors import ConfigError
from podlane.lab.api import validation_field as field
from podlane.lab.api.validation_field import FieldError
from podlane.lab.client import Obj
from podlane.model.addresses import Family, address, family_of

Spec = dict[str, Any]
HEADLESS = "None"


def needs_cluster_ip(spec: Spec) -> bool:
    return spec.get("type") in ("ClusterIP", "NodePort", "LoadBalancer")


def headless(spec: Spec) -> bool:
    ips = spec.get("clusterIPs") or [spec.get("clusterIP")]
    return needs_cluster_ip(spec) and bool(ips[0] == HEADLESS)


def may_have_node_port(spec: Spec) -> bool:
    return spec.get("type") in ("NodePort", "LoadBalancer")


def needs_node_port(spec: Spec) -> bool:
    if spec.get("type") == "LoadBalancer":
        return spec.get("allocateLoadBalancerNodePorts") is not False
    return spec.get("type") == "NodePort"


def needs_health_check(spec: Spec) -> bool:
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def externally_accessible(spec: Spec) -> bool:
    """Has a traffic policy for what comes from outside."""
    return may_have_node_port(spec) or bool(needs_cluster_ip(spec) and spec.get("externalIPs"))


def prepare_create(service: Obj) -> None:
    """A client that knows only clusterIP means clusterIPs too."""
    spec = service.get("spec", {})
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]


def prepare_update(new: Obj, old: Obj) -> None:
    """What a client left out stays; what the new type has no use for goes."""
    after, before = new.get("spec", {}), old.get("spec", {})
    _cluster_ips(after, before)
    _carry_over(after, before)
    _drop_by_type(after, before)
    if after.get("type") != "LoadBalancer" and "status" in new:
        new["status"] = {**new["status"], "loadBalancer": {}}


def _cluster_ips(after: Spec, before: Spec) -> None:
    """clusterIP and clusterIPs are kept in step when a client changed only one of them."""
    old_ip, ip = before.get("clusterIP", ""), after.get("clusterIP", "")
    old_ips, ips = before.get("clusterIPs", []), after.get("clusterIPs", [])
    if old_ips and not ips and old_ip == ip:
        after["clusterIPs"] = list(old_ips)
    elif old_ip != ip and old_ips == ips:
        if not ip:
            after.pop("clusterIPs", None)
        else:
            after["clusterIPs"] = [ip]


def _carry_over(after: Spec, before: Spec) -> None:
    if needs_cluster_ip(after) and needs_cluster_ip(before):
        if not after.get("clusterIP") and before.get("clusterIP"):
            after["clusterIP"] = before["clusterIP"]
        if not after.get("clusterIPs") and after.get("clusterIP") == before.get("clusterIP"):
            after["clusterIPs"] = list(before.get("clusterIPs", []))
        if after.get("clusterIPs") == before.get("clusterIPs"):
            for key in ("ipFamilyPolicy", "ipFamilies"):
                if not after.get(key) and before.get(key):
                    after[key] = before[key]
    if needs_node_port(after) and needs_node_port(before):
        kept = _node_ports(before) & _node_ports(after)
        by_name = {p.get("name", ""): p.get("nodePort", 0) for p in before.get("ports", [])}
        for port in after.get("ports", []):
            known = by_name.get(port.get("name", ""), 0)
            if not port.get("nodePort") and known and known not in kept:
                port["nodePort"] = known
                kept.add(known)
    if needs_health_check(after) and needs_health_check(before) and not after.get("healthCheckNodePort"):
        after["healthCheckNodePort"] = before.get("healthCheckNodePort", 0)


def _node_ports(spec: Spec) -> set[int]:
    return {p["nodePort"] for p in spec.get("ports", []) if p.get("nodePort")}


# Fields that go when a Service no longer needs them, unless the client changed them (which is refused).
_DEPENDENT: tuple[tuple[Callable[[Spec], bool], tuple[str, ...]], ...] = (
    (needs_cluster_ip, ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy")),
    (needs_health_check, ("healthCheckNodePort",)),
    (lambda s: s.get("type") == "LoadBalancer", ("allocateLoadBalancerNodePorts", "loadBalancerClass")),
    (externally_accessible, ("externalTrafficPolicy",)),
    (lambda s: s.get("type") == "ExternalName", ("externalName",)),
)


def _drop_by_type(after: Spec, before: Spec) -> None:
    for needs, keys in _DEPENDENT:
        if needs(before) and not needs(after):
            for key in keys:
                if after.get(key) == before.get(key):
                    after.pop(key, None)
    if may_have_node_port(before) and not may_have_node_port(after):
        old = [p.get("nodePort") for p in before.get("ports", [])]
        if old == [p.get("nodePort") for p in after.get("ports", [])]:
            for port in after.get("ports", []):
                port.pop("nodePort", None)


# --- families -------------------------------------------------------------------------------------


def trim_to_single(after: Spec, before: Spec) -> None:
    """A change to SingleStack gives the second family back."""
    if after.get("ipFamilyPolicy") != "SingleStack" or before.get("ipFamilyPolicy") == "SingleStack":
        return
    for key in ("clusterIPs", "ipFamilies"):
        if after.get(key) == before.get(key) and len(after.get(key, [])) == 2:
            after[key] = after[key][:1]


def set_families(spec: Spec, cluster: Sequence[Family]) -> Iterator[FieldError]:
    """ipFamilies and ipFamilyPolicy from what the client gave and what the cluster has, primary first.

    Complete only when nothing is yielded.
    """
    if not needs_cluster_ip(spec):
        return
    families: list[str] = list(spec.get("ipFamilies", []))
    ips = spec.get("clusterIPs", [])
    for i, text in enumerate(ips):
        if text == HEADLESS:
            break
        try:
            family = family_of(address(text))
        except ConfigError:
            return  # validation says so
        if i >= len(families):
            if family not in cluster:
                yield field.invalid(
                    f"spec.clusterIPs[{i}]", ips, f"{family} is not configured on this cluster"
                )
            else:
                families.append(family.value)
    policy = spec.get("ipFamilyPolicy")
    other = {Family.IPV4: Family.IPV6, Family.IPV6: Family.IPV4}
    if headless(spec) and not spec.get("selector"):
        # Its addresses are somebody else's: they may be of families the cluster does not have.
        if not families:
            families = [cluster[0].value]
            policy = policy or "RequireDualStack"
        policy = policy or ("SingleStack" if len(families) == 1 else "RequireDualStack")
        if policy != "SingleStack" and len(families) == 1:
            families.append(other[Family(families[0])].value)
        spec["ipFamilies"], spec["ipFamilyPolicy"] = families, policy
        return
    if policy == "RequireDualStack" and len(cluster) < 2:
        why = "this cluster is not configured for dual-stack services"
        yield field.invalid("spec.ipFamilyPolicy", policy, why)
        return
    missing = [(i, f) for i, f in enumerate(families) if f not in list(cluster)]
    for i, name in missing:
        yield field.invalid(f"spec.ipFamilies[{i}]", name, "not configured on this cluster")
    if missing:
        return
    policy = policy or "SingleStack"
    if not families:
        families = [cluster[0].value]
    if policy != "SingleStack" and len(families) == 1 and len(cluster) == 2:
        families.append(other[Family(families[0])].value)
    spec["ipFamilies"], spec["ipFamilyPolicy"] = families, policy
