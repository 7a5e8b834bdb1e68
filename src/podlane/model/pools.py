"""LoadBalancerPool (podlane.dev/v1alpha1): addresses that Services of type LoadBalancer may get. Pure.

The names that controller and agents leave on a Service for each other are here too.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from podlane.errors import ConfigError
from podlane.model import selectors
from podlane.model.addresses import Address, Family, Prefix, address, family_of
from podlane.model.bgp import Advertised
from podlane.model.config import NetworkConfig
from podlane.model.objects import Condition, Node, Service
from podlane.model.selectors import EVERYTHING, Selector

RESOURCE: Final = "loadbalancerpools.podlane.dev"
KIND: Final = "LoadBalancerPool"
PATH: Final = "/apis/podlane.dev/v1alpha1/loadbalancerpools"
FINALIZER: Final = "service.kubernetes.io/load-balancer-cleanup"  # KEP-980

# What a user writes on a Service.
WANTED_ADDRESSES: Final = "podlane.dev/load-balancer-ips"  # "192.0.2.7,2001:db8::7"
WANTED_POOL: Final = "podlane.dev/load-balancer-pool"
SHARING_KEY: Final = "podlane.dev/sharing-key"
# What the controller answers there, for agents and people.
ALLOCATED_FROM: Final = "podlane.dev/allocated-from-pool"
ANNOUNCING_NODES: Final = "podlane.dev/announcing-nodes"  # label selector of the nodes that may announce
ANNOUNCED_BY: Final = "podlane.dev/announced-by"  # "l2", "bgp" or both, where the pool says

# spec.loadBalancerClass: who may serve a Service.
CLASS_POOL: Final = "podlane.dev/pool"
CLASS_NODE: Final = "podlane.dev/node"

EXCLUDE_LABEL: Final = "node.kubernetes.io/exclude-from-external-load-balancers"


class Way(enum.StrEnum):
    """How an address becomes known to the network around."""

    L2 = "l2"
    BGP = "bgp"


class Range(Struct, frozen=True, order=True):
    """Addresses first to last, both in it, as numbers of one family."""

    version: int
    first: int
    last: int

    def __contains__(self, where: object) -> bool:
        if not isinstance(where, ipaddress.IPv4Address | ipaddress.IPv6Address):
            return False
        return where.version == self.version and self.first <= int(where) <= self.last

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    @property
    def family(self) -> Family:
        return Family.IPV4 if self.version == 4 else Family.IPV6

    def address(self, number: int) -> Address:
        kind = ipaddress.IPv4Address if self.version == 4 else ipaddress.IPv6Address
        return kind(number)

    def overlaps(self, other: Range) -> bool:
        return self.version == other.version and self.first <= other.last and other.first <= self.last

    def prefixes(self) -> list[Prefix]:
        """The fewest prefixes that hold exactly these addresses."""
        ends: Any = (self.address(self.first), self.address(self.last))
        return list(ipaddress.summarize_address_range(*ends))

    def __str__(self) -> str:
        prefixes = self.prefixes()
        if len(prefixes) == 1:
            return str(prefixes[0])
        return f"{self.address(self.first)}-{self.address(self.last)}"


def parse_range(text: str) -> Range:
    """A prefix, "first-last", or one address. Raises ConfigError."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    if dash:
        ends = address(first), address(last)
        if ends[0].version != ends[1].version:
            raise ConfigError(f"{text!r}: both ends must be of one family")
        if int(ends[0]) > int(ends[1]):
            raise ConfigError(f"{text!r}: the first address comes after the last")
        return Range(ends[0].version, int(ends[0]), int(ends[1]))
    try:
        whole = ipaddress.ip_network(text.strip())
    except ValueError as error:
        raise ConfigError(f"{text!r} is no prefix, address or first-last: {error}") from None
    return Range(whole.version, int(whole[0]), int(whole[-1]))


def range_of(prefix: Prefix) -> Range:
    return Range(prefix.version, int(prefix[0]), int(prefix[-1]))


class Pool(Struct, frozen=True):
    """services, namespaces: whose Services may have its addresses; nodes: who may announce them.

    quota: addresses that one namespace may hold, 0 for any number. announce: how they become known, in
    order; empty for what the configuration says. since: creationTimestamp.
    """

    name: str
    ranges: tuple[Range, ...]
    auto_assign: bool = True
    avoid_buggy: bool = False
    services: Selector = EVERYTHING
    namespaces: Selector = EVERYTHING
    nodes: Selector = EVERYTHING
    quota: int = 0
    announce: tuple[Way, ...] = ()
    since: str = ""

    def __contains__(self, where: object) -> bool:
        return any(where in each for each in self.ranges) and not self.avoids(where)

    def avoids(self, where: object) -> bool:
        """.0 and .255 of IPv4: some clients take them for network and broadcast addresses."""
        return self.avoid_buggy and isinstance(where, ipaddress.IPv4Address) and int(where) % 256 in (0, 255)

    def of(self, family: Family) -> Iterator[Range]:
        return (each for each in self.ranges if each.family is family)

    def size(self, family: Family) -> int:
        return sum(self._usable(each) for each in self.of(family))

    def _usable(self, each: Range) -> int:
        if not self.avoid_buggy or each.version == 6:
            return each.size
        return each.size - sum(_multiples(each, low) for low in (0, 255))

    def admits(self, namespace_labels: Mapping[str, str], service_labels: Mapping[str, str]) -> bool:
        return self.namespaces.matches(namespace_labels) and self.services.matches(service_labels)

    @property
    def particular(self) -> bool:
        """It says whom it is for: such pools are asked before those for everyone."""
        return not (self.services.empty and self.namespaces.empty)


def _multiples(each: Range, low: int) -> int:
    """How many addresses of the range end in the octet `low`."""
    return (each.last - low) // 256 - (each.first - 1 - low) // 256


def parse(document: Mapping[str, Any]) -> Pool:
    """A LoadBalancerPool as the API has it. Raises ConfigError naming the field."""
    meta, spec = document["metadata"], document.get("spec") or {}
    texts = spec.get("addresses") or []
    if not texts:
        raise ConfigError("spec.addresses: name at least one prefix or range")
    ranges: list[Range] = []
    for number, text in enumerate(texts):
        where = f"spec.addresses[{number}]"
        try:
            found = parse_range(str(text))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        other = next((each for each in ranges if each.overlaps(found)), None)
        if other is not None:
            raise ConfigError(f"{where}: {text} overlaps {other} of the same pool")
        if (why := _unfit(found)) is not None:
            raise ConfigError(f"{where}: {text}: {why}")
        ranges.append(found)

    def selector(key: str) -> Selector:
        given = spec.get(key)
        return selectors.from_dict(given, f"spec.{key}") if given is not None else EVERYTHING

    return Pool(
        str(meta["name"]),
        tuple(ranges),
        spec.get("autoAssign") is not False,
        bool(spec.get("avoidBuggyIPs")),
        selector("serviceSelector"),
        selector("namespaceSelector"),
        selector("nodeSelector"),
        int(spec.get("namespaceQuota") or 0),
        _ways(spec.get("announce") or ()),
        str(meta.get("creationTimestamp") or ""),
    )


def _ways(texts: Iterable[Any]) -> tuple[Way, ...]:
    for text in texts:
        if text not in tuple(Way):
            raise ConfigError(f"spec.announce: {text!r} is none of {', '.join(Way)}")
    return tuple(way for way in Way if way in texts)


_UNFIT: Final = {
    "is loopback": ("127.0.0.0/8", "::1/128"),
    "is link-local": ("169.254.0.0/16", "fe80::/10"),
    "is multicast": ("224.0.0.0/4", "ff00::/8"),
    "is no host's address": ("0.0.0.0/8", "::/128", "240.0.0.0/4"),
}


def _unfit(found: Range) -> str | None:
    for why, texts in _UNFIT.items():
        for text in texts:
            if found.overlaps(range_of(ipaddress.ip_network(text))):
                return f"{text} {why}"
    return None


def overlap(pool: Pool, others: Iterable[Pool], taken: Mapping[str, Prefix]) -> str | None:
    """Why pool cannot be used beside these; taken: prefixes of the cluster itself, by what they are."""
    for each in pool.ranges:
        for what, prefix in taken.items():
            if each.overlaps(range_of(prefix)):
                return f"{each} overlaps {what} {prefix}"
        for other in others:
            if other.name != pool.name:
                for theirs in other.ranges:
                    if each.overlaps(theirs):
                        return f"{each} overlaps {theirs} of pool {other.name}, which is older"
    return None


# --- what an agent tells of an address it answers for ---------------------------------------------

ANNOUNCED: Final = {Family.IPV4: "podlane.dev/AnnouncedIPv4", Family.IPV6: "podlane.dev/AnnouncedIPv6"}
REASON: Final = "Layer2"


def announcement(node: str, where: Address) -> str:
    """The message of the condition ANNOUNCED of a Service."""
    return f"{node} answers for {where}"


def announcer(message: str) -> tuple[str, Address] | None:
    """(node, address) of such a message, None for any other."""
    node, verb, text = message.partition(" answers for ")
    try:
        return (node, address(text)) if verb else None
    except ConfigError:
        return None


def announced(service: Service) -> bool:
    """It has addresses of a pool."""
    return service.spec.type == "LoadBalancer" and ALLOCATED_FROM in service.metadata.annotations


def ways_of(service: Service, config: NetworkConfig) -> frozenset[Way]:
    """How the addresses that a Service has of a pool become known."""
    said = service.metadata.annotations.get(ANNOUNCED_BY, "")
    if said:
        return frozenset(way for way in Way if way in said.split(","))
    told = config.speaks_bgp and Advertised.LOAD_BALANCER_IP in config.bgp.advertise
    return frozenset(Way) if told else frozenset({Way.L2})


def announcing_nodes(service: Service) -> Selector:
    """Which nodes may announce them. Raises ConfigError for an annotation that is no selector."""
    text = service.metadata.annotations.get(ANNOUNCING_NODES, "")
    return selectors.parse(text) if text else EVERYTHING


def may_announce(node: Node, selector: Selector) -> bool:
    """selector: announcing_nodes of the Service."""
    return EXCLUDE_LABEL not in node.metadata.labels and selector.matches(node.metadata.labels)


def pool_addresses(service: Service) -> list[Address]:
    """Those of status.loadBalancer that nodes translate (ipMode VIP)."""
    return addresses(i.ip for i in service.status.load_balancer.ingress if i.ip_mode in (None, "VIP"))


def condition_of(service: Service, where: Address) -> Condition | None:
    """What was said last of who answers for an address of this family."""
    wanted = ANNOUNCED[family_of(where)]
    return next((c for c in service.status.conditions if c.type == wanted), None)


def announcing_node(service: Service, where: Address) -> str:
    """ "" when nobody is known to."""
    found = condition_of(service, where)
    told = announcer(found.message) if found is not None and found.status == "True" else None
    return told[0] if told is not None and told[1] == where else ""


def addresses(texts: Iterable[str]) -> list[Address]:
    """Of a status; what is no address is left out."""
    found = []
    for text in texts:
        try:
            found.append(address(text))
        except ConfigError:
            continue
    return found
