"""What agent and proxy say to each other over the proxy's socket: one line of JSON each way. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")


class PeerSetting(Struct, frozen=True):
    """remote: where its datagrams go and come from. pods: what is sent there. sources: other addresses that
    it may send from. Prefixes and addresses are texts."""

    remote: str
    port: int
    pods: tuple[str, ...]
    sources: tuple[str, ...] = ()


class Settings(Struct, frozen=True):
    """local: this node's outer address, "" for a proxy that has been told nothing. own: its inner ones.

    mtu_bytes: of the device; what is longer is dropped.
    """

    local: str = ""
    port: int = 0
    mtu_bytes: int = 0
    own: tuple[str, ...] = ()
    peers: dict[str, PeerSetting] = {}


class Request(Struct, omit_defaults=True):
    """settings: from now on, all of them. peers, gone: by node, of what changed only. Empty: asks."""

    settings: Settings | None = None
    peers: dict[str, PeerSetting] = {}
    gone: tuple[str, ...] = ()


class Answer(Struct, omit_defaults=True):
    """settings and counters when nothing was told. error: why the proxy goes on as it was."""

    settings: Settings | None = None
    counters: dict[str, int] = {}
    error: str = ""


class Prefixes(Generic[T]):
    """Values by prefix; an address has that of the longest prefix it is in. Addresses are bytes."""

    def __init__(self, rows: Iterable[tuple[str, T]]) -> None:
        self._by_length: dict[tuple[int, int], dict[int, T]] = {}
        for text, value in rows:
            prefix = ipaddress.ip_network(text)
            length = (prefix.max_prefixlen // 8, prefix.prefixlen)
            shift = prefix.max_prefixlen - prefix.prefixlen
            self._by_length.setdefault(length, {})[int(prefix.network_address) >> shift] = value
        self._lengths = sorted(self._by_length, reverse=True)

    def find(self, address: bytes) -> T | None:
        number, size = int.from_bytes(address, "big"), len(address)
        for octets, bits in self._lengths:
            if octets == size:
                found = self._by_length[octets, bits].get(number >> (8 * size - bits))
                if found is not None:
                    return found
        return None


def encode(message: Request | Answer) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def request(line: bytes) -> Request:
    """Raises ValueError."""
    return msgspec.json.decode(line, type=Request)


def answer(line: bytes) -> Answer:
    """Raises ValueError."""
    return msgspec.json.decode(line, type=Answer)
