"""bpf(2): maps, programs, links and pins, as the kernel has them.

Descriptors are plain integers that the caller closes. Every call raises KernelError naming what it tried.
The C library has no wrapper for this call; layouts are `union bpf_attr` of linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from podlane.errors import KernelError, KernelNotFoundError, UnsupportedError

_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE = 0, 1, 2, 3
_PROG_LOAD, _OBJ_PIN, _OBJ_GET, _PROG_BY_ID, _MAP_BY_ID, _OBJ_INFO, _BTF_LOAD = 5, 6, 7, 13, 14, 15, 18
_LOOKUP_BATCH, _UPDATE_BATCH, _LINK_CREATE, _LINK_UPDATE, _LINK_DETACH = 24, 26, 28, 29, 34

MAP_HASH, MAP_ARRAY, MAP_LRU_HASH, MAP_LPM_TRIE, MAP_SK_STORAGE = 1, 2, 9, 11, 24
NO_PREALLOC: Final = 1
PROG_SCHED_CLS, PROG_CGROUP_SOCK, PROG_CGROUP_SOCK_ADDR = 3, 9, 18

_NUMBERS: Final = {"x86_64": 321, "aarch64": 280}
_ATTR_BYTES: Final = 160
_LOG_BYTES: Final = 1 << 20
_BATCH: Final = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class MapSpec(NamedTuple):
    """kind: MAP_…; sizes in bytes; entries: the most there may be, 0 for storage kept with sockets."""

    name: str
    kind: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int = 0


class MapInfo(NamedTuple):
    kind: int
    id: int
    key_bytes: int
    value_bytes: int
    entries: int


class ProgramInfo(NamedTuple):
    """tag: a digest of the instructions, map numbers left out."""

    id: int
    tag: bytes
    maps: frozenset[int]


class LinkInfo(NamedTuple):
    """cgroup: its id (the inode of its directory), 0 when it is gone."""

    program: int
    cgroup: int
    attach_type: int


def _attempt(command: int, attr: _Bytes) -> int:
    """The result, or the negative errno. The kernel writes into attr, also when it refuses."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        known = ", ".join(_NUMBERS)
        raise UnsupportedError(f"bpf(2) is known on {known} only; services.mode=nftables works everywhere")
    size = ctypes.c_ulong(len(attr.content))
    result = _libc.syscall(ctypes.c_long(number), ctypes.c_long(command), ctypes.c_void_p(attr.at), size)
    return int(result) if result >= 0 else -ctypes.get_errno()


def _bpf(command: int, attr: bytes, operation: str) -> int:
    result = _attempt(command, _Bytes(attr.ljust(_ATTR_BYTES, b"\0")))
    if result < 0:
        raise KernelError.of(-result, operation)
    return result


class _Bytes:
    """Memory whose address a call is given; it lives as long as this does."""

    def __init__(self, content: bytes | int) -> None:
        self._buffer = (
            ctypes.create_string_buffer(content)
            if isinstance(content, int)
            else ctypes.create_string_buffer(content, len(content))
        )
        self.at = ctypes.addressof(self._buffer)

    @property
    def content(self) -> bytes:
        return self._buffer.raw


# --- maps -----------------------------------------------------------------------------------------


def create_map(spec: MapSpec) -> int:
    """Storage kept with sockets must say its types: a 32-bit key, and words."""
    types = _word_types(spec.value_bytes) if spec.kind == MAP_SK_STORAGE else -1
    try:
        attr = struct.pack(
            "=IIIIIII15sxIIII",
            spec.kind,
            spec.key_bytes,
            spec.value_bytes,
            spec.entries,
            spec.flags,
            0,
            0,
            f"pl_{spec.name}".encode()[:15],
            0,
            max(types, 0),
            1 if types >= 0 else 0,
            2 if types >= 0 else 0,
        )
        return _bpf(_MAP_CREATE, attr, f"create BPF map {spec.name}")
    finally:
        if types >= 0:
            os.close(types)


def _word_types(value_bytes: int) -> int:
    """A BTF object (Documentation/bpf/btf.rst): type 1 is u32, type 2 an array of it."""
    names = b"\0u32\0"
    types = struct.pack("=IIII", 1, 1 << 24, 4, 32)
    types += struct.pack("=IIIIII", 0, 3 << 24, 0, 1, 1, value_bytes // 4)
    blob = _Bytes(
        struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names
    )
    return _bpf(_BTF_LOAD, struct.pack("=QQI", blob.at, 0, len(blob.content)), "load BTF")


def update(fd: int, key: bytes, value: bytes) -> None:
    memory = _Bytes(key), _Bytes(value)
    _bpf(_UPDATE, struct.pack("=I4xQQQ", fd, memory[0].at, memory[1].at, 0), "update BPF map")


def delete(fd: int, key: bytes) -> None:
    """What is not there is no error."""
    memory = _Bytes(key)
    with suppress(KernelNotFoundError):
        _bpf(_DELETE, struct.pack("=I4xQ", fd, memory.at), "delete from BPF map")


def lookup(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    memory = _Bytes(key), _Bytes(value_bytes)
    try:
        _bpf(_LOOKUP, struct.pack("=I4xQQ", fd, memory[0].at, memory[1].at), "look up BPF map")
    except KernelNotFoundError:
        return None
    return memory[1].content


def update_batch(fd: int, entries: Sequence[tuple[bytes, bytes]]) -> None:
    for start in range(0, len(entries), _BATCH):
        part = entries[start : start + _BATCH]
        keys, values = _Bytes(b"".join(k for k, _ in part)), _Bytes(b"".join(v for _, v in part))
        attr = struct.pack("=QQQQIIQQ", 0, 0, keys.at, values.at, len(part), fd, 0, 0)
        _bpf(_UPDATE_BATCH, attr, "update BPF map")


def items(fd: int, key_bytes: int, value_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """Every entry of a hash map. What is added or removed meanwhile may be missed."""
    size, place = _BATCH, None
    while True:
        keys, values, after = _Bytes(size * key_bytes), _Bytes(size * value_bytes), _Bytes(max(key_bytes, 4))
        start = place.at if place is not None else 0
        attr = struct.pack("=QQQQIIQQ", start, after.at, keys.at, values.at, size, fd, 0, 0)
        memory = _Bytes(attr.ljust(_ATTR_BYTES, b"\0"))
        result = _attempt(_LOOKUP_BATCH, memory)
        if result == -errno.ENOSPC:  # a bucket that is longer than the room given
            size *= 2
            continue
        if result < 0 and result != -errno.ENOENT:
            raise KernelError.of(-result, "read BPF map")
        (count,) = struct.unpack_from("=I", memory.content, 32)
        for n in range(count):
            key = keys.content[n * key_bytes : (n + 1) * key_bytes]
            yield key, values.content[n * value_bytes : (n + 1) * value_bytes]
        if result < 0:  # ENOENT: these were the last
            return
        place = after


def map_info(fd: int) -> MapInfo:
    info = _info(fd, 80, "BPF map")
    kind, number, key_bytes, value_bytes, entries = struct.unpack_from("=IIIII", info)
    return MapInfo(kind, number, key_bytes, value_bytes, entries)


# --- programs -------------------------------------------------------------------------------------


def load_program(name: str, kind: int, attach_type: int, instructions: bytes, licence: str) -> int:
    """Raises KernelError with the verifier's last words."""
    code, terms = _Bytes(instructions), _Bytes(licence.encode() + b"\0")

    def attr(level: int, log: _Bytes | None) -> bytes:
        return struct.pack(
            "=IIQQIIQII15sxII",
            kind,
            len(instructions) // 8,
            code.at,
            terms.at,
            level,
            len(log.content) if log else 0,
            log.at if log else 0,
            0,
            0,
            f"pl_{name}".encode()[:15],
            0,
            attach_type,
        )

    try:
        return _bpf(_PROG_LOAD, attr(0, None), f"load BPF program {name}")
    except KernelError as error:
        log = _Bytes(_LOG_BYTES)
        again = _attempt(_PROG_LOAD, _Bytes(attr(1, log).ljust(_ATTR_BYTES, b"\0")))
        if again >= 0:
            return again
        lines = log.content.split(b"\0", 1)[0].decode(errors="replace").strip().splitlines()
        said = " / ".join(line for line in lines if not line.startswith("processed "))[-300:]
        raise KernelError.of(error.errno, error.operation, said) from None


def program_info(fd: int) -> ProgramInfo:
    most = 64
    maps = _Bytes(4 * most)
    asked = struct.pack("=52xIQ", most, maps.at)
    info = _info(fd, 128, "BPF program", asked)
    (number,), tag, (count,) = (
        struct.unpack_from("=4xI", info),
        info[8:16],
        struct.unpack_from("=I", info, 52),
    )
    ids = struct.unpack_from(f"={min(count, most)}I", maps.content)
    return ProgramInfo(number, tag, frozenset(ids))


# --- links and pins -------------------------------------------------------------------------------


def create_link(program: int, cgroup: int, attach_type: int) -> int:
    """Attaches beside what others attached; it holds as long as the link has a descriptor or a pin."""
    attr = struct.pack("=IIII", program, cgroup, attach_type, 0)
    return _bpf(_LINK_CREATE, attr, "attach BPF program to the cgroup")


def update_link(link: int, program: int) -> None:
    """Exchanges a link's program: every call meets the old or the new one."""
    _bpf(_LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0), "exchange BPF program")


def detach(link: int) -> None:
    """At once; without it a link that nobody holds goes a moment later."""
    _bpf(_LINK_DETACH, struct.pack("=I", link), "detach BPF program")


def link_info(fd: int) -> LinkInfo:
    info = _info(fd, 64, "BPF link")
    _, _, program, cgroup, attach_type = struct.unpack_from("=III4xQI", info)
    return LinkInfo(program, cgroup, attach_type)


def pin(fd: int, path: str) -> None:
    """Exchanges a pin that is there, atomically."""
    fresh = _Bytes(os.fsencode(path + "_") + b"\0")  # a dot is not allowed in a name
    _unlink(path + "_")
    _bpf(_OBJ_PIN, struct.pack("=QII", fresh.at, fd, 0), f"pin {path}")
    os.rename(path + "_", path)


def pinned(path: str) -> int | None:
    """A descriptor of what is pinned there; None if nothing is."""
    name = _Bytes(os.fsencode(path) + b"\0")
    try:
        return _bpf(_OBJ_GET, struct.pack("=QII", name.at, 0, 0), f"open {path}")
    except KernelNotFoundError:
        return None


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _info(fd: int, size: int, what: str, asked: bytes = b"") -> bytes:
    memory = _Bytes(asked.ljust(size, b"\0"))
    _bpf(_OBJ_INFO, struct.pack("=IIQ", fd, size, memory.at), f"read about {what}")
    return memory.content


def map_of(number: int) -> int:
    """A descriptor of the map that has this id."""
    return _bpf(_MAP_BY_ID, struct.pack("=I", number), f"open BPF map {number}")


def program_by(number: int) -> ProgramInfo:
    """About the program that has this id."""
    return program_of(LinkInfo(number, 0, 0))


def program_of(link: LinkInfo) -> ProgramInfo:
    """What a link runs."""
    fd = _bpf(_PROG_BY_ID, struct.pack("=I", link.program), f"open BPF program {link.program}")
    try:
        return program_info(fd)
    finally:
        os.close(fd)
