"""Policy's rows as chains and sets of nftables. Pure; every function is for one family's table.

No rule is a pod's own. A flow's first packet, say from pod a to pod b of one node, goes through

    egress, ingress        base chains in `forward`, before others' rules. What belongs to an allowed flow
                           passes, a pod reaches itself, and a map leads on by the link that the packet came
                           from, or goes to: to `accept`, or to
    isolate-egress-…       one chain for all pods with the same policies: jumps to each, then drops
    egress/shop/web        one chain a policy and direction, with an accepting rule for each of its rules'
                           peers and ports. `accept` ends the base chain it was reached from, and no other

Both base chains must let a packet pass. Links in our names that the maps do not have belong to pods that
nobody has told us of yet: dropped. Translation of services comes before (prerouting), masquerade after.

Peers' sets, `pods-…` and `port-…`, change with pods; sets of prefixes and of ports are named by a digest of
what they hold, and do not change. A rule is a product (any of its peers, and any of its ports), so peers and
ports are two lookups, and their sets add up instead of multiplying.

A pod is known by its link, which it cannot choose, and with it its address: a packet with another source is
dropped. Pods on a bridge cross it under the bridge's name; so they are known by address, and a table of the
family `bridge` makes sure that a port sends its own address only, in IP, ARP and neighbour discovery.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

from podlane.compile.peers import TUNNEL_DEVICES
from podlane.compile.tables import (
    Direction,
    Guard,
    NamedPort,
    PodSet,
    Policy,
    PolicyKey,
    PolicyRule,
    PortRange,
)
from podlane.kernel.nft import codec
from podlane.kernel.nft import expressions as nft
from podlane.kernel.nft.codec import Element, interval_elements, intervals
from podlane.kernel.nft.ruleset import Chain, Field, Hook, Rule, SetSpec, rule
from podlane.model.addresses import Address, Family, Protocol, family_of

TABLE: Final = "podlane-policy"

EGRESS, INGRESS, SELF, TUNNELS, ADOPTED = "egress", "ingress", "self", "tunnels", "adopted"
FROM_PODS, TO_PODS, CUT = "from-pods", "to-pods", "cut"
SOURCES: Final = {Family.IPV4: "sources-ip", Family.IPV6: "sources-ip6"}
CHECK, DISCOVERY, PREROUTING = "check-source", "discovery", "prerouting"

# A pod's link is one of podlane's ("pl..."), and no tunnel. An interval of names would say it in one look-up,
# but nft 1.0.6 lists such a set in bytes that are no text.
_PREFIX: Final = b"pl"

_NAMES: Final = re.compile(r"[a-z0-9./-]+")
_ADDRESS: Final = {Family.IPV4: Field(7, 4), Family.IPV6: Field(8, 16)}
_LINK: Final = Field(41, 16, text=True)
_ICMPV6_TYPE: Final = Field(29, 1)
_PROTOCOL: Final = Field(12, 1)
_PORT: Final = Field(13, 2)

_FORWARD: Final = 2  # NF_INET_FORWARD
_FILTER: Final = 0  # NF_IP_PRI_FILTER
_BRIDGE_PREROUTING: Final = 0  # NF_BR_PRE_ROUTING
_BRIDGE_BEFORE_ALL: Final = -500

_ICMPV6: Final = 58
_ARP, _IP, _IP6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"
# Multicast listeners' reports and neighbour discovery, which a bridge does not work without. Pods advertise
# no routers.
_DISCOVERY: Final = (131, 132, 133, 135, 136, 143)
_ADVERTISEMENT: Final = 136


class Contents(NamedTuple):
    """A set that does not change."""

    spec: SetSpec
    elements: tuple[Element, ...]


# --- the skeleton ---------------------------------------------------------------------------------


def skeleton_sets(family: Family, bridge: str) -> dict[str, Contents]:
    if bridge:
        link, pair = (_ADDRESS[family],), (_ADDRESS[family], _ADDRESS[family])
        return {
            EGRESS: Contents(SetSpec(link, verdicts=True), ()),
            INGRESS: Contents(SetSpec(link, verdicts=True), ()),
            SELF: Contents(SetSpec(pair), ()),
            **({DISCOVERY: _discovery_types()} if family is Family.IPV6 else {}),
        }
    return {
        EGRESS: Contents(SetSpec((_LINK, _ADDRESS[family]), verdicts=True), ()),
        INGRESS: Contents(SetSpec((_LINK,), verdicts=True), ()),
        SELF: Contents(SetSpec((_LINK, _LINK)), ()),
        TUNNELS: _tunnels(),
        ADOPTED: Contents(SetSpec((_LINK,)), ()),
    }


def skeleton_chains(family: Family, bridge: str, *, cuts: bool = False) -> dict[str, Chain]:
    """cuts: flows with the label are cut, and there is room for it in every flow."""
    found = _skeleton_chains(family, bridge)
    if not cuts:
        return found
    base = found[EGRESS]
    first = rule("policy has cut the flow", nft.cut(), nft.end(nft.GOTO, CUT))
    tcp = nft.l4proto() + nft.equal(bytes([Protocol.TCP.number]))
    return found | {
        EGRESS: Chain((first, *base.rules), base.hook),
        CUT: Chain((rule("reset", tcp, nft.counter(), nft.reset()), rule("cut", *_DROP))),
        "labels": Chain((rule("makes room for labels", nft.names_labels()),)),
    }


def _skeleton_chains(family: Family, bridge: str) -> dict[str, Chain]:
    passing = rule("of an allowed flow", nft.established(), nft.end(nft.ACCEPT))
    egress, ingress = Hook(_FORWARD, _FILTER - 2), Hook(_FORWARD, _FILTER - 1)
    if bridge:
        return _bridged_chains(family, bridge, passing, egress, ingress)
    itself = rule(
        "a pod reaches itself",
        nft.iifname(),
        nft.oifname(nft.REGISTER + nft.NAME_WORDS),
        nft.member(SELF),
        nft.end(nft.ACCEPT),
    )
    sender = nft.iifname() + nft.source(family, nft.REGISTER + nft.NAME_WORDS)
    return {
        EGRESS: Chain(
            (
                passing,
                itself,
                rule("by link and source", sender, nft.by_map(EGRESS)),
                rule("unknown pod or false source", _pods_link(nft.iifname()), *_DROP),
                rule("false source", nft.iifname(), nft.member(ADOPTED), *_DROP),
            ),
            egress,
        ),
        INGRESS: Chain(
            (
                passing,
                itself,
                rule("by link", nft.oifname(), nft.by_map(INGRESS)),
                rule("unknown pod", _pods_link(nft.oifname()), *_DROP),
            ),
            ingress,
        ),
    }


def _bridged_chains(
    family: Family, bridge: str, passing: Rule, egress: Hook, ingress: Hook
) -> dict[str, Chain]:
    name = _name(bridge)
    pair = nft.source(family) + nft.destination(family, nft.REGISTER + nft.words(family))
    itself = rule(
        "a pod reaches itself",
        nft.iifname(),
        nft.equal(name),
        nft.oifname(),
        nft.equal(name),
        pair,
        nft.member(SELF),
        nft.end(nft.ACCEPT),
    )
    before = [passing, *([_discovery(name)] if family is Family.IPV6 else ())]
    return {
        FROM_PODS: Chain(
            (itself, rule("by source", nft.source(family), nft.by_map(EGRESS)), rule("unknown pod", *_DROP))
        ),
        TO_PODS: Chain(
            (
                itself,
                rule("by destination", nft.destination(family), nft.by_map(INGRESS)),
                rule("unknown pod", *_DROP),
            )
        ),
        EGRESS: Chain((*before, _through(nft.iifname(), name, FROM_PODS)), egress),
        INGRESS: Chain((*before, _through(nft.oifname(), name, TO_PODS)), ingress),
    }


def _through(link: bytes, name: bytes, chain: str) -> Rule:
    return rule("the pods' bridge", link, nft.equal(name), nft.end(nft.GOTO, chain))


def _discovery(bridge: bytes) -> Rule:
    """Between two ports neighbour discovery is forwarded like any other packet."""
    inside = nft.iifname() + nft.equal(bridge) + nft.oifname() + nft.equal(bridge)
    return rule("neighbour discovery", inside, _discovers(), nft.end(nft.ACCEPT))


def _discovers() -> bytes:
    return _icmpv6() + nft.member(DISCOVERY)


def _icmpv6() -> bytes:
    """ICMPv6, whose type is loaded."""
    return nft.l4proto() + nft.equal(bytes([_ICMPV6])) + nft.payload(nft.TRANSPORT, 0, 1)


def _discovery_types() -> Contents:
    return Contents(SetSpec((_ICMPV6_TYPE,)), tuple(Element(bytes([t])) for t in _DISCOVERY))


def _tunnels() -> Contents:
    return Contents(SetSpec((_LINK,)), tuple(Element(_name(device)) for device in TUNNEL_DEVICES))


def _pods_link(name: bytes) -> bytes:
    """name: the expression that loads the link's name."""
    return name + nft.equal(_PREFIX) + nft.no_member(TUNNELS)


def _name(link: str) -> bytes:
    return link.encode().ljust(16, b"\0")


# --- the table of the family bridge ---------------------------------------------------------------


def bridge_sets() -> dict[str, Contents]:
    found = {SOURCES[f]: Contents(SetSpec((_LINK, _ADDRESS[f])), ()) for f in Family}
    return {
        TUNNELS: _tunnels(),
        DISCOVERY: _discovery_types(),
        ADOPTED: Contents(SetSpec((_LINK,)), ()),
        **found,
    }


def bridge_chains() -> dict[str, Chain]:
    """What a port sends must carry its own address."""
    address = nft.REGISTER + nft.NAME_WORDS
    link = nft.iifname()
    target = nft.payload(nft.TRANSPORT, 8, 16, address)  # ICMPv6: RFC 4861, 4.4
    local = nft.payload(nft.NETWORK, 8, 2) + nft.masked(b"\xff\xc0") + nft.equal(b"\xfe\x80")
    nobody = nft.payload(nft.NETWORK, 8, 16) + nft.equal(bytes(16))
    own4, own6 = (nft.member(SOURCES[family]) for family in Family)
    source4, source6 = (nft.source(family, address) for family in Family)
    advertises = _kind(_IP6) + _icmpv6() + nft.equal(bytes([_ADVERTISEMENT]))
    check = [
        _accept("its own address", _kind(_IP), link, source4, own4),
        _accept("its own address in ARP", _kind(_ARP), link, nft.payload(nft.NETWORK, 14, 4, address), own4),
        _accept("its own address in an advertisement", advertises, link, target, own6),
        rule("another's address in an advertisement", advertises, *_DROP),
        _accept("its own address", _kind(_IP6), link, source6, own6),
        *(_accept("neighbour discovery", _kind(_IP6), _discovers(), source) for source in (local, nobody)),
        rule("false source", *_DROP),
    ]
    return {
        CHECK: Chain(tuple(check)),
        PREROUTING: Chain(
            (
                rule("from a pod", _pods_link(link), nft.end(nft.GOTO, CHECK)),
                rule("from a pod of another plugin", link, nft.member(ADOPTED), nft.end(nft.GOTO, CHECK)),
            ),
            Hook(_BRIDGE_PREROUTING, _BRIDGE_BEFORE_ALL),
        ),
    }


def _kind(ether_type: bytes) -> bytes:
    return nft.ether_type() + nft.equal(ether_type)


def _accept(comment: str, *conditions: bytes) -> Rule:
    return rule(comment, *conditions, nft.end(nft.ACCEPT))


_DROP: Final = (nft.counter(), nft.end(nft.DROP))


# --- sets of peers --------------------------------------------------------------------------------


def peer_set(value: PodSet | NamedPort, family: Family) -> SetSpec:
    key = (_ADDRESS[family],) if isinstance(value, PodSet) else (_ADDRESS[family], _PROTOCOL, _PORT)
    return SetSpec(key, comment=str(value))


def union_set(ids: Collection[str], family: Family) -> SetSpec:
    return SetSpec((_ADDRESS[family],), comment=f"any of {len(ids)} sets")


def port_key(where: Address, protocol: Protocol, number: int) -> bytes:
    return codec.fields(where.packed, bytes([protocol.number]), codec.port_field(number))


# --- policies -------------------------------------------------------------------------------------


def policy_chain(key: PolicyKey) -> str:
    """Its name. nft's listings take the characters of objects' names, and the kernel 255 of them; a name with
    others, which no API server lets pass, becomes a digest."""
    whole = f"{key.direction}/{key.namespace}/{key.name}"
    known = _NAMES.fullmatch(whole)
    if known and len(whole) < 200:
        return whole
    digest = hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{whole[:180]}-{digest}" if known else f"{key.direction}/{digest}"


def policy(key: PolicyKey, row: Policy, family: Family) -> tuple[Chain, dict[str, Contents]]:
    """The chain, and the sets of prefixes and of ports that its rules name."""
    sets: dict[str, Contents] = {}
    rules = []
    for each in row.rules:
        comment = f"{key.namespace}/{key.name} {key.direction}[{each.index}]"
        for peer in _peers(each, key.direction, family, sets):
            for port in port_conditions(each, family, sets):
                rules.append(rule(comment, peer, port, nft.counter(), nft.end(nft.ACCEPT)))
    return Chain(tuple(rules)), sets


def _peers(
    row: PolicyRule, direction: Direction, family: Family, sets: dict[str, Contents]
) -> Iterator[bytes]:
    """The conditions of which one must hold; an empty one always does."""
    if row.peers is None:
        yield b""
        return
    load = nft.source(family) if direction is Direction.INGRESS else nft.destination(family)
    for name in row.peers:
        yield load + nft.member(name)
    blocks = intervals(each for each in row.blocks or () if family_of(each) is family)
    if blocks == [(0, (1 << family.bits) - 1)]:
        yield b""
    elif blocks:
        elements = tuple(e for first, last in blocks for e in interval_elements(first, last, family))
        name = _use(sets, "block", SetSpec((_ADDRESS[family],), intervals=True), elements)
        yield load + nft.member(name)


def port_conditions(row: PolicyRule, family: Family, sets: dict[str, Contents]) -> Iterator[bytes]:
    if row.ports is None:
        yield b""
        return
    if row.ports:
        yield _numbers(row.ports, sets)
    end = nft.REGISTER + nft.words(family)
    for name in row.named or ():
        load = nft.destination(family) + nft.l4proto(end) + nft.destination_port(end + 1)
        yield load + nft.member(name)


def _numbers(ranges: tuple[PortRange, ...], sets: dict[str, Contents]) -> bytes:
    first = ranges[0]
    protocol = nft.l4proto() + nft.equal(bytes([first.protocol.number]))
    if len(ranges) == 1 and (first.first, first.last) == (0, 65535):
        return protocol
    if len(ranges) == 1 and first.first == first.last:
        return protocol + nft.destination_port() + nft.equal(codec.port_field(first.first))
    wide = any(each.first != each.last for each in ranges)
    elements = tuple(
        Element(low, last=high if high != low else b"")
        for each in ranges
        for low, high in [(_port_number(each.protocol, each.first), _port_number(each.protocol, each.last))]
    )
    name = _use(sets, "ports", SetSpec((_PROTOCOL, _PORT), intervals=wide), elements)
    return nft.l4proto() + nft.destination_port(nft.REGISTER + 1) + nft.member(name)


def _port_number(protocol: Protocol, number: int) -> bytes:
    return codec.fields(bytes([protocol.number]), codec.port_field(number))


def _use(sets: dict[str, Contents], word: str, spec: SetSpec, elements: tuple[Element, ...]) -> str:
    digest = hashlib.sha256(repr((spec.intervals, elements)).encode()).hexdigest()[:16]
    name = f"{word}-{digest}"
    sets[name] = Contents(spec, elements)
    return name


# --- guards ---------------------------------------------------------------------------------------


def profile_chain(direction: Direction, policies: tuple[PolicyKey, ...]) -> str:
    text = " ".join(map(str, policies))
    return f"isolate-{direction}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def profile(policies: Iterable[PolicyKey]) -> Chain:
    """What pods with these policies have in common: one must allow."""
    jumps = [rule(f"{key.namespace}/{key.name}", nft.end(nft.JUMP, policy_chain(key))) for key in policies]
    return Chain((*jumps, rule("no policy allows it", *_DROP)))


def guard_elements(guard: Guard, family: Family) -> Iterator[tuple[str, Element]]:
    """(set, element) in the family's table."""
    link = _name(guard.device)
    own = [each.packed for each in guard.addresses if family_of(each) is family]
    if guard.bridge:
        egress, ingress, itself = own, own, [a + b for a in own for b in own]
    else:
        egress, ingress, itself = [link + each for each in own], [link], [link + link]
    for name, keys, direction in ((EGRESS, egress, Direction.EGRESS), (INGRESS, ingress, Direction.INGRESS)):
        code, chain = _leads_to(guard.policies(direction), direction)
        for key in keys:
            yield name, Element(key, chain=chain, verdict=code)
    for key in itself:
        yield SELF, Element(key)
    if not guard.bridge:
        yield from _adopted(link)


def _adopted(link: bytes) -> Iterator[tuple[str, Element]]:
    """A link that another plugin made has no name of podlane's: it is known one by one."""
    if not link.startswith(_PREFIX):
        yield ADOPTED, Element(link)


def source_elements(guard: Guard) -> Iterator[tuple[str, Element]]:
    """(set, element) in the table of the family bridge."""
    link = _name(guard.device)
    yield from _adopted(link)
    for each in guard.addresses:
        yield SOURCES[family_of(each)], Element(link + each.packed)


def _leads_to(policies: tuple[PolicyKey, ...] | None, direction: Direction) -> tuple[int, str]:
    if policies is None:
        return nft.ACCEPT, ""
    return nft.GOTO, profile_chain(direction, policies)
