"""Flannel's net-conf.json in podlane's terms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from podlane.errors import ConfigError
from podlane.model.config import NetworkConfig
from podlane.watch import configuration


def read(where: Path, net_conf: Any, **backend: Any) -> NetworkConfig:
    conf, config = where / "net-conf.json", where / "config.yaml"
    conf.write_text(net_conf if isinstance(net_conf, str) else json.dumps(net_conf))
    sections = {"backend": {"flannelCompat": True, **backend}, "flannel": {"netConf": str(conf)}}
    config.write_text(yaml.safe_dump(sections))
    return configuration.read(str(config))


def test_networks_and_backend_are_taken_from_it(tmp_path: Path) -> None:
    backend = {"Type": "vxlan", "Port": 4789, "MTU": 1400, "directrouting": True}
    found = read(tmp_path, {"network": "10.99.0.0/16", "SubnetLen": 25, "Backend": backend})
    assert (found.pod_cidrs, found.ip_families, found.node_cidr_mask_sizes) == (
        ["10.99.0.0/16"],
        ["IPv4"],
        [25, 64],
    )
    taken = found.backend
    assert (taken.type, taken.vni, taken.port, taken.mtu_bytes) == ("vxlan", 1, 4789, 1350)
    assert taken.direct_routing
    both = {
        "Network": "10.99.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "fd99::/56",
        "Backend": {"Type": "host-gw"},
    }
    found = read(tmp_path, both)
    assert (found.pod_cidrs, found.backend.type) == (["10.99.0.0/16", "fd99::/56"], "host-gw")
    # Flannel's own default.
    found = read(tmp_path, {"Network": "10.99.0.0/16"})
    assert (found.backend.type, found.udp.port) == ("udp", 8285)


@pytest.mark.parametrize(
    ("net_conf", "why"),
    [
        ("{", "JSON"),
        ([], "Expected"),
        (
            {"Network": "10.99.0.0/16", "Backend": {"Type": "ipsec"}},
            "Backend.Type: ipsec is none of vxlan, host-gw",
        ),
        (
            {"Network": "10.99.0.0/16", "EnableIPv6": True, "IPv6Network": "fd99::/56"},
            "backend.flannelCompat: Flannel's udp carries IPv4 alone",
        ),
        ({"Backend": {"Type": "vxlan"}}, "Network: there is none, and IPv4 is enabled"),
        (
            {"Network": "10.99.0.1/16", "Backend": {"Type": "vxlan"}},
            "podCIDRs: '10.99.0.1/16' is not a network",
        ),
        (
            {"Network": "10.99.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1 << 24}},
            "backend.vni: 16777216 is not",
        ),
    ],
)
def test_what_it_cannot_say_is_refused_with_its_path(tmp_path: Path, net_conf: Any, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, net_conf)
    assert why in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_flannels_protocol_goes_with_its_own_backends_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backend\.flannelCompat: wireguard is not spoken as Flannel does"):
        read(tmp_path, {"Network": "10.99.0.0/16", "Backend": {"Type": "vxlan"}}, type="wireguard")
