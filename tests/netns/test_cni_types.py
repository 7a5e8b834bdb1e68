"""Configurations written for the reference plugins, run as they are, with real packets."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from podlane.cni import protocol
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns import packets
from tests.netns.cni_node import CniNode
from tests.netns.test_cni import addresses_of, refusal


def tutorial(where, **changes):
    """10-mynet.conf of every tutorial, but for the directory of the leases."""
    return {
        "cniVersion": "0.2.0",
        "name": "mynet",
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "subnet": "10.244.0.0/16",
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(where / "networks"),
        },
        **changes,
    }


LOOPBACK = {"cniVersion": "0.2.0", "name": "lo", "type": "loopback"}


def outside_of(node, namespaces):
    """A machine beyond the node that knows no way back to pods."""
    outside = namespaces()
    with Rtnl(node.namespace) as here, Rtnl(outside) as there:
        here.create_veth("up0", "up0", peer_netns=outside, up=True, peer_up=True)
        there.set_up("lo")
        for family, (own, other) in {
            4: ("198.51.100.1/24", "198.51.100.10/24"),
            6: ("2001:db8:100::1/64", "2001:db8:100::10/64"),
        }.items():
            here.add_address("up0", ip_interface(own))
            there.add_address("up0", ip_interface(other))
            here.settle([ip_interface(own).ip])
            there.settle([ip_interface(other).ip])
            assert family
    return outside


def test_the_two_files_of_tutorials(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            outside = outside_of(node, namespaces)
            pods = {name: namespaces() for name in ("a", "b")}
            held = {}
            for name, pod in pods.items():
                await node.call("ADD", name, pod, ifname="lo", **LOOPBACK)
                result = await node.call("ADD", name, pod, **tutorial(tmp_path))
                assert (result["cniVersion"], result["ip4"]["gateway"]) == ("0.2.0", "10.244.0.1")
                held[name] = ip_interface(result["ip4"]["ip"])
            assert [str(a) for a in held.values()] == ["10.244.0.2/16", "10.244.0.3/16"]
            for exchange in (packets.udp, packets.tcp):
                assert exchange(pods["a"], pods["b"], held["b"].ip) == held["a"].ip
                assert exchange(node.namespace, pods["a"], held["a"].ip) == ip_address("10.244.0.1")
                assert exchange(pods["a"], pods["a"], held["a"].ip) == held["a"].ip
                seen = exchange(pods["a"], outside, ip_address("198.51.100.10"))
                assert seen == ip_address("198.51.100.1")
            leases = tmp_path / "networks" / "mynet"
            assert (leases / "10.244.0.2").read_bytes() == b"a\r\neth0"
            assert (leases / "last_reserved_ip.0").read_text() == "10.244.0.3"
            for name, pod in pods.items():
                await node.call("DEL", name, pod, **tutorial(tmp_path))
                await node.call("DEL", name, pod, ifname="lo", **LOOPBACK)
            assert sorted(p.name for p in leases.iterdir()) == ["last_reserved_ip.0", "lock"]
            assert left(node) == []

    asyncio.run(run())


def left(node):
    """Links and notes of attachments."""
    with Rtnl(node.namespace) as rt:
        links = [link.name for link in rt.links() if link.name.startswith(("veth", "pl"))]
    kinds = [kind for kind in [*node.host.types, "masquerade"] if node.host.records.all(kind)]
    return links + kinds


DUAL = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.22.0.0/24"}], [{"subnet": "fd00:22::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}


def network(where, kind="bridge", ipam=None, **changes):
    return {
        "cniVersion": "1.0.0",
        "name": "net",
        "type": kind,
        "ipam": {**(ipam or DUAL), "dataDir": str(where / "networks")},
        **({"isGateway": True} if kind == "bridge" else {}),
        **changes,
    }


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
@pytest.mark.parametrize("version", protocol.VERSIONS)
def test_both_families_of_every_version(namespaces, tmp_path, kind, version):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            config = network(tmp_path, kind, cniVersion=version, ipMasq=True)
            outside = outside_of(node, namespaces)
            a, b = namespaces(), namespaces()
            await node.call("ADD", "a", a, **config)
            result = await node.call("ADD", "b", b, **config)
            assert result["cniVersion"] == version
            for address, home in ((ip_address("10.22.0.3"), 4), (ip_address("fd00:22::3"), 6)):
                packets.udp(a, b, address)
                packets.tcp(node.namespace, b, address)
                there = ip_address("198.51.100.10" if home == 4 else "2001:db8:100::10")
                assert packets.udp(b, outside, there).version == home
            if version >= "0.4.0":
                assert await node.call("CHECK", "b", b, prevResult=result, **config) == {}
            assert await node.call("ADD", "b", b, **config) == result
            await node.call("DEL", "a", a, **config)
            await node.call("DEL", "b", **config)
            await node.call("DEL", "b", **config)
            assert left(node) == []

    asyncio.run(run())


def test_what_add_answers_is_what_was_made(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            config = network(tmp_path, cniVersion="1.1.0", bridge="br7", mtu=1400, hairpinMode=True)
            result = await node.call("ADD", "a", pod, **config)
            bridge, host, inner = result["interfaces"]
            with Rtnl(node.namespace) as there, Rtnl(pod) as here:
                assert (bridge["name"], bridge["mac"]) == ("br7", there.link("br7").mac)
                port = there.link(host["name"])
                assert (port.mac, port.master, port.hairpin) == (host["mac"], there.link("br7").index, True)
                link = here.link("eth0")
                assert (link.mac, link.mtu_bytes, inner["mtu"]) == (inner["mac"], 1400, 1400)
            assert inner["sandbox"] == "/run/netns/pod"
            assert result["ips"] == [
                {"interface": 2, "address": "10.22.0.2/24", "gateway": "10.22.0.1"},
                {"interface": 2, "address": "fd00:22::2/64", "gateway": "fd00:22::1"},
            ]
            assert result["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]

    asyncio.run(run())


def test_a_second_interface_leaves_the_first_ones_default_route(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            outside = outside_of(node, namespaces)
            pod = namespaces()
            first = network(tmp_path, ipMasq=True)
            second = network(
                tmp_path,
                "ptp",
                {"type": "host-local", "subnet": "10.33.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
            ) | {"name": "second", "ipMasq": True}
            await node.call("ADD", "a", pod, **first)
            result = await node.call("ADD", "a", pod, ifname="net1", **second)
            with Rtnl(pod) as rt:
                anywhere = ip_network("0.0.0.0/0")
                ways = {r.via: r.metric for r in rt.routes() if r.destination == anywhere}
                assert ways[ip_address("10.22.0.1")] == 0 < ways[ip_address("10.33.0.1")]
                assert await node.call("CHECK", "a", pod, ifname="net1", prevResult=result, **second) == {}
                # The second takes over when the first is gone.
                await node.call("DEL", "a", pod, **first)
                packets.udp(pod, outside, ip_address("198.51.100.10"))

    asyncio.run(run())


def test_an_address_asked_for_is_given_and_a_mac_too(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            runtime = {"ips": ["10.22.0.77/24"], "mac": "02:00:00:00:00:77"}
            runtime["dns"] = {"servers": ["10.22.0.53"], "searches": ["a.example"], "options": ["ndots:2"]}
            config = network(tmp_path, runtimeConfig=runtime)
            result = await node.call("ADD", "a", pod, **config)
            assert addresses_of(result) == [ip_address("10.22.0.77"), ip_address("fd00:22::2")]
            assert result["interfaces"][2]["mac"] == "02:00:00:00:00:77"
            assert result["dns"] == {
                "nameservers": ["10.22.0.53"],
                "search": ["a.example"],
                "options": ["ndots:2"],
            }
            error = await refusal(node.call("ADD", "b", namespaces(), **config))
            assert (error.code, "10.22.0.77 is in use by a" in error.message) == (11, True)
            await node.call("DEL", "a", **config)
            assert left(node) == []

    asyncio.run(run())


def test_tuning_after_bridge_changes_and_puts_back(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            first = network(tmp_path)
            made = await node.call("ADD", "a", pod, **first)
            tuning = {
                "cniVersion": "1.0.0",
                "name": "net",
                "type": "tuning",
                "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net/core/somaxconn": "511"},
                "mac": "02:00:00:00:00:42",
                "mtu": 1300,
                "promisc": True,
                "allmulti": True,
                "txQLen": 77,
            }
            result = await node.call("ADD", "a", pod, prevResult=made, **tuning)
            assert result["ips"] == made["ips"]
            assert result["interfaces"][2]["mac"] == "02:00:00:00:00:42"
            with Rtnl(pod) as rt:
                link = rt.link("eth0")
                assert (link.mac, link.mtu_bytes, link.promiscuous) == ("02:00:00:00:00:42", 1300, True)
            assert netns.read_sysctl(pod, "net/ipv4/conf/eth0/arp_filter") == "1"
            for each in (tuning, first):
                assert await node.call("CHECK", "a", pod, prevResult=result, **each) == {}
            netns.write_sysctl(pod, "net/core/somaxconn", 512)
            error = await refusal(node.call("CHECK", "a", pod, prevResult=result, **tuning))
            assert "somaxconn is 512, not 511" in error.message
            await node.call("DEL", "a", pod, prevResult=result, **tuning)
            with Rtnl(pod) as rt:
                link = rt.link("eth0")
                assert (link.mac, link.promiscuous) == (made["interfaces"][2]["mac"], False)
            assert netns.read_sysctl(pod, "net/ipv4/conf/eth0/arp_filter") == "0"
            await node.call("DEL", "a", pod, prevResult=result, **first)
            assert left(node) == []

    asyncio.run(run())


def test_flannel_makes_what_subnet_env_says(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            env = tmp_path / "subnet.env"
            config = {
                "cniVersion": "0.3.1",
                "name": "cbr0",
                "type": "flannel",
                "subnetFile": str(env),
                "dataDir": str(tmp_path / "flannel"),
                "ipam": {"dataDir": str(tmp_path / "networks")},
                "delegate": {"hairpinMode": True, "isDefaultGateway": True},
            }
            pod = namespaces()
            error = await refusal(node.call("ADD", "a", pod, **config))
            assert (error.code, str(env) in error.message) == (11, True)
            env.write_text(
                "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
            )
            result = await node.call("ADD", "a", pod, **config)
            assert result["ips"][0]["address"] == "10.244.3.2/24"
            assert {r["dst"] for r in result["routes"]} == {"10.244.0.0/16", "0.0.0.0/0"}
            with Rtnl(node.namespace) as rt:
                assert rt.link("cni0").mtu_bytes == 1450
            packets.udp(node.namespace, pod, ip_address("10.244.3.2"))
            assert (
                await node.call("CHECK", "a", pod, **(config | {"cniVersion": "0.4.0"}), prevResult=result)
                == {}
            )
            env.unlink()
            await node.call("DEL", "a", pod, **config)
            assert left(node) == []
            assert list((tmp_path / "flannel").iterdir()) == []

    asyncio.run(run())


def test_gc_of_a_bridge_takes_links_leases_and_translations(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            config = network(tmp_path, ipMasq=True, cniVersion="1.1.0")
            for name in "abc":
                await node.call("ADD", name, namespaces(), **config)
            (tmp_path / "networks" / "net" / "10.22.0.200").write_bytes(b"of-old")  # nobody's any more
            error = await refusal(node.call("GC", **config))
            assert error.code == 7
            valid = {"cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]}
            await node.call("GC", **config, **valid)
            held = sorted(p.name for p in (tmp_path / "networks" / "net").iterdir())
            assert held == ["10.22.0.3", "fd00:22::3", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]
            assert [owner.container_id for owner, _ in node.host.records.all("bridge")] == ["b"]
            assert [owner.container_id for owner, _ in node.host.records.all("masquerade")] == ["b"]
            assert await node.call("STATUS", **config) == {}

    asyncio.run(run())
