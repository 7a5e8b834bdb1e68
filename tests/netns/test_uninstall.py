"""`podlane uninstall`: a node is afterwards what it was before its agent was started first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from podlane.agent.install import CONFLIST
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.agent_nodes import FAMILIES, TestNode, two_nodes, wait_until
from tests.netns.fake_api import FakeApi

PODLANE = Path(sys.executable).with_name("podlane")
# What others count, and what moves by itself.
_RESTLESS = ("nf_conntrack_count", "route/", "neigh/", "tcp_", "udp_", "igmp", "random", "stat")


def inside(fd: int, *command: str) -> str:
    with netns.entered(fd):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def snapshot(node: TestNode, host: Path) -> dict[str, Any]:
    """Everything that an agent changes, as the machine's own tools show it."""

    def sysctls() -> dict[str, str]:
        found = {}
        for family in ("ipv4", "ipv6", "netfilter", "bridge"):
            for path in sorted(Path("/proc/sys/net", family).rglob("*")):
                name = str(path.relative_to("/proc/sys/net"))
                # Links' own come and go with them: those of what is left are compared.
                if path.is_file() and not any(each in name for each in _RESTLESS):
                    try:
                        found[name] = path.read_text().strip()
                    except OSError:
                        continue
        return found

    def links() -> list[Any]:
        found = json.loads(inside(node.fd, "ip", "-j", "-d", "link"))
        return [{k: v for k, v in link.items() if k not in ("stats64", "stats")} for link in found]

    return {
        "ruleset": inside(node.fd, "nft", "list", "ruleset"),
        "links": links(),
        "addresses": inside(node.fd, "ip", "-o", "addr"),
        "routes": sorted(inside(node.fd, "ip", "route", "show", "table", "all").splitlines()),
        "routes6": sorted(inside(node.fd, "ip", "-6", "route", "show", "table", "all").splitlines()),
        "rules": inside(node.fd, "ip", "rule") + inside(node.fd, "ip", "-6", "rule"),
        "neighbours": inside(node.fd, "ip", "neigh", "show", "nud", "permanent"),
        "sysctls": netns.inside(node.fd, sysctls),
        "files": sorted(str(p) for p in host.rglob("*") if not p.is_dir()),
    }


class Host:
    """Paths of a node of the test's own, and the flags that say so."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.bin, self.conf, self.bpf = where / "bin", where / "net.d", where / "bpf"
        for directory in (self.bin, self.conf):
            directory.mkdir(parents=True)
        (self.bin / "ptp").write_text("somebody else's")
        (self.conf / "99-loopback.conf").write_text('{"name": "lo"}')

    @property
    def flags(self) -> list[str]:
        return [f"--cni-bin-dir={self.bin}", f"--cni-conf-dir={self.conf}", f"--bpf-dir={self.bpf}"]

    def uninstall(self, node: TestNode, *more: str, check: bool = True) -> Any:
        """The answer as JSON; the message of a refusal."""
        command = [str(PODLANE), "uninstall", "-o", "json", *self.flags, *more]
        command += ["--state-dir", str(node.dir / "state"), "--run-dir", str(node.sockets)]
        with netns.entered(node.fd):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not check:
            assert done.returncode == 1, done.stdout
            return done.stderr
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def serve(api: FakeApi) -> None:
    """A service that is reached from everywhere."""
    meta = {"namespace": "default", "uid": "1"}
    spec = {
        "clusterIP": "10.96.0.9",
        "clusterIPs": ["10.96.0.9"],
        "ipFamilies": ["IPv4"],
        "type": "NodePort",
        "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}],
    }
    api.put("Service", "web", metadata={**meta, "name": "web"}, spec=spec)
    api.put(
        "EndpointSlice",
        "web-1",
        metadata={**meta, "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        addressType="IPv4",
        endpoints=[{"addresses": ["10.244.2.9"], "conditions": {"ready": True}}],
        ports=[{"port": 8080, "protocol": "TCP"}],
    )


CONFIGURATIONS = {
    "vxlan": {},
    "bridge": {"link": {"mode": "bridge"}, "backend": {"type": "ipip"}},
    "wireguard": {"backend": {"type": "wireguard"}},
    "bgp": {"backend": {"type": "bgp"}, "services": {"localhostNodePorts": True}},
}


ENGINES = {"wireguard": "wireguard", "bgp": "bird"}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_node_is_what_it_was(tmp_path: Path, name: str) -> None:
    host = Host(tmp_path / "host")
    with two_nodes(tmp_path, FAMILIES["both"], CONFIGURATIONS[name]) as (api, one, _two):
        serve(api)
        for setting, value in (("net/ipv4/ip_forward", 0), ("net/ipv6/conf/all/forwarding", 0)):
            netns.write_sysctl(one.fd, setting, value)
        with Rtnl(one.fd) as rt:  # what an agent sets on loopback and the uplink has been looked at
            rt.settle([a.address.ip for a in rt.addresses()])
        before = snapshot(one, host.where)
        one.start(*host.flags)
        # The other node has no agent: BIRD and wireguard-go have nobody to speak to, and run all the same.
        wait_until((host.conf / CONFLIST).exists, "the network's configuration is there")
        one.add_pod("web")
        engine = ENGINES.get(name, "no engine")
        assert (one.sockets / engine / f"{engine}.pid").exists() is (name in ENGINES)
        during = snapshot(one, host.where)
        same = {what for what in before if during[what] == before[what]}
        assert same <= {"rules", "neighbours", "addresses"}, (
            "nothing here tells an installed node from another"
        )
        assert "an agent answers" in host.uninstall(one, check=False)
        one.delete_pod("web")
        one.stop()
        account = host.uninstall(one)
        assert (account["attached"], account["kept"]) == ([], [])
        after = snapshot(one, host.where)
        assert {what: after[what] for what in after} == before
        assert not (one.dir / "state").exists()
        again = host.uninstall(one)
        assert (again["removed"], again["kept"]) == ([], [])


def test_what_is_somebody_elses_by_now_stays_and_is_told(tmp_path: Path) -> None:
    host = Host(tmp_path / "host")
    with two_nodes(tmp_path, FAMILIES["IPv4"], {"link": {"mode": "bridge"}}) as (_, one, _two):
        netns.write_sysctl(one.fd, "net/netfilter/nf_conntrack_tcp_timeout_close_wait", 60)
        one.start(*host.flags)
        one.wait_ready()
        wait_until((host.conf / CONFLIST).exists, "the network's configuration is there")
        one.stop()
        inside(one.fd, "nft", "add table inet filter; add table ip podlanes")
        inside(one.fd, "ip", "link", "add", "other", "master", "cni0", "type", "veth", "peer", "other2")
        netns.write_sysctl(one.fd, "net/netfilter/nf_conntrack_tcp_timeout_close_wait", 61)
        (host.conf / CONFLIST).write_text('{"name": "mine"}')
        account = host.uninstall(one)
        assert sorted(account["kept"]) == [
            "sysctl net.netfilter.nf_conntrack_tcp_timeout_close_wait=61 is not what podlane wrote (3600)",
            "the bridge cni0 has other ports: other",
        ]
        assert (host.conf / CONFLIST).exists()
        assert (host.bin / "ptp").read_text() == "somebody else's"
        assert inside(one.fd, "nft", "list", "tables") == "table inet filter\ntable ip podlanes\n"


def test_a_forced_one_leaves_what_the_runtime_needs_to_end_its_pods(tmp_path: Path) -> None:
    host = Host(tmp_path / "host")
    with two_nodes(tmp_path, FAMILIES["both"]) as (_, one, _two):
        one.start(*host.flags)
        one.wait_ready()
        wait_until((host.conf / CONFLIST).exists, "the network's configuration is there")
        one.add_pod("web")
        one.stop()
        during = snapshot(one, host.where)
        refusal = host.uninstall(one, check=False)
        assert "pods have their network of podlane (1): no name known (web); drain the node first" in refusal
        untouched = snapshot(one, host.where)
        for what in ("ruleset", "sysctls", "files"):
            assert untouched[what] == during[what], "a refusal touches nothing"
        account = host.uninstall(one, "--force")
        assert account["attached"] == ["no name known (web)"]
        assert not (host.conf / CONFLIST).exists()
        assert not [link for link in inside(one.fd, "ip", "-o", "link").splitlines() if ": pl" in link]
        # What a container runtime does when the pod goes at last.
        environment = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "web", "CNI_IFNAME": "eth0"}
        done = subprocess.run(
            [host.bin / "podlane"],
            env={**environment, "CNI_PATH": str(host.bin), "PATH": os.environ["PATH"]},
            input=b'{"cniVersion": "1.0.0", "name": "podlane", "type": "podlane"}',
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, b"")
        account = host.uninstall(one)
        assert (account["attached"], account["kept"]) == ([], [])
        assert [path.name for path in host.bin.iterdir()] == ["ptp"]
        assert not (one.dir / "state").exists()
