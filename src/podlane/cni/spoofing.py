"""`macspoofchk`: a port of a bridge sends with its own MAC address only (nftables, family bridge)."""

from __future__ import annotations

import contextlib
from typing import Final

from podlane.errors import KernelError, KernelNotFoundError, UnsupportedError
from podlane.kernel.nft import command, listing

TABLE: Final = "bridge podlane-cni"
_RULE: Final = "iifname @guarded iifname . ether saddr != @allowed drop"
_SKELETON: Final = f"""
add table {TABLE}
add set {TABLE} guarded {{ type ifname; }}
add set {TABLE} allowed {{ type ifname . ether_addr; }}
add chain {TABLE} prerouting {{ type filter hook prerouting priority -300; }}
flush chain {TABLE} prerouting
add rule {TABLE} prerouting {_RULE}
"""


def guard(device: str, mac: str, netns_fd: int | None) -> None:
    """Blocking. Raises UnsupportedError where the kernel has no such family, KernelError."""
    try:
        command.load(_SKELETON + "".join(f"add {line}\n" for line in _elements(device, mac)), netns_fd)
    except KernelError as error:
        what = "macspoofchk needs nftables' bridge family (CONFIG_NF_TABLES_BRIDGE); leave it out"
        raise UnsupportedError(f"{what}: {error}") from None


def release(device: str, mac: str, netns_fd: int | None) -> None:
    """No error if there is nothing."""
    lines = _elements(device, mac)
    with contextlib.suppress(KernelNotFoundError):  # the whole table is gone
        # Added first, so that what is gone already is no error.
        command.load("".join(f"{verb} {line}\n" for verb in ("add", "delete") for line in lines), netns_fd)


def faults(device: str, mac: str, netns_fd: int | None) -> list[str]:
    """In what the kernel is not as `guard` made it. Blocking."""
    wanted = {"guarded": frozenset({f'"{device}"'}), "allowed": frozenset({f'"{device}" . {mac}'})}
    return listing.table(TABLE, netns_fd).missing(frozenset({_RULE}), wanted)


def _elements(device: str, mac: str) -> list[str]:
    return [
        f'element {TABLE} guarded {{ "{device}" }}',
        f'element {TABLE} allowed {{ "{device}" . {mac} }}',
    ]
