"""NetworkConfig (podlane.dev/v1alpha1): what a cluster's network shall be.

Pure: `parse` takes decoded YAML or JSON, `with_settings` the `--set KEY=VALUE` pairs of the command
line. Both refuse unknown keys and contradictory values with the key's path and the reason.
"""

from __future__ import annotations

import enum
import re
from itertools import chain
from typing import Any

import msgspec
from msgspec import field

from podlane.errors import ConfigError
from podlane.model import backends, bgp, stores
from podlane.model.addresses import Family, Prefix, family_of, prefix
from podlane.model.backends import Backend, BackendType, Udp, Wireguard
from podlane.model.bgp import Action, Advertised, Bgp
from podlane.model.flannel import Flannel
from podlane.model.sections import Section
from podlane.model.underlay import UnderlayChoice

API_VERSION = "podlane.dev/v1alpha1"


PRIMARY = "primary"


class LinkMode(enum.StrEnum):
    ROUTED = "routed"
    BRIDGE = "bridge"


class ServiceMode(enum.StrEnum):
    NFTABLES = "nftables"
    SOCKET = "socket"


class Balancing(enum.StrEnum):
    """How a new flow comes to one of a service's endpoints."""

    RANDOM = "random"
    SOURCE_HASH = "source-hash"
    MAGLEV = "maglev"
    LEAST_CONNECTIONS = "least-connections"


class HashBy(enum.StrEnum):
    """What of the client the two hashes take."""

    ADDRESS = "address"
    ADDRESS_PORT = "address-port"


HASH_TABLE_SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521)
"""Slots a table of hashes may have: primes, so that every step below them visits all slots."""


class Hairpin(enum.StrEnum):
    """How a pod reaches itself through a service when it is the port of a bridge."""

    VETH = "veth"  # ports send frames back where they came from
    PROMISCUOUS = "promiscuous"  # the bridge takes every frame in and sends it out again: not any more


class Link(Section, frozen=True):
    """mode: how a pod's link meets the node. bridge, hairpin: of mode bridge only."""

    mode: LinkMode = LinkMode.ROUTED
    bridge: str = "cni0"
    hairpin: Hairpin = Hairpin.VETH


class Services(Section, frozen=True):
    """nodePortRange: "first-last". masqueradeMark: one bit of the packet mark.

    nodePortAddresses: which of a node's addresses answer node ports: `primary` (those the Node object
    says), or prefixes. localhostNodePorts: 127.0.0.1 too, for the node itself. masqueradeAll: what
    goes to a ClusterIP is masqueraded whoever sends it.

    balancing, hashBy: for services that do not say (docs/services.md). maglevSlots: one of
    HASH_TABLE_SIZES. rebalanceSeconds: how often least-connections counts. resetGoneEndpoints: TCP
    connections to a pod that is no more end at once. flowAccounting: packets and bytes are counted.
    """

    mode: ServiceMode = ServiceMode.NFTABLES
    node_port_range: str = "30000-32767"
    node_port_addresses: list[str] = field(default_factory=lambda: [PRIMARY])
    localhost_node_ports: bool = False
    masquerade_mark: int = 0x4000
    masquerade_all: bool = False
    balancing: Balancing = Balancing.RANDOM
    hash_by: HashBy = HashBy.ADDRESS
    maglev_slots: int = 4093
    rebalance_seconds: int = 5
    reset_gone_endpoints: bool = True
    flow_accounting: bool = True

    @property
    def node_port_prefixes(self) -> tuple[Prefix, ...] | None:
        """None for the Node object's own addresses."""
        if self.node_port_addresses == [PRIMARY]:
            return None
        return tuple(map(prefix, self.node_port_addresses))


class Policy(Section, frozen=True):
    """cutEstablished: connections that policy denies by now are cut. Otherwise it decides on new ones."""

    cut_established: bool = False


class Controller(Section, frozen=True):
    """allocateNodeCIDRs: `podlane controller` gives Nodes their spec.podCIDRs, parts of podCIDRs, for
    clusters whose controller-manager does not (--allocate-node-cidrs=false). A lab always does."""

    allocate_node_cidrs: bool = field(default=False, name="allocateNodeCIDRs")


class Others(Section, frozen=True):
    """Who else sets up this node's network. takeOver: pods, addresses and host ports of the reference bridge
    plugin, or of Flannel, go over to podlane as they run, and their conflist is set aside. acceptForward:
    what pods send and get is accepted in the FORWARD chain of iptables, where a firewall drops what is
    forwarded.
    """

    take_over: bool = False
    accept_forward: bool = False


class Fabric(Section, frozen=True):
    """The lab's underlay. racks: subnets of nodes, with a router between them."""

    racks: int = 1
    mtu: int = 1500


class NetworkConfig(Section, frozen=True):
    api_version: str = API_VERSION
    kind: str = "NetworkConfig"
    metadata: dict[str, Any] = field(default_factory=dict)
    ip_families: list[Family] = field(default_factory=lambda: [Family.IPV4, Family.IPV6])
    pod_cidrs: list[str] = field(
        default_factory=lambda: ["10.244.0.0/16", "fd00:10:244::/56"], name="podCIDRs"
    )
    service_cidrs: list[str] = field(
        default_factory=lambda: ["10.96.0.0/16", "fd00:10:96::/112"], name="serviceCIDRs"
    )
    node_cidrs: list[str] = field(
        default_factory=lambda: ["172.30.0.0/16", "fd00:172:30::/64"], name="nodeCIDRs"
    )
    # Beyond the cluster, what pods reach under their own address all the same (0.0.0.0/0: everything).
    non_masquerade_cidrs: list[str] = field(default_factory=list, name="nonMasqueradeCIDRs")
    node_cidr_mask_sizes: list[int] = field(default_factory=lambda: [24, 64])
    cluster_domain: str = "cluster.local"
    underlay: UnderlayChoice = UnderlayChoice()
    backend: Backend = Backend()
    bgp: Bgp = Bgp()
    wireguard: Wireguard = Wireguard()
    udp: Udp = Udp()
    flannel: Flannel = Flannel()
    link: Link = Link()
    services: Services = Services()
    policy: Policy = Policy()
    controller: Controller = Controller()
    others: Others = Others()
    fabric: Fabric = Fabric()
    store: str = "sqlite"
    """Of a lab: where its API keeps objects (`stores`)."""

    def _of(self, texts: list[str]) -> dict[Family, Prefix]:
        """The prefix of each enabled family, primary family first."""
        by_family = {family_of(p): p for p in map(prefix, texts)}
        return {f: by_family[f] for f in self.ip_families}

    @property
    def pods(self) -> dict[Family, Prefix]:
        return self._of(self.pod_cidrs)

    @property
    def cluster_services(self) -> dict[Family, Prefix]:
        return self._of(self.service_cidrs)

    @property
    def nodes(self) -> dict[Family, Prefix]:
        return self._of(self.node_cidrs)

    @property
    def non_masquerade(self) -> list[Prefix]:
        """Of the enabled families."""
        return [p for p in map(prefix, self.non_masquerade_cidrs) if family_of(p) in self.ip_families]

    @property
    def speaks_bgp(self) -> bool:
        """Whether nodes have a BGP speaker: for pods' prefixes, or only to tell routers of services."""
        return self.backend.type is BackendType.BGP or bool(self.bgp.peers)

    @property
    def node_mask_bits(self) -> dict[Family, int]:
        """Prefix length of one node's pod CIDR."""
        four, six = [*self.node_cidr_mask_sizes, 64][:2]
        sizes = {Family.IPV4: four, Family.IPV6: six}
        return {f: sizes[f] for f in self.ip_families}


DEFAULT = NetworkConfig()


def parse(document: Any, where: str = "NetworkConfig") -> NetworkConfig:
    """A decoded document. Raises ConfigError naming the key's path."""
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: expected a mapping, found {type(document).__name__}")
    for key, wanted in (("apiVersion", API_VERSION), ("kind", "NetworkConfig")):
        if key in document and document[key] != wanted:
            raise ConfigError(f"{where}: {key} is {document[key]!r}, expected {wanted!r}")
    return validate(_convert(document, where), where)


def with_settings(config: NetworkConfig, settings: list[str]) -> NetworkConfig:
    """`KEY=VALUE` pairs applied over config: KEY is a dotted path, VALUE a scalar, a,b,c or JSON."""
    document = msgspec.to_builtins(config)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {setting!r}: write KEY=VALUE, for example backend.type=vxlan")
        *parents, last = path.split(".")
        section = document
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                raise ConfigError(f"--set {path}: there is no section {parent!r}")
            section = section[parent]
        if last not in section or (isinstance(section[last], dict) and not text.startswith("{")):
            known = ", ".join(sorted(k for k in section if k not in ("apiVersion", "kind", "metadata")))
            raise ConfigError(f"--set {path}: unknown key {last!r}; known here: {known}")
        section[last] = _value(text, section[last], path)
    return validate(_convert(document, "--set"), "--set")


def _value(text: str, like: Any, path: str) -> Any:
    if isinstance(like, dict | list) and text[:1] in ("{", "["):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ConfigError(f"--set {path}: {text}: no JSON: {error}") from None
    if isinstance(like, list):
        items = [t.strip() for t in text.split(",") if t.strip()]
        return [int(i) for i in items] if like and isinstance(like[0], int) else items
    if isinstance(like, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(like, int) and re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", text):
        return int(text, 0)
    return text


def _convert(document: Any, where: str) -> NetworkConfig:
    try:
        return msgspec.convert(document, NetworkConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explained(str(error))}") from None


_CHOICES: dict[str, type[enum.StrEnum]] = {
    "backend.type": BackendType,
    "link.mode": LinkMode,
    "link.hairpin": Hairpin,
    "services.mode": ServiceMode,
    "bgp.advertise": Advertised,
    "bgp.peers": Action,
    "services.balancing": Balancing,
    "services.hashBy": HashBy,
    "ipFamilies": Family,
}


def _explained(text: str) -> str:
    """msgspec's message, with the key before what is wrong with it, and what would work."""
    what, at, path = text.replace("`", "'").partition(" - at '$.")
    key = path.rstrip("'")
    choices = _CHOICES.get(re.sub(r"\[.*", "", key))
    if choices is not None and what.startswith("Invalid enum value"):
        return f"{key}: {what.rpartition(' ')[2]} is none of {', '.join(choices)}"
    return f"{key}: {what[:1].lower()}{what[1:]}" if at else what


def validate(config: NetworkConfig, where: str) -> NetworkConfig:
    """Refuses what contradicts itself. Returns config."""

    def refuse(key: str, why: str) -> ConfigError:
        return ConfigError(f"{where}: {key}: {why}")

    families = config.ip_families
    if not families or len(set(families)) != len(families):
        raise refuse("ipFamilies", "name IPv4, IPv6 or both, each once")
    seen: list[tuple[str, Prefix]] = []
    for key, texts in (
        ("podCIDRs", config.pod_cidrs),
        ("serviceCIDRs", config.service_cidrs),
        ("nodeCIDRs", config.node_cidrs),
    ):
        try:
            prefixes = [prefix(text) for text in texts]
        except ConfigError as error:
            raise refuse(key, str(error)) from None
        for family in families:
            found = [p for p in prefixes if family_of(p) is family]
            if len(found) != 1:
                raise refuse(key, f"{len(found)} prefixes of {family}, expected one since ipFamilies has it")
        for p in prefixes:
            if family_of(p) not in families:
                continue
            for other_key, other in seen:
                if p.version == other.version and p.overlaps(other):
                    raise refuse(key, f"{p} overlaps {other} of {other_key}")
            seen.append((key, p))
    if config.link.hairpin is not Hairpin.VETH:
        why = "since Linux 6.9 a bridge forgets the connections of what it takes in promiscuously"
        raise refuse("link.hairpin", f"{config.link.hairpin} is not available: {why}; use veth")
    if config.services.localhost_node_ports and Family.IPV4 not in families:
        why = "only 127.0.0.1 can have node ports: the kernel routes no answer to ::1; set it to false"
        raise refuse("services.localhostNodePorts", why)
    if config.services.node_port_addresses != [PRIMARY]:
        if PRIMARY in config.services.node_port_addresses or not config.services.node_port_addresses:
            why = f"write {PRIMARY} alone, or prefixes as 172.30.0.0/16"
            raise refuse("services.nodePortAddresses", why)
        for text in config.services.node_port_addresses:
            try:
                prefix(text)
            except ConfigError as error:
                raise refuse("services.nodePortAddresses", str(error)) from None
    for text in config.non_masquerade_cidrs:
        try:
            prefix(text)
        except ConfigError as error:
            raise refuse("nonMasqueradeCIDRs", str(error)) from None
    if not 1 <= len(config.node_cidr_mask_sizes) <= 2:
        raise refuse("nodeCidrMaskSizes", "one for IPv4 and one for IPv6 (64 when it is left out), as 24,64")
    for family, bits in config.node_mask_bits.items():
        pods = config.pods[family]
        if not pods.prefixlen <= bits <= family.bits - 2:
            raise refuse(
                "nodeCidrMaskSizes", f"/{bits} for {family} must lie between {pods} and /{family.bits - 2}"
            )
    for family, services in config.cluster_services.items():
        if services.prefixlen > family.bits - 4 or (family is Family.IPV6 and services.prefixlen < 64):
            raise refuse("serviceCIDRs", f"{services}: use at least 16 addresses, and /64 or longer for IPv6")
    for family in families:
        least = backends.LEAST_MTU_BYTES[family]
        if 0 < config.backend.mtu_bytes < least:
            mtu_bytes = config.backend.mtu_bytes
            raise refuse("backend.mtuBytes", f"{mtu_bytes} is less than the {least} that {family} needs")
    if config.backend.flannel_compat and config.backend.type is BackendType.UDP and families != [Family.IPV4]:
        raise refuse("backend.flannelCompat", "Flannel's udp carries IPv4 alone: ipFamilies [IPv4], or vxlan")
    for key, why in chain(
        backends.problems(config.backend, config.wireguard, config.udp),
        bgp.problems(config.bgp),
        config.underlay.problems(),
    ):
        raise refuse(key, why)
    if (
        not re.fullmatch(r"(?!pl|\.{1,2}$)[^\s/:]{1,15}", config.link.bridge)
        or not config.link.bridge.isascii()
    ):
        raise refuse(
            "link.bridge", f"{config.link.bridge!r}: 1 to 15 characters, as cni0; names in pl… are taken"
        )
    if config.services.mode is ServiceMode.SOCKET and config.services.masquerade_all:
        why = "sources are kept in services.mode socket; use nftables, or leave it out"
        raise refuse("services.masqueradeAll", why)
    ranges = re.fullmatch(r"(\d+)-(\d+)", config.services.node_port_range)
    if not ranges or not 0 < int(ranges[1]) <= int(ranges[2]) < 1 << 16:
        raise refuse(
            "services.nodePortRange", f"{config.services.node_port_range!r}: write first-last, as 30000-32767"
        )
    if config.services.masquerade_mark.bit_count() != 1 or not 0 < config.services.masquerade_mark < 1 << 32:
        raise refuse("services.masqueradeMark", "one bit of 32")
    if config.services.maglev_slots not in HASH_TABLE_SIZES:
        sizes = ", ".join(map(str, HASH_TABLE_SIZES))
        raise refuse("services.maglevSlots", f"{config.services.maglev_slots} is none of {sizes}")
    if not 1 <= config.services.rebalance_seconds <= 3600:
        raise refuse(
            "services.rebalanceSeconds", f"{config.services.rebalance_seconds} is not between 1 and 3600"
        )
    try:
        stores.parse(config.store)
    except ConfigError as error:
        raise refuse("store", str(error)) from None
    if not 1 <= config.fabric.racks <= 200:
        raise refuse("fabric.racks", f"{config.fabric.racks} is not between 1 and 200")
    if not 1400 <= config.fabric.mtu <= 65535:
        raise refuse("fabric.mtu", f"{config.fabric.mtu} is not between 1400 and 65535")
    return config
