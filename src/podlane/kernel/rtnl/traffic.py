"""What links have carried, from the kernel's /proc/net/dev (proc(5)): one read, whatever their number."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

FILE: Final = Path("/proc/net/dev")


class Traffic(NamedTuple):
    """Since the link was made."""

    receive_bytes: int
    receive_packets: int
    receive_errors: int
    receive_drops: int
    transmit_bytes: int
    transmit_packets: int
    transmit_errors: int
    transmit_drops: int


def read() -> dict[str, Traffic]:
    """By link, of the network namespace of the process."""
    return parse(FILE.read_text())


def parse(text: str) -> dict[str, Traffic]:
    """Pure. Lines of another shape are no links."""
    found = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        values = rest.split()
        if colon and len(values) >= 16:
            numbers = list(map(int, values))
            found[name.strip()] = Traffic(*numbers[:4], *numbers[8:12])
    return found
