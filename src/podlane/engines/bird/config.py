"""BIRD's configuration from the tables. Pure.

    direct, kernel     what the node can reach: next hops are resolved with it; learnt routes go to the kernel
    originated         this node's prefixes; `unreachable` keeps them from being sent on where no pod is
    bgp                one session a peer and family; of nodes pods' prefixes are taken, nothing else, and
                       only routers are told addresses of services
    bfd                watches the sessions: a dead peer is known in 0.3 s
    radv               where a router finds this node by its link-local address alone

Only addresses, numbers and checked strings get here. Sources: BIRD 2 user's guide; RFC 2385, 4456, 4724,
5880, 8950.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from podlane.compile.tables import BgpPeer, BgpSpeaker, Learnt
from podlane.model.addresses import Family, Prefix, family_of, prefix
from podlane.model.bgp import BgpRule, community

PeerKey = tuple[str, Family]

BFD_INTERVAL_MS: Final = 100
BFD_MULTIPLIER: Final = 3
RECOVERY_S: Final = 30  # how long a restarted speaker keeps routes that nobody has told again
OURS: Final = 85  # the protocol of podlane's own routes: BIRD has no business with them
DEFAULT_PREFERENCE: Final = 100
_DIGIT: Final = {Family.IPV4: "4", Family.IPV6: "6"}
_CHANNEL: Final = {Family.IPV4: "ipv4", Family.IPV6: "ipv6"}


def render(
    speaker: BgpSpeaker,
    peers: Mapping[PeerKey, BgpPeer],
    originated: Iterable[Prefix],
    learnt: Iterable[Learnt],
    log: str,
) -> str:
    """The whole file. The same rows make the same text."""
    accepted = {*speaker.accepted}
    # A node whose CIDR lies outside of the configured ones (a cluster that grew) is accepted by name.
    accepted |= {row.destination for row in learnt if not _within(row.destination, speaker.accepted)}
    announced = sorted(originated, key=_order)
    lines = [
        f'log "{log}" {{ warning, error, fatal, bug, auth }};',
        f"router id {speaker.router_id};",
        f"graceful restart wait {RECOVERY_S};",
        "protocol device { scan time 10; }",
        f'protocol direct {{ ipv4; ipv6; interface "{_quoted(speaker.interface)}"; }}',
    ]
    if speaker.bfd or any(peer.bfd for peer in peers.values()):
        timers = f"interval {BFD_INTERVAL_MS} ms; multiplier {BFD_MULTIPLIER};"
        lines.append(f'protocol bfd {{ interface "*" {{ {timers} }}; multihop {{ {timers} }}; }}')
    for link in sorted({peer.interface for peer in peers.values() if peer.interface}):
        # Lifetime 0: this node is nobody's gateway, it only says that it is there.
        timers = "min ra interval 3; max ra interval 4; default lifetime 0;"
        lines.append(f'protocol radv {{ interface "{_quoted(link)}" {{ {timers} }}; }}')
    for source in speaker.sources:
        lines += _family(family_of(source), str(source), speaker, announced, sorted(accepted, key=_order))
    for (name, family), peer in sorted(peers.items(), key=lambda item: (item[0][0], item[0][1].value)):
        lines += _session(name, family, speaker, peer)
    return "\n".join(lines) + "\n"


def session_name(name: str, family: Family) -> str:
    """Names of objects may be BIRD's keywords; these never are."""
    return f"peer{_DIGIT[family]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _family(
    family: Family, source: str, speaker: BgpSpeaker, originated: list[Prefix], accepted: list[Prefix]
) -> Iterator[str]:
    digit, channel = _DIGIT[family], _CHANNEL[family]
    own = _set(p for p in speaker.own if family_of(p) is family)
    routes = " ".join(f"route {p} unreachable;" for p in originated if family_of(p) is family)
    yield f"filter to_kernel{digit} {{"
    yield f"  if source = RTS_BGP then {{ krt_prefsrc = {source}; accept; }}"
    yield "  reject;"
    yield "}"
    yield f"function told{digit}() {{"
    yield f'  if proto != "originated{digit}" then return false;'
    if speaker.own:
        yield f"  if net ~ {own} then {{ {_add(speaker.pod_communities)} }}"
        yield f"  else {{ {_add(speaker.service_communities)} }}"
    else:
        yield f"  {_add(speaker.service_communities)}"
    yield "  return true;"
    yield "}"
    yield f"filter to_routers{digit} {{ if told{digit}() then accept; reject; }}"
    if speaker.own:
        pods = _set(p for p in accepted if family_of(p) is family)
        yield f"filter of_nodes{digit} {{ if net ~ {pods} && ! (net ~ {own}) then accept; reject; }}"
        yield f"filter of_routers{digit} {{ if net ~ {own} then reject; accept; }}"
        mine = f'proto = "originated{digit}" && net ~ {own}'
        others = f" || source = RTS_BGP && net ~ {pods}" if speaker.cluster_id else ""
        yield f"filter to_nodes{digit} {{ if {mine}{others} then accept; reject; }}"
    else:  # pods have another way: routers are told addresses of services, and nothing is learnt
        yield f"filter of_routers{digit} {{ reject; }}"
    yield f"protocol static originated{digit} {{ {channel}; {routes} }}"
    yield f"protocol kernel kernel{digit} {{"
    # After a restart what the kernel has stays until the peers have told everything again.
    yield "  learn; persist; merge paths on; graceful restart on;"
    yield f"  {channel} {{ import where krt_source != {OURS}; export filter to_kernel{digit}; }};"
    yield "}"


def _session(name: str, family: Family, speaker: BgpSpeaker, peer: BgpPeer) -> Iterator[str]:
    sources = {family_of(source): source for source in speaker.sources}
    if peer.address is not None and family not in sources:
        return
    own_name = session_name(name, family)
    yield f"protocol bgp {own_name} {{"
    yield f'  description "{_shown(name)}";'
    if peer.address is None:
        yield f"  local as {speaker.as_number};"
        yield f"  neighbor range fe80::/10 as {peer.as_number};"
        yield f'  interface "{_quoted(peer.interface)}"; dynamic name "{own_name}_";'
    else:
        yield f"  local {sources[family]} as {speaker.as_number};"
        yield f"  neighbor {peer.address} port {peer.port} as {peer.as_number};"
        yield "  direct;" if peer.on_link else "  multihop;"
    yield "  connect delay time 1; connect retry time 2; error wait time 1, 8;"
    if peer.password:
        yield f'  password "{_quoted(peer.password)}";'
    if peer.bfd or (speaker.bfd and peer.node):
        yield "  bfd on;"
    if peer.client:
        yield f"  rr client; rr cluster id {speaker.cluster_id};"
    restart = f"on; graceful restart time {speaker.restart_s}" if speaker.restart_s else "off"
    yield f"  graceful restart {restart};"
    for each in sources if peer.address is None else (family,):
        yield from _channel(each, speaker, peer)
    yield "}"


def _channel(family: Family, speaker: BgpSpeaker, peer: BgpPeer) -> Iterator[str]:
    digit = _DIGIT[family]
    taken, told = f"filter of_routers{digit}", f"filter to_routers{digit}"
    if peer.node:
        taken, told = f"filter of_nodes{digit}", f"filter to_nodes{digit}"
    elif speaker.own and (peer.import_rules or peer.local_preference != DEFAULT_PREFERENCE):
        own = _set(p for p in speaker.own if family_of(p) is family)
        decisions = [f"if net ~ {own} then reject;", f"bgp_local_pref = {peer.local_preference};"]
        taken = f"filter {{ {' '.join([*decisions, *_rules(peer.import_rules, family)])} }}"
    if not peer.node and (peer.export_rules or peer.prepend):
        decisions = [f"if ! told{digit}() then reject;"]
        decisions += [f"bgp_path.prepend({speaker.as_number});"] * peer.prepend
        told = f"filter {{ {' '.join([*decisions, *_rules(peer.export_rules, family)])} }}"
    hop = "" if peer.on_link else " gateway recursive;"
    if peer.address is None and family is Family.IPV4:
        hop += " extended next hop on;"
    yield f"  {_CHANNEL[family]} {{ import {taken}; export {told};{hop} }};"


def _rules(rules: Iterable[BgpRule], family: Family) -> Iterator[str]:
    """Statements that end a filter: the first rule that fits decides, then all is accepted."""
    for rule in rules:
        conditions = []
        if rule.prefix:
            within = prefix(rule.prefix)
            if family_of(within) is not family:
                continue
            low, high = rule.min_length or within.prefixlen, rule.max_length or family.bits
            conditions.append(f"net ~ [ {within}{{{low},{high}}} ]")
        if rule.community:
            kind, value = _community(rule.community)
            conditions.append(f"{value} ~ {kind}")
        yield f"if {' && '.join(conditions) or 'true'} then {rule.action};"
    yield "accept;"


def _add(communities: Iterable[str]) -> str:
    return " ".join(f"{kind}.add({value});" for kind, value in map(_community, communities))


def _community(text: str) -> tuple[str, str]:
    """(BIRD's name of the attribute, the value as it writes it). Raises ValueError."""
    numbers = community(text)
    if numbers is None:
        raise ValueError(f"{text!r} is no community")
    kind = "bgp_community" if len(numbers) == 2 else "bgp_large_community"
    return kind, f"({','.join(map(str, numbers))})"


def _set(prefixes: Iterable[Prefix]) -> str:
    """These and everything within them."""
    return "[ " + ", ".join(f"{p}+" for p in prefixes) + " ]"


def _within(prefix: Prefix, wholes: Iterable[Prefix]) -> bool:
    return any(prefix.version == w.version and prefix.subnet_of(w) for w in wholes)  # type: ignore[arg-type]


def _order(prefix: Prefix) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen


def _shown(name: str) -> str:
    """For people: what cannot be written is left out, so that one bad name keeps nothing from being read."""
    return "".join(each if " " <= each <= "~" and each != '"' else "?" for each in name)[:64]


def _quoted(text: str) -> str:
    """Inside quotation marks, where BIRD knows no escapes. Raises ValueError for what would end them."""
    if any(not " " <= each <= "~" or each == '"' for each in text):
        raise ValueError(f"{text!r} cannot be written into BIRD's configuration")
    return text
