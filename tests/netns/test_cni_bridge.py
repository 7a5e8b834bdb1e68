"""What a bridge's port and the bridge are told by a configuration, with real packets."""

from __future__ import annotations

import asyncio
import subprocess
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from podlane.errors import CniError
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns import packets
from tests.netns.cni_node import CniNode
from tests.netns.test_cni import refusal
from tests.netns.test_cni_types import left, network

LIST = ["nft", "list", "table", "bridge", "podlane-cni"]


async def passes(exchange, *where) -> bool:
    try:
        await asyncio.to_thread(exchange, *where)
    except (TimeoutError, OSError):
        return False
    return True


@pytest.fixture
def impatient(monkeypatch):
    """What is meant to be lost is waited for shortly."""
    monkeypatch.setattr(packets, "LOST_S", 0.5)


def test_isolated_ports_reach_the_node_and_not_each_other(namespaces, tmp_path, impatient):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            a, b = namespaces(), namespaces()
            config = network(tmp_path, portIsolation=True)
            for name, pod in (("a", a), ("b", b)):
                await node.call("ADD", name, pod, **config)
            assert await passes(packets.udp, node.namespace, b, ip_address("10.22.0.3"))
            assert not await passes(packets.udp, a, b, ip_address("10.22.0.3"))

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_neither_end_believes_a_router_behind_the_link(namespaces, tmp_path, kind):
    """A pod that advertises itself would be the default route of its neighbours, or of the node."""

    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            made = await node.call("ADD", "a", pod, **network(tmp_path, kind))
            for namespace, name in ((node.namespace, made["interfaces"][0]["name"]), (pod, "eth0")):
                assert netns.read_sysctl(namespace, f"net/ipv6/conf/{name}/accept_ra") == "0"
            assert netns.read_sysctl(pod, "net/ipv4/conf/eth0/arp_notify") == "1"

    asyncio.run(run())


def test_a_port_sends_with_its_own_mac_only(namespaces, tmp_path, impatient):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            a, b = namespaces(), namespaces()
            config = network(tmp_path, macspoofchk=True)
            for name, pod in (("a", a), ("b", b)):
                await node.call("ADD", name, pod, **config)
            assert await passes(packets.udp, a, b, ip_address("10.22.0.3"))
            with Rtnl(a) as rt:
                mac = rt.link("eth0").mac
                rt.set_mac("eth0", "02:00:00:00:00:66")
                assert not await passes(packets.udp, a, b, ip_address("10.22.0.3"))
                rt.set_mac("eth0", mac)
            assert await passes(packets.udp, a, b, ip_address("10.22.0.3"))
            await node.call("DEL", "a", a, **config)
            with netns.entered(node.namespace):
                rules = subprocess.run(LIST, capture_output=True, text=True, check=True)  # noqa: ASYNC221
            assert mac not in rules.stdout

    asyncio.run(run())


def test_vlans_keep_ports_apart_or_are_refused_by_what_the_kernel_lacks(namespaces, tmp_path, impatient):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pods = {name: namespaces() for name in ("a", "b", "c")}
            first, second = network(tmp_path, vlan=7), network(tmp_path, vlan=8)
            refused: CniError | None = None
            try:
                await node.call("ADD", "a", pods["a"], **first)
            except CniError as error:
                refused = error
            if refused is not None:
                assert (refused.code, "CONFIG_BRIDGE_VLAN_FILTERING" in refused.message) == (2, True)
                assert left(node) == []
                assert list((tmp_path / "networks" / "net").glob("1*")) == []
                with Rtnl(node.namespace) as rt:
                    assert rt.find_link("cni0") is None
                    await node.call("ADD", "a", pods["a"], **network(tmp_path))  # without, it is there
                    await refusal(node.call("ADD", "b", pods["b"], **first))
                    assert rt.find_link("cni0") is not None  # not ours to remove now
                return
            await node.call("ADD", "b", pods["b"], **first)
            await node.call("ADD", "c", pods["c"], **second)
            assert await passes(packets.udp, pods["a"], pods["b"], ip_address("10.22.0.3"))
            assert await passes(packets.udp, pods["a"], node.namespace, ip_address("10.22.0.1"))
            assert not await passes(packets.udp, pods["a"], pods["c"], ip_address("10.22.0.4"))

    asyncio.run(run())


def test_modes_of_the_bridge(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            config = network(tmp_path, promiscMode=True, enabledad=True)
            pod = namespaces()
            result = await node.call("ADD", "a", pod, **config)
            with Rtnl(node.namespace) as rt, Rtnl(pod) as inner:
                assert rt.link("cni0").promiscuous
                flags = [a.flags for a in inner.addresses("eth0") if str(a.address) == "fd00:22::2/64"]
                assert flags
                assert not flags[0] & 0x42  # neither tentative nor without detection
            assert await node.call("CHECK", "a", pod, prevResult=result, **config) == {}

    asyncio.run(run())


def test_another_address_of_the_bridge_is_told_and_replaced_only_when_asked(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            with Rtnl(node.namespace) as rt:
                rt.create_bridge("cni0", up=True)
                rt.add_address("cni0", ip_interface("10.99.0.1/24"))
                error = await refusal(node.call("ADD", "a", namespaces(), **network(tmp_path)))
                assert (error.code, "already has the address 10.99.0.1/24" in error.message) == (7, True)
                assert left(node) == []
                await node.call("ADD", "a", namespaces(), **network(tmp_path, forceAddress=True))
                held = {str(a.address) for a in rt.addresses("cni0") if a.scope == 0}
                assert held == {"10.22.0.1/24", "fd00:22::1/64"}

    asyncio.run(run())


SPOILED = {
    "has no address 10.22.0.2/24": lambda node, pod: pod.delete_address("eth0", ip_interface("10.22.0.2/24")),
    "no route to 0.0.0.0/0": lambda node, pod: pod.delete_route(ip_network("0.0.0.0/0")),
    "is down": lambda node, pod: pod.set_down("eth0"),
    "has MAC": lambda node, pod: pod.set_mac("eth0", "02:00:00:00:00:99"),
    "the node has no bridge": lambda node, pod: node.delete_link("cni0"),
    "is no port of": lambda node, pod: node.set_master(
        next(link.name for link in node.links() if link.kind == "veth"), 0
    ),
}


@pytest.mark.parametrize("says", SPOILED)
def test_check_of_a_bridge_finds_what_is_not_as_it_was_made(namespaces, tmp_path, says):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            config = network(tmp_path)
            result = await node.call("ADD", "a", pod, **config)
            with Rtnl(node.namespace) as outer, Rtnl(pod) as inner:
                SPOILED[says](outer, inner)
            error = await refusal(node.call("CHECK", "a", pod, prevResult=result, **config))
            assert (error.code, says in error.message) == (101, True), error.message

    asyncio.run(run())
