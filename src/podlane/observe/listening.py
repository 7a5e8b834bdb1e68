"""Which ports of a network namespace are listened on, from the kernel's /proc/net tables (proc(5)). Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from podlane.model.addresses import Address, Protocol

# File of /proc/PID/net -> (protocol, the state that means listening: TCP_LISTEN, or an unconnected socket).
FILES: Final = {
    "tcp": (Protocol.TCP, "0A"),
    "tcp6": (Protocol.TCP, "0A"),
    "udp": (Protocol.UDP, "07"),
    "udp6": (Protocol.UDP, "07"),
}


class Listening(NamedTuple):
    """One socket: the address it is bound to (0.0.0.0 and :: are all of them)."""

    protocol: Protocol
    address: Address
    port: int

    def takes(self, protocol: Protocol, to: Address, port: int) -> bool:
        """Whether it gets what is sent to `to`. :: is taken to include IPv4, as by default it does."""
        return (
            (self.protocol, self.port) == (protocol, port)
            and self.address.version >= to.version
            and (self.address == to or int(self.address) == 0)
        )


def parse(name: str, table: str) -> Iterator[Listening]:
    """The listening sockets in the text of file `name`; lines that make no sense are skipped."""
    protocol, state = FILES[name]
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 4 or fields[3] != state:
            continue
        where, _, port = fields[1].partition(":")
        try:
            # Words of 32 bits in the machine's byte order, which is little on amd64 and arm64.
            raw = bytes.fromhex(where)
            words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
            yield Listening(protocol, ipaddress.ip_address(words), int(port, 16))
        except ValueError:
            continue


def listened(sockets: Iterable[Listening], protocol: Protocol, to: Address, port: int) -> bool:
    return any(each.takes(protocol, to, port) for each in sockets)
