"""What works against podlane on a node, judged from what was read of it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from podlane.agent.surroundings import condition
from podlane.kernel.xtables import forward
from podlane.kernel.xtables.ruleset import parse
from podlane.observe.conflicts import KINDS, Conflict, Dropping, Surroundings, conflicts

GOOD = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv4/conf/all/rp_filter": "0"}
UFW = frozenset({"ufw-before-forward", "FORWARD"})
CASES = {
    "nothing": (Surroundings(settings=GOOD), []),
    "flannel's conflist": (
        Surroundings(settings=GOOD, conflists=(("/etc/cni/net.d/10-flannel.conflist", "flannel"),)),
        [("OtherPlugin", "others.takeOver: true")],
    ),
    "calico's conflist": (
        Surroundings(settings=GOOD, conflists=(("/etc/cni/net.d/10-calico.conflist", "calico"),)),
        [("OtherPlugin", "remove that plugin")],
    ),
    "two systems": (
        Surroundings(settings=GOOD, links=("cilium_host", "flannel.1", "eth0")),
        [("OtherPlugin", "podlane cleanup flannel"), ("OtherPlugin", "Cilium")],
    ),
    "docker": (
        Surroundings(
            settings=GOOD,
            dropping=(Dropping("ip", "filter", "FORWARD", "iptables-nft"),),
            chains=frozenset({"DOCKER-USER"}),
        ),
        [("ForwardDropped", "(Docker)")],
    ),
    "ufw": (
        Surroundings(
            settings=GOOD, dropping=(Dropping("ip6", "filter", "FORWARD", "ip6tables-legacy"),), chains=UFW
        ),
        [("ForwardDropped", "DEFAULT_FORWARD_POLICY")],
    ),
    "ufw, and pods accepted": (
        Surroundings(
            settings=GOOD, dropping=(Dropping("ip", "filter", "FORWARD", "iptables-nft", accepted=True),)
        ),
        [],
    ),
    "firewalld": (
        Surroundings(settings=GOOD, dropping=(Dropping("inet", "firewalld", "filter_FORWARD"),)),
        [("ForwardDropped", "firewall-cmd --permanent")],
    ),
    "another's nft table of a family that is off": (
        Surroundings(families=("ip",), settings=GOOD, dropping=(Dropping("ip6", "mine", "forward"),)),
        [],
    ),
    "kube-proxy": (
        Surroundings(settings=GOOD, chains=frozenset({"KUBE-SERVICES"}), tables=frozenset({"kube-proxy"})),
        [("KubeProxy", "podlane cleanup kube-proxy")],
    ),
    "kube-proxy, as wanted": (
        Surroundings(settings=GOOD, chains=frozenset({"KUBE-SERVICES"}), services=False),
        [],
    ),
    "strict filters": (
        Surroundings(settings=GOOD | {"net/ipv4/conf/eth0/rp_filter": "1"}),
        [("StrictReversePath", "strict on eth0")],
    ),
    "strict, but loose for all": (
        Surroundings(
            settings=GOOD | {"net/ipv4/conf/eth0/rp_filter": "1", "net/ipv4/conf/all/rp_filter": "2"}
        ),
        [],
    ),
    "nothing forwarded": (
        Surroundings(settings=GOOD | {"net/ipv6/conf/all/forwarding": "0"}),
        [("ForwardingOff", "net.ipv6.conf.all.forwarding=1")],
    ),
    "no br_netfilter": (
        Surroundings(families=("ip",), settings=GOOD, bridged=True),
        [("BridgeNotFiltered", "modprobe br_netfilter")],
    ),
    "managers": (
        Surroundings(settings=GOOD, networkd=True, network_manager=True),
        [("NetworkManager", "unmanaged-devices"), ("Networkd", "ManageForeignRoutes=no")],
    ),
    "conntrack": (Surroundings(settings=GOOD, conntrack=(95, 100)), [("ConntrackFull", "9 tenths of 100")]),
    "conntrack, half full": (Surroundings(settings=GOOD, conntrack=(50, 100)), []),
    "left": (Surroundings(settings=GOOD, left=("veth0 of pod a/b: why",)), [("NotTakenOver", "a/b: why")]),
}


@pytest.mark.parametrize("name", CASES)
def test_each_is_told_once_with_a_remedy(name: str) -> None:
    found, expected = CASES[name]
    told = conflicts(found)
    assert len(told) == len(expected), told
    for kind, words in expected:
        assert any(each.kind == kind and words in str(each) for each in told), told
    assert all(each.kind in KINDS and each.remedy for each in told)


def test_one_condition_for_all_of_them() -> None:
    assert condition([])[1:3] == ("False", "None")
    one = Conflict("KubeProxy", "kube-proxy's rules are there", "delete it")
    two = Conflict("Networkd", "x" * 2000, "y")
    assert condition([one])[:3] == ("podlane.dev/Conflict", "True", "KubeProxy")
    both = condition([one, two])
    assert both.reason == "Several"
    assert both.message.startswith("kube-proxy's rules are there: delete it; xxx")
    assert len(both.message) <= 1024


FILTER = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"
PODS = [ip_network("10.244.0.0/16")]


def test_rules_that_accept_pods_are_first_once_and_go_again() -> None:
    text = forward.changes(parse(FILTER)["filter"], PODS)
    assert text.count("-I FORWARD 1") == 2
    ours = [line.replace("-I FORWARD 1", "-A FORWARD") for line in text.splitlines() if line.startswith("-I")]
    there = FILTER.replace("-A FORWARD", "\n".join([*ours, "-A FORWARD"]))
    assert forward.changes(parse(there)["filter"], PODS) == ""
    assert forward.changes(parse(there)["filter"], []).count("-D FORWARD") == 2
    behind = FILTER.replace("COMMIT", "\n".join([*ours, "COMMIT"]))
    moved = forward.changes(parse(behind)["filter"], PODS)
    assert (moved.count("-D FORWARD"), moved.count("-I FORWARD 1")) == (2, 2)
