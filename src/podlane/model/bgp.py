"""NetworkConfig's section `bgp`: whom a node's speaker talks to, what it says and what it believes."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address

from msgspec import field

from podlane.errors import ConfigError
from podlane.model import selectors
from podlane.model.addresses import address, family_of, prefix
from podlane.model.sections import Section

_INTERFACE = re.compile(r"[^\s/:\"]{1,15}", re.ASCII)


class Advertised(enum.StrEnum):
    """Service addresses that routers may be told."""

    CLUSTER_IP = "ClusterIP"
    EXTERNAL_IP = "ExternalIP"
    LOAD_BALANCER_IP = "LoadBalancerIP"


class Action(enum.StrEnum):
    ACCEPT = "accept"
    REJECT = "reject"


class BgpRule(Section, frozen=True):
    """One rule of a router's filter. All that is given must fit; a rule with nothing fits every route.

    prefix: the route's lies within it, minLength to maxLength bits long (0: the prefix's own length, any).
    community: it carries it, "64512:100" (RFC 1997) or "64512:1:2" (RFC 8092).
    """

    action: Action
    prefix: str = ""
    min_length: int = 0
    max_length: int = 0
    community: str = ""


class BgpPeerConfig(Section, frozen=True):
    """A BGP speaker that is no node: a router. nodes: labels of the nodes that peer with it; none: all.

    interface, in place of address: whoever speaks with that AS number on this link, by link-local addresses
    (unnumbered; IPv4 with IPv6 next hops, RFC 8950). The router begins: it hears of the node by router
    advertisements. importRules, exportRules: the first that fits decides, what fits none is accepted; this
    node's own prefixes are never taken of a router, whatever they say. localPreference: of what it tells (RFC
    4271 5.1.5). prepend: how often this node's AS number is put before the path once more, to be the second
    choice. bfd: the session is watched by BFD.
    """

    as_number: int
    address: str = ""
    interface: str = ""
    port: int = 179
    password: str = ""
    nodes: dict[str, str] = field(default_factory=dict)
    import_rules: list[BgpRule] = field(default_factory=list)
    export_rules: list[BgpRule] = field(default_factory=list)
    local_preference: int = 100
    prepend: int = 0
    bfd: bool = False


class BgpCommunities(Section, frozen=True):
    """What routes carry that routers are told, each "64512:100" (RFC 1997) or "64512:1:2" (RFC 8092)."""

    pods: list[str] = field(default_factory=list)
    services: list[str] = field(default_factory=list)


class Bgp(Section, frozen=True):
    """Of backend.type bgp; with any other, routers among `peers` are told addresses of services and nothing
    else, and nothing is learnt of them. asNumber: of every node whose annotation podlane.dev/bgp-as-number
    says no other.

    nodeMesh: every node has a session with every other. routeReflectors (RFC 4456): labels of the nodes that
    reflect; every node then has sessions with those and with no other. password: of these sessions (TCP MD5,
    RFC 2385). gracefulRestartSeconds: how long others keep the routes of a speaker that is away, 0 for not at
    all. advertise: which addresses of services the routers among `peers` are told, beside pods' prefixes.
    """

    as_number: int = 64512
    node_mesh: bool = True
    route_reflectors: dict[str, str] = field(default_factory=dict)
    cluster_id: str = field(default="", name="clusterID")
    password: str = ""
    bfd: bool = True
    graceful_restart_seconds: int = 120
    peers: list[BgpPeerConfig] = field(default_factory=list)
    advertise: list[Advertised] = field(default_factory=list)
    communities: BgpCommunities = BgpCommunities()


def problems(bgp: Bgp) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it)"""
    if why := _number_problem(bgp.as_number):
        yield "bgp.asNumber", why
    if not 0 <= bgp.graceful_restart_seconds <= 4095:
        yield "bgp.gracefulRestartSeconds", f"{bgp.graceful_restart_seconds} is not between 0 and 4095"
    if why := _password_problem(bgp.password):
        yield "bgp.password", why
    if bgp.route_reflectors and (why := _labels_problem(bgp.route_reflectors)):
        yield "bgp.routeReflectors", why
    if bgp.cluster_id and (why := _cluster_id_problem(bgp)):
        yield "bgp.clusterID", why
    for kind, communities in (("pods", bgp.communities.pods), ("services", bgp.communities.services)):
        for text in communities:
            if why := _community_problem(text):
                yield f"bgp.communities.{kind}", why
    seen: set[object] = set()
    for number, peer in enumerate(bgp.peers):
        key = f"bgp.peers[{number}]"
        for part, why in _peer_problems(peer):
            yield f"{key}.{part}", why
        with suppress(ConfigError):
            where = peer.interface or address(peer.address)
            if where in seen:
                yield (
                    f"{key}.{'interface' if peer.interface else 'address'}",
                    f"{where} is another peer's too",
                )
            seen.add(where)


def community(text: str) -> tuple[int, ...] | None:
    """Two numbers of 16 bits, or three of 32; None for anything else."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(p.isascii() and p.isdigit() and len(p) <= 10 for p in parts):
        return None
    numbers = tuple(map(int, parts))
    return numbers if all(n < 1 << (16 if len(parts) == 2 else 32) for n in numbers) else None


def _peer_problems(peer: BgpPeerConfig) -> Iterator[tuple[str, str]]:
    if bool(peer.address) == bool(peer.interface):
        yield "address", "give address, or interface for link-local ones: one of the two"
        return
    if peer.address:
        try:
            address(peer.address)
        except ConfigError as error:
            yield "address", str(error)
            return
    elif not _INTERFACE.fullmatch(peer.interface):
        yield "interface", f"{peer.interface!r} is no name of a link: at most 15 characters, as eth0"
    if why := _number_problem(peer.as_number):
        yield "asNumber", why
    if not 0 < peer.port < 1 << 16:
        yield "port", f"{peer.port} is not between 1 and 65535"
    if peer.interface and peer.port != 179:
        yield "port", "the router begins a session without an address, so there is no port to choose"
    if why := _password_problem(peer.password):
        yield "password", why
    if peer.interface and peer.password:
        yield "password", "the kernel keeps TCP MD5 keys by address, and a peer by interface has none"
    if not 0 <= peer.local_preference < 1 << 32:
        yield "localPreference", f"{peer.local_preference} is not between 0 and 4294967295"
    if not 0 <= peer.prepend <= 10:
        yield "prepend", f"{peer.prepend} is not between 0 and 10"
    for name, rules in (("importRules", peer.import_rules), ("exportRules", peer.export_rules)):
        for number, rule in enumerate(rules):
            if why := _rule_problem(rule):
                yield f"{name}[{number}]", why


def _rule_problem(rule: BgpRule) -> str:
    if rule.community and (why := _community_problem(rule.community)):
        return why
    if not rule.prefix:
        return "minLength and maxLength are of a prefix" if rule.min_length or rule.max_length else ""
    try:
        within = prefix(rule.prefix)
    except ConfigError as error:
        return str(error)
    bits = family_of(within).bits
    low, high = rule.min_length or within.prefixlen, rule.max_length or bits
    if not within.prefixlen <= low <= high <= bits:
        return f"lengths {low} to {high} do not lie between /{within.prefixlen} and /{bits}, in this order"
    return ""


def _number_problem(number: int) -> str:
    """RFC 6793."""
    return "" if 0 < number < 1 << 32 else f"{number} is not between 1 and 4294967295"


def _community_problem(text: str) -> str:
    if community(text) is None:
        return f"{text!r} is no community: 64512:100 (16 bits each) or 64512:1:2 (32 bits each)"
    return ""


def _labels_problem(labels: dict[str, str]) -> str:
    try:
        selectors.from_dict({"matchLabels": labels})
    except ConfigError as error:
        return str(error)
    return ""


def _cluster_id_problem(bgp: Bgp) -> str:
    if not bgp.route_reflectors:
        return "only route reflectors have one: give bgp.routeReflectors"
    try:
        return "" if int(IPv4Address(bgp.cluster_id)) else "0.0.0.0 is none"
    except ValueError:
        return f"{bgp.cluster_id!r}: 32 bits, written as an IPv4 address"


def _password_problem(password: str) -> str:
    """TCP MD5 keys have at most 80 bytes (tcp(7)); a configuration file's string knows no escapes."""
    if len(password.encode()) > 80:
        return "longer than 80 bytes"
    if any(not " " <= each <= "~" or each in '"\\' for each in password):
        return "printable ASCII without quotation marks and backslashes"
    return ""
