"""The agent as deploy/podlane.yaml runs it: what it is given there is enough, and it takes nothing along."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from podlane.cni import client
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.agent_nodes import CNI_CONFIG, FAMILIES, Echo, TestNode, ask, two_nodes, wait_until
from tests.netns.deployed import Deployed, manifest, missing
from tests.netns.test_agent import assert_reaches

pytestmark = pytest.mark.skipif(missing(), reason="there is no runc")


class DeployedNode:
    """A node of two_nodes whose agent is a container."""

    def __init__(self, node: TestNode, config: dict[str, Any]) -> None:
        self.node, self.host = node, node.dir / "host"
        pod = manifest("DaemonSet", "podlane-agent")["spec"]["template"]["spec"]
        files = {
            "/etc/podlane": {"config.yaml": yaml.safe_dump(config)},
        }
        (self.host / "var/lib/podlane").mkdir(parents=True)
        (self.host / "var/lib/podlane/kubeconfig").write_text((node.dir / "kubeconfig").read_text())
        self.container = Deployed(
            pod,
            pod["containers"][0],
            node.fd,
            self.host,
            {"NODE_NAME": node.name, "HOME": "/"},
            files,
            ["--kubeconfig=/var/lib/podlane/kubeconfig"],
        )
        node.sockets = self.host / "run/podlane"

    def start(self) -> None:
        self.container.start()

        def ready() -> bool:
            assert self.container.alive(), self.container.log.read_text()
            status = self.node.status()
            assert not (status.get("ready") and status["failures"]), status["failures"]
            return bool(status.get("ready")) and not status["pending"]

        try:
            wait_until(ready, "the agent is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.node.status()}\n{self.container.log.read_text()}") from None


@contextmanager
def deployed(
    where: Path, extra: dict[str, Any] | None = None
) -> Iterator[tuple[Any, DeployedNode, DeployedNode]]:
    with two_nodes(where, FAMILIES["both"], extra) as (api, one, two):
        config = json.loads((one.dir / "config.yaml").read_text())
        nodes = [DeployedNode(node, config) for node in (one, two)]
        try:
            for node in nodes:
                node.start()
            yield api, *nodes
        finally:
            for node in nodes:
                node.container.close()


def host_port_works(node: TestNode, other: TestNode) -> None:
    """A pod with a hostPort is reached at the node's address, by the other node and in both families."""
    fd = node.pods["web"] = netns.new()
    with Rtnl(fd) as rt:
        rt.set_up("lo")
    ports = [{"hostPort": 8088, "containerPort": 9999, "protocol": "udp"}]
    config = {**CNI_CONFIG, "capabilities": {"portMappings": True}, "runtimeConfig": {"portMappings": ports}}
    call = client.call(node.sockets / "cni.sock", "ADD", netns_fd=fd, container_id="web", config=config)
    addresses = [ip["address"].partition("/")[0] for ip in asyncio.run(call)["ips"]]
    for at, address in enumerate(addresses):
        with Echo(fd, address) as server:
            assert ask(other.fd, node.addresses[at], 8088, server) == other.addresses[at]
    node.delete_pod("web")


def test_it_serves_pods_with_the_capabilities_it_is_given(tmp_path: Path) -> None:
    with deployed(tmp_path) as (_, left, right):
        one, two = left.node, right.node
        for name in ("net/ipv4/ip_forward", "net/netfilter/nf_conntrack_tcp_be_liberal"):
            assert netns.read_sysctl(one.fd, name) == "1"
        near, far = one.add_pod("near"), two.add_pod("far")
        for family in ("IPv4", "IPv6"):
            assert_reaches(one.pods["near"], two.pods["far"], far[family], near[family])
            at = FAMILIES["both"].index(family)
            # As a kubelet probes: from the node itself, which the pod sees by the node's address.
            assert_reaches(one.fd, one.pods["near"], near[family], one.addresses[at])
        host_port_works(one, two)
        installed = left.host / "opt/cni/bin"
        assert {"podlane", "bridge", "portmap"} <= {path.name for path in installed.iterdir()}
        conflist = left.host / "etc/cni/net.d/10-podlane.conflist"
        before = conflist.read_bytes()
        # A rolling update: the container goes, and another comes.
        left.container.stop(signal.SIGTERM)
        assert conflist.read_bytes() == before
        assert_reaches(one.pods["near"], two.pods["far"], far["IPv4"], near["IPv4"])
        left.start()
        assert one.status()["operations"] == 0
        one.delete_pod("near")
        with Rtnl(one.fd) as rt:
            assert [link.name for link in rt.links() if link.kind == "veth"] == ["eth0"]
