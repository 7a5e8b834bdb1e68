"""A pod's hostname, /etc/hosts and /etc/resolv.conf. Pure.

Formats are the kubelet's (pkg/kubelet/kubelet_pods.go, network/dns/dns.go).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from podlane.model.config import NetworkConfig

Obj = dict[str, Any]
MAX_HOSTNAME = 63
MAX_SEARCHES = 32
MAX_NAMESERVERS = 3


def hostname(pod: Obj) -> str:
    """spec.hostname, or the pod's name cut to what a hostname may be."""
    name: str = pod["spec"].get("hostname") or pod["metadata"]["name"]
    return name[:MAX_HOSTNAME].rstrip("-.")


def domain(pod: Obj, cluster_domain: str) -> str:
    """The pod's own domain when it has a subdomain, else ""."""
    subdomain = pod["spec"].get("subdomain")
    return f"{subdomain}.{pod['metadata']['namespace']}.svc.{cluster_domain}" if subdomain else ""


def kernel_hostname(pod: Obj, cluster_domain: str) -> str:
    name, within = hostname(pod), domain(pod, cluster_domain)
    if pod["spec"].get("setHostnameAsFQDN") and within:
        return f"{name}.{within}"
    return name


def hosts_file(pod: Obj, addresses: Sequence[str], cluster_domain: str) -> str:
    lines = [
        "# Kubernetes-managed hosts file.",
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet",
        "fe00::0\tip6-mcastprefix",
        "fe00::1\tip6-allnodes",
        "fe00::2\tip6-allrouters",
    ]
    name, within = hostname(pod), domain(pod, cluster_domain)
    own = f"{name}.{within}\t{name}" if within else name
    lines += [f"{ip}\t{own}" for ip in addresses]
    aliases = pod["spec"].get("hostAliases") or ()
    if aliases:
        lines += ["", "# Entries added by HostAliases."]
        lines += [f"{alias['ip']}\t" + "\t".join(alias.get("hostnames") or ()) for alias in aliases]
    return "\n".join(lines) + "\n"


def resolv_conf(pod: Obj, config: NetworkConfig, node_resolv_conf: str) -> str:
    """node_resolv_conf: what dnsPolicy Default gives (a lab node has no name server beyond the cluster's)."""
    spec = pod["spec"]
    policy = spec.get("dnsPolicy") or "ClusterFirst"
    nameservers, searches, options = _parse(node_resolv_conf)
    if policy == "ClusterFirst" and spec.get("hostNetwork"):
        policy = "Default"
    if policy in ("ClusterFirst", "ClusterFirstWithHostNet"):
        namespace, cluster = pod["metadata"]["namespace"], config.cluster_domain
        nameservers = [str(prefix[10]) for prefix in config.cluster_services.values()]
        searches = [f"{namespace}.svc.{cluster}", f"svc.{cluster}", cluster]
        options = ["ndots:5"]
    elif policy == "None":
        nameservers, searches, options = [], [], []
    extra = spec.get("dnsConfig") or {}
    nameservers += [n for n in extra.get("nameservers") or () if n not in nameservers]
    searches += [s for s in extra.get("searches") or () if s not in searches]
    for option in extra.get("options") or ():
        name, value = option.get("name", ""), option.get("value")
        options = [o for o in options if o.partition(":")[0] != name]
        options.append(f"{name}:{value}" if value is not None else name)
    lines = []
    if searches:
        lines.append("search " + " ".join(searches[:MAX_SEARCHES]))
    lines += [f"nameserver {n}" for n in nameservers[:MAX_NAMESERVERS]]
    if options:
        lines.append("options " + " ".join(options))
    return "\n".join(lines) + "\n"


def _parse(text: str) -> tuple[list[str], list[str], list[str]]:
    """(nameservers, search domains, options) of a resolv.conf(5)."""
    nameservers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        keyword, *words = line.split("#")[0].split() or [""]
        if keyword == "nameserver":
            nameservers += words[:1]
        elif keyword in ("search", "domain"):
            searches = words
        elif keyword == "options":
            options += words
    return nameservers, searches, options
