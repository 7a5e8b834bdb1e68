"""`podlane cleanup kube-proxy`: its rules go, others' stay, and connections that run go on."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_interface

import pytest

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.xtables import command
from podlane.kernel.xtables.command import PLACES, Place, Variant
from podlane.model.addresses import Family
from tests.unit.test_xtables import KUBE_PROXY

IPV6 = KUBE_PROXY.replace("10.96.0.", "fd00:96::").replace("10.9.0.5", "fd00:9::5").replace("/32", "/128")
IPV6 = (
    IPV6.replace("127.0.0.0/8", "::1/128")
    .replace("192.0.2.0/24", "2001:db8::/64")
    .replace("icmp-port", "icmp6-port")
    .replace("--to-destination fd00:9::5:8080", "--to-destination [fd00:9::5]:8080")
)
NFT = """add table ip kube-proxy
add chain ip kube-proxy services { type nat hook prerouting priority -100; }
add table ip6 kube-proxy
add table ip kube-proxy-of-mine
"""


def run(fd: int, *words: str, stdin: str = "") -> str:
    done = netns.inside(
        fd,
        lambda: subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, timeout=60),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def clean(fd: int, *flags: str) -> dict[str, list[str]]:
    main = "from podlane.cli.main import main; main()"
    return json.loads(run(fd, sys.executable, "-c", main, "cleanup", "kube-proxy", "-o", "json", *flags))


def chains(fd: int, place: Place) -> set[str]:
    return {name for table in command.save(place, fd).values() for name in table.chains}


@pytest.mark.parametrize("variant", Variant)
def test_kube_proxys_go_and_the_others_stay(namespaces: Callable[[], int], variant: Variant) -> None:
    node, pod = namespaces(), namespaces()
    with Rtnl(node) as rt, Rtnl(pod) as inner:
        rt.set_up("lo")
        rt.create_veth("v0", "eth0", peer_netns=pod, up=True, peer_up=True)
        rt.add_address("v0", ip_interface("10.9.0.1/24"))
        inner.add_address("eth0", ip_interface("10.9.0.5/24"))
    four, six = Place(Family.IPV4, variant), Place(Family.IPV6, variant)
    run(node, f"{four.program}-restore", stdin=KUBE_PROXY)
    run(node, f"{six.program}-restore", stdin=IPV6)
    run(node, "nft", "-f", "-", stdin=NFT)
    # A connection to the ClusterIP, translated by these rules.
    listener = netns.socket_in(pod, socket.AF_INET, socket.SOCK_STREAM)
    client = netns.socket_in(node, socket.AF_INET, socket.SOCK_STREAM)
    with listener, client:
        listener.bind(("10.9.0.5", 8080))
        listener.listen()
        with Rtnl(node) as rt:
            rt.add_route(ip_interface("10.96.0.0/16").network, device="v0")
        client.settimeout(5)
        client.connect(("10.96.0.10", 80))
        served, _ = listener.accept()
        before = {place: command.save(place, node) for place in PLACES}
        would = clean(node, "--dry-run")
        assert {place: command.save(place, node) for place in PLACES} == before
        account = clean(node)
        assert account["removed"] == would["removed"]
        assert not account["failed"]
        assert not account["kept"]
        with served:
            client.sendall(b"on")
            assert served.recv(10) == b"on"
    for place in (four, six):
        left = {name for name in chains(node, place) if name.startswith(("KUBE", "ADMIN"))}
        assert left == {"KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "ADMIN", "ADMIN-NAT"}
        said = "".join(rule.spec for rule in command.save(place, node)["filter"].rules)
        assert "block incoming localnet" in said
        assert "says who wrote it" in said
    assert run(node, "nft", "list", "tables").count("kube-proxy") == 1
    # Again: nothing is left to do.
    assert clean(node)["removed"] == []


def test_a_node_without_any_of_it_has_nothing_made(namespaces: Callable[[], int]) -> None:
    node = namespaces()
    assert clean(node)["removed"] == []
    assert run(node, "nft", "list", "tables") == ""


def test_flannels_links_and_bridge_go_when_no_pod_is_on_them(namespaces: Callable[[], int]) -> None:
    from podlane.kernel.xtables import cleanup

    node = namespaces()
    masquerade = """*nat
:POSTROUTING ACCEPT [0:0]
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"""
    run(node, "iptables-nft-restore", stdin=masquerade)
    with Rtnl(node) as rt:
        rt.create_bridge("cni0", up=True)
        rt.create_veth("veth0", "veth1", master="cni0")
        rt.create_vxlan("flannel.1", vni=1, port=8472, underlay="cni0", mac="02:00:00:00:00:01")
        account = cleanup.clean("flannel", netns_fd=node)
        assert not account.failed
        assert account.kept == ["the bridge cni0 has ports: pods that run"]
        assert rt.find_link("flannel.1") is None
        rt.delete_link("veth0")
        assert cleanup.clean("flannel", netns_fd=node).removed == ["the bridge cni0"]
    assert "FLANNEL" not in run(node, "iptables-nft-save")


def test_ipsets_of_mode_ipvs_go(namespaces: Callable[[], int]) -> None:
    node = namespaces()
    for name, more in (("KUBE-CLUSTER-IP", ()), ("KUBE-6-CLUSTER-IP", ("family", "inet6")), ("MINE", ())):
        run(node, "ipset", "create", name, "hash:ip,port", *more)
    assert clean(node)["removed"] == ["ipset KUBE-CLUSTER-IP", "ipset KUBE-6-CLUSTER-IP"]
    assert run(node, "ipset", "list", "-n").split() == ["MINE"]
