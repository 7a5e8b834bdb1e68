"""portmap, bandwidth and firewall after bridge, as conflists of the reference plugins chain them."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from podlane.cni import protocol
from podlane.kernel import netns
from podlane.kernel.nft import command
from podlane.kernel.rtnl import Rtnl
from tests.netns.cni_node import CniNode
from tests.netns.test_cni import refusal


def bridge(where, name="cni0", subnet="10.22.0.0/24"):
    ipam = {"type": "host-local", "subnet": subnet, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": str(where)}
    return {"type": "bridge", "bridge": name, "isGateway": True, "hairpinMode": True, "ipam": ipam}


class Chain:
    """`plugins` of a conflist, run as libcni does: each gets the result of the one before, DEL in reverse."""

    def __init__(self, node, name, *plugins):
        self.node, self.name, self.plugins, self.results = node, name, plugins, {}

    async def add(self, container, pod):
        result = {}
        for plugin in self.plugins:
            result = await self._call("ADD", container, pod, plugin, result)
        self.results[container] = result
        return result["ips"][0]["address"].partition("/")[0]

    async def check(self, container, pod):
        for plugin in self.plugins:
            await self._call("CHECK", container, pod, plugin, self.results[container])

    async def delete(self, container, pod=None):
        for plugin in reversed(self.plugins):
            await self._call("DEL", container, pod, plugin, self.results.get(container, {}))

    async def _call(self, verb, container, pod, plugin, result):
        config = {"cniVersion": "1.0.0", "name": self.name, **plugin}
        if result:
            config["prevResult"] = result
        return await self.node.call(verb, container, pod, **config)


def reached(client, server, address, port=9999, listen=9999):
    """Whether a TCP connection to address:port comes to the server's port `listen`."""
    with (
        netns.socket_in(server, socket.AF_INET, socket.SOCK_STREAM) as listener,
        netns.socket_in(client, socket.AF_INET, socket.SOCK_STREAM) as sender,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", listen))
        listener.listen()
        sender.settimeout(0.6)
        error = sender.connect_ex((address, port))
        assert error in (0, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.EHOSTUNREACH)
        return error == 0


def test_portmap_and_bandwidth_after_bridge(namespaces, tmp_path):
    mappings = {
        "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 9999, "protocol": "tcp"}]}
    }
    limits = {
        "ingressRate": 8_000_000,
        "ingressBurst": 800_000,
        "egressRate": 8_000_000,
        "egressBurst": 800_000,
    }

    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            chain = Chain(
                node,
                "net",
                bridge(tmp_path),
                {"type": "portmap", "capabilities": {"portMappings": True}, **mappings},
                {"type": "bandwidth", **limits},
                {"type": "firewall", "backend": "iptables"},
            )
            pods = {name: namespaces() for name in ("server", "client")}
            await chain.add("server", pods["server"])
            other = Chain(node, "net", bridge(tmp_path))
            await other.add("client", pods["client"])
            for client in (pods["client"], node.namespace, pods["server"]):
                assert await asyncio.to_thread(reached, client, pods["server"], "10.22.0.1", 80)
            assert await asyncio.to_thread(reached, node.namespace, pods["server"], "127.0.0.1", 80)
            await chain.check("server", pods["server"])
            with Rtnl(node.namespace) as rt:
                assert [link.name[:3] for link in rt.links() if link.kind == "ifb"] == ["plq"]
            await chain.delete("server", pods["server"])
            await chain.delete("server")
            with Rtnl(node.namespace) as rt:
                assert [link.kind for link in rt.links() if link.kind == "ifb"] == []
            assert not await asyncio.to_thread(reached, node.namespace, pods["server"], "10.22.0.1", 80)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("policy", "same", "other"),
    [("open", True, True), ("same-bridge", True, False), ("isolated", False, False)],
)
def test_the_firewall_lets_through_what_its_policy_says(namespaces, tmp_path, policy, same, other):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            netns.write_sysctl(node.namespace, "net/bridge/bridge-nf-call-iptables", 1)
            firewall = {"type": "firewall", "ingressPolicy": policy}
            one = Chain(node, "one", bridge(tmp_path / "1"), firewall)
            two = Chain(node, "two", bridge(tmp_path / "2", "cni1", "10.23.0.0/24"), firewall)
            pods = {name: namespaces() for name in ("a", "b", "c")}
            await one.add("a", pods["a"])
            mate = await one.add("b", pods["b"])
            far = await two.add("c", pods["c"])
            assert await asyncio.to_thread(reached, pods["a"], pods["b"], mate) is same
            assert await asyncio.to_thread(reached, pods["a"], pods["c"], far) is other
            assert await asyncio.to_thread(reached, node.namespace, pods["c"], far)
            await two.delete("c", pods["c"])
            await one.delete("a", pods["a"])
            await one.delete("b", pods["b"])
            assert node.host.records.all("firewall") == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ({"type": "portmap", "conditionsV4": ["-s", "10.0.0.0/8"]}, "conditionsV4 are matches of iptables"),
        ({"type": "portmap", "masqAll": True}, "masqAll is not supported"),
        ({"type": "bandwidth", "ingressRate": 5}, "ingressRate is 5, expected 1000 to"),
        ({"type": "firewall", "ingressPolicy": "closed"}, "expected one of open, same-bridge, isolated"),
        ({"type": "firewall", "backend": "firewalld"}, "backend is 'firewalld'"),
    ],
)
def test_what_a_type_does_not_do_is_refused_by_name(namespaces, tmp_path, plugin, words):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            config = {"cniVersion": "1.0.0", "name": "net", **plugin}
            error = await refusal(node.call("ADD", "a", namespaces(), **config))
            assert error.code == protocol.INVALID_CONFIG
            assert words in error.message

    asyncio.run(run())


SPOILED = {
    "it is not masqueraded": "flush chain inet podlane-cni postrouting",
    "it is not masqueraded ": "flush set inet podlane-cni own4",
    "accept' is gone": "flush chain inet podlane-firewall forward",
    '"cni0" is not in the set bridges': "flush set inet podlane-firewall bridges",
    "drop' is gone": "delete table inet podlane-firewall",
    "does not lead to the container": "flush map ip podlane-ports any",
    "drop' is gone ": "flush chain bridge podlane-cni prerouting",
    "is not in the set allowed": "flush set bridge podlane-cni allowed",
}


@pytest.mark.parametrize("says", SPOILED)
def test_check_asks_the_kernel_what_is_left_of_rules_and_elements(namespaces, tmp_path, says):
    async def run() -> None:
        async with CniNode(namespaces(), tmp_path) as node:
            mappings = {"portMappings": [{"hostPort": 80, "containerPort": 9999, "protocol": "tcp"}]}
            chain = Chain(
                node,
                "net",
                bridge(tmp_path) | {"ipMasq": True, "macspoofchk": True},
                {"type": "portmap", "runtimeConfig": mappings},
                {"type": "firewall", "ingressPolicy": "same-bridge"},
            )
            pod = namespaces()
            await chain.add("a", pod)
            await chain.check("a", pod)
            await asyncio.to_thread(command.load, SPOILED[says], node.namespace)
            error = await refusal(chain.check("a", pod))
            assert (error.code, says.strip() in error.message) == (protocol.NOT_AS_MADE, True), error.message
            await chain.delete("a", pod)

    asyncio.run(run())
