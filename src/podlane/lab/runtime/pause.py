"""The smallest process there can be: it holds namespaces and does nothing.

A forked interpreter keeps a few megabytes of its own for that; this program has one page. It is written here
as machine code in an ELF file of one segment (System V ABI; elf(5)), kept in memory, so that neither a
compiler nor a file is needed.
"""

from __future__ import annotations

import gc
import os
import signal
import struct
from typing import NoReturn

_BASE = 0x400000
_HEADERS_BYTES = 64 + 56
# machine -> (e_machine, code)
_CODE = {
    # again: mov eax, 34 (pause); syscall; jmp again
    "x86_64": (62, bytes.fromhex("b822000000 0f05 ebf7")),
    # again: mov x8, 73 (ppoll); mov x0..x4, 0; svc 0; b again
    "aarch64": (
        183,
        struct.pack(
            "<8I",
            *(0xD2800928, 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800004, 0xD4000001, 0x17FFFFF9),
        ),
    ),
}


def program(machine: str) -> bytes:
    """An executable that pauses for ever. Raises KeyError for a machine it is not written for."""
    number, code = _CODE[machine]
    size = _HEADERS_BYTES + len(code)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", identity, 2, number, 1, _BASE + _HEADERS_BYTES, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)  # PT_LOAD, read and execute
    return header + segment + code


def prepare() -> int:
    """A descriptor of the program, to be kept for `pause`; -1 where there is none."""
    machine = os.uname().machine
    if machine not in _CODE:
        return -1
    fd = os.memfd_create("pause", os.MFD_CLOEXEC)
    os.write(fd, program(machine))
    return fd


def pause(program_fd: int, name: str) -> NoReturn:
    """Become the program; where that is not allowed (vm.memfd_noexec), pause as we are."""
    try:
        os.execve(program_fd, [name], {})
    except OSError:
        gc.disable()
        while True:
            signal.pause()
