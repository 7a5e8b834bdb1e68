"""Which way leads to a node that has another backend, or is about to."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from podlane.compile import flannel
from podlane.compile.engine import Compiler
from podlane.compile.peers import flannel_says, link_mtu_bytes
from podlane.compile.reception import active, choose
from podlane.compile.spoken import BACKEND_ANNOTATION, announcement, configured
from podlane.compile.tables import Table
from podlane.compile.view import STANDING, Change
from podlane.compile.wireguard import KEY_ANNOTATION
from podlane.model.addresses import Family
from podlane.model.backends import AVAILABLE_BACKENDS, Backend, BackendType
from podlane.model.config import DEFAULT, NetworkConfig
from podlane.model.local import Standing
from podlane.model.objects import Node, NodeAddress
from tests.unit.test_compile_ways import KEYS, UPLINK, compiled, keyed, node, reasons

DATA: dict[str, dict[str, int]] = {"vxlan": {"vni": 85, "port": 8472}, "wireguard": {"port": 51820}}


def config(kind: str, **more: Any) -> NetworkConfig:
    return NetworkConfig(backend=Backend(type=BackendType(kind), **more))


def saying(number: int, kind: str, receives: str, sends: str, rack: int = 1) -> Node:
    """receives, sends: names with spaces between."""
    data = {name: DATA.get(name, {}) for name in receives.split()}
    said = announcement(BackendType(kind), data, sends.split())
    plain = node(number, rack)
    annotations = {BACKEND_ANNOTATION: said, KEY_ANNOTATION: KEYS[number]}
    return replace(plain, metadata=replace(plain.metadata, annotations=annotations))


def ways(compiler: Compiler) -> dict[str, set[str]]:
    return {name: {way for _, way in row.ways} for name, row in compiler.tables[Table.PEER_WAYS].items()}


def test_the_first_with_a_new_backend_goes_on_by_the_old_one_and_tells_both() -> None:
    old = [saying(number, "vxlan", "vxlan", "vxlan") for number in (2, 3)]
    compiler = compiled(config("host-gw"), node(1), *old)
    assert active(compiler.view) == ["host-gw", "vxlan"]
    assert ways(compiler) == {"node-2": {"vxlan"}, "node-3": {"vxlan"}}
    assert set(compiler.tables[Table.LINKS]) == {"plvxlan"}
    assert link_mtu_bytes(compiler.view) == 1450


def test_two_with_the_new_backend_change_over_and_the_old_one_goes_with_its_last_sender() -> None:
    me = saying(1, "host-gw", "host-gw vxlan", "vxlan")
    compiler = compiled(config("host-gw"), me, saying(2, "host-gw", "host-gw vxlan", "vxlan"))
    compiler.apply([Change("Node", None, saying(3, "vxlan", "vxlan", "vxlan"))])
    assert ways(compiler) == {"node-2": {"host-gw"}, "node-3": {"vxlan"}}
    compiler.apply([Change("Node", None, saying(3, "host-gw", "host-gw vxlan", "host-gw"))])
    assert ways(compiler) == {"node-2": {"host-gw"}, "node-3": {"host-gw"}}
    assert set(compiler.tables[Table.LINKS]) == {"plvxlan"}  # node-2 says it still sends by it
    compiler.apply([Change("Node", None, saying(2, "host-gw", "host-gw vxlan", "host-gw"))])
    assert set(compiler.tables[Table.LINKS]) == {"plvxlan"}  # and so does this one
    compiler.apply([Change("Node", None, saying(1, "host-gw", "host-gw vxlan", "host-gw"))])
    assert not compiler.tables[Table.LINKS]
    assert active(compiler.view) == ["host-gw"]
    assert link_mtu_bytes(compiler.view) == 1500


def test_a_node_with_the_old_backend_does_not_take_up_the_new_one() -> None:
    me = saying(1, "vxlan", "vxlan", "vxlan")
    compiler = compiled(config("vxlan"), me, saying(2, "wireguard", "vxlan wireguard", "vxlan wireguard"))
    assert active(compiler.view) == ["vxlan"]
    assert ways(compiler) == {"node-2": {"vxlan"}}
    assert not compiler.tables[Table.TUNNELS]


@pytest.mark.parametrize("kind", ["wireguard", "bgp"])
def test_what_must_be_answered_carries_nothing_before_it_is(kind: str) -> None:
    me = saying(1, kind, f"{kind} vxlan", "vxlan")
    compiler = compiled(config(kind), me, saying(2, kind, f"{kind} vxlan", "vxlan"))
    assert ways(compiler) == {"node-2": {"vxlan"}}
    assert compiler.tables[Table.TUNNEL_PEERS] or compiler.tables[Table.BGP_PEERS]  # so that it can be
    stands = Standing(kind, "node-2")
    compiler.apply([Change(STANDING, None, stands)])
    assert ways(compiler) == {"node-2": {kind}}
    compiler.apply([Change(STANDING, stands, None)])
    assert ways(compiler) == {"node-2": {"vxlan"}}
    # Where there is nothing else it is taken as it is.
    only = compiled(config(kind), saying(1, kind, kind, kind), saying(2, kind, kind, kind))
    assert ways(only) == {"node-2": {kind}}


def test_nodes_that_know_both_agree_on_one() -> None:
    one = saying(1, "vxlan", "vxlan ipip", "vxlan")
    two = saying(2, "ipip", "ipip vxlan", "ipip")
    here, there = compiled(config("vxlan"), one, two), Compiler("node-2", config("ipip"))
    there.apply(Change("Node", None, each) for each in (one, two))
    assert choose(two, here.view)[0] == choose(one, there.view)[0] == "vxlan"


def test_a_node_that_host_gw_cannot_reach_is_sent_to_by_what_both_have() -> None:
    me = saying(1, "host-gw", "host-gw vxlan", "vxlan")
    far = saying(2, "host-gw", "host-gw vxlan", "vxlan", rack=2)
    compiler = compiled(config("host-gw"), me, far, saying(3, "vxlan", "vxlan host-gw", "vxlan"))
    assert ways(compiler) == {"node-2": {"vxlan"}, "node-3": {"vxlan"}}
    assert not compiler.refused


def test_another_vni_is_refused_by_name_and_the_others_go_on() -> None:
    far = saying(2, "vxlan", "vxlan", "vxlan")
    said = announcement(BackendType.VXLAN, {"vxlan": {"vni": 9, "port": 8472}}, ["vxlan"])
    far = replace(far, metadata=replace(far.metadata, annotations={BACKEND_ANNOTATION: said}))
    compiler = compiled(DEFAULT, node(1), far, node(3))
    assert "node node-2: its vxlan has vni 9 and port 8472, this node's vni 85 and port 8472" in reasons(
        compiler
    )
    assert ways(compiler) == {"node-3": {"vxlan"}}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"type": 7}', '{"type": "vxlan", "receives": ["vxlan"]}'])
def test_an_annotation_that_cannot_be_read_leaves_that_node_out(text: str) -> None:
    bad = replace(node(2), metadata=replace(node(2).metadata, annotations={BACKEND_ANNOTATION: text}))
    compiler = compiled(DEFAULT, node(1), bad, node(3))
    assert "node node-2: annotation podlane.dev/backend cannot be read" in reasons(compiler)
    assert ways(compiler) == {"node-3": {"vxlan"}}
    compiler.apply([Change("Node", None, node(2))])
    assert not compiler.refused


def at(number: int, address: str, since: str) -> Node:
    plain = node(number)
    status = replace(plain.status, addresses=[NodeAddress("InternalIP", address)])
    return replace(plain, status=status, metadata=replace(plain.metadata, creation_timestamp=since))


@pytest.mark.parametrize("kind", AVAILABLE_BACKENDS)
def test_a_peer_with_this_nodes_own_address_is_left_out(kind: BackendType) -> None:
    compiler = compiled(
        NetworkConfig(backend=Backend(type=kind)), keyed(1), at(2, "172.30.1.1", "2026-02-01"), keyed(3)
    )
    assert "node node-2: its address 172.30.1.1 is this node's own" in reasons(compiler)
    assert set(ways(compiler)) == {"node-3"}


def test_two_nodes_with_one_address_are_told_and_both_sent_to() -> None:
    young, old = at(2, "172.30.1.7", "2026-03-01"), at(3, "172.30.1.7", "2026-02-01")
    compiler = compiled(DEFAULT, node(1), young, old, node(4))
    assert reasons(compiler) == "node node-2: its address 172.30.1.7 is node node-3's too, which is older"
    assert set(ways(compiler)) == {"node-2", "node-3", "node-4"}
    compiler.apply([Change("Node", old, None)])
    assert not compiler.refused
    assert set(ways(compiler)) == {"node-2", "node-4"}


def test_an_uplink_too_small_for_a_family_is_told() -> None:
    small = replace(UPLINK, mtu_bytes=1300)
    compiler = compiled(DEFAULT, node(1), node(2), uplink=small)
    assert "eth0's MTU 1300 leaves 1250 bytes for pods, and IPv6 needs 1280" in reasons(compiler)
    assert not compiled(replace(DEFAULT, ip_families=[Family.IPV4]), node(1), node(2), uplink=small).refused


def test_a_backend_nobody_knows_is_refused_by_name() -> None:
    text = '{"type": "pigeon", "receives": {"pigeon": {}}, "sends": ["pigeon"]}'
    odd = replace(node(2), metadata=replace(node(2).metadata, annotations={BACKEND_ANNOTATION: text}))
    compiler = compiled(DEFAULT, node(1), odd)
    assert "node node-2: it receives by pigeon, which this node does not send by" in reasons(compiler)
    assert active(compiler.view) == ["vxlan"]
    assert configured(odd, DEFAULT) is DEFAULT


def test_flannels_udp_is_spoken_by_its_public_address() -> None:
    backend = Backend(type=BackendType.UDP, flannel_compat=True)
    config_ = replace(DEFAULT, backend=backend, ip_families=[Family.IPV4])
    said = {
        flannel.MANAGED: "true",
        flannel.TYPE: "udp",
        flannel.DATA[Family.IPV4]: "null",
        flannel.PUBLIC[Family.IPV4]: "198.51.100.2",
    }
    peer = replace(node(2), metadata=replace(node(2).metadata, annotations=said))
    compiler = compiled(config_, node(1), peer, node(3))
    (row,) = compiler.tables[Table.TUNNEL_PEERS].values()
    assert (str(row.remote), row.port, list(map(str, row.pods))) == ("198.51.100.2", 8285, ["10.244.2.0/24"])
    assert f'node node-3: annotation {flannel.MANAGED} is not "true"' in reasons(compiler)
    told = flannel_says(compiler.view)
    assert told is not None
    assert told[0] == {**said, flannel.PUBLIC[Family.IPV4]: "172.30.1.1"}
