"""Who or what else on a node works against podlane, with the remedy. Pure: judged from what was read.

another plugin       a network configuration that the runtime takes before ours; another system's links
FORWARD drops        a firewall's chain (Docker, ufw, firewalld) that drops what is forwarded: pods' packets
kube-proxy           its rules translate beside ours
networkd, NetworkManager   they take away routes and addresses of links that they think are theirs
settings             strict reverse-path filters, forwarding, frames of a bridge not shown to nftables
conntrack            its table is nearly full: new connections will be dropped
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

CONNTRACK_FULL: Final = 0.9

OTHER_SYSTEMS: Final = {
    "flannel.1": "Flannel",
    "flannel-v6.1": "Flannel",
    "cilium_host": "Cilium",
    "vxlan.calico": "Calico",
    "tunl0.calico": "Calico",
    "weave": "Weave Net",
    "kube-bridge": "kube-router",
    "antrea-gw0": "Antrea",
    "ovn-k8s-mp0": "OVN-Kubernetes",
}
"""Links that only one system makes."""


class Conflict(Struct, frozen=True, order=True):
    """kind: one CamelCase word; what: what is so; remedy: what would help."""

    kind: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


class Dropping(Struct, frozen=True):
    """A base chain of the hook forward whose policy is drop. iptables: the program whose chain it is, ""
    for a table of nftables. accepted: pods are let through it by rules of ours."""

    family: str
    table: str
    chain: str
    iptables: str = ""
    accepted: bool = False


class Surroundings(Struct, frozen=True, kw_only=True):
    """What was read. conflists: (path, type of the plugin) taken before ours. links: names. settings:
    sysctls, as net/ipv4/ip_forward, those that are there. bridged: link mode bridge. families: ip, ip6.
    left: pods' links that were not taken over, as sentences. networkd, network_manager: they run, and
    nothing tells them to leave podlane's links alone. docker, ufw: theirs are among the dropping
    chains."""

    families: tuple[str, ...] = ("ip", "ip6")
    conflists: tuple[tuple[str, str], ...] = ()
    links: tuple[str, ...] = ()
    dropping: tuple[Dropping, ...] = ()
    chains: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    settings: Mapping[str, str] = {}
    bridged: bool = False
    services: bool = True
    conntrack: tuple[int, int] | None = None
    networkd: bool = False
    network_manager: bool = False
    left: tuple[str, ...] = ()


def conflicts(found: Surroundings) -> list[Conflict]:
    """In the order of their kinds."""
    return sorted({each for detector in _DETECTORS for each in detector(found)})


def _plugins(found: Surroundings) -> Iterator[Conflict]:
    for path, kind in found.conflists:
        easy = kind in ("bridge", "flannel")
        remedy = (
            "set others.takeOver: true, or move it away" if easy else "remove that plugin, or move it away"
        )
        yield Conflict("OtherPlugin", f"{path} ({kind or 'unreadable'}) is taken before podlane's", remedy)
    for name in found.links:
        system = OTHER_SYSTEMS.get(name)
        if system == "Flannel":
            remedy = "stop its daemon, then run `podlane cleanup flannel` on the node"
            yield Conflict("OtherPlugin", f"Flannel's link {name} is there", remedy)
        elif system:
            yield Conflict(
                "OtherPlugin", f"{system}'s link {name} is there", "remove one of the two from this node"
            )
    for sentence in found.left:
        yield Conflict("NotTakenOver", sentence, "or delete the pod: its successor is podlane's")


def _firewalls(found: Surroundings) -> Iterator[Conflict]:
    for each in found.dropping:
        if each.accepted or (each.family != "inet" and each.family not in found.families):
            continue
        whose = _whose(each, found)
        if each.iptables:
            what = f"FORWARD of {each.iptables} drops what no rule accepts{whose}: pods' packets too"
            remedy = "set others.acceptForward: true"
            if whose == " (ufw)":
                remedy += ', or DEFAULT_FORWARD_POLICY="ACCEPT" in /etc/default/ufw'
        else:
            where = f"nftables table {each.family} {each.table}"
            what = f"{where} drops what is forwarded in chain {each.chain}{whose}"
            remedy = "accept the pod CIDRs in that chain: an accept of another table cannot override it"
            if whose == " (firewalld)":
                remedy = (
                    "firewall-cmd --permanent --zone=trusted --add-source=POD-CIDR, for each, then --reload"
                )
        yield Conflict("ForwardDropped", what, remedy)


def _whose(each: Dropping, found: Surroundings) -> str:
    if each.table == "firewalld":
        return " (firewalld)"
    if each.iptables and any(c.startswith("ufw") for c in found.chains):
        return " (ufw)"
    if each.iptables and "DOCKER-USER" in found.chains:
        return " (Docker)"
    return ""


def _kube_proxy(found: Surroundings) -> Iterator[Conflict]:
    where = [
        *(["chains KUBE-SERVICES of iptables"] if "KUBE-SERVICES" in found.chains else ()),
        *(["table kube-proxy of nftables"] if "kube-proxy" in found.tables else ()),
        *(["link kube-ipvs0"] if "kube-ipvs0" in found.links else ()),
    ]
    if found.services and where:
        remedy = (
            "delete its DaemonSet and run `podlane cleanup kube-proxy`, or run agents with --services=off"
        )
        yield Conflict("KubeProxy", f"kube-proxy's rules are there ({', '.join(where)})", remedy)


def _settings(found: Surroundings) -> Iterator[Conflict]:
    loose = found.settings.get("net/ipv4/conf/all/rp_filter") == "2"
    strict = [
        name.split("/")[3]
        for name, value in sorted(found.settings.items())
        if name.startswith("net/ipv4/conf/") and name.endswith("/rp_filter") and value == "1"
    ]
    if "ip" in found.families and strict and not loose:
        remedy = "set net.ipv4.conf.all.rp_filter=2, and look into /etc/sysctl.d for what sets it back"
        where = ", ".join(strict)
        what = f"reverse-path filters are strict on {where}: answers that come another way are dropped"
        yield Conflict("StrictReversePath", what, remedy)
    for family, name in (("ip", "net/ipv4/ip_forward"), ("ip6", "net/ipv6/conf/all/forwarding")):
        if family in found.families and found.settings.get(name) == "0":
            sysctl = name.replace("/", ".")
            what = f"{sysctl} is 0: nothing is forwarded to or from pods"
            yield Conflict(
                "ForwardingOff", what, f"set {sysctl}=1, and look into /etc/sysctl.d for what sets it back"
            )
    if not found.bridged:
        return
    for family, name in (("ip", "bridge-nf-call-iptables"), ("ip6", "bridge-nf-call-ip6tables")):
        if family in found.families and found.settings.get(f"net/bridge/{name}") != "1":
            why = "services and policies do not see packets between two pods of the node"
            remedy = f"modprobe br_netfilter, and net.bridge.{name}=1"
            yield Conflict("BridgeNotFiltered", f"net.bridge.{name} is not 1: {why}", remedy)


def _managers(found: Surroundings) -> Iterator[Conflict]:
    if found.networkd:
        remedy = (
            "put ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no under [Network] of "
            "/etc/systemd/networkd.conf.d/podlane.conf, and restart systemd-networkd"
        )
        yield Conflict(
            "Networkd", "systemd-networkd takes away routes that are not its own when it starts", remedy
        )
    if found.network_manager:
        remedy = (
            "put unmanaged-devices=interface-name:pl*;interface-name:cni0 under [keyfile] of "
            "/etc/NetworkManager/conf.d/podlane.conf, and reload NetworkManager"
        )
        yield Conflict("NetworkManager", "NetworkManager may set up podlane's links", remedy)


def _conntrack(found: Surroundings) -> Iterator[Conflict]:
    if found.conntrack is None:
        return
    held, most = found.conntrack
    if most and held >= most * CONNTRACK_FULL:
        tenths = held * 10 // most
        what = f"the conntrack table is full to {tenths} tenths of {most}: new connections will be dropped"
        yield Conflict(
            "ConntrackFull", what, "raise net.netfilter.nf_conntrack_max, or find who opens so many"
        )


KINDS: Final = (
    "OtherPlugin",
    "NotTakenOver",
    "ForwardDropped",
    "KubeProxy",
    "StrictReversePath",
    "ForwardingOff",
    "BridgeNotFiltered",
    "Networkd",
    "NetworkManager",
    "ConntrackFull",
)
_DETECTORS: Final = (_plugins, _firewalls, _kube_proxy, _settings, _managers, _conntrack)
