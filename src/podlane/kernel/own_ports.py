"""Which netlink sockets are this process's own: what the kernel tells of their doings is no news.

A notice carries the port of the socket that asked for what it tells. Ports are unique in one namespace and
protocol only, so they are counted. A child that changes something for us (nft) binds to its process id.
"""

from __future__ import annotations

import ctypes
import math
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

_ports: Counter[int] = Counter()
_children: dict[int, float] = {}  # process id -> when it ended, or will

_LATE_S: Final = 1.0  # notices of what a child did may be read so long after its end

# linux/filter.h, linux/bpf_common.h: classic BPF
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_SO_ATTACH_FILTER: Final = 26
_PORT_OFFSET: Final = 12  # of struct nlmsghdr
_MOST: Final = 250  # a jump is a byte


def add(port: int) -> None:
    _ports[port] += 1


def remove(port: int) -> None:
    _ports.subtract([port])
    if not _ports[port]:
        del _ports[port]


@contextmanager
def child(pid: int) -> Iterator[None]:
    """While it runs, and a moment longer, what it changes is our doing."""
    for old in [old for old, ended_s in _children.items() if time.monotonic() - ended_s > _LATE_S]:
        del _children[old]
    _children[pid] = math.inf
    try:
        yield
    finally:
        _children[pid] = time.monotonic()


def is_own(port: int) -> bool:
    """Whether a socket of this process has the port: a notice that carries it tells of our own doing."""
    if port in _ports:
        return True
    ended_s = _children.get(port)
    return ended_s is not None and time.monotonic() - ended_s <= _LATE_S


def ports() -> list[int]:
    return list(_ports)


def do_not_hear(listener: socket.socket, ports: Iterable[int]) -> None:
    """Notices of these ports do not even arrive: ten thousand of one's own would fill the buffer, and those
    of others would be lost. Raises OSError."""
    dropped = list(ports)[:_MOST]
    code = [(_LOAD_WORD, 0, 0, _PORT_OFFSET)]
    # The load takes what is in network byte order; ports are in the host's.
    code += [(_JUMP_EQUAL, len(dropped) - place, 0, socket.htonl(port)) for place, port in enumerate(dropped)]
    code += [(_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
    listener.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code), ctypes.addressof(program))
    )
