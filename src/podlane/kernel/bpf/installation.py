"""Maps and programs in the kernel: adopted where they are pinned, made where they are not.

A pin keeps them while no agent runs, so connections go on being made. An agent that starts anew takes over
maps of its own layout as they are, and exchanges a program only if it is another one, or uses other maps.
Every exchange is of one whole program or map that is filled already, so that killed between any two steps
the next agent finds programs that work, and goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from podlane.errors import KernelError, UnsupportedError
from podlane.kernel.bpf import bpffs, elf, layout, syscall
from podlane.kernel.bpf.syscall import PROG_CGROUP_SOCK, PROG_CGROUP_SOCK_ADDR, MapSpec

_LICENCE: Final = "Apache-2.0"
_GROWTH: Final = 2
_MODE: Final = "services.mode=socket"
_INSTEAD: Final = "services.mode=nftables"

# hook -> (program type, attach type): linux/bpf.h, enum bpf_attach_type
_HOOKS: Final = {
    # What comes back is understood before anything is sent another way.
    "recvmsg4": (PROG_CGROUP_SOCK_ADDR, 19),
    "recvmsg6": (PROG_CGROUP_SOCK_ADDR, 20),
    "peername4": (PROG_CGROUP_SOCK_ADDR, 29),
    "peername6": (PROG_CGROUP_SOCK_ADDR, 30),
    "connect4": (PROG_CGROUP_SOCK_ADDR, 10),
    "connect6": (PROG_CGROUP_SOCK_ADDR, 11),
    "sendmsg4": (PROG_CGROUP_SOCK_ADDR, 14),
    "sendmsg6": (PROG_CGROUP_SOCK_ADDR, 15),
    "bind4": (PROG_CGROUP_SOCK, 12),
    "bind6": (PROG_CGROUP_SOCK, 13),
    "release": (PROG_CGROUP_SOCK, 34),
}

PINS: Final = (*(f"link_{hook}" for hook in _HOOKS), *layout.SPECS)
"""What is pinned in the directory."""


class Site(NamedTuple):
    """Where: a directory for pins, and the cgroup v2 directory whose sockets are served."""

    directory: Path
    cgroup: Path


def compiled(program: str = "socket_lb", what: str = _MODE, instead: str = _INSTEAD) -> Path:
    """native/PROGRAM.bpf.c, compiled: of the package, or of the source tree. Raises UnsupportedError.

    what: needs it; instead: does not.
    """
    here, name = Path(__file__), f"{program}.bpf.o"
    for found in (here.with_name(name), here.parents[4] / "native" / "build" / name):
        if found.is_file():
            return found
    raise UnsupportedError(
        f"{what}: {name} has not been compiled (no clang); scripts/setup.sh does it, {instead} works without"
    )


def require(directory: Path | None = None) -> None:
    """Tries everything out and leaves nothing but the directory for pins. Raises UnsupportedError: why not,
    and what would work."""
    codes = elf.programs(compiled().read_bytes())
    if directory is not None:
        try:
            bpffs.make(directory)
        except KernelError as error:
            raise UnsupportedError(
                f"services.mode=socket: {directory} cannot be on a BPF file system ({error}); name another "
                "directory with --bpf-dir, or use services.mode=nftables"
            ) from None
    maps: dict[str, int] = {}
    loaded: dict[str, int] = {}
    try:
        for spec in layout.SPECS.values():
            maps[spec.name] = syscall.create_map(spec)
        loaded = _load(codes, maps)
    except KernelError as error:
        raise UnsupportedError(
            f"services.mode=socket: this kernel refuses ({error}); Linux 5.18 or newer with "
            "CONFIG_CGROUP_BPF is needed, services.mode=nftables works without"
        ) from None
    finally:
        _close(maps | loaded)


class Installation:
    """`open`, fill the maps, `attach`. Not for two threads at once."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.maps: dict[str, int] = {}
        self._entries: dict[str, int] = {}
        self._codes = elf.programs(compiled().read_bytes())
        self._fresh = True

    def close(self) -> None:
        """What is attached stays."""
        _close(self.maps)
        self.maps = {}

    def open(self, rows: Mapping[str, int]) -> None:
        """Take over the maps that are pinned, or make new ones with room for so many rows. Those that are
        open already stay, and are pinned again where they are not."""
        bpffs.make(self.site.directory)
        if self.maps:
            for name, fd in self.maps.items():
                if not self._fresh and not self._is_pinned(name, fd):
                    syscall.pin(fd, self._path(name))
            return
        found = {name: self._pinned(name) for name in layout.SPECS}
        there = {name: fd for name, fd in found.items() if fd is not None}
        if len(there) == len(found) and _fits(there):
            self.maps, self._fresh = there, False
        else:
            _close(there)
            self.maps = {
                s.name: syscall.create_map(_roomy(s, rows.get(s.name, 0))) for s in layout.SPECS.values()
            }
            self._fresh = True
        self._entries = {name: syscall.map_info(fd).entries for name, fd in self.maps.items()}

    def read(self, name: str) -> dict[bytes, bytes]:
        spec = layout.SPECS[name]
        return dict(syscall.items(self.maps[name], spec.key_bytes, spec.value_bytes))

    def grow(self, name: str) -> None:
        """A map of twice the size with the same contents takes the place of one that is full."""
        spec = layout.SPECS[name]._replace(entries=self._entries[name] * _GROWTH)
        larger = syscall.create_map(spec)
        try:
            syscall.update_batch(larger, list(self.read(name).items()))
        except BaseException:
            os.close(larger)
            raise
        smaller, self.maps[name] = self.maps[name], larger
        self._entries[name] = spec.entries
        if not self._fresh:
            self.attach()
            syscall.pin(larger, self._path(name))
        os.close(smaller)

    def attach(self) -> int:
        """Every hook runs the program, with these maps. Returns how many were attached or exchanged."""
        loaded = _load(self._codes, self.maps)
        try:
            cgroup = os.open(self.site.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                changed = sum(self._hook(hook, program, cgroup) for hook, program in loaded.items())
            finally:
                os.close(cgroup)
        except OSError as error:
            raise KernelError.of(error.errno or 0, f"open cgroup {self.site.cgroup}") from None
        finally:
            _close(loaded)
        if self._fresh:
            for name, fd in self.maps.items():
                syscall.pin(fd, self._path(name))
            self._fresh = False
        return changed

    def _hook(self, hook: str, program: int, cgroup: int) -> bool:
        path, attach_type = self._path(f"link_{hook}"), _HOOKS[hook][1]
        link = syscall.pinned(path)
        try:
            if link is not None:
                info = syscall.link_info(link)
                if info.cgroup == os.fstat(cgroup).st_ino and info.attach_type == attach_type:
                    wanted, there = syscall.program_info(program), syscall.program_of(info)
                    if (wanted.tag, wanted.maps) == (there.tag, there.maps):
                        return False
                    syscall.update_link(link, program)
                    return True
                os.close(link)  # of a cgroup that is gone, or another one
            link = syscall.create_link(program, cgroup, attach_type)
            syscall.pin(link, path)
            return True
        finally:
            if link is not None:
                os.close(link)

    def _is_pinned(self, name: str, fd: int) -> bool:
        there = self._pinned(name)
        if there is None:
            return False
        try:
            return syscall.map_info(there).id == syscall.map_info(fd).id
        finally:
            os.close(there)

    def _pinned(self, name: str) -> int | None:
        return syscall.pinned(self._path(name))

    def _path(self, name: str) -> str:
        return str(self.site.directory / name)


def remove(directory: Path) -> bool:
    """Detach everything that is pinned there. Connections stay as they are. Returns whether there was any.
    Raises KernelError."""
    if not bpffs.is_bpffs(directory):
        return False
    found = False
    for hook in _HOOKS:
        link = syscall.pinned(str(directory / f"link_{hook}"))
        if link is not None:
            syscall.detach(link)
            os.close(link)
    for name in PINS:
        for path in (directory / name, directory / f"{name}_"):
            with suppress(FileNotFoundError):
                path.unlink()
                found = True
    with suppress(OSError):  # a mount of its own stays, and what others have there
        directory.rmdir()
    return found


def _fits(maps: Mapping[str, int]) -> bool:
    for name, fd in maps.items():
        spec, info = layout.SPECS[name], syscall.map_info(fd)
        if (spec.kind, spec.key_bytes, spec.value_bytes) != (info.kind, info.key_bytes, info.value_bytes):
            return False
    known = syscall.lookup(maps[layout.SETTINGS], bytes(4), layout.SPECS[layout.SETTINGS].value_bytes)
    return known is not None and layout.layout_of(known) == layout.LAYOUT


def _roomy(spec: MapSpec, rows: int) -> MapSpec:
    entries = spec.entries
    while spec.name in layout.DESIRED and entries < rows * _GROWTH:
        entries *= _GROWTH
    return spec._replace(entries=entries)


def _load(codes: Mapping[str, elf.Code], maps: Mapping[str, int]) -> dict[str, int]:
    loaded: dict[str, int] = {}
    try:
        for hook, (kind, attach_type) in _HOOKS.items():
            code = codes[hook].bound(maps)
            loaded[hook] = syscall.load_program(hook, kind, attach_type, code, _LICENCE)
    except BaseException:
        _close(loaded)
        raise
    return loaded


def _close(descriptors: Mapping[str, int]) -> None:
    for fd in descriptors.values():
        os.close(fd)
