"""Whether packets as large as pods' links make them get from node to node whole.

A tunnel adds to what pods send; where the nodes' own network carries less than their uplinks say, large
packets are lost, and small ones are not: connections stand and hang. Here datagrams of that size go from
every node to every other, unfragmented; what arrives counts, not what routers say (RFC 4821). Where the whole
size does not, it is found out what does.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from podlane.compile import facts
from podlane.compile.peers import way_of
from podlane.compile.spoken import configured
from podlane.errors import PodlaneError
from podlane.model.addresses import Address, Family
from podlane.model.backends import LEAST_MTU_BYTES
from podlane.model.config import NetworkConfig
from podlane.model.objects import Node
from podlane.observe.check import Check, CheckFailure, Place, socket_of

KIND: Final = "path-mtu"
WAIT_S: Final = 0.3
_AT_ONCE: Final = 8
_HEADERS_BYTES: Final = {Family.IPV4: 20 + 8, Family.IPV6: 40 + 8}
# linux/in.h, linux/in6.h: Don't Fragment, whatever the kernel believes of the path.
_PROBE: Final = 3
_DISCOVER: Final = {
    Family.IPV4: (socket.IPPROTO_IP, 10),
    Family.IPV6: (socket.IPPROTO_IPV6, 23),
}


class Path(Struct, frozen=True):
    """source, target: nodes, and the addresses they are sent from and to. outer_bytes: the largest packet
    between them that pods make; link_bytes: what their links have."""

    source: str
    target: str
    family: Family
    sent_from: Address
    sent_to: Address
    outer_bytes: int
    link_bytes: int


def paths(nodes: Iterable[Node], config: NetworkConfig) -> Iterator[Path]:
    """Between every two nodes whose agents have told of their uplinks, one each way. Pure."""
    known = [(node, told) for node in nodes if (told := facts.announced_underlay(node)) is not None]
    for here, underlay in known:
        own = configured(here, config)
        family = facts.outer_family(here, underlay, own.ip_families)
        sent_from = facts.own_address(here, underlay, family) if family else None
        if family is None or sent_from is None:
            continue
        overhead = way_of(own.backend.type, own).overhead_bytes(family)
        link = own.backend.mtu_bytes or underlay.mtu_bytes - overhead
        for there, _ in known:
            sent_to = facts.underlay_address(there, family)
            if there.name != here.name and sent_to is not None:
                names = here.name, there.name
                yield Path(*names, family, sent_from, sent_to, link + overhead, link)


def measure(wanted: Iterable[Path], places: Mapping[str, Place]) -> list[Check]:
    return asyncio.run(_measure(list(wanted), places))


async def _measure(wanted: list[Path], places: Mapping[str, Place]) -> list[Check]:
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(path: Path) -> Check:
        async with room:
            return await _try(path, places)

    return list(await asyncio.gather(*map(one, wanted)))


async def _try(path: Path, places: Mapping[str, Place]) -> Check:
    began_s = time.monotonic()
    what = f"{path.family} {path.sent_from} -> {path.sent_to}"
    try:
        carried = await _carried(path, places)
    except (CheckFailure, PodlaneError, OSError) as error:
        carried, said = 0, f"{what}: {error}"
    else:
        said = f"{what}: {_words(path, carried)}"
    ms = round((time.monotonic() - began_s) * 1000, 3)
    whole = carried >= path.outer_bytes
    return Check(KIND, f"node/{path.source}", f"node/{path.target}", whole, ms, said)


def _words(path: Path, carried: int) -> str:
    if carried >= path.outer_bytes:
        return f"{path.outer_bytes} bytes get there whole; pods' links have {path.link_bytes}"
    if not carried:
        return "not even small datagrams get there"
    right = path.link_bytes - (path.outer_bytes - carried)
    return (
        f"{carried} bytes get there whole, {path.outer_bytes} do not: pods' links have {path.link_bytes}; "
        f"set backend.mtuBytes to {right}, or raise the MTU of the nodes' network"
    )


async def _carried(path: Path, places: Mapping[str, Place]) -> int:
    """The size of the largest packet that arrives, IP header included; 0 if the least does not."""
    af = path.family.af
    with (
        socket_of(places, f"node/{path.target}", af, socket.SOCK_DGRAM) as receiver,
        socket_of(places, f"node/{path.source}", af, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((str(path.sent_to), 0))
        sender.bind((str(path.sent_from), 0))
        sender.setsockopt(*_DISCOVER[path.family], _PROBE)
        sender.connect(receiver.getsockname()[:2])
        if await _arrives(sender, receiver, path.outer_bytes, path.family):
            return path.outer_bytes
        least, too_large = LEAST_MTU_BYTES[path.family], path.outer_bytes
        if not await _arrives(sender, receiver, least, path.family):
            return 0
        while too_large - least > 1:
            size = (least + too_large) // 2
            if await _arrives(sender, receiver, size, path.family):
                least = size
            else:
                too_large = size
        return least


async def _arrives(sender: socket.socket, receiver: socket.socket, size: int, family: Family) -> bool:
    """Tried twice: one datagram may be lost for other reasons."""
    loop = asyncio.get_running_loop()
    payload = secrets.token_bytes(8).ljust(size - _HEADERS_BYTES[family], b"\0")
    for _ in range(2):
        try:
            async with asyncio.timeout(WAIT_S):
                try:
                    sender.send(payload)
                except OSError:  # what a router said of the one before, or the uplink itself
                    sender.send(payload)
                while await loop.sock_recv(receiver, 1 << 16) != payload:
                    pass
                return True
        except TimeoutError:
            continue
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            return False
    return False
