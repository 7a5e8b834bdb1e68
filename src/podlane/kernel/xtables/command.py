"""The programs of iptables, in both variants: what is there, and what a text changes."""

from __future__ import annotations

import enum
import errno
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Final, NamedTuple

from podlane.errors import KernelError
from podlane.kernel import netns
from podlane.kernel.xtables.ruleset import TableText, parse
from podlane.model.addresses import Family

_TIMEOUT_S: Final = 60
_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_LEGACY_TABLES: Final = {Family.IPV4: "net/ip_tables_names", Family.IPV6: "net/ip6_tables_names"}


class Variant(enum.StrEnum):
    LEGACY = "legacy"
    NFT = "nft"


class Place(NamedTuple):
    """One of the four rulesets of iptables that a network namespace can have."""

    family: Family
    variant: Variant

    @property
    def program(self) -> str:
        name = "iptables" if self.family is Family.IPV4 else "ip6tables"
        return f"{name}-{self.variant}"

    def __str__(self) -> str:
        return self.program


PLACES: Final = tuple(Place(family, variant) for family in Family for variant in Variant)


def present(place: Place) -> bool:
    """The programs are installed."""
    return find(f"{place.program}-save") is not None and find(f"{place.program}-restore") is not None


def find(program: str) -> str | None:
    return shutil.which(program, path=_SBIN)


def may_hold_rules(place: Place, netns_fd: int | None = None) -> bool:
    """False when there is certainly nothing: asking the program would be in vain."""
    if place.variant is Variant.NFT:
        return True
    with netns.entered(netns_fd) if netns_fd is not None else nullcontext():
        try:
            # The thread's own view: /proc/net is the main thread's.
            return bool(Path("/proc/thread-self", _LEGACY_TABLES[place.family]).read_text().strip())
        except OSError:
            return False


def save(place: Place, netns_fd: int | None = None) -> dict[str, TableText]:
    """Every table. Empty without the programs. Raises KernelError."""
    if not present(place) or not may_hold_rules(place, netns_fd):
        return {}
    said = run([f"{place.program}-save"], "", netns_fd)
    try:
        return parse(said)
    except ValueError as error:
        raise KernelError.of(errno.EPROTO, f"{place.program}-save", str(error)) from None


def restore(place: Place, text: str, netns_fd: int | None = None) -> None:
    """Changes; what the text does not name stays. Raises KernelError with the program's own words."""
    if text:
        run([f"{place.program}-restore", "--noflush", "-w", "10"], text, netns_fd)


def run(command: list[str], text: str, netns_fd: int | None = None) -> str:
    """A child is born into its parent thread's network namespace. Raises KernelError."""
    program = find(command[0])
    if program is None:
        raise KernelError.of(errno.ENOENT, command[0], "the program is not installed")
    with netns.entered(netns_fd) if netns_fd is not None else nullcontext():
        child = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    with child:
        try:
            said, complained = child.communicate(text.encode(), timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise KernelError.of(errno.ETIMEDOUT, command[0], f"not done in {_TIMEOUT_S} s") from None
    if child.returncode:
        words = complained.decode(errors="replace").strip().splitlines()
        raise KernelError.of(errno.EINVAL, command[0], words[-1] if words else f"status {child.returncode}")
    return said.decode(errors="replace")
