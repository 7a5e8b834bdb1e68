"""The programs and maps in the kernel: adopted where they are attached, made where they are not.

The kernel keeps a program as long as it is attached, and the maps with it, so packets go on while no agent
runs. An agent that starts anew finds the maps by the program that uses them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from podlane.errors import KernelError, KernelExistsError, UnsupportedError
from podlane.kernel import netns
from podlane.kernel.bpf import elf, syscall
from podlane.kernel.bpf.installation import compiled
from podlane.kernel.bpf.syscall import MAP_ARRAY, MAP_HASH, MAP_LPM_TRIE, NO_PREALLOC, MapSpec
from podlane.kernel.netlink import NETLINK_ROUTE
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.rtnl import Rtnl, links
from podlane.kernel.tc import codec
from podlane.kernel.tc import programs as tc
from podlane.kernel.tc.programs import ON_EGRESS, ON_INGRESS, Attached
from podlane.model.addresses import Address, Prefix

SETTINGS, REMOTES, SENDERS = "settings", "remotes", "senders"
SPECS: Final = {
    SETTINGS: MapSpec(SETTINGS, MAP_ARRAY, 4, 20, 1),
    REMOTES: MapSpec(REMOTES, MAP_LPM_TRIE, 20, 4, 1 << 16, NO_PREALLOC),
    SENDERS: MapSpec(SENDERS, MAP_HASH, 4, 4, 1 << 16, NO_PREALLOC),
}
_HOOKS: Final = {"encap": ON_EGRESS, "decap": ON_INGRESS}
_PREFIX: Final = "podlane_"
_PRIORITY: Final = 0x504C
_LICENCE: Final = "Apache-2.0"


def settings(local: Address, uplink: int, device: int, mac: str) -> bytes:
    return local.packed + struct.pack("=II", uplink, device) + links.pack_mac(mac) + bytes(2)


def remote(pods: Prefix) -> bytes:
    """The key of a prefix in REMOTES."""
    mapped = bytes(10) + b"\xff\xff" if pods.version == 4 else b""
    return struct.pack("=I", pods.prefixlen + len(mapped) * 8) + mapped + pods.network_address.packed


def require() -> None:
    """Tries everything out in a namespace of its own. Raises UnsupportedError: why not, what would work."""
    instead = "backend.type=vxlan"
    image = compiled("ipip", "backend.type=ipip", instead).read_bytes()
    try:
        maps = {name: syscall.create_map(spec) for name, spec in SPECS.items()}
        try:
            loaded = _load(elf.programs(image, elf.TC), maps)
            _close(loaded)
        finally:
            _close(maps)
        place = netns.new()
        try:
            with Rtnl(place) as rt:
                rt.do(*links.create_ifb("try0"))
                rt.do(tc.add_clsact(rt.link_index("try0")))
        finally:
            os.close(place)
    except KernelError as error:
        raise UnsupportedError(
            f"backend.type=ipip: this kernel refuses ({error}); Linux 6.3 or newer with CONFIG_NET_CLS_BPF, "
            f"CONFIG_NET_SCH_INGRESS and CONFIG_IFB is needed, {instead} works without"
        ) from None


class Programs:
    """`open`, fill the maps, `attach`. places: link by program. Not for two threads at once."""

    def __init__(self) -> None:
        self._codes = elf.programs(compiled("ipip", "backend.type=ipip", "vxlan").read_bytes(), elf.TC)
        self._netlink = Netlink(NETLINK_ROUTE)
        self.maps: dict[str, int] = {}

    def close(self) -> None:
        """What is attached stays."""
        _close(self.maps)
        self.maps = {}
        self._netlink.close()

    def open(self, places: Mapping[str, int]) -> None:
        """Take over the maps of the programs that are attached, and make those that are not there."""
        _close(self.maps)
        self.maps = {}
        for name, link in places.items():
            self._adopt(self._ours(link, _HOOKS[name], name))
        for name, spec in SPECS.items():
            if name not in self.maps:
                self.maps[name] = syscall.create_map(spec)

    def read(self, name: str) -> dict[bytes, bytes]:
        spec = SPECS[name]
        return dict(syscall.items(self.maps[name], spec.key_bytes, spec.value_bytes))

    def attach(self, places: Mapping[str, int]) -> int:
        """Returns how many were attached, exchanged or detached elsewhere."""
        loaded = _load(self._codes, self.maps)
        try:
            changed = sum(self._attach(name, link, loaded[name]) for name, link in places.items())
        finally:
            _close(loaded)
        return changed + self.detach(except_links=set(places.values()))

    def detach(self, except_links: set[int] | None = None) -> int:
        """Takes ours off every other link; a clsact that holds nothing then goes too."""
        count = 0
        for each in map(codec.unpack, self._netlink.dump(codec.get_all())):
            if each.kind != "clsact" or each.link in (except_links or ()):
                continue
            there = [f for hook in _HOOKS.values() for f in self._filters(each.link, hook)]
            ours = [f for f in there if f is not None and f.name.startswith(_PREFIX)]
            for filter_ in ours:
                self._netlink.do(tc.detach(each.link, filter_.hook, filter_.priority))
                count += 1
            if ours and len(ours) == len(there):
                self._netlink.do(codec.delete(each.link, codec.INGRESS))
        return count

    def _attach(self, name: str, link: int, program: int) -> bool:
        hook, wanted = _HOOKS[name], syscall.program_info(program)
        there = self._ours(link, hook, name)
        if there is not None:
            info = syscall.program_by(there.program)
            if (info.tag, info.maps) == (wanted.tag, wanted.maps):
                return False
        else:
            with suppress(KernelExistsError):  # another's, or ours of before
                self._netlink.do(tc.add_clsact(link))
        self._netlink.do(tc.attach(link, hook, _PRIORITY, _PREFIX + name, program))
        return True

    def _adopt(self, program: Attached | None) -> None:
        for number in syscall.program_by(program.program).maps if program else ():
            fd = syscall.map_of(number)
            info = syscall.map_info(fd)
            shape = (info.kind, info.key_bytes, info.value_bytes)
            name = next((n for n, s in SPECS.items() if (s.kind, s.key_bytes, s.value_bytes) == shape), "")
            if not name or name in self.maps:
                os.close(fd)
            else:
                self.maps[name] = fd

    def _ours(self, link: int, hook: int, name: str) -> Attached | None:
        return next(
            (f for f in self._filters(link, hook) if f is not None and f.name == _PREFIX + name), None
        )

    def _filters(self, link: int, hook: int) -> list[Attached | None]:
        """None for each that is no program."""
        return [tc.unpack(m) for m in self._netlink.dump(tc.get_all(link, hook)) if tc.is_filter(m)]


def _load(codes: Mapping[str, elf.Code], maps: Mapping[str, int]) -> dict[str, int]:
    loaded: dict[str, int] = {}
    try:
        for name in _HOOKS:
            code = codes[name].bound(maps)
            loaded[name] = syscall.load_program(name, syscall.PROG_SCHED_CLS, 0, code, _LICENCE)
    except BaseException:
        _close(loaded)
        raise
    return loaded


def _close(descriptors: Mapping[str, int]) -> None:
    for fd in descriptors.values():
        os.close(fd)
