"""Beside kube-proxy (`--services off`), then in its place: pods reach a service all the while."""

from __future__ import annotations

import subprocess
from pathlib import Path

from podlane.kernel import netns
from tests.netns.agent_nodes import FAMILIES, Echo, TestNode, ask, two_nodes
from tests.netns.test_agent import SERVICE_IP
from tests.netns.test_bridge_mode import serve
from tests.netns.test_cleanup import clean, run
from tests.unit.test_xtables import KUBE_PROXY


def rules(address: str) -> str:
    """As kube-proxy has them for UDP port 80 of the service."""
    text = KUBE_PROXY.replace("10.96.0.10/32", f"{SERVICE_IP['IPv4']}/32").replace(
        "10.9.0.5:8080", f"{address}:9999"
    )
    text = text.replace("10.9.0.5/32", f"{address}/32")
    lines = [
        line.replace("-p tcp", "-p udp").replace("-m tcp", "-m udp") if "default/" in line else line
        for line in text.splitlines()
    ]
    return "\n".join(lines) + "\n"


def tables(node: TestNode) -> str:
    return netns.inside(
        node.fd,
        lambda: subprocess.run(
            ["nft", "list", "table", "ip", "podlane"], capture_output=True, text=True, check=False
        ),
    ).stdout


def test_services_by_kube_proxy_and_then_by_podlane(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["IPv4"]) as (api, one, two):
        for node in (one, two):
            node.start("--services=off")
        for node in (one, two):
            node.wait_ready()
        client, far = one.add_pod("client"), two.add_pod("far")
        assert "hook prerouting" not in tables(one)
        run(one.fd, "iptables-nft-restore", "--noflush", stdin=rules(far["IPv4"]))
        with Echo(two.pods["far"], far["IPv4"]) as echo:
            assert ask(one.pods["client"], SERVICE_IP["IPv4"], 80, echo) == client["IPv4"]
            one.stop()
            account = clean(one.fd)
            assert any("KUBE-SVC" in each for each in account["removed"])
            one.start()
            one.wait_ready()
            serve(api, one, far, "node-2")
            assert ask(one.pods["client"], SERVICE_IP["IPv4"], 80, echo) == client["IPv4"]
