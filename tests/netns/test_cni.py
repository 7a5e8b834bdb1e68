"""Pods attached through the CNI socket, with real packets; and what failures and crashes leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from podlane.cni import protocol, wire
from podlane.cni.link import GATEWAYS
from podlane.errors import CniError, KernelError
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns import packets
from tests.netns.cni_node import NODE_ADDRESSES, POOLS, CniNode

FAMILIES = {"both": POOLS, "IPv4": POOLS[:1], "IPv6": POOLS[1:], "IPv6 first": POOLS[::-1]}


def addresses_of(result):
    return [ip_interface(ip["address"]).ip for ip in result["ips"]]


async def refusal(awaitable) -> CniError:
    with pytest.raises(CniError) as caught:
        await awaitable
    return caught.value


@pytest.mark.parametrize("pools", FAMILIES.values(), ids=FAMILIES)
def test_pods_of_a_node_reach_each_other_and_the_node_without_translation(namespaces, tmp_path, pools):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path, pools) as node:
            pods = {name: namespaces() for name in ("a", "b")}
            results = {name: await node.call("ADD", name, fd) for name, fd in pods.items()}
            held = {name: addresses_of(result) for name, result in results.items()}
            assert [a.version for a in held["a"]] == [pool.version for pool in pools]
            for exchange in (packets.udp, packets.tcp):
                for own, other in zip(held["a"], held["b"], strict=True):
                    assert exchange(pods["a"], pods["b"], other) == own
                    assert exchange(pods["b"], pods["a"], own) == other
                    (home,) = [a.ip for a in NODE_ADDRESSES if a.version == own.version]
                    assert exchange(pods["a"], node.namespace, home) == own
                    assert exchange(node.namespace, pods["a"], own) == home
                    assert exchange(pods["a"], pods["a"], own) == own
            for name in pods:
                assert await node.call("DEL", name) == {}
            assert node.left() == []

    asyncio.run(run())


def test_the_answer_says_what_was_made(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path, mtu_bytes=1400) as node:
            pod = namespaces()
            result = await node.call("ADD", "a", pod)
            host, inner = result["interfaces"]
            with Rtnl(node.namespace) as there, Rtnl(pod) as here:
                assert there.link(host["name"]).mac == host["mac"]
                link = here.link("eth0")
                assert (link.mac, link.mtu_bytes, inner["mtu"]) == (inner["mac"], 1400, 1400)
                assert [r.via for r in here.routes() if not r.destination.prefixlen] == list(
                    GATEWAYS.values()
                )
                assert all(
                    n.permanent and n.mac == host["mac"]
                    for n in here.neighbours()
                    if n.address in GATEWAYS.values()
                )
            assert inner["sandbox"] == "/run/netns/pod"
            assert [ip["gateway"] for ip in result["ips"]] == ["169.254.1.1", "fe80::1"]
            (attachment,) = node.attacher.attachments()
            assert (attachment.pod_namespace, attachment.pod_name) == ("default", "a")
            assert attachment.device == host["name"]

    asyncio.run(run())


@pytest.mark.parametrize("version", protocol.VERSIONS)
def test_every_version_is_answered_in_its_own_form(namespaces, tmp_path, version):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            result = await node.call("ADD", "a", namespaces(), cniVersion=version)
            assert result["cniVersion"] == version
            assert ("ip4" in result) == (version < "0.3.0")

    asyncio.run(run())


def test_adding_again_answers_the_same_and_changes_nothing(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            first = await node.call("ADD", "a", pod)
            before = node.driver.actual()
            assert await node.call("ADD", "a", pod) == first
            assert node.driver.actual() == before

    asyncio.run(run())


def test_adding_again_leaves_what_the_pods_owner_did_alone(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            first = await node.call("ADD", "a", pod)
            with Rtnl(pod) as rt:
                rt.delete_route(ip_network("::/0"))
                rt.set_mac("eth0", "02:00:00:00:00:99")
                index = rt.link_index("eth0")
                assert await node.call("ADD", "a", pod) == first
                assert rt.link("eth0").index == index
                assert rt.link("eth0").mac == "02:00:00:00:00:99"

    asyncio.run(run())


def test_adding_again_completes_a_link_that_was_left_half_made(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod, other = namespaces(), namespaces()
            await node.call("ADD", "a", pod)
            await node.call("ADD", "b", other)
            with Rtnl(pod) as rt:
                rt.delete_address("eth0", ip_interface("fd00:10:244:1::2/128"))
            for address in addresses_of(await node.call("ADD", "a", pod)):
                packets.udp(other, pod, address)
            assert len(node.links()) == len(node.leases.all()) == 2

    asyncio.run(run())


def test_adding_again_in_another_namespace_moves_the_attachment_there(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            old, new, other = namespaces(), namespaces(), namespaces()
            await node.call("ADD", "a", old)
            (address, _) = addresses_of(await node.call("ADD", "a", new))
            await node.call("ADD", "b", other)
            packets.udp(other, new, address)
            with Rtnl(old) as rt:
                assert rt.find_link("eth0") is None
            assert len(node.leases.all()) == len(node.links()) == 2

    asyncio.run(run())


def test_a_second_interface_stands_behind_the_first(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod, other = namespaces(), namespaces()
            await node.call("ADD", "b", other)
            results = {name: await node.call("ADD", "a", pod, ifname=name) for name in ("eth0", "net1")}
            for name, result in results.items():
                assert await node.call("CHECK", "a", pod, ifname=name, prevResult=result) == {}
            own = addresses_of(results["eth0"])[0]
            assert packets.udp(pod, other, ip_address("10.244.1.2")) == own
            await node.call("DEL", "a", pod)
            own = addresses_of(results["net1"])[0]
            assert packets.udp(pod, other, ip_address("10.244.1.2")) == own

    asyncio.run(run())


def test_deleting_again_and_deleting_what_never_was_succeed(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            await node.call("ADD", "a", namespaces())
            for _ in range(3):
                assert await node.call("DEL", "a") == {}
            assert await node.call("DEL", "never") == {}
            assert node.left() == []

    asyncio.run(run())


def test_a_pod_whose_namespace_is_gone_is_deleted_by_its_lease(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = netns.new()
            try:
                await node.call("ADD", "a", pod)
            finally:
                os.close(pod)
            while node.links():  # noqa: ASYNC110 (the kernel clears namespaces away in its own time)
                await asyncio.sleep(0.01)
            assert [lease.container_id for lease in node.leases.all()] == ["a"]
            await node.call("DEL", "a")
            assert node.left() == []

    asyncio.run(run())


def test_many_at_once_get_an_address_each(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pods = [namespaces() for _ in range(30)]
            results = await asyncio.gather(*(node.call("ADD", f"c{n}", pod) for n, pod in enumerate(pods)))
            held = [address for result in results for address in addresses_of(result)]
            assert len(set(held)) == 60
            for pod, result in zip(pods[1:], results[1:], strict=True):
                for address in addresses_of(result):
                    packets.udp(pods[0], pod, address)
            await asyncio.gather(*(node.call("DEL", f"c{n}") for n in range(30)))
            assert node.left() == []

    asyncio.run(run())


def test_an_add_and_its_delete_at_once_leave_nothing_between(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            for _ in range(5):
                pod = namespaces()
                await asyncio.gather(node.call("ADD", "a", pod), node.call("DEL", "a"))
                # Whichever came first, what is there is whole: an attachment with everything, or nothing.
                assert len(node.links()) == len(node.leases.all()) == len(node.attachments)
                await node.call("DEL", "a")
                assert node.left() == []

    asyncio.run(run())


def test_a_generation_that_fails_undoes_the_attachment(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            node.refuse = KernelError.of(12, "apply")
            error = await refusal(node.call("ADD", "a", pod))
            assert (error.code, "apply" in error.message) == (100, True)
            assert node.left() == []
            with Rtnl(pod) as rt:
                assert rt.find_link("eth0") is None
            node.refuse = None
            await node.call("ADD", "a", pod)

    asyncio.run(run())


def test_an_interface_that_is_there_already_is_not_touched(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            with Rtnl(pod) as rt:
                rt.create_bridge("eth0")
                before = rt.link("eth0")
                error = await refusal(node.call("ADD", "a", pod))
                assert "already has an interface eth0" in error.message
                assert rt.link("eth0") == before
            assert node.left() == []

    asyncio.run(run())


def test_the_nodes_own_namespace_is_no_pods(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            error = await refusal(node.call("ADD", "a", node.namespace))
            assert (error.code, "node's own" in error.message) == (4, True)
            assert node.left() == []

    asyncio.run(run())


def test_a_file_is_no_namespace(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            with (tmp_path / "file").open("w") as file:
                error = await refusal(node.call("ADD", "a", file.fileno()))
            assert (error.code, "not a network namespace" in error.message) == (4, True)
            assert node.left() == []

    asyncio.run(run())


def test_a_node_without_a_pool_is_not_ready_and_says_why(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path, pools=()) as node:
            for call, code in ((node.call("STATUS"), 50), (node.call("ADD", "a", namespaces()), 11)):
                error = await refusal(call)
                assert (error.code, "podCIDRs" in error.message) == (code, True)
            node.pools[:] = POOLS
            assert await node.call("STATUS") == {}

    asyncio.run(run())


def test_a_full_pool_is_told_and_takes_nothing(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path, [ip_network("10.244.1.0/30")]) as node:
            await node.call("ADD", "a", namespaces())
            error = await refusal(node.call("ADD", "b", namespaces()))
            assert (error.code, "no address left" in error.message) == (11, True)
            assert len(node.links()) == len(node.leases.all()) == 1
            await node.call("DEL", "a")
            await node.call("ADD", "b", namespaces())

    asyncio.run(run())


SPOILED = {
    "eth0 is down": lambda rt: rt.set_down("eth0"),
    "no address 10.244.1.2": lambda rt: rt.delete_address("eth0", ip_interface("10.244.1.2/32")),
    "no default route via 169.254.1.1": lambda rt: rt.delete_route(ip_network("0.0.0.0/0")),
    "no default route via fe80::1": lambda rt: rt.delete_route(ip_network("::/0")),
    "no permanent neighbour fe80::1": lambda rt: rt.delete_neighbour("eth0", ip_address("fe80::1")),
    "eth0 has MAC": lambda rt: rt.set_mac("eth0", "02:00:00:00:00:99"),
    "no interface eth0": lambda rt: rt.rename("eth0", "eth9"),
}


@pytest.mark.parametrize("says", SPOILED)
def test_check_finds_what_is_not_as_it_was_made(namespaces, tmp_path, says):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            result = await node.call("ADD", "a", pod)
            assert await node.call("CHECK", "a", pod, prevResult=result) == {}
            with Rtnl(pod) as rt:
                SPOILED[says](rt)
            error = await refusal(node.call("CHECK", "a", pod, prevResult=result))
            assert (error.code, says in error.message) == (101, True)

    asyncio.run(run())


def test_check_of_an_attachment_nobody_knows_is_code_3(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            assert (await refusal(node.call("CHECK", "a", namespaces(), prevResult={}))).code == 3

    asyncio.run(run())


def test_gc_keeps_what_is_valid_and_other_networks(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            for name in "abc":
                await node.call("ADD", name, namespaces())
            await node.call("ADD", "d", namespaces(), name="another")
            error = await refusal(node.call("GC"))
            assert (error.code, len(node.leases.all())) == (7, 4)
            valid = [{"containerID": "b", "ifname": "eth0"}]
            await node.call("GC", **{"cni.dev/valid-attachments": valid})
            assert [lease.container_id for lease in node.leases.all()] == ["b", "d"]
            assert len(node.links()) == 2
            await node.call("GC", **{"cni.dev/valid-attachments": []})
            assert [lease.container_id for lease in node.leases.all()] == ["d"]

    asyncio.run(run())


def test_an_agent_that_comes_back_finds_its_pods_and_lets_packets_through(namespaces, tmp_path):
    async def run() -> None:
        namespace, pods = namespaces(), [namespaces(), namespaces()]
        async with CniNode(namespace, tmp_path) as node:
            held = [addresses_of(await node.call("ADD", f"c{n}", pod)) for n, pod in enumerate(pods)]
            before = node.driver.actual()
        for address in held[1]:
            packets.udp(pods[0], pods[1], address)
        async with node.again() as node:
            assert sorted(node.attachments) == [("c0", "eth0"), ("c1", "eth0")]
            assert node.driver.actual() == before
            fresh = addresses_of(await node.call("ADD", "c2", namespaces()))
            assert not set(fresh) & {address for addresses in held for address in addresses}

    asyncio.run(run())


@pytest.mark.parametrize("reached", ["lease", "link", "rows"])
def test_an_attachment_cut_off_half_way_is_completed_or_collected(namespaces, tmp_path, reached):
    """Each state a killed agent can leave: the next one starts from it, and ADD and DEL work."""

    async def run() -> None:
        pod = namespaces()
        async with CniNode(namespaces(), tmp_path) as node:
            await node.call("ADD", "a", pod)
            (lease,) = node.leases.all()
            if reached != "rows":
                node.driver.resync({})
            if reached == "lease":
                with Rtnl(node.namespace) as rt:
                    rt.delete_link(lease.device)
        async with node.again() as node:
            assert list(node.attachments) == ([] if reached == "lease" else [("a", "eth0")])
            held = addresses_of(await node.call("ADD", "a", pod))
            other = namespaces()
            await node.call("ADD", "b", other)
            for address in held:
                packets.udp(other, pod, address)
            await node.call("DEL", "a")
            await node.call("DEL", "b")
            assert node.left() == []

    asyncio.run(run())


def test_addresses_and_a_mac_by_name(namespaces, tmp_path):
    wish = {"ips": ["10.244.1.77", "fd00:10:244:1::77/64"], "mac": "02:00:00:00:00:07"}

    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            result = await node.call("ADD", "a", pod, runtimeConfig=wish)
            assert addresses_of(result) == [ip_address("10.244.1.77"), ip_address("fd00:10:244:1::77")]
            with Rtnl(pod) as rt:
                assert rt.link("eth0").mac == wish["mac"]
            packets.udp(node.namespace, pod, ip_address("10.244.1.77"))
            await node.call("CHECK", "a", pod, prevResult=result, runtimeConfig=wish)
            for asked, code, says in (
                ({"ips": ["10.244.1.77"]}, 11, "10.244.1.77 is in use by container a"),
                ({"ips": ["10.99.0.1"]}, 7, "10.99.0.1 is in none of 10.244.1.0/24"),
                ({"ips": ["10.244.1.1"]}, 7, "10.244.1.1 is not for pods"),
                ({"ips": ["x"]}, 7, "'x', which is not an IP address"),
                ({"mac": "01:00:5e:00:00:01"}, 7, "expected a unicast MAC"),
            ):
                error = await refusal(node.call("ADD", "b", namespaces(), runtimeConfig=asked))
                assert (error.code, says in error.message) == (code, True), error.message
            assert len(node.leases.all()) == len(node.links()) == 1
            # the other family's is the next in turn
            half = await node.call("ADD", "b", namespaces(), runtimeConfig={"ips": ["10.244.1.9"]})
            assert addresses_of(half) == [ip_address("10.244.1.9"), ip_address("fd00:10:244:1::78")]

    asyncio.run(run())


def test_an_attachment_whose_link_went_is_collected_by_the_agent_that_runs(namespaces, tmp_path):
    mappings = {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]}

    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            await node.call("ADD", "stays", namespaces())
            await node.call("ADD", "a", namespaces(), runtimeConfig=mappings)
            lease = node.leases.get("a", "eth0")
            with Rtnl(node.namespace) as rt:
                rt.delete_link(lease.device)  # as with a namespace that went without its DEL
            assert await node.plugin.collect() == []
            assert [key for key, _ in node.attachments] == ["stays"]
            assert [each.container_id for each in node.leases.all()] == ["stays"]
            # its host port is free again, too
            await node.call("ADD", "b", namespaces(), runtimeConfig=mappings)

    asyncio.run(run())


def test_a_link_without_a_lease_does_not_stand_in_the_way(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            await node.call("ADD", "a", pod)
            (lease,) = node.leases.all()
            node.leases.release(*lease.key)
            await node.on_change(lease.attachment, None)
            await node.call("ADD", "a", pod)
            assert len(node.links()) == 1

    asyncio.run(run())


def test_requests_that_are_none_do_no_harm_and_leak_no_descriptor(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            await node.call("ADD", "a", pod)
            before = len(os.listdir("/proc/self/fd"))
            loop = asyncio.get_running_loop()
            for sent in (
                b"",
                b"\0\0",
                b"\xff" * 8,
                wire.REQUEST.pack(10, 10) + b"x",
                b"GET / HTTP/1.1\r\n\r\n",
            ):
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.setblocking(False)
                    await loop.sock_connect(connection, str(node.socket))
                    if sent:
                        socket.send_fds(connection, [sent], [pod, pod])
                    connection.shutdown(socket.SHUT_WR)
                    with contextlib.suppress(ConnectionResetError):  # it did not even read all of it
                        assert await loop.sock_recv(connection, 100) == b""
            request = wire.pack_request({"CNI_COMMAND": "ADD"}, b"{")
            with socket.socket(socket.AF_UNIX) as connection:
                connection.setblocking(False)
                await loop.sock_connect(connection, str(node.socket))
                for byte in request:  # a request may come in any pieces
                    await loop.sock_sendall(connection, bytes([byte]))
                status, stdout = wire.unpack_answer(await loop.sock_recv(connection, 65536))
                assert (status, json.loads(stdout)["code"]) == (1, 4)
            assert await node.call("STATUS") == {}
            assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(run())


def test_the_socket_is_roots_alone_and_replaces_what_a_dead_agent_left(namespaces, tmp_path):
    async def run() -> None:
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(tmp_path / "cni.sock"))
        stale.close()
        async with CniNode(namespaces(), tmp_path) as node:
            assert node.socket.stat().st_mode & 0o777 == 0o600
            assert await node.call("STATUS") == {}
        assert not node.socket.exists()
        assert (await refusal(node.call("STATUS"))).code == 11

    asyncio.run(run())
