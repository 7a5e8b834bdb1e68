"""WireGuard's cross-platform configuration protocol: lines of key=value, keys in hex. Pure.

    set=1 … an empty line        answered by errno=0 and an empty line
    get=1, an empty line         answered by what is configured, errno=0 and an empty line

Source: "Cross-platform Userspace Implementation" on wireguard.com/xplatform.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from podlane.model.addresses import Address, Prefix

ENDED: Final = b"\n\n"
GET: Final = "get=1\n\n"
_NO_KEY: Final = bytes(32)


class Peer(Struct, frozen=True):
    """endpoint: None when none is known. allowed: sorted by what `order` says."""

    endpoint: tuple[Address, int] | None
    allowed: tuple[Prefix, ...]
    preshared: bytes = _NO_KEY
    keepalive_s: int = 0


class Device(Struct, frozen=True):
    """peers: by public key, in base64. private: 32 zero bytes for none."""

    private: bytes
    port: int
    peers: Mapping[str, Peer]


def order(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    return tuple(sorted(prefixes, key=lambda p: (p.version, int(p.network_address), p.prefixlen)))


def difference(wanted: Device, present: Device) -> list[str]:
    """What brings a device from one to the other: lines for `command`, empty if nothing has to change."""
    lines: list[str] = []
    if wanted.private != present.private:
        lines.append(f"private_key={wanted.private.hex()}")
    if wanted.port != present.port:
        lines.append(f"listen_port={wanted.port}")
    return lines + changes(
        {k: p for k, p in wanted.peers.items() if present.peers.get(k) != p},
        [k for k in present.peers if k not in wanted.peers],
    )


def changes(written: Mapping[str, Peer], removed: Iterable[str]) -> list[str]:
    """A prefix that moves from one peer to another is taken from the one by being given to the other."""
    lines: list[str] = []
    for key in removed:
        lines += [f"public_key={_hex(key)}", "remove=true"]
    for key, peer in written.items():
        lines += [f"public_key={_hex(key)}", f"preshared_key={peer.preshared.hex()}"]
        if peer.endpoint is not None:
            address, port = peer.endpoint
            lines.append(
                f"endpoint=[{address}]:{port}" if address.version == 6 else f"endpoint={address}:{port}"
            )
        lines += [f"persistent_keepalive_interval={peer.keepalive_s}", "replace_allowed_ips=true"]
        lines += [f"allowed_ip={prefix}" for prefix in peer.allowed]
    return lines


def command(lines: Iterable[str]) -> str:
    return "\n".join(["set=1", *lines]) + "\n\n"


def error_of(answer: str) -> int:
    """The errno at an answer's end, made positive. Raises ValueError for what is no answer."""
    found = [value for name, value in _pairs(answer) if name == "errno"]
    if not found:
        raise ValueError("no errno at the answer's end")
    return abs(int(found[-1]))


def parse(answer: str) -> Device:
    """What answers GET. Raises ValueError for what cannot be read."""
    private, port = _NO_KEY, 0
    peers: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] | None = None
    for name, value in _pairs(answer):
        if name == "private_key":
            private = bytes.fromhex(value)
        elif name == "listen_port":
            port = int(value)
        elif name == "public_key":
            current = peers.setdefault(base64.b64encode(bytes.fromhex(value)).decode(), {})
        elif current is not None:
            current.setdefault(name, []).append(value)
    return Device(private, port, {key: _peer(fields) for key, fields in peers.items()})


def silent(answer: str) -> set[str]:
    """Public keys of the peers that no handshake has succeeded with since they were configured."""
    found: set[str] = set()
    key = ""
    for name, value in _pairs(answer):
        if name == "public_key":
            key = base64.b64encode(bytes.fromhex(value)).decode()
            found.add(key)
        elif name == "last_handshake_time_sec" and value != "0":
            found.discard(key)
    return found


def _peer(fields: Mapping[str, list[str]]) -> Peer:
    endpoint = None
    if "endpoint" in fields:
        host, _, port = fields["endpoint"][-1].rpartition(":")
        endpoint = ipaddress.ip_address(host.strip("[]")), int(port)
    return Peer(
        endpoint=endpoint,
        allowed=order(ipaddress.ip_network(text) for text in fields.get("allowed_ip", ())),
        preshared=bytes.fromhex(fields["preshared_key"][-1]) if "preshared_key" in fields else _NO_KEY,
        keepalive_s=int(fields.get("persistent_keepalive_interval", ["0"])[-1]),
    )


def _pairs(answer: str) -> Iterator[tuple[str, str]]:
    for line in answer.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            yield name, value


def _hex(key: str) -> str:
    return base64.b64decode(key).hex()
