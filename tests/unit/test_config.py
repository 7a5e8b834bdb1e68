from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from podlane.errors import ConfigError
from podlane.model import stores
from podlane.model.addresses import Family
from podlane.model.config import DEFAULT, parse, with_settings


def test_defaults_are_those_of_the_contract() -> None:
    assert {f: str(p) for f, p in DEFAULT.pods.items()} == {
        "IPv4": "10.244.0.0/16",
        "IPv6": "fd00:10:244::/56",
    }
    assert {f: str(p) for f, p in DEFAULT.cluster_services.items()} == {
        "IPv4": "10.96.0.0/16",
        "IPv6": "fd00:10:96::/112",
    }
    assert next(iter(DEFAULT.pods)) is Family.IPV4


def test_the_documentation_shows_every_key_and_its_default() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "lab.md").read_text()
    shown = page[page.index("    apiVersion: podlane.dev/v1alpha1") :].partition("\n\n")[0]
    document = yaml.safe_load(textwrap.dedent(shown))
    assert document | {"metadata": {}} == msgspec.to_builtins(DEFAULT)


def test_one_way_of_choosing_the_underlay_is_enough() -> None:
    with pytest.raises(ConfigError, match=r"underlay\.cidrs: underlay\.interfaces chooses already"):
        with_settings(DEFAULT, ["underlay.interfaces=eth1", "underlay.cidrs=10.0.0.0/8"])


def test_a_document_and_settings_say_the_same() -> None:
    document = {
        "apiVersion": "podlane.dev/v1alpha1",
        "kind": "NetworkConfig",
        "ipFamilies": ["IPv6", "IPv4"],
        "fabric": {"racks": 2, "mtu": 9000},
        "backend": {"vni": 7},
    }
    settings = ["ipFamilies=IPv6,IPv4", "fabric.racks=2", "fabric.mtu=9000", "backend.vni=7"]
    assert parse(document) == with_settings(DEFAULT, settings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("backend.foo=1", "unknown key 'foo'"),
        ("nothing.here=1", "no section 'nothing'"),
        ("backend=vxlan", "unknown key 'backend'"),
        ("backend.type", "write KEY=VALUE"),
        ("backend.type=carrier-pigeon", "backend.type: 'carrier-pigeon' is none of vxlan, host-gw"),
        ("ipFamilies=IPv4,IPv5", "ipFamilies[1]: 'IPv5' is none of IPv4, IPv6"),
        ("backend.type=srv6", "backend.type: srv6 is not available"),
        ("nonMasqueradeCIDRs=192.0.2.1/24", "nonMasqueradeCIDRs: '192.0.2.1/24' is not a network prefix"),
        ("underlay.interfaces=eth/0", "underlay.interfaces: 'eth/0' is no name of a link"),
        ("underlay.interfaceRegex=(", "underlay.interfaceRegex: '(' is no regular expression"),
        ("underlay.canReach=10.0.0.1,10.0.0.2", "underlay.canReach: more than one address of a family"),
        ("underlay.canReach=router", "underlay.canReach: 'router' is not an IP address"),
        ("underlay.cidrs=10.0.0.1/8", "underlay.cidrs: '10.0.0.1/8' is not a network prefix"),
        ("link.hairpin=promiscuous", "link.hairpin: promiscuous is not available"),
        ("link.bridge=plx", "link.bridge: 'plx'"),
        ("services.nodePortAddresses=primary,10.0.0.0/8", "services.nodePortAddresses: write primary alone"),
        ("services.nodePortAddresses=", "services.nodePortAddresses: write primary alone"),
        ("services.nodePortAddresses=10.0.0.1/8", "services.nodePortAddresses: '10.0.0.1/8'"),
        ("services.mode=ipvs", "services.mode: 'ipvs' is none of nftables, socket"),
        ("backend.vni=0", "backend.vni"),
        ("backend.vni=16777216", "backend.vni"),
        ("backend.mtuBytes=1279", "backend.mtuBytes: 1279 is less than the 1280 that IPv6 needs"),
        ("backend.mtuBytes=70000", "backend.mtuBytes: 70000 is not between 0 and 65535"),
        ("backend.port=65536", "backend.port: 65536 is not between 1 and 65535"),
        ("backend.flannelCompat=yes", "backend.flannelCompat"),
        ("wireguard.presharedKey=c2hvcnQ=", "wireguard.presharedKey: not 32 bytes in base64"),
        ("backend.port=65536", "backend.port"),
        ("fabric.racks=0", "fabric.racks"),
        ("fabric.racks=two", "fabric.racks: expected 'int'"),
        ("fabric.mtu=1279", "fabric.mtu"),
        ("store=postgres://db", "store: 'postgres://db' is no store; write sqlite, etcd://local"),
        ("store=etcd://", "store: 'etcd://' is no store"),
        ("store=etcd://local?members=2", "store: members=2: 1, 3 or 5"),
        ("store=etcd://local/prefix", "store: etcd://local takes nothing but"),
        ("store=etcd://a:2379,b:70000", "store: endpoint 'b:70000'"),
        ("store=etcd://me:secret@a", "store: no user and password are taken"),
        ("store=etcd://a?ca=/ca.crt", "store: unknown option 'ca'"),
        ("store=etcds://a?ca=ca.crt", "store: ca=ca.crt: write the file's whole path"),
        ("store=etcds://a?cert=/c.crt", "store: cert and key go together"),
        ("store=etcd://a/b c", "store: prefix '/b c'"),
        ("ipFamilies=", "ipFamilies"),
        ("ipFamilies=IPv4,IPv4", "each once"),
        ("ipFamilies=IPv5", "IPv5"),
        ("podCIDRs=10.244.0.0/16", "0 prefixes of IPv6"),
        ("podCIDRs=10.244.0.1/16,fd00:10:244::/56", "host bits set"),
        ("podCIDRs=10.96.0.0/12,fd00:10:244::/56", "overlaps"),
        (
            "nodeCIDRs=10.244.3.0/24,fd00:172:30::/64",
            "nodeCIDRs: 10.244.3.0/24 overlaps 10.244.0.0/16 of podCIDRs",
        ),
        ("nodeCidrMaskSizes=8,64", "nodeCidrMaskSizes"),
        ("serviceCIDRs=10.96.0.0/31,fd00:10:96::/112", "serviceCIDRs"),
        ("services.nodePortRange=40000-30000", "nodePortRange"),
        ("services.masqueradeMark=0x4001", "one bit"),
    ],
)
def test_a_bad_setting_is_refused_by_path(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        with_settings(DEFAULT, [setting])
    assert message in str(refused.value)


def test_mode_socket_keeps_sources_and_cannot_be_asked_to_masquerade_all() -> None:
    with pytest.raises(
        ConfigError, match=r"services\.masqueradeAll: sources are kept in services\.mode socket"
    ):
        with_settings(DEFAULT, ["services.mode=socket", "services.masqueradeAll=true"])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected a mapping"),
        ({"kind": "Service"}, "kind is 'Service'"),
        ({"apiVersion": "v1"}, "apiVersion is 'v1'"),
        ({"backend": {"colour": "red"}}, "colour"),
        ({"fabric": {"racks": "2"}}, ": fabric.racks: expected"),
    ],
)
def test_a_bad_document_is_refused_with_the_files_name(document: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(document, "network.yaml")
    assert str(refused.value).startswith("network.yaml")
    assert message in str(refused.value)


def test_node_ports_of_localhost_are_of_ipv4_only() -> None:
    with pytest.raises(ConfigError, match=r"services\.localhostNodePorts: only 127\.0\.0\.1"):
        with_settings(DEFAULT, ["ipFamilies=IPv6", "services.localhostNodePorts=true"])
    assert with_settings(DEFAULT, ["services.localhostNodePorts=true"]).services.localhost_node_ports


def test_where_objects_are_kept() -> None:
    found = stores.parse("etcds://[fd00::1]:1,b/p/q/?ca=/ca.crt&cert=/c.crt&key=/c.key")
    assert found.endpoints == (("fd00::1", 1), ("b", stores.CLIENT_PORT))
    assert (found.prefix, found.tls, found.ca, found.cert, found.key) == (
        "/p/q",
        True,
        "/ca.crt",
        "/c.crt",
        "/c.key",
    )
    assert found.shown == "[fd00::1]:1, b:2379"
    assert stores.parse("etcd://local?members=5").members == 5
    assert stores.parse(DEFAULT.store).kind is stores.StoreKind.SQLITE


def test_what_has_parts_is_set_as_json() -> None:
    settings = ['bgp.peers=[{"address": "172.30.1.1", "asNumber": 64511}]', 'bgp.routeReflectors={"a": "b"}']
    found = with_settings(DEFAULT, settings).bgp
    assert (found.peers[0].as_number, found.route_reflectors) == (64511, {"a": "b"})
    with pytest.raises(ConfigError, match=r"--set bgp\.peers: \[\{: no JSON"):
        with_settings(DEFAULT, ["bgp.peers=[{"])


@pytest.mark.parametrize("sizes", [[], [24, 64, 80]])
def test_a_mask_size_is_of_a_family(sizes: list[int]) -> None:
    with pytest.raises(ConfigError, match="nodeCidrMaskSizes: one for IPv4 and one for IPv6"):
        parse({"nodeCidrMaskSizes": sizes})
