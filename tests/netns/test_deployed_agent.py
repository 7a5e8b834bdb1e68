"""The agent as deploy/podlane.yaml runs it: what it is given there is enough, and it takes nothing along."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from podlane.cni import client
from podlane.controller import rights
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.lab.api import accounts
from tests.netns.agent_nodes import CNI_CONFIG, FAMILIES, Echo, TestNode, ask, two_nodes, wait_until
from tests.netns.deployed import ACCOUNT, MANIFEST, Deployed, manifest, missing
from tests.netns.test_agent import assert_reaches
from tests.netns.test_uninstall import inside
from tests.unit.api_lab import Lab, running

pytestmark = pytest.mark.skipif(missing(), reason="there is no runc")


API_PORT = 6444
LEASE = ("leases.coordination.k8s.io", rights.LEASE, rights.NAMESPACE)
UNINSTALL = MANIFEST.with_name("uninstall.yaml")


def pod_of(kind: str, name: str, path: Path = MANIFEST) -> dict[str, Any]:
    return manifest(kind, name, path)["spec"]["template"]["spec"]


def given(api: Lab, config: dict[str, Any], account: str) -> dict[str, dict[str, str]]:
    """What a kubelet mounts: the ConfigMap, and the service account's token and certificate authority."""
    token = accounts.sign(api.pki.token, rights.NAMESPACE, account, expires_s=time.time() + 3600)
    files = {"token": token, "ca.crt": api.pki.ca_pem, "namespace": rights.NAMESPACE}
    return {"/etc/podlane": {"config.yaml": yaml.safe_dump(config)}, ACCOUNT: files}


def environment(**more: str) -> dict[str, str]:
    return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(API_PORT), **more}


class DeployedNode:
    """A node whose agent is a container, with a service account's token and the rights of the manifest."""

    def __init__(self, node: TestNode, api: Lab, config: dict[str, Any]) -> None:
        self.node, self.host = node, node.dir / "host"
        pod = pod_of("DaemonSet", "podlane-agent")
        files, env = given(api, config, rights.AGENT), environment(NODE_NAME=node.name)
        self.container = Deployed(pod, pod["containers"][0], node.fd, self.host, env, files)
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

    def uninstall(self) -> None:
        pod = pod_of("DaemonSet", "podlane-uninstall", UNINSTALL)
        container = Deployed(pod, pod["initContainers"][0], self.node.fd, self.host, {}, {})
        try:
            container.start()
            assert container.wait() == 0, container.log.read_text()
        finally:
            container.close()


@contextmanager
def served(where: Path, nodes: list[TestNode]) -> Iterator[Lab]:
    """A real API server, which the nodes reach at 127.0.0.1."""
    listeners = []
    for node in nodes:
        listener = netns.socket_in(node.fd, socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", API_PORT))
        listener.listen(64)
        listeners.append(listener)
    with running(where, sockets=listeners) as api:

        async def register(node: TestNode) -> None:
            obj = {"metadata": {"name": node.name}, **node.object}
            made = await api.server.client.create("nodes", obj)
            await api.server.client.update("nodes", made | {"status": obj["status"]}, subresource="status")

        for node in nodes:
            api.run(partial(register, node))
        yield api


@contextmanager
def deployed(where: Path) -> Iterator[tuple[Lab, DeployedNode, DeployedNode]]:
    with two_nodes(where, FAMILIES["both"]) as (_, one, two), served(where, [one, two]) as api:
        config = json.loads((one.dir / "config.yaml").read_text())
        nodes = [DeployedNode(node, api, config) for node in (one, two)]
        try:
            for node in nodes:
                node.start()
            yield api, nodes[0], nodes[1]
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


def test_it_serves_pods_with_what_it_is_given_and_goes_without_a_trace(tmp_path: Path) -> None:
    with deployed(tmp_path) as (api, left, right):
        one, two = left.node, right.node
        for name in ("net/ipv4/ip_forward", "net/netfilter/nf_conntrack_tcp_be_liberal"):
            assert netns.read_sysctl(one.fd, name) == "1"
        near, far = one.add_pod("near"), two.add_pod("far")
        for at, family in enumerate(FAMILIES["both"]):
            assert_reaches(one.pods["near"], two.pods["far"], far[family], near[family])
            # As a kubelet probes: from the node itself, which the pod sees by the node's address.
            assert_reaches(one.fd, one.pods["near"], near[family], one.addresses[at])
        host_port_works(one, two)
        assert {"podlane", "bridge", "portmap"} <= {p.name for p in (left.host / "opt/cni/bin").iterdir()}
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
        written = api.run(lambda: api.server.client.get("nodes", one.name))
        unavailable = {c["type"]: c["status"] for c in written["status"]["conditions"]}["NetworkUnavailable"]
        assert unavailable == "False"
        # And away with it.
        left.container.stop(signal.SIGTERM)
        left.uninstall()
        assert inside(one.fd, "nft", "list", "tables") == ""
        with Rtnl(one.fd) as rt:
            assert [link.name for link in rt.links() if link.name not in ("lo", "eth0")] == []
        left_over = [p for p in left.host.rglob("*") if not p.is_dir() and p.name != "xtables.lock"]
        assert left_over == []


def test_the_controller_is_nobody_and_leads(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["both"]) as (_, one, _two), served(tmp_path, [one]) as api:
        config = json.loads((one.dir / "config.yaml").read_text())
        config["controller"] = {"allocateNodeCIDRs": True}
        pod = pod_of("Deployment", "podlane-controller")
        files, env = given(api, config, rights.CONTROLLER), environment(POD_NAMESPACE=rights.NAMESPACE)
        container = Deployed(pod, pod["containers"][0], one.fd, one.dir / "host", env, files)

        async def come() -> None:
            await api.server.client.create("nodes", {"metadata": {"name": "late"}})
            # Both want one address: that is told at them.
            for name in ("twin-1", "twin-2"):
                made = await api.server.client.create("nodes", {"metadata": {"name": name}})
                address = [{"type": "InternalIP", "address": "172.30.1.77"}]
                status = {**made, "status": {"addresses": address}}
                await api.server.client.update("nodes", status, subresource="status")

        async def done() -> bool:
            client = api.server.client
            late, twin = await client.get("nodes", "late"), await client.get("nodes", "twin-2")
            conditions = {c["type"] for c in twin.get("status", {}).get("conditions", ())}
            return bool(late.get("spec", {}).get("podCIDRs")) and "podlane.dev/Misconfigured" in conditions

        api.run(come)
        try:
            container.start()

            def settled() -> bool:
                assert container.alive(), container.log.read_text()
                return api.run(done)

            try:
                wait_until(settled, "a Node has podCIDRs, and two are told of their address")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{container.log.read_text()}") from None
            assert "forbidden" not in container.log.read_text()
            lease = api.run(partial(api.server.client.get, *LEASE))
            assert lease["spec"]["holderIdentity"].startswith("node_")
            container.stop(signal.SIGTERM)
        finally:
            container.close()
