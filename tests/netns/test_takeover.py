"""Pods of the reference plugins go over to podlane while they run, with traffic flowing all the while."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.agent_nodes import FAMILIES, TestNode, ask, two_nodes, wait_until
from tests.netns.reference_node import ReferenceNetwork
from tests.netns.standalone import REFERENCE
from tests.netns.test_agent import Echo, Stream, assert_reaches
from tests.netns.test_policy_agent import put_pod, put_policy, reaches

pytestmark = pytest.mark.skipif(not (REFERENCE / "bridge").exists(), reason="no reference plugins")

HOST_PORT = {"hostPort": 8081, "containerPort": 9999, "protocol": "udp"}


@contextmanager
def reference(
    where: Path, mode: str, **more: Any
) -> Iterator[tuple[Any, ReferenceNetwork, TestNode, TestNode]]:
    """node-1 with the reference plugins and no agent yet, node-2 with podlane."""
    extra = {"link": {"mode": mode}, "others": {"takeOver": True}}
    with two_nodes(where, FAMILIES["both"], extra) as (api, one, two):
        api.put("Namespace", "default")
        netns.write_sysctl(one.fd, "net/ipv4/ip_forward", 1)
        netns.write_sysctl(one.fd, "net/ipv6/conf/all/forwarding", 1)
        two.start()
        two.wait_ready()
        yield api, ReferenceNetwork(one, where / "reference", **more), one, two


def rules(node: TestNode) -> str:
    found = netns.inside(
        node.fd,
        lambda: [
            subprocess.run([f"{p}-save"], capture_output=True, text=True, check=True).stdout
            for p in ("iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy")
        ],
    )
    return "".join(found)


def masters(node: TestNode) -> set[str]:
    """The bridge that links of pods are ports of."""
    with Rtnl(node.fd) as rt:
        found = {link.index: link.name for link in rt.links()}
        return {found[link.master] for link in rt.links() if link.kind == "veth" and link.master}


@pytest.mark.parametrize("mode", ["routed", "bridge"])
def test_running_pods_go_over_without_a_lost_packet(tmp_path: Path, mode: str) -> None:
    with reference(tmp_path, mode) as (api, old, one, two):
        web, client = old.add("web", HOST_PORT), old.add("client")
        far = two.add_pod("far")
        assert "CNI-DN-" in rules(one)
        assert "CNI-HOSTPORT-DNAT" in rules(one)
        for name, held in (("web", web), ("client", client)):
            put_pod(api, name, one.name, held["IPv4"], app=name)
        gone = old.leased()
        streams = [Stream(one.pods["client"], one.pods["web"], web[f]) for f in FAMILIES["both"]]
        streams.append(Stream(one.fd, one.pods["client"], client["IPv4"]))
        with (
            ExitStack() as stack,
            netns.socket_in(one.pods["web"], socket.AF_INET, socket.SOCK_STREAM) as listener,
        ):
            listener.bind((web["IPv4"], 80))
            listener.listen()
            begun = stack.enter_context(
                netns.socket_in(one.pods["client"], socket.AF_INET, socket.SOCK_STREAM)
            )
            begun.connect((web["IPv4"], 80))
            served = stack.enter_context(listener.accept()[0])
            served.settimeout(5)
            with ExitStack() as flowing:
                for stream in streams:
                    flowing.enter_context(stream)
                one.start(*old.flags)
                one.wait_ready()
                wait_until(lambda: "CNI-DN-" not in rules(one), "host ports went over")
            begun.sendall(b"still here")
            assert served.recv(100) == b"still here"
        for stream in streams:
            assert stream.sent > 100
            assert stream.answered == stream.sent, one.log()
        assert masters(one) == ({"cni0"} if mode == "bridge" else set())
        # It is a pod like any other: of this node, of another one, with its own address.
        new = one.add_pod("new")
        for family in FAMILIES["both"]:
            assert new[family] not in gone
            assert_reaches(one.pods["web"], two.pods["far"], far[family], web[family])
            assert_reaches(two.pods["far"], one.pods["web"], web[family], far[family])
            assert_reaches(one.pods["new"], one.pods["web"], web[family], new[family])
            assert_reaches(one.pods["web"], one.pods["new"], new[family], web[family])
            assert_reaches(one.pods["client"], one.pods["web"], web[family], client[family])
        # Its host port is podlane's, and leads to it.
        with Echo(one.pods["web"], web["IPv4"]) as echo:
            assert ask(two.fd, one.addresses[0], 8081, echo) == two.addresses[0]
        # Nothing of the old plugin comes before ours, and nothing of it stays for the next holder.
        assert sorted(p.name for p in old.conf.iterdir()) == [
            "10-flannel.conflist.podlane-aside",
            "10-podlane.conflist",
        ]
        assert f"{web['IPv4']}/32" not in rules(one)
        # The API server's runtime asks us for the DEL of a pod that the reference plugins had added.
        one.delete_pod("web")
        wait_until(lambda: web["IPv4"] not in old.leased(), "its lease is given back")
        assert {client["IPv4"], client["IPv6"]} <= old.leased()
        assert "web" not in json.dumps(one.get("/tables")[1].decode())


def test_policy_holds_for_a_pod_that_went_over(tmp_path: Path) -> None:
    with reference(tmp_path, "routed") as (api, old, one, two):
        web, client = old.add("web"), old.add("client")
        put_pod(api, "web", one.name, web["IPv4"], app="web")
        put_pod(api, "client", one.name, client["IPv4"])
        one.start(*old.flags)
        one.wait_ready()
        assert reaches(one.pods["client"], one.pods["web"], web["IPv4"])
        put_policy(api, "closed", podSelector={"matchLabels": {"app": "web"}})
        wait_until(lambda: not reaches(one.pods["client"], one.pods["web"], web["IPv4"]), "it is closed")
        # Under another's address nothing leaves it.
        with Rtnl(one.pods["client"]) as rt:
            rt.add_address("eth0", ip_interface("10.244.1.77/32"))
        fd = one.pods["client"]
        with netns.socket_in(fd, socket.AF_INET, socket.SOCK_DGRAM) as liar:
            liar.bind(("10.244.1.77", 0))
            with netns.socket_in(two.fd, socket.AF_INET, socket.SOCK_DGRAM) as victim:
                victim.bind((two.addresses[0], 7777))
                victim.settimeout(0.3)
                liar.sendto(b"x", (two.addresses[0], 7777))
                with pytest.raises(TimeoutError):
                    victim.recv(10)


def test_an_agent_that_is_killed_within_the_takeover_does_the_rest_when_it_is_back(tmp_path: Path) -> None:
    with reference(tmp_path, "routed") as (api, old, one, two):
        web = old.add("web", HOST_PORT)
        put_pod(api, "web", one.name, web["IPv4"])
        api.delete("Node", one.name)  # no first generation: links are adopted, and stay ports
        one.start(*old.flags)
        wait_until(lambda: "went over" in one.log(), "the link is adopted")
        assert masters(one) == {"cni0"}
        one.stop(9)
        assert_reaches(one.fd, one.pods["web"], web["IPv4"], "10.244.1.1")
        api.put("Node", one.name, **one.object)
        one.start(*old.flags)
        status = one.wait_ready()
        wait_until(lambda: not masters(one), "it is no port any more")
        assert status["attachments"] == 1
        assert_reaches(two.fd, one.pods["web"], web["IPv4"], two.addresses[0])
        # DEL by the plugins that made it: the collector finds that the link is gone.
        old.delete("web")
        assert old.leased() == set()


def test_what_cannot_go_over_stays_as_it_was_and_is_told(tmp_path: Path) -> None:
    with reference(tmp_path, "routed") as (api, old, one, _two):
        web = old.add("web")
        put_pod(api, "web", one.name, web["IPv4"])
        note = next(old.results.iterdir())
        note.write_text(note.read_text().replace("/fd/", "/no-such-fd/"))
        (old.results / "garbage").write_bytes(b"\xff{")
        one.start(*old.flags)
        one.wait_ready()
        assert "not taken over" in one.log()
        assert masters(one) == {"cni0"}
        # Its address is not given to another.
        assert {one.add_pod(f"p{n}")["IPv4"] for n in range(3)}.isdisjoint({web["IPv4"]})
