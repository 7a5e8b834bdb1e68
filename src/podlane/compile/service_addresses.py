"""A Service's own addresses, and who may use them: clusterIPs, externalIPs, its load balancer's. Pure.

loadBalancerSourceRanges guard load-balancer addresses, and they alone. What is no address, or no range, is
refused by the name of its field.
"""

from __future__ import annotations

from typing import NamedTuple

from podlane.compile.endpoints import Place
from podlane.errors import ConfigError
from podlane.model.addresses import Address, Family, Prefix, address, family_of, host_prefix, loose_prefix
from podlane.model.objects import Service


class Addresses(NamedTuple):
    """A service's own addresses of one family. guarded: load-balancer addresses that only `sources`
    may use."""

    family: Family
    cluster: Address
    external: tuple[Address, ...]  # externalIPs and load-balancer addresses
    guarded: frozenset[Address] = frozenset()
    sources: tuple[Prefix, ...] = ()

    @classmethod
    def of(cls, service: Service, family: Family, here: Place, refused: list[str]) -> Addresses | None:
        """None without a ClusterIP of the family: the service then does not exist in it."""

        def parse(text: str, field: str) -> Address | None:
            try:
                return address(text)
            except ConfigError as error:
                refused.append(f"service {service.namespace}/{service.name}: {field}: {error}")
                return None

        text = _cluster_ip(service, family)
        cluster = parse(text, "spec.clusterIPs") if text else None
        if cluster is None or family_of(cluster) is not family:
            return None
        found = [parse(text, "spec.externalIPs") for text in service.spec.external_ips]
        vips = [
            parse(ingress.ip, "status.loadBalancer.ingress")
            for ingress in service.status.load_balancer.ingress
            # ipMode Proxy: traffic shall go through the load balancer itself (KEP-1860). No ip: a hostname.
            if ingress.ip and ingress.ip_mode in (None, "", "VIP")
        ]
        mine = [each for each in (*found, *vips) if each is not None and family_of(each) is family]
        guarded = (
            frozenset(each for each in vips if each in mine) if _guards(service, family) else frozenset()
        )
        sources = _sources(service, family, here, guarded, refused) if guarded else ()
        return cls(family, cluster, tuple(dict.fromkeys(mine)), guarded, sources)


def _source_ranges(service: Service, family: Family) -> list[str]:
    """The ranges of one family; spaces around them are of no meaning."""
    texts = [text.strip() for text in service.spec.load_balancer_source_ranges]
    return [text for text in texts if (":" in text) == (family is Family.IPV6)]


def _guards(service: Service, family: Family) -> bool:
    """Only some sources may use the load-balancer addresses. Ranges of the other family alone, or one
    that holds every address, restrict nothing."""
    texts = _source_ranges(service, family)
    return bool(texts) and not any(_bits(text) == 0 for text in texts)


def _bits(text: str) -> int | None:
    bits = text.partition("/")[2]
    return int(bits) if bits.isdecimal() else None


def _sources(
    service: Service, family: Family, here: Place, vips: frozenset[Address], refused: list[str]
) -> tuple[Prefix, ...]:
    """Who may come in. What is no range lets nobody in. A node that may come in may do so from a virtual
    address too: where load balancers give it to the node, that is the source of what the node sends."""
    found: list[Prefix] = []
    for text in _source_ranges(service, family):
        try:
            found.append(loose_prefix(text))
        except ConfigError as error:
            where = f"service {service.namespace}/{service.name}: spec.loadBalancerSourceRanges"
            refused.append(f"{where}: {error}")
    own = next((a for a in here.addresses if family_of(a) is family), None)
    if own is not None and any(own in each for each in found):
        found += [host_prefix(vip) for vip in sorted(vips, key=int)]
    return tuple(dict.fromkeys(found))


def _cluster_ip(service: Service, family: Family) -> str:
    """ipFamilies[i] belongs to clusterIPs[i]; objects from before dual-stack have clusterIP alone."""
    spec = service.spec
    if not spec.ip_families:
        try:
            return spec.cluster_ip if family_of(address(spec.cluster_ip)) is family else ""
        except ConfigError:
            return spec.cluster_ip  # the caller says what is wrong with it
    pairs = zip(spec.ip_families, spec.cluster_ips or [spec.cluster_ip], strict=False)
    return next((text for name, text in pairs if name == family), "")
