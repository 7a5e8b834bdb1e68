"""Link mode `bridge`: pods as ports of the node's bridge, with agents, services and real packets."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from podlane.cni import client as cni
from podlane.compile.bridge import bridge_mac
from podlane.compile.tables import Table
from podlane.errors import CniError
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.agent_nodes import CNI_CONFIG, FAMILIES, Echo, TestNode, ask, two_nodes, wait_until
from tests.netns.test_agent import (
    SERVICE_IP,
    actual,
    assert_reaches,
    put_service,
    running,
    services_applied,
)

BRIDGED = {"link": {"mode": "bridge"}}
GATEWAY = {"IPv4": "10.244.1.1", "IPv6": "fd00:10:244:1::1"}


def namespace_of(node: TestNode, pod: str) -> list[str]:
    """Addresses of a pod's interface, with their prefix lengths."""
    with Rtnl(node.pods[pod]) as rt:
        return [str(a.address) for a in rt.addresses("eth0") if not a.address.is_link_local]


def serve(api: Any, node: TestNode, addresses: dict[str, str], where: str) -> None:
    """One service with one endpoint a family; returns when `node` has it."""
    put_service(api, {family: [address] for family, address in addresses.items()}, where)

    def applied() -> bool:
        listed = json.dumps(json.loads(node.get("/tables")[1])["tables"]["backends"])
        return all(a in listed for a in addresses.values()) and services_applied(node)

    wait_until(applied, "the endpoint is programmed")


@pytest.mark.parametrize("families", FAMILIES)
def test_pods_and_nodes_reach_each_other_without_nat(tmp_path: Path, families: str) -> None:
    with running(tmp_path, families, BRIDGED) as (_, one, two):
        near, mate, far = one.add_pod("near"), one.add_pod("mate"), two.add_pod("far")
        for at, family in enumerate(FAMILIES[families]):
            assert_reaches(one.pods["near"], two.pods["far"], far[family], near[family])
            assert_reaches(two.pods["far"], one.pods["near"], near[family], far[family])
            assert_reaches(one.pods["near"], one.pods["mate"], mate[family], near[family])
            assert_reaches(one.pods["near"], one.fd, one.addresses[at], near[family])
            assert_reaches(one.pods["near"], one.fd, GATEWAY[family], near[family])
            assert_reaches(one.fd, one.pods["near"], near[family], one.addresses[at])
            assert_reaches(one.pods["near"], two.fd, two.addresses[at], near[family])
            assert_reaches(one.fd, two.pods["far"], far[family], one.addresses[at])


@pytest.mark.parametrize("name", ["cni0", "cbr0"])
def test_the_bridge_is_named_addressed_and_sized_as_the_configuration_says(tmp_path: Path, name: str) -> None:
    extra = {"link": {"mode": "bridge", "bridge": name}, "fabric": {"mtu": 1500}}
    with running(tmp_path, "both", extra) as (_, one, _two):
        one.add_pod("near")
        with Rtnl(one.fd) as rt:
            bridge = rt.link(name)
            held = {str(a.address) for a in rt.addresses(name)}
            ports = [link for link in rt.links() if link.master == bridge.index]
            tunnel = rt.link("plvxlan")
        assert (bridge.kind, bridge.mac, bridge.up) == ("bridge", bridge_mac("node-1"), True)
        assert held == {"10.244.1.1/24", "fd00:10:244:1::1/64"}
        assert [(p.kind, p.hairpin) for p in ports] == [("veth", True)]
        assert {bridge.mtu_bytes, ports[0].mtu_bytes, tunnel.mtu_bytes} == {1450}
        assert namespace_of(one, "near") == ["10.244.1.2/24", "fd00:10:244:1::2/64"]
        assert netns.read_sysctl(one.fd, "net/bridge/bridge-nf-call-iptables") == "1"
        assert netns.read_sysctl(one.fd, "net/bridge/bridge-nf-call-ip6tables") == "1"


def test_the_bridge_keeps_its_mac_while_ports_come_and_go(tmp_path: Path) -> None:
    with running(tmp_path, "IPv4", BRIDGED) as (_, one, _two):
        macs = set()
        for step in ("add", "add", "delete", "delete"):
            one.add_pod(f"pod-{len(one.pods)}") if step == "add" else one.delete_pod(next(iter(one.pods)))
            with Rtnl(one.fd) as rt:
                macs.add(rt.link("cni0").mac)
        assert macs == {bridge_mac("node-1")}
        assert actual(one)[Table.PORTS] == {}
        assert [key for key in actual(one)[Table.NEIGHBOURS] if key[0] == "cni0"] == []


@pytest.mark.parametrize("families", ["both", "IPv6"])
def test_services_on_the_same_bridge_and_across_nodes_and_to_oneself(tmp_path: Path, families: str) -> None:
    with running(tmp_path, families, BRIDGED) as (api, one, two):
        client, server, far = one.add_pod("client"), one.add_pod("server"), two.add_pod("far")
        for where, fd, node in ((server, one.pods["server"], "node-1"), (far, two.pods["far"], "node-2")):
            serve(api, one, where, node)
            for family in FAMILIES[families]:
                with Echo(fd, where[family]) as echo:
                    assert ask(one.pods["client"], SERVICE_IP[family], 80, echo) == client[family]
        serve(api, one, server, "node-1")
        for family in FAMILIES[families]:
            with Echo(one.pods["server"], server[family]) as echo:
                assert ask(one.pods["server"], SERVICE_IP[family], 80, echo) == GATEWAY[family]


def test_a_service_needs_the_frames_of_the_bridge_shown_to_nftables(tmp_path: Path) -> None:
    """The test above proves something: without the setting the answer comes under the pod's own address."""
    with running(tmp_path, "IPv4", BRIDGED) as (api, one, _two):
        one.add_pod("client")
        server = one.add_pod("server")
        serve(api, one, server, "node-1")
        netns.write_sysctl(one.fd, "net/bridge/bridge-nf-call-iptables", 0)
        with (
            Echo(one.pods["server"], server["IPv4"]) as echo,
            netns.socket_in(one.pods["client"], socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            client.settimeout(0.5)
            client.connect((SERVICE_IP["IPv4"], 80))
            client.send(b"?")
            echo.answer()
            with pytest.raises((TimeoutError, ConnectionError)):
                client.recv(100)


def test_kill_9_and_start_again_finds_nothing_to_do(tmp_path: Path) -> None:
    with running(tmp_path, "both", BRIDGED) as (_, one, two):
        near, far = one.add_pod("near"), two.add_pod("far")
        before = actual(one)
        one.stop(signal.SIGKILL)
        one.start()
        assert one.wait_ready()["operations"] == 0
        assert actual(one) == before
        assert_reaches(one.pods["near"], two.pods["far"], far["IPv6"], near["IPv6"])


@pytest.mark.parametrize("what", ["bridge", "bridge down", "address", "port", "neighbour"])
def test_what_someone_removes_by_hand_is_repaired(tmp_path: Path, what: str) -> None:
    with running(tmp_path, "both", BRIDGED) as (_, one, two):
        near, far = one.add_pod("near"), two.add_pod("far")
        before = actual(one)
        with Rtnl(one.fd) as rt:
            port = next(iter(before[Table.PORTS]))
            match what:
                case "bridge":
                    rt.delete_link("cni0")
                case "bridge down":
                    rt.set_down("cni0")
                case "address":
                    rt.delete_address("cni0", ip_interface("10.244.1.1/24"))
                case "port":
                    rt.set_master(port, 0)
                case "neighbour":
                    key = next(key for key in before[Table.NEIGHBOURS] if key[0] == "cni0")
                    rt.delete_neighbour(*key)
        wait_until(lambda: actual(one) == before, f"{what} is back")
        with Rtnl(one.fd) as rt:
            rt.settle_port(port)  # a bridge uses a new port some time after it has it
        assert_reaches(two.pods["far"], one.pods["near"], near["IPv4"], far["IPv4"])
        assert_reaches(one.pods["near"], two.pods["far"], far["IPv6"], near["IPv6"])


def test_a_bridge_of_another_plugin_is_taken_over_with_its_ports(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["IPv4"], BRIDGED) as (_, one, _two):
        with Rtnl(one.fd) as rt:
            rt.create_bridge("cni0", up=True)
            rt.add_address("cni0", ip_interface("10.22.0.1/16"))
            rt.create_veth("veth0", "veth1", master="cni0", up=True)
        one.start()
        one.wait_ready()
        with Rtnl(one.fd) as rt:
            assert [str(a.address) for a in rt.addresses("cni0") if a.address.version == 4] == [
                "10.244.1.1/24"
            ]
            assert rt.link("veth0").master == rt.link("cni0").index


def test_a_link_of_the_bridges_name_that_is_no_bridge_is_told_and_left(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["IPv4"], BRIDGED) as (_, one, _two):
        with Rtnl(one.fd) as rt:
            rt.create_veth("cni0", "other")
        one.start()
        failures = wait_until(lambda: one.status().get("failures"), "the failure is told")
        assert "no bridge: remove it, or set link.bridge" in json.dumps(failures)
        with Rtnl(one.fd) as rt:
            assert rt.link("cni0").kind == "veth"
            rt.delete_link("cni0")
        wait_until(lambda: not one.status().get("failures"), "the bridge is made once the name is free")


def test_check_says_what_is_missing(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["IPv4"], BRIDGED) as (_, one, _two):
        one.start()
        one.wait_ready()
        one.add_pod("near")
        result = one.cni("ADD", "near", one.pods["near"])
        assert [(ip["address"], ip["gateway"]) for ip in result["ips"]] == [("10.244.1.2/24", "10.244.1.1")]

        def check() -> None:
            asyncio.run(
                cni.call(
                    one.dir / "cni.sock",
                    "CHECK",
                    netns_fd=one.pods["near"],
                    container_id="near",
                    config=CNI_CONFIG | {"prevResult": result},
                )
            )

        check()
        with Rtnl(one.pods["near"]) as rt:
            rt.delete_route(ip_network("0.0.0.0/0"), device="eth0", protocol=0)
        with pytest.raises(CniError, match=r"no default route via 10\.244\.1\.1"):
            check()
