"""Requests that cannot be done: the error of the specification, and nothing left in the kernel or on disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys

import pytest

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.cni_node import CniNode
from tests.netns.standalone import MAIN
from tests.netns.test_cni import refusal
from tests.netns.test_cni_types import left, network


def host_local(**changes):
    return {"ipam": {"type": "host-local", "subnet": "10.22.0.0/24", **changes}}


def ranges(*sets):
    return {"ipam": {"type": "host-local", "ranges": [list(entries) for entries in sets]}}


BAD = {
    "unknown type": ({"type": "nonsense"}, 7, "type is 'nonsense', expected one of bandwidth, bridge"),
    "no type": ({"type": None}, 7, "type is None"),
    "unknown IPAM type": ({"ipam": {"type": "nowhere"}}, 7, "'nowhere' is none of ours"),
    "an IPAM type that is a path": ({"ipam": {"type": "../x"}}, 7, "invalid plugin type"),
    "IPAM without a type": ({"ipam": {"subnet": "10.0.0.0/8"}}, 7, "ipam.type is missing"),
    "no range": ({"ipam": {"type": "host-local"}}, 7, "has no range"),
    "a subnet of /31": (host_local(subnet="10.22.0.0/31"), 7, "10.22.0.0/31 is too small: a /30"),
    "a subnet of /127": (host_local(subnet="fd00::/127"), 7, "fd00::/127 is too small: a /126"),
    "host bits": (host_local(subnet="10.22.0.5/24"), 7, "10.22.0.5/24 has host bits set"),
    "no subnet at all": (host_local(subnet="nowhere"), 7, "ipam.subnet is 'nowhere'"),
    "a start outside": (host_local(rangeStart="10.23.0.9"), 7, "rangeStart 10.23.0.9 is not in 10.22.0.0/24"),
    "an end outside": (host_local(rangeEnd="10.23.0.9"), 7, "rangeEnd 10.23.0.9 is not in 10.22.0.0/24"),
    "an end before the start": (
        host_local(rangeStart="10.22.0.9", rangeEnd="10.22.0.8"),
        7,
        "rangeStart 10.22.0.9 is after rangeEnd 10.22.0.8",
    ),
    "an overlap in a set": (
        ranges([{"subnet": "10.1.0.0/16"}, {"subnet": "10.1.2.0/24"}]),
        7,
        "range set 0: 10.1.0.1-10.1.255.254 overlaps 10.1.2.1-10.1.2.254",
    ),
    "an overlap of sets": (
        ranges([{"subnet": "10.1.0.0/16"}], [{"subnet": "10.1.2.0/24"}]),
        7,
        "range set 0 overlaps range set 1",
    ),
    "mixed families": (
        ranges([{"subnet": "10.1.0.0/16"}, {"subnet": "fd00::/64"}]),
        7,
        "range set 0 mixes IPv4 and IPv6",
    ),
    "an empty set": (ranges([]), 7, "has an empty range set"),
    "ranges that are none": ({"ipam": {"type": "host-local", "ranges": 3}}, 7, "ipam.ranges is 3"),
    "a route that is none": (host_local(routes=[{"dst": "x"}]), 7, "ipam.routes[0].dst is 'x'"),
    "a route of two families": (
        host_local(routes=[{"dst": "::/0", "gw": "10.22.0.1"}]),
        7,
        "10.22.0.1 is of another family than ::/0",
    ),
    "an address outside its range": (
        {"runtimeConfig": {"ips": ["10.99.0.1"]}},
        7,
        "requested addresses 10.99.0.1 are in none of the ranges",
    ),
    "an address that is none": ({"args": {"cni": {"ips": ["x"]}}}, 7, "args.cni.ips has 'x'"),
    "the gateway's address": ({"runtimeConfig": {"ips": ["10.22.0.1"]}}, 7, "10.22.0.1 is the gateway's"),
    "a MAC that is none": ({"runtimeConfig": {"mac": "02:00"}}, 7, "runtimeConfig.mac is '02:00'"),
    "a group's MAC": ({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}, 7, "expected a unicast MAC"),
    "hairpin and promiscuous": ({"hairpinMode": True, "promiscMode": True}, 7, "cannot be set together"),
    "a vlan too large": ({"vlan": 4095}, 7, "vlan is 4095, expected an integer of 0 to 4094"),
    "half a trunk": ({"vlanTrunk": [{"minID": 7}]}, 7, "vlanTrunk[0] has minID 7 and maxID 0"),
    "an empty trunk": ({"vlanTrunk": [{}]}, 7, "vlanTrunk[0] has neither id nor minID"),
    "a bridge name too long": ({"bridge": "sixteen-letters-"}, 7, "bridge is 'sixteen-letters-'"),
    "a flag that is none": ({"isGateway": "yes"}, 7, "isGateway is 'yes', expected true or false"),
    "an MTU that is none": ({"mtu": 1 << 40}, 7, "mtu is 1099511627776"),
    "a result that is none": ({"prevResult": {"ips": [{"address": "x"}]}}, 6, "prevResult"),
    "tuning alone": ({"type": "tuning", "ipam": {}}, 7, "after one in `plugins`"),
    "a sysctl of the node": (
        {"type": "tuning", "sysctl": {"kernel.panic": "1"}, "prevResult": {}},
        7,
        "sysctl.kernel.panic is not below net",
    ),
    "a sysctl that climbs": (
        {"type": "tuning", "sysctl": {"net/../kernel/panic": "1"}, "prevResult": {}},
        7,
        "is not below net",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_configuration_that_cannot_be_is_refused_by_what_is_wrong(namespaces, tmp_path, case):
    changes, code, says = BAD[case]

    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            whole = network(tmp_path) | changes
            if whole["ipam"]:
                whole["ipam"] = whole["ipam"] | {"dataDir": str(tmp_path / "networks")}
            error = await refusal(node.call("ADD", "a", pod, **whole))
            assert (error.code, says in error.message, error.message) == (code, True, error.message)
            assert left(node) == []
            with Rtnl(pod) as rt:
                assert [link.name for link in rt.links()] == ["lo"]
            held = tmp_path / "networks" / "net"
            assert [p.name for p in held.iterdir()] == ["lock"] if held.exists() else True

    asyncio.run(run())


def test_faults_of_environment_type_and_ipam_come_together(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            stdin = json.dumps(network(tmp_path) | host_local(subnet="10.0.0.0/31") | {"vlan": -9})
            environment = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a", "CNI_IFNAME": "a/b"}
            status, stdout = await node.plugin(environment, stdin.encode(), None)
            answer = json.loads(stdout)
            assert (status, answer["code"]) == (1, 4)
            for says in ("[CNI_NETNS,CNI_PATH] missing", "invalid CNI_IFNAME", "vlan is -9", "too small"):
                assert says in answer["msg"]

    asyncio.run(run())


def test_a_namespace_that_is_not_there(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            environment = {
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": "a",
                "CNI_IFNAME": "eth0",
                "CNI_NETNS": "/run/netns/nowhere",
                "CNI_PATH": "/opt/cni/bin",
            }
            for kind in ("bridge", "ptp", "podlane", "loopback"):
                stdin = json.dumps(network(tmp_path, kind)).encode()
                _, stdout = await node.plugin(environment, stdin, None)
                answer = json.loads(stdout)
                assert (answer["code"], "cannot be opened" in answer["msg"]) == (4, True)
                error = await refusal(node.call("ADD", "a", node.namespace, **network(tmp_path, kind)))
                assert (error.code, "node's own" in error.message) == (4, True)
            assert left(node) == []

    asyncio.run(run())


def test_a_range_that_is_used_up_says_so_and_leaves_nothing(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            whole = network(tmp_path, ipam={"type": "host-local", "subnet": "10.22.0.0/30"})
            await node.call("ADD", "a", namespaces(), **whole)
            error = await refusal(node.call("ADD", "b", namespaces(), **whole))
            assert error.code == 11
            assert "no IP addresses available in range set: 10.22.0.1-10.22.0.2" in error.message
            assert len(left(node)) == 3  # the first one's link and two notes
            await node.call("DEL", "a", **whole)
            await node.call("ADD", "b", namespaces(), **whole)

    asyncio.run(run())


def test_an_interface_that_is_there_already_stays(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            pod = namespaces()
            with Rtnl(pod) as rt:
                rt.create_bridge("eth0")
                error = await refusal(node.call("ADD", "a", pod, **network(tmp_path)))
                assert (error.code, "already has an interface eth0" in error.message) == (100, True)
                assert rt.link("eth0").kind == "bridge"
            assert left(node) == []
            assert [p.name for p in (tmp_path / "networks" / "net").iterdir() if p.name[0] in "1f"] == []

    asyncio.run(run())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", where], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield where
    subprocess.run(["umount", where], check=True)


def fill(path):
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_and_one_that_cannot_be_written(namespaces, tmp_path, small_disk):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            whole = network(small_disk)
            await node.call("ADD", "a", namespaces(), **whole)
            filler = small_disk / "filler"
            fill(filler)
            error = await refusal(node.call("ADD", "b", namespaces(), **whole))
            assert (error.code, "No space left" in error.message) == (5, True)
            await node.call("DEL", "a", **whole)  # giving back needs no room
            assert left(node) == []
            filler.unlink()
            remount = ["mount", "-o", "remount,ro", small_disk]
            await asyncio.to_thread(subprocess.run, remount, check=True)
            error = await refusal(node.call("ADD", "b", namespaces(), **whole))
            assert (error.code, "Read-only" in error.message) == (5, True)
            newer = whole | {"cniVersion": "1.1.0"}
            assert (await refusal(node.call("STATUS", **newer))).code == 50
            assert left(node) == []

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["bridge", "ptp", "podlane"])
def test_a_full_state_directory(namespaces, tmp_path, small_disk, kind):
    async def run() -> None:
        async with CniNode(namespaces(), small_disk) as node:
            whole = network(tmp_path, kind)
            await node.call("ADD", "a", namespaces(), **whole)
            before = [*left(node), *map(str, node.leases.all())]
            filler = small_disk / "filler"
            fill(filler)
            pod = namespaces()
            error = await refusal(node.call("ADD", "b", pod, **whole))
            assert (error.code, "disk" in error.message) == (5, True), error.message
            with Rtnl(pod) as rt:
                assert [link.name for link in rt.links()] == ["lo"]
            assert [*left(node), *map(str, node.leases.all())] == before
            filler.unlink()
            await node.call("ADD", "b", pod, **whole)
            for name in ("a", "b"):
                await node.call("DEL", name, **whole)
            assert (left(node), node.leases.all()) == ([], [])

    asyncio.run(run())


def test_a_state_directory_that_cannot_be_written_is_told_at_the_start(namespaces, tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    flags = [f"--state-dir={small_disk}/state", f"--cni-socket={tmp_path}/c", f"--agent-socket={tmp_path}/a"]
    command = [sys.executable, "-c", MAIN, "agent", "--standalone", "--node-name=n", *flags]
    with netns.entered(namespaces()):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{small_disk}/state: Read-only file system" in done.stderr


def test_a_pods_namespace_that_went_without_its_delete_is_collected(namespaces, tmp_path):
    async def run() -> None:
        node_fd = namespaces()
        async with CniNode(node_fd, tmp_path) as node:
            whole = network(tmp_path, ipMasq=True)
            await node.call("ADD", "a", namespaces(), **whole)
            with Rtnl(node_fd) as rt:
                (veth,) = [link.name for link in rt.links() if link.kind == "veth"]
                rt.delete_link(veth)
            assert await node.plugin.collect() == []
            assert left(node) == []
            assert not (tmp_path / "networks" / "net" / "10.22.0.2").exists()

    asyncio.run(run())


def test_a_reboot_gives_the_addresses_back(namespaces, tmp_path):
    async def run() -> None:
        first = CniNode(namespaces(), tmp_path)
        async with first:
            whole = network(tmp_path)
            await first.call("ADD", "a", namespaces(), **whole)
            await first.call("ADD", "b", namespaces(), **whole)
        held = tmp_path / "networks" / "net"
        assert {p.name for p in held.iterdir()} >= {"10.22.0.2", "10.22.0.3"}
        second = CniNode(namespaces(), tmp_path)
        second.boot = "the next boot"
        async with second:
            assert [p.name for p in held.iterdir() if p.name[0] in "1f"] == []
            result = await second.call("ADD", "c", namespaces(), **whole)
            assert result["ips"][0]["address"] == "10.22.0.4/24"  # in turn, not the first again

    asyncio.run(run())


def test_the_processes_descriptors_do_not_grow(namespaces, tmp_path):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            whole, pod = network(tmp_path), namespaces()

            async def life() -> None:
                await node.call("ADD", "a", pod, **whole)
                await refusal(node.call("ADD", "b", pod, **whole))
                await node.call("DEL", "a", pod, **whole)

            await life()
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(40):
                await life()
            # A few sockets of deletions that the kernel has not ended yet, whatever their number.
            assert len(os.listdir("/proc/self/fd")) <= before + 16

    asyncio.run(run())
