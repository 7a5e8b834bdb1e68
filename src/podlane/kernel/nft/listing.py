"""What `nft list table` prints, taken apart: for checks that ask whether rules and elements are still there.

Never to be loaded again: nft 1.0.6 prints some rules in a form that it does not read.
"""

from __future__ import annotations

import re
import subprocess
from contextlib import nullcontext
from typing import NamedTuple

from podlane.errors import UnsupportedError
from podlane.kernel import netns
from podlane.kernel.nft import command

_SET = re.compile(r"(?:set|map) (\S+) {(.*?)\n\t}", re.DOTALL)
_ELEMENTS = re.compile(r"elements = {(.*?)}", re.DOTALL)


class Listing(NamedTuple):
    """rules: as printed, without indentation. elements: by set, as printed."""

    rules: frozenset[str]
    elements: dict[str, frozenset[str]]

    def missing(self, rules: frozenset[str], elements: dict[str, frozenset[str]]) -> list[str]:
        """What of these is not there, in words."""
        found = [f"the rule {rule!r} is gone" for rule in sorted(rules - self.rules)]
        for name, wanted in elements.items():
            gone = sorted(wanted - self.elements.get(name, frozenset()))
            found += [f"{each} is not in the set {name}" for each in gone]
        return found


def parse(text: str) -> Listing:
    """Pure."""
    elements = {}
    for name, body in _SET.findall(text):
        inner = _ELEMENTS.search(body)
        entries = (" ".join(each.split()) for each in inner[1].split(",")) if inner else ()
        elements[name] = frozenset(entries)
    rules = (" ".join(line.split()) for line in _SET.sub("", text).splitlines())
    return Listing(frozenset(filter(None, rules)), elements)


def table(name: str, netns_fd: int | None = None) -> Listing:
    """name: with its family, as "inet podlane-cni". A table that is not there has nothing in it. Blocking.

    Raises UnsupportedError without nft.
    """
    try:
        with netns.entered(netns_fd) if netns_fd is not None else nullcontext():
            done = subprocess.run(
                [command.PROGRAM, "list", "table", *name.split()],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=120,
            )
    except FileNotFoundError:
        raise UnsupportedError("there is no nft on this machine; install the package nftables") from None
    return parse(done.stdout if not done.returncode else "")
