"""NetworkPolicy in both link modes: what always passes, what never does, and what others do to the rules."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
from typing import Any

import pytest

from podlane.compile.tables import Direction, Policy, PolicyKey, Table
from podlane.compile.view import Change
from podlane.kernel import netns
from podlane.kernel.driver import Report
from podlane.kernel.nft import expressions, policy_chains, ruleset
from podlane.kernel.nft.policy import PolicyDriver
from podlane.kernel.nft.ruleset import Chain
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import Family
from podlane.model.config import NetworkConfig, with_settings
from tests.netns import packets
from tests.netns.policy_lab import PolicyLab, Probe
from tests.property.policy_strategies import NAMESPACES, World, address, place, typed

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
CLOSED = {"policyTypes": ["Ingress", "Egress"]}


def plain_world(*policies: Any) -> World:
    """Pods 0, 2 and 4 are on n1, 1, 3 and 5 on n2; 0 and 3 in namespace x, 1 and 4 in y, 2 and 5 in z."""

    def pod(index: int) -> Any:
        node, number = place(index)
        return {
            "metadata": {"name": f"p{index}", "namespace": NAMESPACES[index % 3], "uid": f"uid-{index}"},
            "spec": {"nodeName": f"n{node}", "containers": []},
            "status": {"phase": "Running", "podIPs": [{"ip": address(node, number, f)} for f in (4, 6)]},
        }

    names: list[Any] = [{"metadata": {"name": name, "labels": {}}} for name in NAMESPACES]
    return {"Namespace": names, "Pod": [pod(index) for index in range(6)], "NetworkPolicy": list(policies)}


def policy(namespace: str, **spec: Any) -> Any:
    return {"metadata": {"name": "one", "namespace": namespace}, "spec": spec}


def both(*args: Any, **more: Any) -> list[Probe]:
    """In both families."""
    return [Probe(*args, family, **more) for family in (4, 6)]


def test_a_node_reaches_its_own_pods_always_and_others_by_rules(policy_lab: PolicyLab) -> None:
    policy_lab.become(plain_world(policy("x", **CLOSED)))
    own, other = both("n1", 0, "TCP", 80), both("n2", 0, "TCP", 80)
    assert policy_lab.arrived(own + other, own) == set(own)


def test_a_pod_reaches_its_own_node_always(policy_lab: PolicyLab) -> None:
    policy_lab.become(plain_world(policy("x", **CLOSED)))
    for family, where in ((4, "172.30.1.1"), (6, "fd00:172:30::1")):
        with netns.socket_in(policy_lab.fds["n1"], FAMILY[family], socket.SOCK_DGRAM) as node:
            node.bind((where, 7777))
            node.settimeout(5)
            with netns.socket_in(policy_lab.fds[0], FAMILY[family], socket.SOCK_DGRAM) as pod:
                pod.sendto(b"hello", (where, 7777))
                assert node.recv(100) == b"hello"


def test_answers_always_pass(policy_lab: PolicyLab) -> None:
    """The server may send nothing of its own."""
    policy_lab.become(plain_world(policy("x", policyTypes=["Egress"])))
    for client in (2, 1):
        for family in (4, 6):
            server = ipaddress.ip_address(policy_lab.address(0, family))
            fds = policy_lab.fds[client], policy_lab.fds[0]
            assert str(packets.udp(*fds, server)) == policy_lab.address(client, family)
            assert str(packets.tcp(*fds, server)) == policy_lab.address(client, family)
    mine = both(0, 2, "UDP", 80)
    assert policy_lab.arrived(mine, []) == set()


def test_related_errors_pass(policy_lab: PolicyLab) -> None:
    """A port that nobody has is told by ICMP, to a client that lets nothing in."""
    policy_lab.become(plain_world(policy("x", policyTypes=["Ingress"])))
    for family in (4, 6):
        with netns.socket_in(policy_lab.fds[0], FAMILY[family], socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect((policy_lab.address(1, family), 9))
            client.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                client.recv(100)


def test_a_false_source_is_dropped(policy_lab: PolicyLab) -> None:
    """Pod 2 pretends to be pod 4, whom alone the policy lets in, or pod 1 of the other node."""
    friends = {"namespaceSelector": {"matchLabels": {"n": "y"}}}
    world = plain_world(policy("x", ingress=[{"from": [friends]}]))
    world["Namespace"][1]["metadata"]["labels"] = {"n": "y"}
    policy_lab.become(world)
    honest = both(4, 0, "UDP", 80)
    lies = both(2, 0, "UDP", 80, lie=4) + both(2, 0, "UDP", 80, lie=1) + both(2, 5, "UDP", 80, lie=4)
    assert policy_lab.arrived(honest + lies, honest) == set(honest)


def test_nothing_passes_of_a_pod_that_the_api_does_not_show(policy_lab: PolicyLab) -> None:
    world = plain_world()
    world["Pod"] = [pod for pod in world["Pod"] if pod["metadata"]["name"] != "p0"]
    policy_lab.become(world)
    probes = both(0, "outside", "UDP", 80)
    for other in (1, 2):
        probes += both(0, other, "TCP", 80) + both(other, 0, "TCP", 80)
    assert policy_lab.arrived(probes, []) == set()
    policy_lab.become(plain_world())
    assert policy_lab.arrived(probes, probes) == set(probes)


def test_an_address_is_its_new_pods_at_once(policy_lab: PolicyLab) -> None:
    """A pod has ended, a stranger has its address: the friend's rights are not the stranger's."""
    friends = {"podSelector": {"matchLabels": {"app": "friend"}}}
    allow = policy("x", ingress=[{"from": [friends]}])
    world = plain_world(allow)
    stranger = world["Pod"][3]
    meta = {**stranger["metadata"], "name": "friend", "labels": {"app": "friend"}}
    friend = {**stranger, "metadata": meta, "status": {**stranger["status"], "phase": "Running"}}
    world["Pod"].append(friend)
    policy_lab.become(world)
    probe = both(3, 0, "TCP", 80)
    # As long as both are said to have it, it is both of them.
    assert policy_lab.arrived(probe, probe) == set(probe)
    friend["status"] = {**friend["status"], "phase": "Succeeded"}
    policy_lab.become(world)
    assert policy_lab.arrived(probe, []) == set()


@pytest.mark.parametrize(
    "damage",
    [
        "flush chain {} podlane-policy ingress",
        "insert rule {} podlane-policy egress accept",
        "add chain {} podlane-policy theirs",
        "delete table {} podlane-policy",
        "flush map {} podlane-policy egress",
    ],
)
def test_what_others_change_is_repaired(policy_lab: PolicyLab, damage: str) -> None:
    policy_lab.become(plain_world(policy("x", **CLOSED)))
    for family in ("ip", "ip6"):
        command = ["nft", damage.format(family)]
        netns.inside(policy_lab.fds["n1"], lambda command=command: subprocess.run(command, check=True))  # type: ignore[misc]
    assert not policy_lab.in_order()
    assert policy_lab.in_order()
    denied, passing = both(2, 0, "TCP", 80), both(2, 4, "TCP", 80)
    assert policy_lab.arrived(denied + passing, passing) == set(passing)


def test_link_local_addresses_are_no_way_around(policy_lab: PolicyLab) -> None:
    policy_lab.become(plain_world(policy("z", **CLOSED)))
    with Rtnl(policy_lab.fds[2]) as pod:
        found = [a.address.ip for a in pod.addresses("eth0") if a.address.is_link_local]
    assert found
    with (
        netns.socket_in(policy_lab.fds[0], socket.AF_INET6, socket.SOCK_DGRAM) as sender,
        netns.socket_in(policy_lab.fds[2], socket.AF_INET6, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("::", 7778))
        receiver.settimeout(0.3)
        scope = netns.inside(policy_lab.fds[0], lambda: socket.if_nametoindex("eth0"))
        sender.sendto(b"psst", (str(found[0]), 7778, 0, scope))
        with pytest.raises(TimeoutError):
            receiver.recv(100)


def test_a_policy_that_the_kernel_refuses_leaves_the_others_alone(
    policy_lab: PolicyLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays as it was; if it is new, what it selects is closed."""
    right = policy_chains.policy
    nonsense = expressions.expression("lookup", expressions.number(2, 1))  # a lookup in no set

    def broken(key: PolicyKey, row: Policy, family: Family) -> Any:
        chain, sets = right(key, row, family)
        wrong = Chain((ruleset.rule("nonsense", nonsense),))
        return (wrong, sets) if key.namespace == "x" else (chain, sets)

    policy_lab.become(plain_world())
    monkeypatch.setattr(policy_chains, "policy", broken)
    both_closed = plain_world(policy("x", ingress=[{}]), policy("z", podSelector={}))
    deltas = policy_lab.compilers["n1"].apply(
        Change("NetworkPolicy", None, typed("NetworkPolicy", each)) for each in both_closed["NetworkPolicy"]
    )
    driver = policy_lab.drivers["n1"][0]
    report = driver.apply({table: deltas[table] for table in driver.tables if table in deltas})
    refused = {(failure.table, failure.key) for failure in report.failures}
    assert refused == {(Table.POLICIES, PolicyKey(Direction.INGRESS, "x", "one"))}
    to_x, to_z, to_y = both(4, 0, "TCP", 80), both(4, 2, "TCP", 80), both(2, 4, "TCP", 80)
    assert policy_lab.arrived(to_x + to_z + to_y, to_y) == set(to_y)
    monkeypatch.setattr(policy_chains, "policy", right)
    assert not policy_lab.in_order()  # the retry finds what is still to do, and does it
    assert policy_lab.in_order()
    assert policy_lab.arrived(to_x + to_z + to_y, to_x + to_y) == set(to_x + to_y)


@pytest.mark.parametrize("families", ["IPv4", "IPv6", "IPv6,IPv4"])
@pytest.mark.parametrize("mode", ["routed", "bridge"])
def test_tables_are_those_of_the_families_that_are_on(families: str, mode: str) -> None:
    fd = netns.new()
    driver = PolicyDriver(with_settings(NetworkConfig(), [f"ipFamilies={families}", f"link.mode={mode}"]), fd)
    try:
        driver.prepare()
        assert driver.resync({}).failures == ()
        assert driver.resync({}) == Report()
        listed = netns.inside(fd, lambda: subprocess.check_output(["nft", "list", "tables"], text=True))
        wanted = {f"table {'ip' if f == 'IPv4' else 'ip6'} podlane-policy" for f in families.split(",")}
        wanted |= {"table bridge podlane-policy"} if mode == "bridge" else set()
        assert set(listed.splitlines()) == wanted
        driver.remove()
        assert not netns.inside(fd, lambda: subprocess.check_output(["nft", "list", "tables"]))
    finally:
        driver.close()
        os.close(fd)
