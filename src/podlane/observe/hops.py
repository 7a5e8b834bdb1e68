"""One packet and its answer, found again on every link by what no translation changes. Pure.

Addresses, ports and wrapping change on the way, so a packet is recognised by

    TCP     the sequence number of its SYN; the answer acknowledges it plus one
    UDP     a random token it carries; the answer goes between the ends it was seen with, reversed
    errors  an ICMP error quotes the packet it is about

Each link sees a packet once on its way in and once on its way out. Sightings are in the order of their
times, and those of one namespace with one time in the order the kernel gave them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from msgspec import Struct

from podlane.kernel.capture import Sighting
from podlane.model.addresses import Address, Protocol
from podlane.observe import packet as packets
from podlane.observe.explanation import end
from podlane.observe.packet import Ends, Packet


class Probe(NamedTuple):
    """What was sent: from the source's own address and port to a destination.

    token: what a UDP datagram carries; sequence: TCP's, where it is known. A node translates what it sends
    itself before any link sees it, so that addresses and ports do not find the first packet.
    """

    protocol: Protocol
    source: Address
    source_port: int
    destination: Address
    port: int
    token: bytes = b""
    sequence: int | None = None


class Seen(NamedTuple):
    """A sighting of one place (a namespace), decoded. packet: the inner one; outer: its tunnel's, if any."""

    place: str
    sighting: Sighting
    packet: Packet
    outer: Packet | None

    @property
    def spot(self) -> tuple[object, ...]:
        """Where it was seen: two sightings of one spot are the packet and its repetition."""
        outer = self.outer.ends[::2] if self.outer else None
        return self.place, self.sighting.link, self.sighting.outgoing, self.packet.ends, outer


class Outer(Struct, frozen=True):
    """The tunnel's own header."""

    source: str
    destination: str
    port: int
    vni: int
    ttl: int


class Hop(Struct, frozen=True, rename="camel"):
    """One link that the packet crossed.

    leg: request or reply. time_us: since the first sighting. place: the namespace, in the words of targets;
    way: in or out, as that namespace sees it. what: TCP flags, or the error. changes: what happened since
    the hop before, as "DNAT a -> b".
    """

    leg: str
    time_us: float
    place: str
    link: str
    way: str
    source: str
    destination: str
    what: str
    ttl: int
    outer: Outer | None
    changes: list[str]


REQUEST, REPLY = "request", "reply"


def seen(place: str, sightings: Iterable[Sighting], tunnel_ports: Container[int]) -> Iterator[Seen]:
    """What was captured in one place, decoded; what is no IP is left out."""
    for sighting in sightings:
        decode = packets.decode_ethernet if sighting.ethernet else packets.decode_ip
        packet = decode(sighting.data, tunnel_ports)
        if packet is not None:
            inner = packet.inner
            yield Seen(place, sighting, inner or packet, packet if inner else None)


def recognise(everything: Iterable[Seen], probe: Probe) -> list[tuple[str, Seen]]:
    """(leg, sighting) of the probe and its answer, in order of time, each spot once."""
    ordered = sorted(everything, key=lambda s: s.sighting.time_ns)
    legs = _tcp(ordered, probe) if probe.protocol is Protocol.TCP else _udp(ordered, probe)
    found: list[tuple[str, Seen]] = []
    spots: set[tuple[object, ...]] = set()
    for leg, each in legs:
        if (leg, *each.spot) not in spots:
            spots.add((leg, *each.spot))
            found.append((leg, each))
    return found


def _tcp(ordered: list[Seen], probe: Probe) -> Iterator[tuple[str, Seen]]:
    sequence = probe.sequence
    if sequence is None:
        first = next((s for s in ordered if _is_probe(s.packet, probe) and _is_syn(s.packet)), None)
        if first is None:
            return
        sequence = first.packet.sequence
    expected = (sequence + 1) & 0xFFFFFFFF
    for each in ordered:
        packet, quoted = each.packet, each.packet.quoted
        if packet.protocol == packets.TCP:
            if _is_syn(packet) and packet.sequence == sequence:
                yield REQUEST, each
            elif packet.acknowledgement == expected and _answers(packet):
                yield REPLY, each
        elif quoted is not None and quoted.protocol == packets.TCP and quoted.sequence == sequence:
            yield REPLY, each


def _is_probe(packet: Packet, probe: Probe) -> bool:
    return packet.ends == (probe.source, probe.source_port, probe.destination, probe.port)


def _is_syn(packet: Packet) -> bool:
    return packet.protocol == packets.TCP and packet.flags & (packets.SYN | packets.ACK) == packets.SYN


def _answers(packet: Packet) -> bool:
    """SYN,ACK or RST,ACK: what a listener, or nobody, says to a SYN."""
    return bool(packet.flags & packets.ACK and packet.flags & (packets.SYN | packets.RST))


def _udp(ordered: list[Seen], probe: Probe) -> Iterator[tuple[str, Seen]]:
    ends: set[tuple[object, ...]] = set()
    for each in ordered:
        packet, quoted = each.packet, each.packet.quoted
        if packet.protocol == packets.UDP:
            if (each.place, *packet.reversed_ends) in ends and not _is_probe(packet, probe):
                yield REPLY, each
            elif probe.token in packet.payload:
                ends.add((each.place, *packet.ends))
                yield REQUEST, each
        elif quoted is not None and quoted.protocol == packets.UDP and probe.token in quoted.payload:
            yield REPLY, each


def hops(found: list[tuple[str, Seen]], probe: Probe) -> list[Hop]:
    """Each sighting with what changed since the one before on the same leg, and first since it was sent."""
    told: list[Hop] = []
    before: dict[str, Seen] = {}
    start_ns = found[0][1].sighting.time_ns if found else 0
    for leg, each in found:
        last = before.get(leg)
        before[leg] = each
        packet, outer = each.packet, each.outer
        told.append(
            Hop(
                leg=leg,
                time_us=(each.sighting.time_ns - start_ns) / 1000,
                place=each.place,
                link=each.sighting.link,
                way="out" if each.sighting.outgoing else "in",
                source=end(packet.source, packet.source_port),
                destination=end(packet.destination, packet.destination_port),
                what=packet.what,
                ttl=packet.ttl,
                outer=None
                if outer is None
                else Outer(
                    str(outer.source),
                    str(outer.destination),
                    outer.destination_port,
                    outer.vni or 0,
                    outer.ttl,
                ),
                changes=list(_changes(last, each)) if last else list(_sent(probe, leg, each)),
            )
        )
    return told


def _sent(probe: Probe, leg: str, first: Seen) -> Iterator[str]:
    """What was changed before the first link saw it; in a pod only its socket can have done that."""
    if leg == REQUEST:
        sent = probe.source, probe.source_port, probe.destination, probe.port
        changes = _translations(sent, first.packet.ends)
        yield from (f"at the socket: {each}" if "/pod/" in first.place else each for each in changes)


def _changes(before: Seen, now: Seen) -> Iterator[str]:
    a, b = before.packet, now.packet
    if a.icmp == b.icmp:
        yield from _translations(a.ends, b.ends)
    if before.outer is None and now.outer is not None:
        yield f"wrapped: {wrapping(now.outer)}"
    elif before.outer is not None and now.outer is None:
        yield f"unwrapped: {tunnel_name(before.outer)}"
    if a.ttl != b.ttl:
        yield f"ttl {a.ttl} -> {b.ttl}"
    if before.outer is not None and now.outer is not None and before.outer.ttl != now.outer.ttl:
        yield f"outer ttl {before.outer.ttl} -> {now.outer.ttl}"


def tunnel_name(outer: Packet) -> str:
    return "IP in IP" if outer.vni is None else f"VXLAN {outer.vni}"


def wrapping(outer: Packet) -> str:
    return f"{tunnel_name(outer)}, {outer.source} -> {outer.destination}"


def _translations(before: Ends, now: Ends) -> Iterator[str]:
    if before[:2] != now[:2]:
        yield f"SNAT {end(*before[:2])} -> {end(*now[:2])}"
    if before[2:] != now[2:]:
        yield f"DNAT {end(*before[2:])} -> {end(*now[2:])}"
