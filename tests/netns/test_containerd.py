"""Debian's containerd and runc get their sandboxes' network from us, by containerd's own calls of CNI."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns import packets
from tests.netns.agent_nodes import FAMILIES, Echo, TestNode, ask, two_nodes, wait_until
from tests.netns.containerd import Containerd, Pod, missing
from tests.netns.cri import PortMapping, RpcError
from tests.netns.standalone import Standalone

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}")
NODE = ("10.22.0.1", "fd00:22::1")


def conflist(where: Path) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.22.0.0/16"}], [{"subnet": "fd00:22::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "dataDir": str(where / "networks"),
        },
    }
    chained = [{"type": kind, "capabilities": {name: True}} for kind, name in CHAINED.items()]
    return {"cniVersion": "1.0.0", "name": "mynet", "plugins": [bridge, *chained]}


CHAINED = {"portmap": "portMappings", "bandwidth": "bandwidth"}


class Site:
    """A node with `podlane agent --standalone` and containerd."""

    def __init__(self, where: Path, agent: Standalone, containerd: Containerd) -> None:
        self.where, self.agent, self.containerd = where, agent, containerd
        self.node, self.runtime = agent.node, containerd.runtime

    def left(self) -> list[str]:
        """Links, leases and mounted namespaces of sandboxes."""
        with Rtnl(self.node) as rt:
            found = [link.name for link in rt.links() if link.kind in ("veth", "ifb")]
        networks = self.where / "networks" / "mynet"
        found += [p.name for p in networks.iterdir() if p.name[:2] in ("10", "fd")]
        return found + sorted(self.containerd.namespaces())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    where = tmp_path_factory.mktemp("cri")
    (where / "containerd").mkdir()
    agent = Standalone(netns.new(), where)
    with agent, Containerd(agent.node, where / "containerd", agent.bin, agent.conf) as containerd:
        ready, why = containerd.runtime.conditions()["NetworkReady"]
        assert not ready, "without a network there is none"
        assert "cni" in why
        (agent.conf / "10-mynet.conflist").write_text(json.dumps(conflist(where)))
        wait_until(containerd.network_ready, "containerd sees the network")
        yield Site(where, agent, containerd)


def leases(site: Site) -> int:
    return sum(name.startswith("10.") for name in site.left())


def assert_reached(site: Site, pod: Pod) -> None:
    """From the node and back, in both families, by the addresses that containerd knows."""
    found = site.runtime.sandbox(pod.sandbox)
    assert [found.ready, *(a.version for a in found.addresses)] == [True, 4, 6]
    for address, node in zip(found.addresses, NODE, strict=True):
        assert packets.tcp(site.node, pod.fd, address) == ip_address(node)
        assert packets.udp(pod.fd, site.node, ip_address(node)) == address


def test_a_sandbox_has_its_network_for_as_long_as_it_lives(site):
    pod = site.containerd.run(
        "first",
        [PortMapping(8080, 9999, "udp")],
        {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "10M"},
    )
    assert_reached(site, pod)
    v4, v6 = site.runtime.sandbox(pod.sandbox).addresses
    other = site.containerd.run("second")
    second, _ = site.runtime.sandbox(other.sandbox).addresses
    with Echo(pod.fd, str(v4)) as server, Echo(pod.fd, str(v6)) as server6:
        assert ask(other.fd, NODE[0], 8080, server) == str(second)
        assert ask(site.node, NODE[0], 8080, server) == NODE[0]
        assert ask(site.node, NODE[1], 8080, server6) == NODE[1]
    with Rtnl(site.node) as rt:
        assert sum(link.kind == "ifb" for link in rt.links()) == 1
    with Rtnl(pod.fd) as rt:
        assert rt.link("lo").up
    with pytest.raises(RpcError, match="port 8080/UDP of any address"):
        site.containerd.run("third", [PortMapping(8080, 9999, "udp")])
    site.containerd.end(pod)
    site.containerd.end(other)
    for sandbox in site.runtime.sandboxes():
        site.runtime.remove(sandbox)
    assert site.left() == []


def test_containerd_is_killed_and_finds_its_sandbox_with_its_network(site):
    pod = site.containerd.run("stays", [PortMapping(8081, 9999, "udp")])
    before = site.runtime.sandbox(pod.sandbox)
    site.containerd.kill()
    assert packets.tcp(site.node, pod.fd, before.addresses[0]) == ip_address(NODE[0])
    site.containerd.start()
    assert site.runtime.sandbox(pod.sandbox) == before
    assert_reached(site, pod)
    site.containerd.end(pod)
    assert site.left() == []


def test_the_agent_is_killed_and_what_containerd_asked_meanwhile_is_done_later(site):
    going, staying = site.containerd.run("going"), site.containerd.run("staying")
    site.agent.kill()
    try:
        assert_reached(site, staying)
        with pytest.raises(RpcError, match="the podlane agent does not answer"):
            site.containerd.run("refused")
        site.containerd.end(going)  # succeeds: the DEL is kept
        assert list((site.where / "state" / "cni-spool").glob("*.request"))
        assert leases(site) == 2
    finally:
        site.agent.start()
    wait_until(lambda: leases(site) == 1, "the DEL that was kept is done")
    assert_reached(site, staying)
    again = site.containerd.run("again")
    assert_reached(site, again)
    for pod in (staying, again):
        site.containerd.end(pod)
    assert site.left() == []


def test_an_agent_of_a_cluster_gives_containerd_its_network_when_it_is_ready(tmp_path):
    with two_nodes(tmp_path, FAMILIES["both"]) as (api, node, _):
        opt, conf, own = tmp_path / "bin", tmp_path / "net.d", tmp_path / "containerd"
        for directory in (opt, conf, own):
            directory.mkdir()
        before = tmp_path / "networks" / "cbr0" / "10.244.1.2"  # of a pod that flannel made
        before.parent.mkdir(parents=True)
        before.write_text("older\r\neth0")
        flags = [
            f"--cni-bin-dir={opt}",
            f"--cni-conf-dir={conf}",
            f"--host-local-dir={tmp_path / 'networks'}",
        ]
        for name in ("web", "more"):  # as a kubelet has seen them before it asks for a sandbox
            api.put("Pod", name, metadata={"namespace": "default"}, spec={"nodeName": node.name})
        with Containerd(node.fd, own, opt, conf) as containerd:
            assert not containerd.network_ready()
            node.start(*flags)
            node.wait_ready()
            wait_until(containerd.network_ready, "containerd sees the network that the agent installed")
            pod = containerd.run("web", [PortMapping(8080, 9999, "udp")])
            v4, v6 = containerd.runtime.sandbox(pod.sandbox).addresses
            assert (str(v4), str(v6)) == ("10.244.1.3", "fd00:10:244:1::2")
            assert packets.tcp(node.fd, pod.fd, v4) == ip_address("172.30.1.1")
            node.stop(signal.SIGKILL)
            assert packets.tcp(node.fd, pod.fd, v6) == ip_address("fd00:172:30::1")
            node.start(*flags)
            node.wait_ready()
            with Echo(pod.fd, str(v4)) as server:
                assert ask(node.fd, "172.30.1.1", 8080, server) == "172.30.1.1"
            api.close()  # pods come and go without the API
            other = containerd.run("more")
            assert packets.tcp(other.fd, pod.fd, v4) == containerd.runtime.sandbox(other.sandbox).addresses[0]
            for each in (pod, other):
                containerd.end(each)
            assert links(node) == []


def links(node: TestNode) -> list[str]:
    with Rtnl(node.fd) as rt:
        return [link.name for link in rt.links() if link.kind == "veth" and link.name.startswith("pl")]
