"""A compiled BPF object: its programs, and where each names a map. Pure: bytes in, values out.

Only what native/*.bpf.c need: every program is a section of its own named after its hook, every
function is inlined, and the one kind of relocation is an instruction that loads the address of a map
(R_BPF_64_64, Documentation/bpf/llvm_reloc.rst). So the object needs neither BTF nor a library to be loaded.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from podlane.errors import ConfigError

_MACHINE_BPF: Final = 247
_REL: Final = 9
_SYMTAB: Final = 2
_R_BPF_64_64: Final = 1
_LOAD_64: Final = 0x18  # BPF_LD | BPF_IMM | BPF_DW, two instructions long
_MAP_FD: Final = 1  # BPF_PSEUDO_MAP_FD: the immediate is a map's descriptor
CGROUP: Final = "cgroup/"
TC: Final = "tc/"


class Code(NamedTuple):
    """instructions: 8 bytes each. maps: (offset of the instruction, name of the map)."""

    instructions: bytes
    maps: tuple[tuple[int, str], ...]

    def bound(self, descriptors: Mapping[str, int]) -> bytes:
        """The instructions with maps in place of their names."""
        code = bytearray(self.instructions)
        for offset, name in self.maps:
            opcode, registers = code[offset], code[offset + 1]
            assert opcode == _LOAD_64
            struct.pack_into(
                "=BBHi", code, offset, opcode, registers & 0x0F | _MAP_FD << 4, 0, descriptors[name]
            )
            struct.pack_into("=i", code, offset + 12, 0)
        return bytes(code)


class _Section(NamedTuple):
    name: str
    type: int
    data: bytes
    link: int
    info: int


def programs(image: bytes, prefix: str = CGROUP) -> dict[str, Code]:
    """By hook, of the sections that begin with prefix. Raises ConfigError for what is no such object."""
    try:
        return _programs(image, prefix)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a compiled BPF object: {error}") from None


def _programs(image: bytes, prefix: str) -> dict[str, Code]:
    if image[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", image, 18)[0] != _MACHINE_BPF:
        raise ConfigError("not a compiled BPF object: no 64-bit little-endian ELF file for BPF")
    sections = _sections(image)
    named: dict[int, list[tuple[int, str]]] = {}
    for each in sections:
        if each.type == _REL and sections[each.info].name.startswith(prefix):
            named[each.info] = _relocations(each, sections)
    return {
        each.name.removeprefix(prefix): Code(each.data, tuple(named.get(number, ())))
        for number, each in enumerate(sections)
        if each.name.startswith(prefix)
    }


def _sections(image: bytes) -> list[_Section]:
    (offset,) = struct.unpack_from("<Q", image, 40)
    size, count, names_at = struct.unpack_from("<HHH", image, 58)
    raw = [struct.unpack_from("<IIQQQQIIQQ", image, offset + n * size) for n in range(count)]
    names = image[raw[names_at][4] : raw[names_at][4] + raw[names_at][5]]
    return [
        _Section(_text(names, name), kind, image[at : at + length], link, info)
        for name, kind, _, _, at, length, link, info, _, _ in raw
    ]


def _relocations(section: _Section, sections: list[_Section]) -> list[tuple[int, str]]:
    symbols = sections[section.link]
    names = sections[symbols.link].data
    found = []
    for offset, info in struct.iter_unpack("<QQ", section.data):
        if info & 0xFFFFFFFF != _R_BPF_64_64:
            raise ConfigError(f"not a compiled BPF object of ours: relocation of kind {info & 0xFFFFFFFF}")
        (name,) = struct.unpack_from("<I", symbols.data, (info >> 32) * 24)
        found.append((offset, _text(names, name)))
    return found


def _text(names: bytes, at: int) -> str:
    return names[at : names.index(b"\0", at)].decode()
