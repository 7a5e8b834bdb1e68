"""One real packet, captured on every link it crosses.

A socket in the source's namespace sends a TCP SYN (and completes the handshake) or a UDP datagram, while a
packet socket in every namespace the packet may enter sees all links there (kernel/capture.py). hops.py
then finds the packet and its answer among what was seen.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Container, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from podlane.errors import ConfigError, KernelError, LabError, UnsupportedError
from podlane.kernel import cgroups, netns
from podlane.kernel.capture import SETTLE_S, Capture, Sighting
from podlane.model.addresses import Address, Family, Protocol, address, family_of
from podlane.model.objects import Pod
from podlane.observe.cluster import Cluster, Party, family_for, port_of
from podlane.observe.explain import entrance
from podlane.observe.explanation import API_VERSION, Outcome, end
from podlane.observe.hops import REPLY, REQUEST, Hop, Probe, Seen, hops, recognise, seen
from podlane.observe.packet import TUNNEL_PORTS
from podlane.observe.targets import TargetKind

# After the answer: time for the last sightings to be queued.
_LINGER_S: Final = 0.03
_REFUSED: Final = (errno.ECONNREFUSED, errno.ECONNRESET)
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ, _SEND_QUEUE = 19, 20, 21, 2
_NO_ROUTE: Final = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM)


class Trace(Struct, frozen=True, rename="camel"):
    """hops: request and reply in order of time. lost: packets that no capture kept, for want of buffer."""

    api_version: str
    kind: str
    source: str
    destination: str
    address: str
    port: int
    protocol: Protocol
    family: Family
    verdict: Outcome
    why: str
    hops: list[Hop]
    lost: int = 0

    def json(self) -> bytes:
        return msgspec.json.encode(self)


class Plan(Struct, frozen=True):
    """What to send from where. place: the sender's; own: the address to send from, None for the kernel's
    choice; pods: the places of pods that the packet may enter."""

    place: str
    to: Address
    port: int
    protocol: Protocol
    own: Address | None
    pods: frozenset[str]

    def enters(self, place: str) -> bool:
        """Whether to look there: nodes and the fabric always, pods that may be on the way."""
        return "/pod/" not in place or place in self.pods


def plan(cluster: Cluster, source: Party, destination: Party, family: Family | None = None) -> Plan:
    """Raises ConfigError for what cannot be sent: from an address nobody here has, or to no port."""
    port, protocol = port_of(destination, destination.target)
    sent_to, port = entrance(cluster, source, destination, port, family)
    chosen = family_for(source, sent_to, family)
    to = sent_to.address(chosen)
    assert to is not None  # family_for chose it
    if not port:
        raise ConfigError(f"{destination} declares no port; say one: {destination}:PORT")
    pods = {f"{pod.namespace}/pod/{pod.name}" for pod in _pods(cluster, destination, to)}
    place, own = _place(cluster, source), None
    if source.pod is None and source.target.kind is TargetKind.ADDRESS:
        own = source.address(chosen)  # a node may have several
    return Plan(place, to, port, protocol, own, frozenset({place, *pods}))


def _pods(cluster: Cluster, destination: Party, to: Address) -> list[Pod]:
    """The pods that may be the packet's last stop, the endpoints of a service among them."""
    found = list(cluster.endpoint_pods(destination.service)) if destination.service else []
    for service in cluster.services.values():
        own = [*service.spec.cluster_ips, service.spec.cluster_ip, *service.spec.external_ips]
        own += [i.ip for i in service.status.load_balancer.ingress]
        node_port = destination.node and any(
            p.node_port == destination.target.port for p in service.spec.ports
        )
        if str(to) in own or node_port:
            found += cluster.endpoint_pods(service)
    there = destination.pod or cluster.pod_at(to)
    return [*found, there] if there is not None else found


def _place(cluster: Cluster, source: Party) -> str:
    pod = source.pod
    if pod is not None and not pod.spec.host_network:
        return f"{pod.namespace}/pod/{pod.name}"
    if source.node:
        return f"node/{source.node}"
    if any(a in cluster.outside for a in source.addresses):
        return "outside"
    raise ConfigError(f"{source}: nothing of this lab has that address, so nothing can be sent from there")


def trace(
    places: Mapping[str, int],
    source: str,
    to: Address,
    port: int,
    protocol: Protocol,
    *,
    destination: str = "",
    source_address: Address | None = None,
    timeout_s: float = 2.0,
    tunnel_ports: Container[int] = TUNNEL_PORTS,
    cgroup: Path | None = None,
) -> Trace:
    """Send one packet from place `source` and follow it.

    places: a namespace descriptor each, by the names hops are told with. source_address: to send from;
    the kernel's choice when None. cgroup: that the socket shall be of.
    Raises KernelError, UnsupportedError (SCTP), LabError.
    """
    if source not in places:
        raise LabError(f"{source} has no network namespace here: is it running?")
    if protocol is Protocol.SCTP:
        raise UnsupportedError("trace sends TCP or UDP; SCTP is told by `podlane explain`")
    with ExitStack() as stack:
        captures = {name: stack.enter_context(Capture(fd)) for name, fd in places.items()}
        kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
        with cgroups.joined(cgroup):
            sender = stack.enter_context(netns.socket_in(places[source], family_of(to).af, kind))
        sender.setblocking(False)
        time.sleep(SETTLE_S)
        pending: dict[str, list[Sighting]] = {name: [] for name in captures}
        probe, error = _send(sender, to, port, protocol, source_address, captures, pending, timeout_s)
        _drain(captures, pending, _LINGER_S)
        lost = sum(capture.dropped() for capture in captures.values())
    everything: list[Seen] = []
    for name, sightings in pending.items():
        everything += seen(name, sightings, tunnel_ports)
    found = hops(recognise(everything, probe), probe)
    verdict, why = _verdict(found, probe, error)
    return Trace(
        API_VERSION,
        "Trace",
        source,
        destination or str(to),
        str(to),
        port,
        protocol,
        family_of(to),
        verdict,
        why,
        found,
        lost,
    )


def _send(
    sender: socket.socket,
    to: Address,
    port: int,
    protocol: Protocol,
    source_address: Address | None,
    captures: Mapping[str, Capture],
    pending: dict[str, list[Sighting]],
    timeout_s: float,
) -> tuple[Probe, int]:
    """(what was sent, errno of the answer): 0 for an answer, ETIMEDOUT for none."""
    token = os.urandom(12).hex().encode() if protocol is Protocol.UDP else b""
    fallback = Probe(protocol, source_address or to, 0, to, port, token)
    try:
        if source_address is not None:
            sender.bind((str(source_address), 0))
        error = sender.connect_ex((str(to), port))
        where = sender.getsockname()
        probe = fallback._replace(source=address(where[0].partition("%")[0]), source_port=where[1])
        if error not in (0, errno.EINPROGRESS):
            return probe, error
        if token:
            sender.send(b"podlane-trace " + token + b"\n")
    except OSError as failed:
        return fallback, failed.errno or errno.EIO
    ready = select.POLLIN if token else select.POLLOUT
    answered = _await(sender, ready, captures, pending, timeout_s)
    error = sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if answered else errno.ETIMEDOUT
    return probe._replace(sequence=None if token else _sequence(sender)), error


def _sequence(sender: socket.socket) -> int | None:
    """The sequence number of the SYN that a TCP socket sent, as long as it has sent no data (tcp_repair)."""
    try:
        sender.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        sender.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
        following = sender.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ)
        sender.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, -1)  # off, without probing the peer's window
    except OSError:
        return None  # no right to, or a kernel without it: the SYN is then found by its addresses
    return (following - 1) & 0xFFFFFFFF


def _await(
    sender: socket.socket,
    ready: int,
    captures: Mapping[str, Capture],
    pending: dict[str, list[Sighting]],
    timeout_s: float,
) -> bool:
    """Reads what is captured until the sender is answered; False when it is not in time."""
    poll = select.poll()
    poll.register(sender, ready)
    by_fd = {capture.fileno(): name for name, capture in captures.items()}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        for fd, _ in poll.poll(left_s * 1000):
            if fd == sender.fileno():
                return True
            name = by_fd[fd]
            pending[name] += captures[name].read()
    return False


def _drain(captures: Mapping[str, Capture], pending: dict[str, list[Sighting]], for_s: float) -> None:
    time.sleep(for_s)
    for name, capture in captures.items():
        pending[name] += capture.read()


def _verdict(found: list[Hop], probe: Probe, error: int) -> tuple[Outcome, str]:
    requests = [h for h in found if h.leg == REQUEST]
    replies = [h for h in found if h.leg == REPLY]
    last = requests[-1] if requests else None
    if not last:
        if error:
            why = f"{os.strerror(error)}: no packet left the source"
            return (Outcome.NO_ROUTE if error in _NO_ROUTE else Outcome.DROPPED), why
        return Outcome.DELIVERED, "answered, but no capture saw it: the packet took a way without links"
    where = f"{last.place}, link {last.link} ({last.way})"
    if error == 0:
        return Outcome.DELIVERED, f"answered by {_answerer(replies, last)} at {last.destination}"
    by = f"by {replies[0].place} ({replies[0].what}); " if replies else ""
    if error in _REFUSED:
        return Outcome.REFUSED, f"{by}the request was last seen in {where}"
    if error in _NO_ROUTE:
        return Outcome.NO_ROUTE, f"{os.strerror(error)}, {by}last seen in {where}"
    if error != errno.ETIMEDOUT:
        raise KernelError.of(error, f"send to {end(probe.destination, probe.port)}")
    if replies:
        lost = replies[-1]
        why = f"the answer was last seen in {lost.place}, link {lost.link} ({lost.way})"
        return Outcome.DROPPED, why
    if probe.protocol is Protocol.UDP and "/pod/" in last.place and last.way == "in":
        return Outcome.DELIVERED, f"{last.place} got it and did not answer"
    return Outcome.DROPPED, f"no answer; last seen in {where}"


def _answerer(replies: list[Hop], last: Hop) -> str:
    return replies[0].place if replies else last.place
