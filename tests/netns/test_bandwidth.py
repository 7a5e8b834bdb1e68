"""Limits of a pod's link: what the kernel holds, and what it does to packets."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from podlane.cni import client as cni
from podlane.cni.shaping import from_annotations
from podlane.errors import CniError
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.agent_nodes import CNI_CONFIG, TestNode, wait_until
from tests.netns.test_agent import assert_reaches, running

LIMITED = {"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "4M"}
MODES = {"routed": {}, "bridge": {"link": {"mode": "bridge"}}}


def call(node: TestNode, verb: str, pod: str, bandwidth: dict[str, Any], **more: Any) -> dict[str, Any]:
    config = CNI_CONFIG | {"runtimeConfig": {"bandwidth": bandwidth}} | more
    path, fd = node.dir / "cni.sock", node.pods[pod]
    return asyncio.run(cni.call(path, verb, netns_fd=fd, container_id=pod, config=config))


def add(node: TestNode, pod: str, bandwidth: dict[str, Any]) -> tuple[str, str]:
    """Returns the node's end of the pod's link, and the pod's IPv4 address."""
    node.pods[pod] = netns.new()
    with Rtnl(node.pods[pod]) as rt:
        rt.set_up("lo")
    answer = call(node, "ADD", pod, bandwidth)
    return answer["interfaces"][0]["name"], answer["ips"][0]["address"].partition("/")[0]


def tc(node: TestNode, *arguments: str) -> list[dict[str, Any]]:
    with netns.entered(node.fd):
        done = subprocess.run(["tc", "-s", "-j", *arguments], capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return found


def buckets(node: TestNode) -> dict[str, dict[str, Any]]:
    return {each["dev"]: each for each in tc(node, "qdisc", "show") if each["kind"] == "tbf"}


def ifbs(node: TestNode) -> list[str]:
    with Rtnl(node.fd) as rt:
        return [link.name for link in rt.links() if link.kind == "ifb"]


def flood(fd: int, address: str, datagrams: int) -> None:
    """So many datagrams of 1,000 bytes, as fast as the machine can."""
    with netns.socket_in(fd, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 23)
        for _ in range(datagrams):
            try:
                sender.sendto(bytes(1000), (address, 9))
            except (BlockingIOError, ConnectionRefusedError, OSError):
                continue


@pytest.mark.parametrize("mode", MODES)
def test_both_directions_are_limited_and_nobody_elses(tmp_path: Path, mode: str) -> None:
    with running(tmp_path, "IPv4", MODES[mode]) as (_, one, two):
        device, address = add(one, "slow", from_annotations(LIMITED))
        free = one.add_pod("free")["IPv4"]
        (ifb,) = ifbs(one)
        found = buckets(one)
        assert {name: each["options"]["rate"] for name, each in found.items()} == {
            device: 1_000_000,
            ifb: 500_000,
        }
        assert found[device]["options"]["burst"] == pytest.approx(50_000, rel=0.01)
        far = two.add_pod("far")["IPv4"]
        assert_reaches(one.pods["slow"], two.pods["far"], far, address)
        assert_reaches(two.pods["far"], one.pods["slow"], address, far)

        flood(two.pods["far"], address, 1000)  # a megabyte, of which 100 kB fit into bucket and queue
        flood(one.pods["slow"], far, 1000)
        flood(two.pods["far"], free, 1000)
        after = buckets(one)
        assert after[device]["drops"] > 100
        assert after[ifb]["drops"] > 100
        assert set(after) == {device, ifb}


def test_limits_go_with_the_pod(tmp_path: Path) -> None:
    with running(tmp_path, "IPv4") as (_, one, _two):
        add(one, "slow", {"ingressRate": 1_000_000, "egressRate": 1_000_000})
        assert len(ifbs(one)) == 1
        one.delete_pod("slow")
        assert (ifbs(one), buckets(one)) == ([], {})


def test_adding_again_follows_what_is_asked_for(tmp_path: Path) -> None:
    with running(tmp_path, "IPv4") as (_, one, _two):
        device, _ = add(one, "pod", {"ingressRate": 8_000_000, "egressRate": 8_000_000})
        call(one, "ADD", "pod", {"ingressRate": 16_000_000})
        assert {name: b["options"]["rate"] for name, b in buckets(one).items()} == {device: 2_000_000}
        assert ifbs(one) == []
        assert "ingress" not in {each["kind"] for each in tc(one, "qdisc", "show", "dev", device)}
        call(one, "ADD", "pod", {})
        assert (ifbs(one), buckets(one)) == ([], {})


def test_a_restarted_agent_repairs_what_was_done_to_them(tmp_path: Path) -> None:
    with running(tmp_path, "IPv4") as (_, one, _two):
        device, _ = add(one, "slow", {"ingressRate": 8_000_000, "egressRate": 8_000_000})
        (ifb,) = ifbs(one)
        options = {name: each["options"] for name, each in buckets(one).items()}
        one.stop(signal.SIGKILL)
        with Rtnl(one.fd) as rt:
            rt.delete_link(ifb)
        tc(
            one,
            "qdisc",
            "replace",
            "dev",
            device,
            "root",
            "tbf",
            "rate",
            "1mbit",
            "burst",
            "10k",
            "limit",
            "9k",
        )
        one.start()
        one.wait_ready()
        wait_until(
            lambda: {name: each["options"] for name, each in buckets(one).items()} == options,
            "limits are back",
        )
        call(one, "CHECK", "slow", {"ingressRate": 8_000_000, "egressRate": 8_000_000}, prevResult=RESULT)


RESULT: dict[str, Any] = {"cniVersion": "1.1.0", "ips": [], "interfaces": []}


def test_check_says_which_limit_is_gone(tmp_path: Path) -> None:
    with running(tmp_path, "IPv4") as (_, one, _two):
        asked = {"ingressRate": 8_000_000, "egressRate": 8_000_000}
        device, _ = add(one, "slow", asked)
        call(one, "CHECK", "slow", asked, prevResult=RESULT)
        tc(one, "qdisc", "delete", "dev", device, "root")
        with pytest.raises(CniError, match="does not limit what the container receives"):
            call(one, "CHECK", "slow", asked, prevResult=RESULT)
        tc(one, "qdisc", "delete", "dev", device, "ingress")
        with pytest.raises(CniError, match="does not go through plq"):
            call(one, "CHECK", "slow", asked, prevResult=RESULT)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ingressRate": 999}, r"runtimeConfig\.bandwidth\.ingressRate is 999, expected 1000 to"),
        ({"egressRate": "1M"}, "egressRate is '1M', expected an integer"),
        ({"egressBurst": 9000}, "egressBurst is of no use without egressRate"),
    ],
)
def test_what_is_no_limit_is_refused_by_name(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    with running(tmp_path, "IPv4") as (_, one, _two), pytest.raises(CniError, match=words):
        add(one, "pod", wrong)
