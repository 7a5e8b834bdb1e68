"""What the node's namespace must allow so that it can forward pods' packets.

Only what is different is written, and nothing that others size (nf_conntrack_max, gc_thresh).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from podlane.errors import KernelError, KernelNotFoundError
from podlane.kernel import sysctl
from podlane.kernel.sysctl import read
from podlane.model.addresses import Family

_BRIDGE: Final = {
    Family.IPV4: "net/bridge/bridge-nf-call-iptables",
    Family.IPV6: "net/bridge/bridge-nf-call-ip6tables",
}
_HINTS: Final = dict.fromkeys(_BRIDGE.values(), "load the module br_netfilter")

__all__ = ["Setting", "apply", "read", "wanted"]

Read = Callable[[str], str | None]


class Setting(NamedTuple):
    """name: as net/ipv4/ip_forward."""

    name: str
    value: str


def wanted(
    families: Iterable[Family],
    uplink: str,
    read: Read,
    *,
    bridged: bool = False,
    from_loopback: bool = False,
    serving: bool = False,
    counted: bool = False,
) -> list[Setting]:
    """What differs, in the order in which it must be written. read(name): None where there is no such name.
    uplink: "" for none.

    - accept_ra 2 on the uplink before forwarding: a router ignores advertisements otherwise, and with
      them its own default route;
    - loose reverse-path filtering where it is strict: answers of remote pods to this node's own address
      come by the underlay, not by the tunnel that leads to them;
    - with bridged pods, frames that only cross the bridge shown to nftables, or services would not work
      between two of its ports;
    - with node ports of 127.0.0.1, packets of that source let out, whose source is then translated (what
      this opens to neighbours the ruleset closes again, see kernel/nft/skeleton.py);
    - conntrack liberal about TCP windows: one packet it takes for invalid would otherwise pass
      untranslated and reset the connection (kubernetes/kubernetes#74839);
    - where services are served, conntrack remembering a connection that one side has closed for an hour,
      and one that is silent for a day, as kube-proxy has it;
    - if wanted, conntrack counting packets and bytes: of connections that begin from now on.
    """
    families = list(families)
    rules: list[Setting] = []
    if Family.IPV6 in families:
        if read(f"net/ipv6/conf/{uplink}/accept_ra") == "1":
            rules.append(Setting(f"net/ipv6/conf/{uplink}/accept_ra", "2"))
        rules.append(Setting("net/ipv6/conf/all/forwarding", "1"))
    if Family.IPV4 in families:
        rules.append(Setting("net/ipv4/ip_forward", "1"))
        filters = [read(f"net/ipv4/conf/{each}/rp_filter") for each in ("all", "default", uplink)]
        if "1" in filters:
            rules.append(Setting("net/ipv4/conf/all/rp_filter", "2"))
        if from_loopback:
            rules.append(Setting("net/ipv4/conf/all/route_localnet", "1"))
    rules.append(Setting("net/netfilter/nf_conntrack_tcp_be_liberal", "1"))
    if serving:
        rules.append(Setting("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "3600"))
        rules.append(Setting("net/netfilter/nf_conntrack_tcp_timeout_established", "86400"))
    if counted:
        rules.append(Setting("net/netfilter/nf_conntrack_acct", "1"))
    found = [rule for rule in rules if read(rule.name) not in (None, rule.value)]
    # Without the module there is no such name, and writing it is refused in words that say so.
    needed = [Setting(_BRIDGE[family], "1") for family in families if bridged]
    return [*(rule for rule in needed if read(rule.name) != rule.value), *found]


def apply(settings: Iterable[Setting]) -> list[KernelError]:
    """Writes; returns the refusals, each naming the setting and what would help."""
    refused: list[KernelError] = []
    for name, value in settings:
        try:
            sysctl.write_node(name, value)
        except KernelError as error:
            hint = _HINTS.get(name) if isinstance(error, KernelNotFoundError) else None
            detail = (
                f"{os.strerror(error.errno)}; {hint or 'set it yourself, or let the agent write /proc/sys'}"
            )
            refused.append(KernelError.of(error.errno, f"sysctl {name.replace('/', '.')}={value}", detail))
    return refused
