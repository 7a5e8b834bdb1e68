"""Whose chains are whose, by the names that their owners give them. Pure.

kube-proxy's names are those its own `--cleanup` knows, of the modes iptables and ipvs; the kubelet's
(KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, KUBE-MARK-DROP) are not among them. Flannel's are
of its `--ip-masq` and `--iptables-forward-rules`; CNI-… are the reference plugins' chains, one or several
a container.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final

from podlane.kernel.xtables.ruleset import Rule

_KUBE_PROXY: Final = frozenset(
    {
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
        "KUBE-FORWARD",
        "KUBE-PROXY-FIREWALL",
        "KUBE-PROXY-CANARY",
        "KUBE-NODE-PORT",
        "KUBE-LOAD-BALANCER",
        "KUBE-SOURCE-RANGES-FIREWALL",
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
    }
)
_KUBE_PROXY_PREFIXES: Final = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-XLB-", "KUBE-EXT-")
_FLANNEL: Final = frozenset({"FLANNEL-POSTRTG", "FLANNEL-FWD"})
_HOST_PORTS: Final = frozenset({"CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"})

KUBE_PROXY_NFT: Final = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
FLANNEL_NFT: Final = (("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6"))
KUBE_PROXY_LINK: Final = "kube-ipvs0"
FLANNEL_LINKS: Final = ("flannel.1", "flannel-v6.1", "flannel.ipip", "flannel-wg", "flannel-wg-v6")
HOST_PORT_PREFIX: Final = "CNI-DN-"
_MOST_NAME: Final = 28  # characters, of a chain of the reference plugins


def kube_proxys(table: str, chain: str) -> bool:
    return chain in _KUBE_PROXY or chain.startswith(_KUBE_PROXY_PREFIXES)


def kube_proxys_set(name: str) -> bool:
    """Of ipset: those of mode ipvs, KUBE-CLUSTER-IP or KUBE-6-NODE-PORT-TCP for one."""
    return name.startswith(("KUBE-CLUSTER-", "KUBE-LOOP-", "KUBE-EXTERNAL-", "KUBE-LOAD-BALANCER",
                            "KUBE-NODE-PORT-", "KUBE-HEALTH-CHECK-", "KUBE-IPVS-", "KUBE-6-"))  # fmt: skip


def flannels(table: str, chain: str) -> bool:
    return chain in _FLANNEL


def flannels_rule(table: str, rule: Rule) -> bool:
    """Rules that older versions put into the built-in chains themselves."""
    return rule.comment in ("flanneld masq", "flanneld forward")


class Attachments:
    """The reference plugins' chains of some attachments: (network, container id).

    A container's own are CNI-DN-… (portmap) and CNI-… (bridge's ipMasq), with a hash of both in the name. The
    chains that all share go with the last of them, which is when nothing else leads on from there.
    """

    def __init__(self, attachments: Collection[tuple[str, str]]) -> None:
        self._names = {
            prefix + hashlib.sha512((network + container).encode()).hexdigest()
            for network, container in attachments
            for prefix in (HOST_PORT_PREFIX, "CNI-")
        }
        self._names = {name[:_MOST_NAME] for name in self._names}

    def chains(self, table: str, chain: str) -> bool:
        return table == "nat" and chain in self._names

    def rule(self, table: str, rule: Rule) -> bool:
        return table == "nat" and rule.target in self._names


def host_ports(table: str, chain: str) -> bool:
    """Everything of portmap: for when no container of it is left."""
    return table == "nat" and (chain in _HOST_PORTS or chain.startswith(HOST_PORT_PREFIX))
