"""Host ports with real packets: who reaches a pod by a port of its node, and what is left behind."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import struct
import subprocess
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from podlane.cni import client as cni
from podlane.cni.host_ports import HOST_PORT_TAKEN
from podlane.errors import CniError
from podlane.kernel import netns
from podlane.kernel.nft import command
from podlane.kernel.rtnl import Rtnl, routes
from podlane.model.addresses import Family
from tests.netns.agent_nodes import CNI_CONFIG, FAMILIES, Echo, TestNode, ask, wait_until
from tests.netns.policy_lab import build
from tests.netns.test_agent import running

MODES = {"routed": {}, "bridge": {"link": {"mode": "bridge"}}}


def mapping(host_port: int = 8080, protocol: str = "UDP", **more: Any) -> dict[str, Any]:
    return {"hostPort": host_port, "containerPort": 9999, "protocol": protocol, **more}


def cni_call(
    node: TestNode, verb: str, pod: str, mappings: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    config = CNI_CONFIG | {"runtimeConfig": {"portMappings": mappings}} | more
    path, fd = node.dir / "cni.sock", node.pods[pod]
    return asyncio.run(cni.call(path, verb, netns_fd=fd, container_id=pod, config=config))


def add(node: TestNode, pod: str, *mappings: dict[str, Any]) -> dict[str, str]:
    """A pod with host ports. Returns its address by family."""
    node.pods[pod] = netns.new()
    with Rtnl(node.pods[pod]) as rt:
        rt.set_up("lo")
    answer = cni_call(node, "ADD", pod, list(mappings))
    return {
        ("IPv6" if ":" in ip["address"] else "IPv4"): ip["address"].partition("/")[0] for ip in answer["ips"]
    }


def ruleset(node: TestNode) -> str:
    with netns.entered(node.fd):
        done = subprocess.run(
            ["nft", "list", "ruleset"], capture_output=True, text=True, errors="replace", check=True
        )
    return done.stdout


def elements(node: TestNode) -> list[str]:
    """All elements of both tables, in no order of nft's."""
    found = []
    for family in ("ip", "ip6"):
        _, there, table = ruleset(node).partition(f"table {family} podlane-ports {{")
        for inside in re.findall(
            r"elements = {(.*?)}", table.partition("\n}")[0] if there else "", re.DOTALL
        ):
            found += [" ".join(f"{family} {each}".split()) for each in inside.split(",")]
    return sorted(found)


def assert_refused(fd: int, address: str, port: int) -> None:
    """The node says at once that nobody listens there."""
    with netns.socket_in(fd, socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((address, port))
        client.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("families", ["both", "IPv6"])
def test_everyone_reaches_it(tmp_path: Path, families: str, mode: str) -> None:
    with running(tmp_path, families, MODES[mode]) as (_, one, two):
        server = add(one, "server", mapping())
        mate, far = one.add_pod("mate"), two.add_pod("far")
        for at, family in enumerate(FAMILIES[families]):
            node, other = one.addresses[at], two.addresses[at]
            with Echo(one.pods["server"], server[family]) as echo:
                assert ask(two.fd, node, 8080, echo) == other, "from outside, with its own address"
                assert ask(two.pods["far"], node, 8080, echo) == far[family]
                assert ask(one.pods["mate"], node, 8080, echo) == mate[family]
                assert ask(one.fd, node, 8080, echo) == node
                assert ask(one.pods["server"], node, 8080, echo) != server[family], "itself, masqueraded"
                if family == "IPv4":
                    assert ask(one.fd, "127.0.0.1", 8080, echo) != "127.0.0.1"
                else:
                    assert_refused(one.fd, "::1", 8080)


def test_sctp_reaches_the_pod_under_its_own_port(tmp_path: Path) -> None:
    """An INIT made by hand: the kernel here may know the protocol only in conntrack."""
    with running(tmp_path, "both") as (_, one, two):
        addresses = add(one, "web", mapping(protocol="SCTP"))
        number = socket.IPPROTO_SCTP
        for at, family in enumerate(FAMILIES["both"]):
            kind = Family(family).af
            with (
                netns.socket_in(one.pods["web"], kind, socket.SOCK_RAW, number) as pod,
                netns.socket_in(two.fd, kind, socket.SOCK_RAW, number) as client,
            ):
                pod.settimeout(5)
                packet = build(two.addresses[at], one.addresses[at], "SCTP", 5000, 8080, 77)
                client.sendto(packet[40 if ":" in addresses[family] else 20 :], (one.addresses[at], 0))
                got, peer = pod.recvfrom(2048)
                got = got if ":" in addresses[family] else got[20:]  # IPv4 shows its header
                ports, tag = struct.unpack("!HH", got[:4]), got[16:20]
                assert (peer[0], ports, tag) == (two.addresses[at], (5000, 9999), (77).to_bytes(4, "big"))


def test_tcp_and_a_host_ip_and_another_port_untouched(tmp_path: Path) -> None:
    with running(tmp_path) as (_, one, two):
        with Rtnl(one.fd) as rt:
            rt.add_address("eth0", ip_interface("172.30.1.101/24"))
        server = add(one, "server", mapping(protocol="TCP", hostIP="172.30.1.101"))
        with netns.socket_in(one.pods["server"], socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((server["IPv4"], 9999))
            listener.listen(4)
            listener.settimeout(5)
            with netns.socket_in(two.fd, socket.AF_INET, socket.SOCK_STREAM) as client:
                client.settimeout(5)
                client.connect(("172.30.1.101", 8080))
                connection, peer = listener.accept()
                connection.close()
                assert peer[0] == two.addresses[0]
            for address, port in (("172.30.1.1", 8080), ("172.30.1.101", 8081)):
                with netns.socket_in(two.fd, socket.AF_INET, socket.SOCK_STREAM) as client:
                    client.settimeout(5)
                    with pytest.raises(ConnectionRefusedError):
                        client.connect((address, port))


def test_a_port_that_is_taken_is_refused_and_the_pod_with_it(tmp_path: Path) -> None:
    with running(tmp_path) as (_, one, _two):
        add(one, "first", mapping(), mapping(protocol="TCP"), mapping(hostIP="172.30.1.1"))
        before = elements(one)
        for again in (mapping(), mapping(protocol="TCP"), mapping(hostIP="172.30.1.1")):
            with pytest.raises(CniError, match="taken by container first") as caught:
                add(one, "second", again)
            assert caught.value.code == HOST_PORT_TAKEN
            with Rtnl(one.pods["second"]) as rt:
                assert rt.find_link("eth0") is None
        assert elements(one) == before
        add(one, "second", mapping(8081), mapping(protocol="SCTP"), mapping(hostIP="172.30.1.9"))
        cni_call(one, "DEL", "first", [])
        cni_call(one, "DEL", "second", [])
        assert elements(one) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (mapping(70000), r"runtimeConfig\.portMappings\[0\]\.hostPort is 70000"),
        (mapping() | {"containerPort": 0}, "containerPort is missing or 0"),
        (mapping(protocol="icmp"), "protocol is 'icmp', expected one of tcp, udp, sctp"),
        (mapping(hostIP="here"), "hostIP is 'here'"),
    ],
)
def test_a_mapping_that_is_none_is_refused_by_name(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    with running(tmp_path, "IPv4") as (_, one, _two), pytest.raises(CniError, match=words):
        add(one, "server", wrong)


def test_a_udp_client_that_goes_on_sending_follows_the_port_to_the_next_pod(tmp_path: Path) -> None:
    with (
        running(tmp_path, "IPv4") as (_, one, two),
        netns.socket_in(two.fd, socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(5)
        client.bind(("172.30.1.2", 4000))
        client.sendto(b"nobody is there yet", ("172.30.1.1", 8080))  # an entry that leads to the node itself
        for name in ("first", "second"):
            where = add(one, name, mapping())
            with Echo(one.pods[name], where["IPv4"]) as echo:
                client.sendto(b"?", ("172.30.1.1", 8080))
                assert echo.answer() == "172.30.1.2"
            one.delete_pod(name)


def test_a_restarted_agent_finds_them_and_repairs_what_was_done_to_them(tmp_path: Path) -> None:
    with running(tmp_path) as (_, one, two):
        server = add(one, "server", mapping(), mapping(8081, hostIP="172.30.1.1"))
        before = elements(one)
        one.stop(signal.SIGKILL)
        command.load("flush map ip podlane-ports any\ndelete table ip6 podlane-ports\n", one.fd)
        one.start()
        one.wait_ready()
        wait_until(lambda: elements(one) == before, "the ports are back")
        with Echo(one.pods["server"], server["IPv4"]) as echo:
            assert ask(two.fd, one.addresses[0], 8080, echo) == two.addresses[0]
        with pytest.raises(CniError, match="taken by container server"):
            add(one, "other", mapping())
        one.delete_pod("server")
        assert elements(one) == []


def test_check_says_when_a_port_leads_elsewhere(tmp_path: Path) -> None:
    with running(tmp_path, "IPv4") as (_, one, _two):
        add(one, "server", mapping())
        result = cni_call(one, "ADD", "server", [mapping()])
        cni_call(one, "CHECK", "server", [mapping()], prevResult=result)
        command.load("flush map ip podlane-ports any\n", one.fd)
        with pytest.raises(CniError, match=r"port 8080/UDP of any address \(IPv4\) does not lead"):
            cni_call(one, "CHECK", "server", [mapping()], prevResult=result)


def test_nobody_else_sends_to_the_loopback_address(tmp_path: Path) -> None:
    """route_localnet alone would let a neighbour reach what listens on the node's 127.0.0.1."""
    with running(tmp_path, "IPv4") as (_, one, two):
        add(one, "server", mapping())
        assert netns.read_sysctl(one.fd, "net/ipv4/conf/all/route_localnet") == "1"
        netns.write_sysctl(two.fd, "net/ipv4/conf/all/route_localnet", 1)
        local = ip_network("127.0.0.0/8")
        with Rtnl(two.fd) as rt:
            for route in [r for r in rt.routes(Family.IPV4) if r.destination.overlaps(local)]:
                rt.do(routes.delete(route))
            rt.add_route(ip_network("127.0.0.1/32"), via=ip_address("172.30.1.1"), device="eth0")
        with Echo(one.fd, "127.0.0.1", 9998) as inside:
            assert ask(one.fd, "127.0.0.1", 9998, inside) == "127.0.0.1"
            inside.socket.settimeout(0.5)
            with netns.socket_in(two.fd, socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.bind(("172.30.1.2", 0))
                client.sendto(b"?", ("127.0.0.1", 9998))
                with pytest.raises(TimeoutError):
                    inside.answer()
