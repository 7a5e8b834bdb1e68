"""NetworkConfig's section `flannel`, and Flannel's own net-conf.json in its terms.

Keys of net-conf.json are read in any case, as Flannel reads them (Documentation/configuration.md).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec.structs import replace

from podlane.errors import ConfigError
from podlane.model.addresses import Family
from podlane.model.sections import Section

SUBNET_FILE: Final = "/run/flannel/subnet.env"
KINDS: Final = ("vxlan", "host-gw", "udp")
"""Backends that Flannel and podlane both have, and that flannelCompat goes with."""

_DEFAULT_UDP_PORT: Final = 8285
_DEFAULT_PORT: Final = 8472  # what Linux takes where Flannel says nothing
_OVERHEAD_BYTES: Final = 50  # what Flannel takes off, in either family


class Flannel(Section, frozen=True):
    """Of backend.flannelCompat. netConf: path of a net-conf.json, which decides on networks and backend.
    subnetFile: written for who reads it; a relative path begins at the agent's run directory; "" for none.
    ipMasq: what it says of FLANNEL_IPMASQ."""

    net_conf: str = ""
    subnet_file: str = SUBNET_FILE
    ip_masq: bool = True


class _Backend(msgspec.Struct):
    type: str = "udp"
    vni: int = 1
    port: int = 0
    mtu: int = 0
    gbp: bool = False
    directrouting: bool = False


class _NetConf(msgspec.Struct):
    network: str = ""
    ipv6network: str = ""
    enableipv4: bool = True
    enableipv6: bool = False
    subnetlen: int = 24
    ipv6subnetlen: int = 64
    backend: _Backend = msgspec.field(default_factory=_Backend)


def with_net_conf(config: Any, text: str, where: str) -> Any:
    """A NetworkConfig with what a net-conf.json says; it is not validated. Raises ConfigError."""
    try:
        said = msgspec.convert(_lower(msgspec.json.decode(text)), _NetConf)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if said.backend.type not in KINDS:
        raise ConfigError(f"{where}: Backend.Type: {said.backend.type} is none of {', '.join(KINDS)}")
    enabled = [(Family.IPV4, said.enableipv4, said.network), (Family.IPV6, said.enableipv6, said.ipv6network)]
    families = [family for family, on, _ in enabled if on]
    for family, on, network in enabled:
        if on and not network:
            key = "Network" if family is Family.IPV4 else "IPv6Network"
            raise ConfigError(f"{where}: {key}: there is none, and {family} is enabled")
    backend = replace(
        config.backend,
        type=type(config.backend.type)(said.backend.type),
        vni=said.backend.vni,
        port=(said.backend.type == "vxlan" and said.backend.port) or _DEFAULT_PORT,
        mtu_bytes=max(0, said.backend.mtu - _OVERHEAD_BYTES),
        direct_routing=said.backend.directrouting,
        gbp=said.backend.gbp,
    )
    udp = replace(config.udp, port=(said.backend.type == "udp" and said.backend.port) or _DEFAULT_UDP_PORT)
    return replace(
        config,
        udp=udp,
        ip_families=families,
        pod_cidrs=[network for _, on, network in enabled if on],
        node_cidr_mask_sizes=[said.subnetlen, said.ipv6subnetlen],
        backend=backend,
    )


def _lower(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key).lower(): _lower(each) for key, each in value.items()}
    return value
