"""How the shim (native/cni_shim.c, cni/shim.py) and the kubelet speak to the agent. Pure.

Over a unix stream socket, one request a connection:

    request    !II   length of the environment, length of stdin     8 bytes
               environment: KEY=VALUE, each ended by NUL
               stdin
    answer     !I    exit status                                    4 bytes
               stdout, until end of file

CNI_NETNS travels as an open descriptor (SCM_RIGHTS) with the first bytes of the request: its path may
exist only in the runtime's mount namespace. No descriptor: it could not be opened, or none was named.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

REQUEST: Final = struct.Struct("!II")
ANSWER: Final = struct.Struct("!I")
ENVIRONMENT_LIMIT_BYTES: Final = 1 << 20
STDIN_LIMIT_BYTES: Final = 16 << 20


def pack_request(environment: Mapping[str, str], stdin: bytes) -> bytes:
    block = b"".join(
        f"{key}={value}".encode(errors="surrogateescape") + b"\0" for key, value in environment.items()
    )
    return REQUEST.pack(len(block), len(stdin)) + block + stdin


def unpack_lengths(header: bytes) -> tuple[int, int]:
    """(environment, stdin) in bytes. Raises ValueError for a request above the limits."""
    environment, stdin = REQUEST.unpack(header)
    if environment > ENVIRONMENT_LIMIT_BYTES or stdin > STDIN_LIMIT_BYTES:
        raise ValueError(
            f"request of {environment} + {stdin} bytes; at most {ENVIRONMENT_LIMIT_BYTES} of environment and "
            f"{STDIN_LIMIT_BYTES} of configuration"
        )
    return environment, stdin


def unpack_environment(block: bytes) -> dict[str, str]:
    """Entries without "=" are skipped, as getenv does."""
    entries = (entry.decode(errors="surrogateescape").partition("=") for entry in block.split(b"\0") if entry)
    return {key: value for key, equals, value in entries if equals}


def unpack_request(data: bytes) -> tuple[dict[str, str], bytes]:
    """A whole request, as it lies in the spool. Raises ValueError if it is cut short."""
    if len(data) < REQUEST.size:
        raise ValueError("cut short")
    environment, stdin = unpack_lengths(data[: REQUEST.size])
    if len(data) != REQUEST.size + environment + stdin:
        raise ValueError("cut short")
    middle = REQUEST.size + environment
    return unpack_environment(data[REQUEST.size : middle]), data[middle:]


def pack_answer(status: int, stdout: bytes) -> bytes:
    return ANSWER.pack(status) + stdout


def unpack_answer(data: bytes) -> tuple[int, bytes]:
    """(exit status, stdout). Raises ValueError if the agent went away before it answered."""
    if len(data) < ANSWER.size:
        raise ValueError("cut short")
    return ANSWER.unpack(data[: ANSWER.size])[0], data[ANSWER.size :]
